'use strict';
// The page itself: data, theme. Nothing here writes HTML: only text is set.

const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === 'class') made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function bytes(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}

async function unpacked(name) {
  const holder = $(`data-${name}`);
  const stream = new Blob([bytes(holder.textContent)]).stream().pipeThrough(
      new DecompressionStream('gzip'));
  holder.remove();  // it is not read again
  return new Response(stream).text();
}

const kept = new Map();

// A part of the data, unpacked when it is first asked for.
function part(name) {
  if (!kept.has(name)) kept.set(name, unpacked(name).then(JSON.parse));
  return kept.get(name);
}

function dark() {
  return document.documentElement.dataset.theme === 'dark';
}

function remembered() {
  try {
    return localStorage.getItem('mmr1-report-theme');
  } catch (error) {
    return null;  // a file opened where storage is off
  }
}

function remember(theme) {
  try {
    localStorage.setItem('mmr1-report-theme', theme);
  } catch (error) {
    console.debug('the theme is not remembered: no storage');
  }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const other = theme === 'dark' ? 'Light' : 'Dark';
  $('theme').textContent = other;
  $('theme').setAttribute('aria-label', `Switch to the ${other} theme`);
  document.dispatchEvent(new Event('theme'));
}

const system = matchMedia('(prefers-color-scheme: dark)');
setTheme(remembered() || (system.matches ? 'dark' : 'light'));
system.addEventListener('change', () => {
  if (!remembered()) setTheme(system.matches ? 'dark' : 'light');
});
$('theme').addEventListener('click', () => {
  const next = dark() ? 'light' : 'dark';
  remember(next);
  setTheme(next);
});

function broken(error) {
  $('broken').hidden = false;
  $('broken').textContent = `A part of this page failed: ${error}. ` +
      'Tables below are complete. A browser of 2023 or later is needed.';
  console.error(error);
}

function short(x) {
  if (x === null || x === undefined) return '-';
  return Number.isInteger(x) ? String(x) : String(Number(x.toPrecision(3)));
}

async function start() {
  try {
    const head = await part('head');
    if ($('list')) await startBrowser(head);
    performance.mark('samples');
    startCurves(head);
    performance.mark('curves');
    document.body.dataset.ready = 'yes';
  } catch (error) {
    broken(error);
  }
}

addEventListener('DOMContentLoaded', start);
