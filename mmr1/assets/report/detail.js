// The chosen completion: numbers, images, prompt, what was said, tokens, and the
// other completions of its problem.

let asked = 0;

async function entryOf(source, i) {
  const {index, name} = source;
  return (await part(`${name}-chunk-${index.chunk[i]}`))[index.at[i]];
}

async function picturesOf(head, names) {
  return Promise.all(names.map(async (name) => ({name, uri:
      name in head.images ?
        (await part(`pictures-chunk-${head.images[name]}`))[name] : null})));
}

async function tokensFor(head, source, i) {
  const place = source.index.tokens ? source.index.tokens[i] : null;
  if (place === null || place === undefined) return null;
  const size = head.tokensInChunk;
  return (await part(`tokens-chunk-${Math.floor(place / size)}`))[place % size];
}

async function showCompletion(head, source, i, go) {
  const mine = ++asked, box = $('detail');
  if (i === null) {
    box.replaceChildren(element('p', {class: 'dim'},
        'No completion is like that.'));
    return;
  }
  const one = await entryOf(source, i);
  const names = [...new Set([...one.images,
    ...(one.turns || []).flatMap((turn) => turn.images)])];
  const pictures = new Map((await picturesOf(head, names)).map(
      ({name, uri}) => [name, uri]));
  const tokens = await tokensFor(head, source, i);
  const other = source.beside ? source.beside(i) : null;
  const against = other === null ? null : await entryOf(source, other);
  if (mine !== asked) return;
  const out = [];
  const put = (title, node) => out.push(element('h3', {}, title), node);
  out.push(about(head, source, i, one));
  if (one.images.length) put('Images', imagesOf(one, pictures));
  if ('prompt' in one) put('Prompt', textOf(one.prompt));
  if (against) {
    put('Answers', element('div', {class: 'sides'},
        side(source, i, one, pictures), side(source, other, against, pictures)));
  } else {
    putSaid(one, pictures, put);
  }
  if (tokens) putTokens(tokens, put);
  if ('answer' in one) put('Gold answer', textOf(one.answer));
  others(source, i, go, put);
  out.push(...rest(one));
  box.replaceChildren(...out);
  box.scrollTop = 0;
}

function textOf(value) {
  return element('div', {class: 'text'}, value);
}

// Who it is, its numbers and flags.
function about(head, source, i, one) {
  const meta = element('div', {class: 'meta'}), {index} = source;
  if (source.name === 'samples') {
    if (head.runs.length > 1) meta.append(pill(head.runs[index.run[i]].name));
    meta.append(pill(`${source.stage(i)} step ${index.step[i]}`));
    for (const key of ['reward', 'advantage']) {
      if (index[key][i] !== null) {
        meta.append(pill(`${key} ${short(index[key][i])}`));
      }
    }
  } else {
    meta.append(pill(source.title(index.evaluation[i])), pill(source.way(i)));
  }
  meta.append(...source.flags(i), ...source.pills(i, true));
  for (const key of ['uid', 'group', 'slot']) {
    if (key in one) meta.append(pill(`${key} ${one[key]}`, 'quiet'));
  }
  return meta;
}

function picture(uri, name, title) {
  if (!uri) return element('span', {class: 'lost'}, `${name} is missing`);
  const image = element('img', {alt: title, src: uri});
  image.addEventListener('load', () => {
    if (image.naturalWidth < 80) image.className = 'small';
  });
  return image;
}

// With boxes on the first one, in the picture's own frame.
function imagesOf(one, pictures) {
  return element('div', {class: 'pictures'}, ...one.images.map((name, k) => {
    const title = (one.captions || [])[k];
    const image = picture(pictures.get(name), name,
        title || `image ${k + 1} of the sample`);
    const frame = element('div', {class: 'framed'}, image);
    if (k === 0 && one.boxes && one.size) {
      one.boxes.forEach((edges, b) => frame.append(boxOf(edges, one.size, b)));
    }
    return element('figure', {}, frame,
        ...(title ? [element('figcaption', {}, title)] : []));
  }));
}

function boxOf([x0, y0, x1, y1], [width, height], number) {
  const box = element('span', {class: 'box', title: `box ${number + 1}`});
  const percent = (x, all) => `${100 * x / all}%`;
  Object.assign(box.style, {left: percent(x0, width), top: percent(y0, height),
    width: percent(x1 - x0, width), height: percent(y1 - y0, height)});
  return box;
}

function putSaid(one, pictures, put) {
  if (one.turns && one.turns.length) put('Turns', turnsOf(one.turns, pictures));
  else if ('completion' in one) put('Completion', said(one.completion));
}

// An episode, as it went.
function turnsOf(turns, pictures) {
  return element('div', {'data-part': 'turns'}, ...turns.map((turn) => {
    const node = element('div', {class: `turn ${turn.role === 'assistant' ?
      'own' : 'told'}`},
    element('div', {class: 'who'}, turn.role || 'put in', ...(turn.error ?
      [' ', pill(`error: ${turn.error}`, 'flag')] : [])), said(turn.text));
    if (turn.images.length) {
      node.append(element('div', {class: 'pictures'}, ...turn.images.map(
          (name) => picture(pictures.get(name), name,
              'image that came with this turn'))));
    }
    return node;
  }));
}

// One of two answers to a problem.
function side(source, i, one, pictures) {
  const {index} = source;
  const node = element('div', {},
      element('div', {class: 'meta'}, pill(source.title(index.evaluation[i])),
          pill(index.correct[i] ? 'right' : 'wrong',
              index.correct[i] ? 'high' : 'low'), ...source.flags(i)));
  putSaid(one, pictures, (_, made) => node.append(made));
  return node;
}

function others(source, i, go, put) {
  if (source.name === 'samples') {
    const group = source.group(i);
    if (group.length < 2) return;
    put('Rewards of its group', element('div', {class: 'meta'}, ...group.map((k, n) => {
      const reward = source.index.reward[k];
      return jump(`${n + 1}: ${reward === null ? '-' : short(reward)}`,
          k === i, () => go(k));
    })));
    return;
  }
  const {index} = source, found = new Map();
  for (const k of source.rows(i)) {
    const e = index.evaluation[k];
    if (!found.has(e)) found.set(e, []);
    found.get(e).push(k);
  }
  const rows = [...found].map(([e, part]) => element('tr', {},
      element('th', {scope: 'row'}, source.title(e)),
      element('td', {}, element('div', {class: 'meta'}, ...part.map((k) => {
        const node = jump(`${source.way(k)}: ` +
            `${index.correct[k] ? '\u2713' : '\u2717'} ` +
            `${index.extracted[k] ?? 'unparsed'}`, k === i, () => go(k));
        node.classList.add(index.correct[k] ? 'high' : 'low');
        node.setAttribute('aria-label', `${source.title(e)}, ` +
            `${source.way(k)}: ${index.correct[k] ? 'right' : 'wrong'}`);
        return node;
      })))));
  put('All answers to this problem', element('div', {class: 'scroll'},
      element('table', {class: 'answers'}, element('tbody', {}, ...rows))));
}

function jump(text, here, act) {
  const node = element('button', {type: 'button',
    'aria-pressed': String(here)}, text);
  node.addEventListener('click', act);
  return node;
}

// What else a row says: in a line if short, else with a heading.
function rest(one) {
  const long = [], brief = element('dl', {});
  for (const [key, value] of Object.entries(one.more || {})) {
    if (value.length < 80 && !value.includes('\n')) {
      brief.append(element('dt', {}, key), element('dd', {}, value));
    } else {
      long.push(element('h3', {}, key), textOf(value));
    }
  }
  return brief.children.length ? [brief, ...long] : long;
}
