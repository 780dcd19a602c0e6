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

// Tokens with a colour by one of their numbers; all of them on hover.
function tokensOf(tokens, chosen) {
  const box = element('div', {class: 'said text', 'data-part': 'tokens'});
  const values = tokens[chosen];
  const finite = values.filter((x) => x !== null);
  const most = Math.max(1e-9, ...finite.map(Math.abs));
  tokens.text.forEach((text, i) => {
    const about = Object.keys(tokens).filter((key) => key !== 'text').map(
        (key) => `${key} ${short(tokens[key][i])}`).join(', ');
    const span = element('span', {class: 'token', title: about}, text || '\u00b7');
    const value = values[i];
    if (value !== null) {
      const hue = chosen === 'advantage' ? (value >= 0 ? 140 : 0) : 35;
      const part = Math.abs(value) / most;
      span.style.backgroundColor = `hsla(${hue}, 80%, 50%, ${0.6 * part})`;
    }
    box.append(span);
  });
  return box;
}
