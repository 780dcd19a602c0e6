"""Makes the page: what was read of runs, put into one HTML file.

Everything a model or a data set wrote is text here: the template escapes it,
the scripts only ever set text, and a policy in the page forbids any script but
the two that it was made with, and the network.
"""

import base64
from collections.abc import Sequence
import functools
import gzip
import hashlib
from importlib import resources
import time
from typing import Any

from etils import epath
import jinja2

from mmr1.reporting import audit
from mmr1.reporting import curves
from mmr1.reporting import pictures
from mmr1.reporting import reading
from mmr1.reporting import samples
from mmr1.reporting import scores
from mmr1.reporting import settings

NAME = 'report.html'
# Characters; with the curves and the plotting library below 30 MB.
SAMPLES, PICTURES = 12_000_000, 10_000_000
_SCRIPTS = ('page.js', 'curves.js', 'spans.js', 'samples.js')


@functools.cache
def _asset(name: str) -> str:
  return (resources.files('mmr1') / 'assets' / 'report' / name).read_text(
      'utf-8')


@functools.cache
def _plotly() -> tuple[str, str]:
  """The plotting library: base64 of its gzip, and its hash for the policy."""
  from plotly import offline  # needed by no command but this one
  text = offline.get_plotlyjs()
  packed = gzip.compress(text.encode(), 6, mtime=0)
  return base64.b64encode(packed).decode(), _hash(text)


def _hash(script: str) -> str:
  digest = hashlib.sha256(script.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"


@functools.cache
def _template() -> jinja2.Template:
  environment = jinja2.Environment(
      loader=jinja2.FunctionLoader(_asset), autoescape=True,
      trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
  environment.filters['number'] = _number
  return environment.get_template('page.html')


def _number(value: float | None) -> str:
  return '' if value is None else f'{value:.3g}'


def write(workdirs: Sequence[Any], out: Any | None = None) -> epath.Path:
  """Reads runs and writes their page, whole or not at all.

  Args:
    workdirs: of one run, or of several that are compared.
    out: the file; None: report.html in the workdir, or compare.html in the
      current folder.

  Returns:
    The file.

  Raises:
    ValueError: one of them is not the folder of a run.
  """
  runs = [reading.read(path) for path in workdirs]
  _name(runs)
  if out is None:
    out = runs[0].path / NAME if len(runs) == 1 else 'compare.html'
  path = epath.Path(out).expanduser()
  html = build(runs)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f'.{path.name}.tmp'
  # A lone surrogate of a broken text becomes its escape.
  temporary.write_bytes(html.encode('utf-8', 'backslashreplace'))
  temporary.replace(path)
  return path


def _name(runs: list[reading.Run]) -> None:
  """Folders of one name are told apart by the ones that they are in."""
  names = [run.name for run in runs]
  for run in runs:
    if names.count(run.name) > 1:
      run.name = f'{run.path.parent.name}/{run.path.name}'


def build(runs: Sequence[reading.Run], *, sample_budget: int = SAMPLES,
          picture_budget: int = PICTURES) -> str:
  """The page of some runs. Their notes grow by what it has to leave out."""
  series = [curves.series(run) for run in runs]
  found = samples.collect(runs, sample_budget)
  images: dict[str, str] = {}
  for run, rows in zip(runs, found.rows):
    new = [name for name in samples.thumbnails(rows) if name not in images]
    images |= pictures.collect(run, new, picture_budget // len(runs))
  parts, where = pictures.chunks(images)
  plotly, plotly_hash = _plotly()
  head = {
      'runs': [{'name': run.name, **one._asdict()}
               for run, one in zip(runs, series)],
      'charts': curves.charts([one.columns for one in series]),
      'index': found.index, 'rewards': found.rewards, 'images': where}
  script = '\n'.join(map(_asset, _SCRIPTS))
  views = [_view(run, one, rows)
           for run, one, rows in zip(runs, series, found.rows)]
  return _template().render(
      title=', '.join(run.name for run in runs), views=views,
      compare=len(runs) > 1, tables=scores.tables(list(runs)),
      between=settings.differing([run.config for run in runs])
      if len(runs) > 1 else (),
      made=time.strftime('%Y-%m-%d %H:%M:%S %Z'), count=len(found.index['run']),
      css=_asset('page.css'), script=script,
      policy=f'{_hash(script)} {plotly_hash}', plotly=plotly,
      head=samples.packed(head), chunks=found.chunks,
      pictures=[samples.packed(part) for part in parts])


def _view(run: reading.Run, series: curves.Series,
          rows: list[dict[str, Any]]) -> dict[str, Any]:
  """What the template shows of a run; last, since notes are complete then."""
  view = {
      'run': run, 'audit': audit.audit(run, rows), 'cards': scores.cards(run),
      'stages': series.stages, 'settings': settings.against_parent(run),
      'config': settings.whole(run.config) if run.config else ''}
  times = [row['time'] for row in run.rows
           if isinstance(row.get('time'), (int, float))]
  view['last'] = time.strftime(
      '%Y-%m-%d %H:%M:%S %Z', time.localtime(max(times))) if times else ''
  return view
