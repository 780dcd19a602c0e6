// Completions of one set of held-out problems by all evaluations, as a source
// for the browser: two evaluations can be put beside each other.

const BY = ['rule', 'chance', 'judge', 'unjudged'];

async function problemsSource(head, number) {
  const name = `problems-${number}`, about = head.problems[number];
  const index = await part(name), runs = head.runs;
  const count = index.problem.length;
  const title = (e) => {
    const one = about.evaluations[e];
    return `${runs.length > 1 ? `${runs[one.run].name}: ` : ''}` +
        `${one.stage} ${one.step}`;
  };
  // Completions of a problem, and of one way in one evaluation.
  const rows = new Map(), at = new Map();
  const key = (i, e) =>
    `${index.problem[i]} ${e} ${index.sampled[i]} ${index.sample[i]}`;
  for (let i = 0; i < count; i++) {
    if (!rows.has(index.problem[i])) rows.set(index.problem[i], []);
    rows.get(index.problem[i]).push(i);
    at.set(key(i, index.evaluation[i]), i);
  }
  const several = index.sample.some((x) => x > 0);
  const scored = index.score.some((x) => x !== null && x !== 0 && x !== 1);
  // How often a problem is right under the evaluation of a completion.
  const share = new Array(count);
  for (let i = 0; i < count; i++) {
    const same = rows.get(index.problem[i]).filter(
        (k) => index.evaluation[k] === index.evaluation[i] &&
        (!several || index.sampled[k]));
    share[i] = same.length ?
        same.reduce((sum, k) => sum + index.correct[k], 0) / same.length : null;
  }
  let chosen = {};
  const beside = (i) => chosen.beside === undefined || chosen.beside === '' ?
      null : at.get(key(i, Number(chosen.beside))) ?? null;
  // [before, after] of a completion: of the two evaluations the later last.
  const pair = (i) => {
    const other = beside(i);
    if (other === null) return null;
    return Number(chosen.beside) < index.evaluation[i] ?
        [index.correct[other], index.correct[i]] :
        [index.correct[i], index.correct[other]];
  };
  const went = (before, after) => (i) => {
    const found = pair(i);
    return found && found[0] === before && found[1] === after;
  };

  const filters = {
    all: ['all', () => true],
    right: ['right', (i) => index.correct[i]],
    wrong: ['wrong', (i) => !index.correct[i]],
    unparsed: ['unparsed answers', (i) => index.unparsed[i]],
    parsed: ['wrong, with an answer',
      (i) => !index.correct[i] && !index.unparsed[i]],
    truncated: ['cut by the length cap', (i) => index.truncated[i]],
    error: ['could not be checked', (i) => index.error[i]],
    became: ['became right', went(0, 1), true],
    lost: ['became wrong', went(1, 0), true],
    kept: ['right in both', went(1, 1), true],
    never: ['wrong in both', went(0, 0), true]};
  if (several) {
    filters.mixed = ['sometimes right',
      (i) => share[i] > 0 && share[i] < 1];
  }
  BY.forEach((by, k) => {
    if (k && index.by.includes(k)) {
      filters[`by ${by}`] = [`score by ${by}`, (i) => index.by[i] === k];
    }
  });

  const sorts = {step: ['in order'],
    longest: ['longest', index.length, -1],
    shortest: ['shortest', index.length, 1]};
  if (several) {
    sorts.rare = ['least often right', share, 1];
    sorts.often = ['most often right', share, -1];
  }
  if (scored) {
    sorts.worst = ['worst score', index.score, 1];
    sorts.best = ['best score', index.score, -1];
  }

  function pills(i) {
    const out = [pill(index.correct[i] ? 'right' : 'wrong',
        index.correct[i] ? 'high' : 'low')];
    const other = beside(i);
    if (other !== null) {
      out.push(pill(`${title(Number(chosen.beside))}: ` +
          `${index.correct[other] ? 'right' : 'wrong'}`,
      index.correct[other] ? 'high' : 'low'));
    }
    if (index.extracted[i] !== null) out.push(pill(index.extracted[i]));
    if (scored && index.score[i] !== null) {
      out.push(pill(`score ${short(index.score[i])}`));
    }
    if (several && share[i] !== null) {
      out.push(pill(`${Math.round(100 * share[i])}% of samples right`));
    }
    return out;
  }

  function flags(i) {
    const out = [];
    if (index.unparsed[i]) out.push('unparsed');
    if (index.truncated[i]) out.push('cut');
    if (index.error[i]) out.push('not checked');
    if (index.by[i]) out.push(`by ${BY[index.by[i]]}`);
    return out.map((text) => pill(text, 'flag'));
  }

  const way = (i) => index.sampled[i] ?
      `sampled${several ? ` ${index.sample[i] + 1}` : ''}` : 'greedy';

  // What changed between two evaluations, in a sentence.
  function between() {
    if (chosen.beside === '' || chosen.beside === undefined) return '';
    const e = Number(chosen.evaluation), b = Number(chosen.beside);
    const counts = {became: 0, lost: 0, kept: 0, never: 0};
    for (let i = 0; i < count; i++) {
      if (!admits(i, chosen)) continue;
      for (const k of Object.keys(counts)) counts[k] += filters[k][1](i) ? 1 : 0;
    }
    const ways = chosen.decoding === '' ? '' :
        `, ${Number(chosen.decoding) ? 'sampled' : 'greedy'}`;
    return `From ${title(Math.min(e, b))} to ${title(Math.max(e, b))}${ways}: ` +
        `${counts.became} became right, ${counts.lost} became wrong, ` +
        `${counts.kept} right in both, ${counts.never} wrong in both.`;
  }

  function admits(i, chosen) {
    return index.evaluation[i] === Number(chosen.evaluation) &&
        (chosen.decoding === '' ||
        index.sampled[i] === Number(chosen.decoding));
  }

  return {
    name, index, count, filters, sorts, pills, flags, title, way, beside,
    between, admits, rows: (i) => rows.get(index.problem[i]), by: {},
    line: (i) => `problem ${index.problem[i] + 1}, ${way(i)}: ` +
        `${index.length[i]} tokens`,
    narrows: ['evaluation', 'decoding', 'beside'],
    fill: (now) => {
      chosen = now;
      const all = about.evaluations.map((_, e) => [String(e), title(e)]);
      return {
        evaluation: [...all].reverse(),  // the last one first
        decoding: [['0', 'greedy'], ['1', 'sampled'], ['', 'both']],
        beside: [['', 'nothing'],
          ...all.filter(([e]) => e !== now.evaluation)]};
    },
    choose: (now) => {
      chosen = now;
    }};
}
