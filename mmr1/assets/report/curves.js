// Curves: each is sketched when it comes into sight, and drawn by the plotting
// library when it is pointed at or has the focus.

const LIGHT = ['#1f5fbf', '#c2571a', '#2a8540', '#a8327e', '#6a55c2',
  '#8a6d00', '#0f8a8a', '#b3303a', '#5d6b78', '#3f7d12'];
const DARK = ['#7fb0f5', '#f0a067', '#76cf8b', '#ec8cc6', '#b3a2f5',
  '#dcc257', '#62cfcf', '#f28b92', '#a9b5c0', '#a6d671'];

const POINTS = 400;  // of a curve; more cannot be told apart on a screen

let plotting = null;  // the library, once it is asked for

function loadPlotly() {
  plotting = plotting || readPlotly();
  return plotting;
}

async function readPlotly() {
  const script = document.createElement('script');
  script.textContent = await unpacked('plotly');
  document.head.append(script);  // allowed by its hash
  if (!window.Plotly) throw new Error('the plotting library did not load');
  performance.mark('plotting');
}

// Several runs on one axis where a stage begins at the same place in all of
// them, however long it took in each: `aligned` of a run and of its stages.
function align(runs) {
  const longest = new Map();
  for (const run of runs) {
    for (const s of run.stages) {
      longest.set(s.name, Math.max(s.steps, longest.get(s.name) || 0));
    }
  }
  const begin = new Map();
  let at = 0;
  for (const [name, steps] of longest) {
    begin.set(name, at);
    at += steps;
  }
  for (const run of runs) {
    run.stages.forEach((s) => {
      s.aligned = begin.get(s.name);
    });
    run.aligned = run.x.map((x, i) => {
      const s = run.stages[run.stage[i]];
      return x - s.begin + s.aligned;
    });
  }
}

// A curve of one metric of one run: gaps between stages, none inside.
function curve(run, metric, axis, smooth, joined) {
  const x = [], y = [], at = [];  // at: rows of the run; -1: a gap
  let stage = -1, mean = null;
  const values = run.columns[metric] || [];
  values.forEach((value, i) => {
    if (value === null) return;
    if (stage !== run.stage[i]) {
      if (stage >= 0 && !joined) {
        x.push(run[axis][i]); y.push(null); at.push(-1);
      }
      stage = run.stage[i];
      if (!joined) mean = null;
    }
    mean = mean === null ? value : smooth * mean + (1 - smooth) * value;
    x.push(run[axis][i]);
    y.push(mean);
    at.push(i);
  });
  return {x, y, at};
}

function stepOf(run, i) {
  if (i < 0) return '';
  const stage = run.stages[run.stage[i]];
  return safe(`${stage.name} ${run.x[i] - stage.begin}`);
}

// At most 2 * POINTS points of what is inside of `range`: where there are more,
// the least and the greatest of every stretch, so that no peak is lost.
function thinned(made, range) {
  const inside = [];
  made.x.forEach((x, i) => {
    if (!range || (x >= range[0] && x <= range[1])) inside.push(i);
  });
  if (range && inside.length) {  // lines go on beyond the edges
    if (inside[0] > 0) inside.unshift(inside[0] - 1);
    if (inside.at(-1) < made.x.length - 1) inside.push(inside.at(-1) + 1);
  }
  let chosen = inside;
  if (inside.length > 2 * POINTS) {
    const wide = Math.ceil(inside.length / POINTS);
    const keep = new Set([inside[0], inside.at(-1)]);
    for (let from = 0; from < inside.length; from += wide) {
      let low = null, high = null;
      for (const i of inside.slice(from, from + wide)) {
        if (made.y[i] === null) {
          keep.add(i);  // the gap between stages
          continue;
        }
        if (low === null || made.y[i] < made.y[low]) low = i;
        if (high === null || made.y[i] > made.y[high]) high = i;
      }
      if (low !== null) keep.add(low).add(high);
    }
    chosen = inside.filter((i) => keep.has(i));
  }
  return {x: chosen.map((i) => made.x[i]), y: chosen.map((i) => made.y[i]),
    at: chosen.map((i) => made.at[i])};
}

function safe(text) {  // Plotly reads a little HTML in names
  return text.replace(/&/g, '&amp;').replace(/</g, '&lt;')
      .replace(/>/g, '&gt;');
}

function shortNames(metrics) {
  if (metrics.length < 2) return metrics;
  const parts = metrics.map((name) => name.split('/'));
  const first = parts[0][0], last = parts[0].at(-1);
  const head = parts.every((p) => p.length > 1 && p[0] === first);
  const tail = parts.every((p) => p.length > 2 && p.at(-1) === last);
  return parts.map((p) => p.slice(head ? 1 : 0, tail ? -1 : undefined)
      .join('/'));
}

// Lines where a stage begins; their names where there is room.
function switches(runs, axis, ink) {
  const shapes = [], annotations = [];
  const at = (s) => ({x: s.begin, aligned: s.aligned, minutes: s.minute})[axis];
  const wide = Math.max(...runs.flatMap((run) => run[axis]), 1);
  let stages = runs[0].stages, room = -1;
  if (axis === 'aligned') {  // those of all runs, each once
    stages = [...new Map(runs.flatMap((run) => run.stages).map(
        (s) => [s.name, s])).values()].sort((a, b) => a.aligned - b.aligned);
  }
  stages.forEach((s) => {
    if (axis !== 'minutes' && !s.steps) return;
    shapes.push({type: 'line', x0: at(s), x1: at(s), yref: 'paper', y0: 0,
      y1: 1, line: {color: ink, width: 1, dash: 'dot'}});
    if (at(s) / wide < room) return;
    room = at(s) / wide + 0.018 * s.name.length + 0.02;
    annotations.push({x: at(s), plain: s.name, yref: 'paper', y: 1, yanchor: 'bottom',
      xanchor: 'left', text: safe(s.name), showarrow: false,
      font: {size: 10, color: ink}});
  });
  return {shapes, annotations};
}

function traces(runs, chart, axis, smooth, range) {
  const colors = dark() ? DARK : LIGHT, out = [];
  const names = shortNames(chart.metrics);
  const points = chart.kind === 'points';
  runs.forEach((run, r) => chart.metrics.forEach((metric, m) => {
    let made = curve(run, metric, axis, points ? 0 : smooth, points);
    if (!made.x.length) return;
    // Areas are stacked: all of them need the same points.
    if (!points && !(chart.kind === 'area' && runs.length === 1)) {
      made = thinned(made, range);
    }
    const color = colors[(runs.length > 1 ? r : m) % colors.length];
    const few = made.x.length < 40;
    const trace = {x: made.x, y: made.y, text: made.at.map((i) => stepOf(run, i)),
      name: safe(runs.length > 1 ? run.name : names[m]),
      plain: runs.length > 1 ? run.name : names[m],
      type: 'scatter', mode: points || few ? 'lines+markers' : 'lines',
      marker: {size: 5}, line: {color, width: 1.6}, connectgaps: false,
      hovertemplate: '%{y:.4g} (%{text})'};
    if (chart.kind === 'area' && runs.length === 1) {
      Object.assign(trace, {stackgroup: 'one', mode: 'lines',
        line: {color, width: 0.5}});
    }
    out.push(trace);
    const low = run.columns[`${metric}_low`], high = run.columns[`${metric}_high`];
    if (points && low && high) {
      const at = run.columns[metric].flatMap((v, i) => v === null ? [] : [i]);
      trace.error_y = {type: 'data', symmetric: false, thickness: 1, width: 3,
        array: at.map((i) => high[i] - run.columns[metric][i]),
        arrayminus: at.map((i) => run.columns[metric][i] - low[i])};
    }
  }));
  return out;
}

function layout(runs, chart, axis) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const grid = {gridcolor: color('--line'), zerolinecolor: color('--line'),
    linecolor: color('--line'), automargin: true};
  return {
    ...switches(runs, axis, color('--dim')),
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    font: {color: color('--ink'), size: 11}, margin: {l: 48, r: 12, t: 22, b: 30},
    hovermode: 'x unified', hoverlabel: {bgcolor: color('--card'),
      bordercolor: color('--line'), font: {color: color('--ink')}},
    modebar: {bgcolor: 'rgba(0,0,0,0)', color: color('--dim'),
      activecolor: color('--accent')},
    xaxis: {...grid, title: {text: axis === 'minutes' ? 'minutes' : '',
      standoff: 4}},
    yaxis: {...grid, type: chart.log ? 'log' : 'linear',
      rangemode: chart.low >= 0 ? 'nonnegative' : 'normal',
      exponentformat: 'power', tickformat: chart.log ? '.0e' : undefined},
    showlegend: true, legend: {orientation: 'h', y: -0.16, x: 0,
      yanchor: 'top', font: {size: 10}}};
}

function least(runs, metrics) {
  let low = 0;
  for (const run of runs) {
    for (const metric of metrics) {
      for (const x of run.columns[metric] || []) if (x < low) low = x;
    }
  }
  return low;
}

// A chart in words: the last value of each curve.
function spoken(runs, chart) {
  const last = runs.flatMap((run) => chart.metrics.flatMap((metric) => {
    const found = (run.columns[metric] || []).findLast((x) => x !== null);
    const who = runs.length > 1 ? `${run.name} ${metric}` : metric;
    return found === undefined ? [] : [`${who} ${short(found)}`];
  }));
  return `${chart.title}. Last values: ${last.join(', ')}`;
}

function separate(charts) {  // one metric a chart, so that colours are runs
  return charts.flatMap((chart) => chart.metrics.map((metric) => ({
    ...chart, metrics: [metric],
    title: chart.title.toLowerCase() === metric ? chart.title :
      `${chart.title}: ${metric}`,
  })));
}

function startCurves(head) {
  const runs = head.runs, boxes = [];
  const charts = runs.length > 1 ? separate(head.charts) : head.charts;
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.columns)))];
  if (!names.length) {
    $('charts').append(element('p', {class: 'dim'}, 'There are no curves.'));
    return;
  }
  if (runs.length > 1) {
    align(runs);
    $('axis').prepend(element('option', {value: 'aligned'},
        'steps, stages side by side'));
    $('axis').value = 'aligned';
  }
  const chosen = () => [$('axis').value, Number($('smooth').value)];
  const draw = async (box, range) => {
    const [axis, smooth] = chosen(), chart = box.chart;
    await loadPlotly();
    const form = layout(runs, chart, axis);
    if (range) form.xaxis.range = range;
    if (!box.lively) box.plot.replaceChildren();
    await Plotly.react(box.plot, traces(runs, chart, axis, smooth, range), form,
        {responsive: true, displaylogo: false,
          modeBarButtonsToRemove: ['select2d', 'lasso2d', 'toImage'],
          displayModeBar: 'hover'});
    if (box.lively) return;
    box.lively = true;
    box.plot.on('plotly_relayout', (change) => {  // a part, seen closer
      const from = change['xaxis.range[0]'], to = change['xaxis.range[1]'];
      if (from !== undefined) draw(box, [from, to]).catch(broken);
      else if (change['xaxis.autorange']) draw(box).catch(broken);
    });
  };
  const show = (box) => {
    box.shown = true;
    if (box.lively) draw(box).catch(broken);
    else sketch(box, runs, box.chart, ...chosen());
  };
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const box = boxes.find((one) => one.frame === entry.target);
      box.visible = entry.isIntersecting;
      if (box.visible && !box.shown) show(box);
    }
  }, {rootMargin: '200px'});
  const add = (chart, first) => {
    chart = {...chart, low: least(runs, chart.metrics)};
    const plot = element('div', {class: 'plot'});
    const frame = element('div', {class: 'chart', role: 'group', tabindex: '0',
      'aria-label': spoken(runs, chart)}, element('h3', {}, chart.title), plot);
    const box = {chart, plot, frame, shown: false, visible: false};
    boxes.push(box);
    for (const event of ['pointerenter', 'focus']) {
      frame.addEventListener(event, () => {
        if (!box.asked) draw(box).catch(broken);
        box.asked = true;
      });
    }
    if (first) $('charts').prepend(frame);
    else $('charts').append(frame);
    seen.observe(frame);
  };
  charts.forEach((chart) => add(chart, false));
  const again = () => {
    for (const box of boxes) {
      box.shown = false;
      if (box.visible) show(box);
    }
  };
  for (const id of ['axis', 'smooth']) $(id).addEventListener('change', again);
  document.addEventListener('theme', again);
  $('metrics').append(...names.sort().map(
      (name) => element('option', {value: name})));
  $('metric').addEventListener('change', () => {
    const name = $('metric').value;
    if (!names.includes(name)) return;
    add({title: name, metrics: [name], log: false,
      kind: name.startsWith('eval/') ? 'points' : 'line'}, true);
    $('metric').value = '';
  });
  addEventListener('resize', () => {
    for (const box of boxes) {
      if (box.lively) continue;  // the library sees to it
      box.shown = false;
      if (box.visible) show(box);
    }
  });
  for (const box of boxes) {  // in sight before the page says it is ready
    if (box.frame.getBoundingClientRect().top < innerHeight) show(box);
  }
}
