// Samples of training stages, as a source for the browser.

async function trainingSource(head) {
  const {index, rewards} = await part('samples');
  const runs = head.runs, names = Object.keys(rewards);
  const count = index.run.length;
  const limits = Object.fromEntries(names.map((name) => {
    let low = Infinity, high = -Infinity;
    for (const x of rewards[name]) {
      if (x === null) continue;
      low = Math.min(low, x);
      high = Math.max(high, x);
    }
    return [name, {low, high, middle: (low + high) / 2}];
  }));
  const varies = (name, i) => rewards[name][i] !== null &&
      limits[name].high > limits[name].low;
  const high = (name, i) => varies(name, i) &&
      rewards[name][i] > limits[name].middle;
  const low = (name, i) => varies(name, i) &&
      rewards[name][i] <= limits[name].middle;
  const stage = (i) => runs[index.run[i]].stages[index.stage[i]].name;

  const filters = {
    all: ['all', () => true],
    unparsed: ['unparsed answers', (i) => index.unparsed[i]],
    truncated: ['cut by the length cap', (i) => index.truncated[i]]};
  if (names.length > 1) {
    filters.disagree = ['rewards disagree', (i) => index.spread[i] >= 0.5];
  }
  const some = (column) => column.some((x) => x !== null && x !== 0);
  if (some(index.advantage)) {
    filters.signal = ['advantage is not 0',
      (i) => Math.abs(index.advantage[i] || 0) > 0];
  }
  if (some(index.dropped)) {
    filters.dropped = ['not trained on', (i) => index.dropped[i]];
  }
  if (some(index.tokens.map((x) => x === null ? 0 : 1))) {
    filters.tokens = ['with numbers of tokens', (i) => index.tokens[i] !== null];
  }
  if (names.some((n) => rewards[n].some((x) => x === null))) {
    filters.none = ['a reward has no value', (i) => names.some(
        (n) => rewards[n][i] === null)];
  }
  for (const name of names) {
    filters[`low ${name}`] = [`${name} low`, (i) => low(name, i)];
    filters[`high ${name}`] = [`${name} high`, (i) => high(name, i)];
  }
  const few = names.slice(0, 5);
  for (const one of few) {
    for (const other of few) {
      if (one === other) continue;
      filters[`pair ${one} ${other}`] = [`${one} high, ${other} low`,
        (i) => high(one, i) && low(other, i)];
    }
  }

  function pills(i, alone) {  // alone: with all that the row says beside them
    const out = index.tag[i] && !alone ? [pill(index.tag[i])] : [];
    for (const name of names) {
      const value = rewards[name][i];
      if (value === null) continue;
      out.push(pill(`${name} ${short(value)}`,
          high(name, i) ? 'high' : low(name, i) ? 'low' : ''));
    }
    return out;
  }

  function flags(i) {
    const out = [];
    if (index.unparsed[i]) out.push('unparsed');
    if (index.truncated[i]) out.push('cut');
    if (index.dropped[i]) out.push('not trained on');
    return out.map((text) => pill(text, 'flag'));
  }

  // The other completions of its prompt in that step.
  function group(i) {
    if (index.group[i] === null) return [];
    const out = [];
    for (let k = 0; k < count; k++) {
      if (index.group[k] === index.group[i] && index.step[k] === index.step[i] &&
          index.stage[k] === index.stage[i] && index.run[k] === index.run[i]) {
        out.push(k);
      }
    }
    return out;
  }

  return {
    name: 'samples', index, count, filters, pills, flags, stage, group, rewards,
    line: (i) => `${runs.length > 1 ? `${runs[index.run[i]].name}, ` : ''}` +
        `${stage(i)} ${index.step[i]}: ` + [
      ...(index.length[i] === null ? [] :
        [`${index.length[i]} ${index.measured[i] ? 'tokens' : 'characters'}`]),
      ...['reward', 'advantage'].flatMap((key) => index[key][i] === null ? [] :
        [`${key} ${short(index[key][i])}`])].join(', '),
    narrows: ['run', 'stage', 'step'],
    admits: (i, chosen) =>
      (chosen.run === '' || index.run[i] === Number(chosen.run)) &&
      (chosen.stage === '' || stage(i) === chosen.stage) &&
      (chosen.step === '' || index.step[i] === Number(chosen.step)),
    by: {reward: index.reward, advantage: index.advantage,
      ...Object.fromEntries(names.map((n) => [`reward: ${n}`, rewards[n]]))},
    sorts: {step: ['in order'], late: ['latest first'],
      worst: ['worst', null, 1], best: ['best', null, -1],
      longest: ['longest', index.length, -1],
      shortest: ['shortest', index.length, 1],
      disagree: ['disagreement', index.spread, -1]},
    fill: (chosen) => {
      const stages = new Set(), steps = new Set();
      for (let i = 0; i < count; i++) {
        if (chosen.run !== '' && index.run[i] !== Number(chosen.run)) continue;
        stages.add(stage(i));
        if (chosen.stage === '' || stage(i) === chosen.stage) {
          steps.add(index.step[i]);
        }
      }
      return {
        run: [['', 'all'], ...runs.map((r, i) => [String(i), r.name])],
        stage: [['', 'all'], ...[...stages].map((n) => [n, n])],
        step: [['', 'all'], ...[...steps].sort((a, b) => a - b).map(
            (s) => [String(s), String(s)])]};
    }};
}
