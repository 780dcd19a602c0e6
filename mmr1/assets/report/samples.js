// The browser of samples: filter, sort, a list of which only what is seen
// exists, and the chosen sample.

const ROW = 46;

function options(select, entries, keep) {
  const before = select.value;
  select.replaceChildren(...entries.map(
      ([value, text]) => element('option', {value}, text)));
  if (keep && entries.some(([value]) => value === before)) select.value = before;
}

function startSamples(head) {
  const {index, rewards, runs} = head;
  const names = Object.keys(rewards), count = index.run.length;
  const limits = Object.fromEntries(names.map((name) => {
    const found = rewards[name].filter((x) => x !== null);
    let low = Infinity, high = -Infinity;
    for (const x of found) {
      low = Math.min(low, x);
      high = Math.max(high, x);
    }
    return [name, {low, high, middle: (low + high) / 2}];
  }));
  const columns = {reward: index.reward, advantage: index.advantage,
    ...Object.fromEntries(names.map((n) => [`reward: ${n}`, rewards[n]]))};
  let shown = [], chosen = -1, texts = null, turn = 0;

  const high = (name, i) => rewards[name][i] !== null &&
      limits[name].high > limits[name].low &&
      rewards[name][i] > limits[name].middle;
  const low = (name, i) => rewards[name][i] !== null &&
      limits[name].high > limits[name].low &&
      rewards[name][i] <= limits[name].middle;

  const filters = {
    all: ['all', () => true],
    unparsed: ['unparsed answers', (i) => index.unparsed[i]],
    truncated: ['cut by the length cap', (i) => index.truncated[i]],
    disagree: ['rewards disagree', (i) => index.spread[i] >= 0.5],
    signal: ['advantage is not 0', (i) => Math.abs(index.advantage[i] || 0) > 0],
    none: ['a reward has no value', (i) => names.some(
        (n) => rewards[n][i] === null)]};
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
  const sorts = {
    step: 'in order', late: 'latest first', worst: 'worst', best: 'best',
    longest: 'longest', shortest: 'shortest', disagree: 'disagreement'};

  if ($('run')) {
    options($('run'), [['', 'all'], ...runs.map((r, i) => [String(i), r.name])]);
  }
  options($('filter'), Object.entries(filters).map(([k, v]) => [k, v[0]]));
  options($('sort'), Object.entries(sorts));
  options($('by'), Object.keys(columns).map((name) => [name, name]));

  const runOf = () => $('run') && $('run').value !== '' ?
      Number($('run').value) : null;
  const stageName = (i) => runs[index.run[i]].stages[index.stage[i]].name;

  function fillStages() {
    const seen = new Set(), run = runOf();
    for (let i = 0; i < count; i++) {
      if (run === null || index.run[i] === run) seen.add(stageName(i));
    }
    options($('stage'), [['', 'all'], ...[...seen].map((n) => [n, n])], true);
  }

  function fillSteps() {
    const seen = new Set(), stage = $('stage').value, run = runOf();
    for (let i = 0; i < count; i++) {
      if ((run === null || index.run[i] === run) &&
          (!stage || stageName(i) === stage)) seen.add(index.step[i]);
    }
    options($('step'), [['', 'all'], ...[...seen].sort((a, b) => a - b).map(
        (s) => [String(s), String(s)])], true);
  }

  async function allTexts() {  // of all samples, unpacked at the first search
    if (!texts) {
      texts = new Array(count);
      const chunks = [...new Set(index.chunk)];
      const parts = await Promise.all(chunks.map((c) => part(`chunk-${c}`)));
      const at = new Map(chunks.map((c, i) => [c, parts[i]]));
      for (let i = 0; i < count; i++) {
        const one = at.get(index.chunk[i])[index.at[i]];
        texts[i] = [one.prompt, one.completion, one.answer].join('\n')
            .toLowerCase();
      }
    }
    return texts;
  }

  async function update() {
    const mine = ++turn, run = runOf(), stage = $('stage').value;
    const step = $('step').value, wanted = filters[$('filter').value][1];
    const query = $('search').value.trim().toLowerCase();
    const all = query ? await allTexts() : null;
    if (mine !== turn) return;  // typed on meanwhile
    const found = [];
    for (let i = 0; i < count; i++) {
      if (run !== null && index.run[i] !== run) continue;
      if (stage && stageName(i) !== stage) continue;
      if (step && index.step[i] !== Number(step)) continue;
      if (!wanted(i) || (query && !all[i].includes(query))) continue;
      found.push(i);
    }
    const column = columns[$('by').value];
    const by = (values, sign) => found.sort((a, b) => {
      const x = values[a], y = values[b];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return sign * (x - y) || a - b;
    });
    const sort = $('sort').value;
    if (sort === 'late') found.reverse();
    if (sort === 'worst') by(column, 1);
    if (sort === 'best') by(column, -1);
    if (sort === 'longest') by(index.length, -1);
    if (sort === 'shortest') by(index.length, 1);
    if (sort === 'disagree') by(index.spread, -1);
    $('by').disabled = sort !== 'worst' && sort !== 'best';
    shown = found;
    $('count').textContent = `${shown.length} of ${count}`;
    $('rows').style.height = `${shown.length * ROW}px`;
    choose(shown.length ? 0 : -1);
  }

  function pills(i) {
    const out = [];
    for (const name of names) {
      const value = rewards[name][i];
      if (value === null) continue;
      const mark = high(name, i) ? 'high' : low(name, i) ? 'low' : '';
      out.push(element('span', {class: `pill ${mark}`},
          `${name} ${short(value)}`));
    }
    return out;
  }

  function flags(i) {
    const out = [];
    if (index.unparsed[i]) out.push('unparsed');
    if (index.truncated[i]) out.push('cut');
    return out.map((text) => element('span', {class: 'pill flag'}, text));
  }

  function drawRows() {
    const list = $('list');
    const from = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const to = Math.min(shown.length,
        Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
    const made = [];
    for (let k = from; k < to; k++) {
      const i = shown[k];
      const who = runs.length > 1 ? `${runs[index.run[i]].name}, ` : '';
      const row = element('div', {class: 'row', role: 'option',
        id: `row-${k}`, 'aria-selected': String(k === chosen),
        'aria-posinset': String(k + 1), 'aria-setsize': String(shown.length)},
      element('div', {}, `${who}${stageName(i)} ${index.step[i]}: ` +
          `${index.length[i]} ${index.measured[i] ? 'tokens' : 'characters'}` +
          (index.advantage[i] === null ? '' :
          `, advantage ${short(index.advantage[i])}`)),
      element('div', {class: 'top'}, ...flags(i), ...pills(i)));
      row.style.top = `${k * ROW}px`;
      row.addEventListener('click', () => choose(k));
      made.push(row);
    }
    $('rows').replaceChildren(...made);
  }

  function choose(k) {
    chosen = k;
    const list = $('list'), top = k * ROW;
    if (k >= 0) {
      if (top < list.scrollTop) list.scrollTop = top;
      if (top + ROW > list.scrollTop + list.clientHeight) {
        list.scrollTop = top + ROW - list.clientHeight;
      }
      list.setAttribute('aria-activedescendant', `row-${k}`);
    } else {
      list.removeAttribute('aria-activedescendant');
    }
    drawRows();
    showSample(head, k < 0 ? null : shown[k], stageName, pills, flags)
        .catch(broken);
  }

  function move(by) {
    if (shown.length) {
      choose(Math.max(0, Math.min(shown.length - 1, chosen + by)));
    }
  }

  $('list').addEventListener('scroll', drawRows);
  addEventListener('resize', drawRows);
  const filled = () => {
    fillStages();
    fillSteps();
  };
  for (const id of ['run', 'stage', 'step', 'filter', 'sort', 'by']) {
    if (!$(id)) continue;
    $(id).addEventListener('change', () => {
      filled();
      update().catch(broken);
    });
  }
  $('search').addEventListener('input', () => update().catch(broken));
  $('search').addEventListener('keydown', (event) => {
    if (event.key === 'Escape' || event.key === 'Enter') $('list').focus();
  });
  addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (typing) return;
    const inList = $('list').contains(event.target);
    const keys = {j: () => move(1), k: () => move(-1),
      g: () => move(-Infinity), G: () => move(Infinity),
      '/': () => $('search').focus()};
    if (inList) {
      Object.assign(keys, {ArrowDown: keys.j, ArrowUp: keys.k,
        Home: keys.g, End: keys.G, PageDown: () => move(8),
        PageUp: () => move(-8)});
    }
    if (keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    }
  });
  filled();
  update().catch(broken);
}

let asked = 0;

async function showSample(head, i, stageName, pills, flags) {
  const mine = ++asked, box = $('detail'), {index, runs} = head;
  if (i === null) {
    box.replaceChildren(element('p', {class: 'dim'}, 'No sample is like that.'));
    return;
  }
  const one = (await part(`chunk-${index.chunk[i]}`))[index.at[i]];
  const pictures = await Promise.all(one.images.map((name) => name in head.images ?
      part(`pictures-${head.images[name]}`).then((found) => found[name]) : null));
  if (mine !== asked) return;
  const out = [], meta = element('div', {class: 'meta'});
  const put = (title, node) => out.push(element('h3', {}, title), node);
  const text = (value) => element('div', {class: 'text'}, value);
  if (runs.length > 1) meta.append(runs[index.run[i]].name);
  meta.append(element('span', {class: 'pill'},
      `${stageName(i)} step ${index.step[i]}`));
  for (const key of ['uid', 'group', 'slot']) {
    if (key in one) {
      meta.append(element('span', {class: 'pill'}, `${key} ${one[key]}`));
    }
  }
  if (index.advantage[i] !== null) {
    meta.append(element('span', {class: 'pill'},
        `advantage ${short(index.advantage[i])}`));
  }
  if (index.reward[i] !== null) {
    meta.append(element('span', {class: 'pill'},
        `reward ${short(index.reward[i])}`));
  }
  meta.append(...flags(i));
  out.push(meta);
  const marks = pills(i);
  if (marks.length) put('Rewards', element('div', {class: 'meta'}, ...marks));
  if (pictures.length) {
    put('Images', element('div', {class: 'pictures'},
        ...pictures.map((uri, k) => {
          if (!uri) {
            return element('span', {class: 'lost'}, `${one.images[k]} is missing`);
          }
          const image = element('img', {alt: `image ${k + 1} of the sample`,
            src: uri});
          image.addEventListener('load', () => {
            if (image.naturalWidth < 80) image.className = 'small';
          });
          return image;
        })));
  }
  if ('prompt' in one) put('Prompt', text(one.prompt));
  if ('completion' in one) put('Completion', said(one.completion));
  if (one.tokens) putTokens(one.tokens, put);
  if ('answer' in one) put('Gold answer', text(one.answer));
  for (const [key, value] of Object.entries(one.more || {})) {
    put(key, text(value));
  }
  box.replaceChildren(...out);
  box.scrollTop = 0;
}

function putTokens(tokens, put) {
  const keys = Object.keys(tokens).filter((key) => key !== 'text');
  if (!keys.length) return;
  const select = element('select', {'aria-label': 'Colour of tokens'},
      ...keys.map((key) => element('option', {value: key}, key)));
  const box = element('div', {}, select, tokensOf(tokens, keys[0]));
  select.addEventListener('change', () =>
    box.replaceChildren(select, tokensOf(tokens, select.value)));
  put('Tokens, on hover their numbers', box);
}
