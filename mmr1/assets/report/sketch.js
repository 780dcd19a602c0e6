// A chart at once, as an image of lines: the plotting library takes a second or
// two to start, so a page opens with these. What a chart shows is the same.

const ROOM = {left: 48, right: 12, top: 22, bottom: 26, legend: 34};

function drawn(name, attributes = {}, text = '') {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, value);
  }
  if (text) made.textContent = text;
  return made;
}

// About `count` round numbers from low to high.
function ticks(low, high, count) {
  const raw = (high - low) / count;
  if (!(raw > 0) || !Number.isFinite(raw)) return [low];
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 5, 10].find((k) => k * unit >= raw);
  const out = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step;
    k++) {
    out.push(k * step);
  }
  return out;
}

function tickText(x, all) {
  const wide = Math.max(...all.map(Math.abs));
  if (wide && (wide >= 1e5 || wide < 1e-3)) return x ? x.toExponential(0) : '0';
  const digits = all.length > 1 ?
      Math.max(0, -Math.floor(Math.log10(Math.abs(all[1] - all[0])) + 1e-9)) : 2;
  return x.toFixed(digits);
}

// Stacked areas as lines of their sums, the lowest first.
function stacked(lines) {
  const sums = new Map();
  return lines.map((line) => ({...line, y: line.y.map((y, i) => {
    if (y === null) return null;
    const sum = (sums.get(line.x[i]) || 0) + y;
    sums.set(line.x[i], sum);
    return sum;
  })}));
}

function sketch(box, runs, chart, axis, smooth) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const area = chart.kind === 'area' && runs.length === 1;
  let lines = traces(runs, chart, axis, smooth);
  if (area) lines = stacked(lines);
  const wide = box.plot.clientWidth || 400, tall = box.plot.clientHeight || 255;
  const svg = drawn('svg', {width: wide, height: tall, 'aria-hidden': 'true',
    class: 'sketch'});
  const value = (y) => chart.log ? (y > 0 ? Math.log10(y) : null) : y;
  const xs = lines.flatMap((line) => line.x);
  const ys = lines.flatMap((line) => [
    ...line.y, ...(line.error_y ? ends(line) : [])])
      .filter((y) => y !== null).map(value).filter((y) => y !== null);
  if (!ys.length) {
    box.plot.replaceChildren(svg);
    return;
  }
  const x0 = 0, x1 = Math.max(...xs, 1e-9);
  let y0 = Math.min(...ys), y1 = Math.max(...ys);
  if (area) y0 = Math.min(0, y0);
  const pad = (y1 - y0 || Math.abs(y1) || 1) * 0.06;
  y0 = y0 >= 0 && y0 - pad < 0 && !chart.log ? 0 : y0 - pad;
  y1 += pad;
  const left = ROOM.left, right = wide - ROOM.right, top = ROOM.top;
  const bottom = tall - ROOM.bottom - ROOM.legend;
  const px = (x) => left + (x - x0) / (x1 - x0) * (right - left);
  const py = (y) => bottom - (value(y) - y0) / (y1 - y0) * (bottom - top);
  const put = (...made) => svg.append(...made);
  const small = {'font-size': 10, fill: color('--ink')};

  const rows = ticks(y0, y1, 4);
  for (const y of rows) {
    const at = bottom - (y - y0) / (y1 - y0) * (bottom - top);
    put(drawn('line', {x1: left, x2: right, y1: at, y2: at,
      stroke: color('--line')}), drawn('text', {...small, x: left - 5,
      y: at + 3, 'text-anchor': 'end'},
    chart.log ? (10 ** y).toExponential(0) : tickText(y, rows)));
  }
  const columns = ticks(x0, x1, 5);
  for (const x of columns) {
    put(drawn('text', {...small, x: px(x), y: bottom + 14,
      'text-anchor': 'middle'}, tickText(x, columns)));
  }
  if (axis === 'minutes') {
    put(drawn('text', {...small, x: right, y: bottom + 26,
      'text-anchor': 'end'}, 'minutes'));
  }
  const {shapes, annotations} = switches(runs, axis, color('--dim'));
  for (const one of shapes) {
    put(drawn('line', {x1: px(one.x0), x2: px(one.x0), y1: top, y2: bottom,
      stroke: color('--dim'), 'stroke-dasharray': '2 3'}));
  }
  for (const one of annotations) {
    put(drawn('text', {...small, fill: color('--dim'), x: px(one.x) + 2,
      y: top - 5}, one.plain));
  }
  let last = bottom;
  for (const line of area ? [...lines].reverse() : lines) {
    draw(line);
  }
  legend();
  box.plot.replaceChildren(svg);

  function ends(line) {
    return line.y.flatMap((y, i) => [
      y + line.error_y.array[i], y - line.error_y.arrayminus[i]]);
  }

  function draw(line) {
    let path = '', up = false, from = null;
    line.x.forEach((x, i) => {
      const y = line.y[i] === null ? null : value(line.y[i]);
      if (y === null) {
        up = false;
        return;
      }
      path += `${up ? 'L' : 'M'}${px(x).toFixed(1)} ${py(line.y[i]).toFixed(1)}`;
      up = true;
      from = from === null ? px(x) : from;
      last = px(x);
    });
    if (area && from !== null) {
      put(drawn('path', {d: `${path}L${last} ${bottom}L${from} ${bottom}Z`,
        fill: color('--card')}), drawn('path', {
        d: `${path}L${last} ${bottom}L${from} ${bottom}Z`,
        fill: line.line.color, 'fill-opacity': 0.5}));
    }
    put(drawn('path', {d: path, fill: 'none', stroke: line.line.color,
      'stroke-width': line.line.width, 'stroke-linejoin': 'round'}));
    if (line.mode.includes('markers')) {
      line.x.forEach((x, i) => {
        if (line.y[i] === null || value(line.y[i]) === null) return;
        put(drawn('circle', {cx: px(x), cy: py(line.y[i]), r: 2.4,
          fill: line.line.color}));
      });
    }
    if (line.error_y) {
      line.x.forEach((x, i) => put(drawn('line', {x1: px(x), x2: px(x),
        y1: py(line.y[i] + line.error_y.array[i]),
        y2: py(line.y[i] - line.error_y.arrayminus[i]),
        stroke: line.line.color})));
    }
  }

  function legend() {
    let x = left, y = bottom + 34, hidden = 0;
    for (const line of lines) {
      const width = 26 + 5.6 * line.plain.length;
      if (x > left && x + width > right) {
        x = left;
        y += 13;
      }
      if (y > tall - 2) {
        hidden++;
        continue;
      }
      put(drawn('line', {x1: x, x2: x + 14, y1: y - 3, y2: y - 3,
        stroke: line.line.color, 'stroke-width': 2}), drawn('text', {...small,
        x: x + 18, y}, line.plain));
      x += width;
    }
    if (hidden) {
      put(drawn('text', {...small, x: right, y: tall - 2,
        'text-anchor': 'end', fill: color('--dim')}, `and ${hidden} more`));
    }
  }
}
