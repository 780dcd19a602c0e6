// A completion as text with its spans coloured: think, answer, tools.

const TAG = /<(\/?)([a-zA-Z_][\w-]{0,30})>/g;

function kindOf(name) {
  name = name.toLowerCase();
  if (/^(think|thinking|thought|reasoning|caption|observe|summary)$/.test(name)) {
    return 'think';
  }
  if (name === 'answer') return 'answer';
  return /tool|call|search|code|python|response|information|result/.test(name) ?
      'tool' : null;
}

// [{text, kind: 'think' | 'answer' | 'tool' | '', tag: true for the tag}]
function spansOf(text) {
  const out = [], open = [];
  let at = 0;
  const first = text.match(/<(\/?)think>/);
  if (first && first[1]) open.push('think');  // the prompt opened it
  const put = (piece, kind, tag) => {
    if (piece) out.push({text: piece, kind: kind || '', tag});
  };
  for (const found of text.matchAll(TAG)) {
    const kind = kindOf(found[2]);
    if (!kind) continue;
    put(text.slice(at, found.index), open.at(-1), false);
    if (!found[1]) open.push(kind);
    put(found[0], open.at(-1) || kind, true);
    if (found[1] && open.length) open.pop();
    at = found.index + found[0].length;
  }
  put(text.slice(at), open.at(-1), false);
  return out;
}

function said(text) {
  const box = element('div', {class: 'said text', 'data-part': 'completion'});
  for (const span of spansOf(text)) {
    const name = `${span.kind}${span.tag ? ' tag' : ''}`.trim();
    box.append(name ? element('span', {class: name}, span.text) : span.text);
  }
  return box;
}

const KINDS = {s: 'sampled', o: 'of the environment', f: 'put in',
  e: "an expert's"};

// Tokens with a colour by one of their numbers; all of them on hover.
function tokensOf(tokens, chosen) {
  const box = element('div', {class: 'said text', 'data-part': 'tokens'});
  const values = tokens.numbers[chosen] || [];
  const finite = values.filter((x) => x !== null && x !== undefined);
  const most = Math.max(1e-9, ...finite.map(Math.abs));
  tokens.text.forEach((text, i) => {
    if (!text) return;
    const kind = tokens.kind ? tokens.kind[i] : 's';
    const about = Object.keys(tokens.numbers).filter(
        (key) => (tokens.numbers[key][i] ?? null) !== null).map(
        (key) => `${key} ${short(tokens.numbers[key][i])}`);
    if (kind !== 's') about.unshift(KINDS[kind] || kind);
    if (!about.length) about.push('no number');
    const span = element('span', {class: `token kind-${kind}`,
      'data-about': `${i + 1}: ${about.join(', ')}`}, text);
    const value = values[i];
    if (value !== null && value !== undefined && kind !== 'o') {
      const hue = chosen !== 'advantage' ? 35 : value >= 0 ? 140 : 0;
      span.style.backgroundColor =
          `hsla(${hue}, 80%, 50%, ${0.65 * Math.abs(value) / most})`;
    }
    box.append(span);
  });
  if (tokens.left_out) {
    box.append(element('span', {class: 'dim'},
        ` [${tokens.left_out} more tokens were not written]`));
  }
  return box;
}

function putTokens(tokens, put) {
  const names = Object.keys(tokens.numbers);
  const select = element('select', {'aria-label': 'Colour of tokens by'},
      ...names.map((key) => element('option', {value: key}, key)));
  const about = element('span', {class: 'dim', role: 'status'},
      'Point at a token, or walk with the arrows.');
  const holder = element('div', {tabindex: '0', role: 'group',
    'aria-label': 'Tokens; left and right arrow walk along them'});
  let at = -1;
  const mark = (span) => {
    holder.querySelector('.here')?.classList.remove('here');
    span.classList.add('here');
    about.textContent = `${JSON.stringify(span.textContent)} ` +
        span.dataset.about;
  };
  holder.addEventListener('mouseover', (event) => {
    if (event.target.dataset.about) mark(event.target);
  });
  holder.addEventListener('keydown', (event) => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!step) return;
    event.preventDefault();
    const all = holder.querySelectorAll('.token');
    at = Math.max(0, Math.min(all.length - 1, at + step));
    mark(all[at]);
    all[at].scrollIntoView({block: 'nearest'});
  });
  const draw = () => holder.replaceChildren(tokensOf(tokens, select.value));
  select.addEventListener('change', draw);
  draw();
  put('Tokens', element('div', {},
      element('div', {class: 'meta'}, ...(names.length ?
          [element('label', {class: 'dim'}, 'Colour by ', select)] : []),
      about), holder));
}
