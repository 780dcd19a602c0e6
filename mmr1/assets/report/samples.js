// The browser of completions: narrow, filter, sort, a list of which only what is
// seen exists. A source (training.js, problems.js) says what there is.

const ROW = 46;
const NARROWS = ['run', 'stage', 'step', 'evaluation', 'decoding', 'beside'];

function pill(text, mark = '') {
  return element('span', {class: `pill ${mark}`.trim()}, text);
}

function options(select, entries) {
  const before = select.options.length ? select.value : null;
  select.replaceChildren(...entries.map(
      ([value, text]) => element('option', {value}, text)));
  if (entries.some(([value]) => value === before)) select.value = before;
}

async function startBrowser(head) {
  const names = [...(head.samples ? ['samples'] : []),
    ...head.problems.map((_, k) => `problems-${k}`)];
  const label = (name) => {
    if (name === 'samples') return 'training samples';
    const one = head.problems[Number(name.slice(9))];
    return `evaluation: ${one.name || 'held-out problems'}`;
  };
  options($('source'), names.map((name) => [name, label(name)]));
  const opened = new Map();
  const open = (name) => {
    if (!opened.has(name)) {
      opened.set(name, name === 'samples' ? trainingSource(head) :
          problemsSource(head, Number(name.slice(9))));
    }
    return opened.get(name);
  };
  let source = null, shown = [], chosen = -1, turn = 0;
  const texts = new Map();

  function now() {
    return Object.fromEntries(source.narrows.map(
        (id) => [id, $(id) ? $(id).value : '']));
  }

  function narrow() {
    for (const id of NARROWS) {
      const holder = $(id) && $(id).closest('label');
      if (holder) holder.hidden = !source.narrows.includes(id);
    }
    // Twice: what one select offers depends on the others.
    for (let i = 0; i < 2; i++) {
      const filled = source.fill(now());
      for (const id of source.narrows) if ($(id)) options($(id), filled[id]);
    }
    if (source.choose) source.choose(now());
  }

  async function take(name) {
    source = await open(name);
    narrow();
    options($('filter'), Object.entries(source.filters).map(
        ([key, [text]]) => [key, text]));
    options($('sort'), Object.entries(source.sorts).map(
        ([key, [text]]) => [key, text]));
    const by = Object.keys(source.by);
    options($('by'), by.map((one) => [one, one]));
    $('by').closest('label').hidden = !by.length;
    await update();
  }

  // Of all completions of a source, unpacked at the first search.
  async function allTexts() {
    const {name, index, count} = source;
    if (texts.has(name)) return texts.get(name);
    const out = new Array(count);
    const chunks = [...new Set(index.chunk)];
    const parts = await Promise.all(
        chunks.map((c) => part(`${name}-chunk-${c}`)));
    const at = new Map(chunks.map((c, i) => [c, parts[i]]));
    for (let i = 0; i < count; i++) {
      const one = at.get(index.chunk[i])[index.at[i]];
      out[i] = [one.prompt, one.completion, one.answer].join('\n')
          .toLowerCase();
    }
    texts.set(name, out);
    return out;
  }

  async function update() {
    const mine = ++turn, narrowed = now(), {count} = source;
    for (const option of $('filter').options) {  // of a pair: where there is one
      option.hidden = option.disabled =
          Boolean(source.filters[option.value][2]) && !narrowed.beside;
    }
    if ($('filter').selectedOptions[0].disabled) $('filter').value = 'all';
    const wanted = source.filters[$('filter').value][1];
    const query = $('search').value.trim().toLowerCase();
    const all = query ? await allTexts() : null;
    if (mine !== turn) return;  // typed on meanwhile
    const found = [];
    for (let i = 0; i < count; i++) {
      if (!source.admits(i, narrowed) || !wanted(i)) continue;
      if (!query || all[i].includes(query)) found.push(i);
    }
    const sort = $('sort').value;
    const [, column, sign] = source.sorts[sort];
    if (sort === 'late') found.reverse();
    if (sign) {
      const values = column || source.by[$('by').value];
      found.sort((a, b) => {
        const x = values[a], y = values[b];
        if (x === null || y === null) {
          return (x === null) - (y === null) || a - b;
        }
        return sign * (x - y) || a - b;
      });
    }
    $('by').disabled = sort !== 'worst' && sort !== 'best';
    shown = found;
    $('count').textContent = `${shown.length} of ${count}`;
    $('between').textContent = source.between ? source.between() : '';
    $('rows').style.height = `${shown.length * ROW}px`;
    await choose(shown.length ? 0 : -1);
  }

  function drawRows() {
    const list = $('list');
    const from = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const to = Math.min(shown.length,
        Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
    const made = [];
    for (let k = from; k < to; k++) {
      const i = shown[k];
      const row = element('div', {class: 'row', role: 'option',
        id: `row-${k}`, 'aria-selected': String(k === chosen),
        'aria-posinset': String(k + 1), 'aria-setsize': String(shown.length)},
      element('div', {}, source.line(i)),
      element('div', {class: 'top'}, ...source.flags(i), ...source.pills(i)));
      row.style.top = `${k * ROW}px`;
      row.addEventListener('click', () => choose(k).catch(broken));
      made.push(row);
    }
    $('rows').replaceChildren(...made);
  }

  async function choose(k) {
    chosen = k;
    const list = $('list'), top = k * ROW;
    if (k >= 0) {
      if (top < list.scrollTop) list.scrollTop = top;
      if (top + ROW > list.scrollTop + list.clientHeight) {
        list.scrollTop = top + ROW - list.clientHeight;
      }
    }
    drawRows();
    if (k >= 0) list.setAttribute('aria-activedescendant', `row-${k}`);
    else list.removeAttribute('aria-activedescendant');
    await show(k < 0 ? null : shown[k]);
  }

  // A completion, also one that the list does not have.
  const show = (i) => showCompletion(head, source, i, (k) => {
    const there = shown.indexOf(k);
    if (there >= 0) choose(there).catch(broken);
    else show(k).catch(broken);
  });

  function move(by) {
    if (shown.length) {
      choose(Math.max(0, Math.min(shown.length - 1, chosen + by)))
          .catch(broken);
    }
  }

  $('list').addEventListener('scroll', drawRows);
  addEventListener('resize', drawRows);
  for (const id of [...NARROWS, 'filter', 'sort', 'by']) {
    if (!$(id)) continue;
    $(id).addEventListener('change', () => {
      narrow();
      update().catch(broken);
    });
  }
  $('source').addEventListener('change',
      () => take($('source').value).catch(broken));
  $('search').addEventListener('input', () => update().catch(broken));
  $('search').addEventListener('keydown', (event) => {
    if (event.key === 'Escape' || event.key === 'Enter') $('list').focus();
  });
  addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const keys = {j: () => move(1), k: () => move(-1),
      g: () => move(-Infinity), G: () => move(Infinity),
      '/': () => $('search').focus()};
    if ($('list').contains(event.target)) {
      Object.assign(keys, {ArrowDown: keys.j, ArrowUp: keys.k,
        Home: keys.g, End: keys.G, PageDown: () => move(8),
        PageUp: () => move(-8)});
    }
    if (keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    }
  });
  await take(names[0]);
}
