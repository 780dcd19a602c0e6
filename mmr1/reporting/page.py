"""Makes the page: what was read of runs, put into one HTML file.

Everything a model or a data set wrote is text here: the template escapes it,
the scripts only ever set text, and a policy in the page forbids any script but
the two that it was made with, and the network.
"""

import base64
from collections.abc import Iterable, Sequence
import functools
import gzip
import hashlib
from importlib import resources
import time
from typing import Any, NamedTuple

from etils import epath
import jinja2

from mmr1.reporting import audit
from mmr1.reporting import curves
from mmr1.reporting import entries
from mmr1.reporting import pictures
from mmr1.reporting import problems
from mmr1.reporting import reading
from mmr1.reporting import samples
from mmr1.reporting import scores
from mmr1.reporting import settings
from mmr1.reporting import tokens

NAME = 'report.html'
_SCRIPTS = ('page.js', 'curves.js', 'sketch.js', 'spans.js', 'training.js',
            'problems.js', 'samples.js', 'detail.js')


class Budget(NamedTuple):
  """Characters; with the curves and the plotting library below 30 MB.

  Fields:
    samples, tokens: of training stages.
    problems: of evaluations.
    pictures: of all.
  """
  samples: int = 11_000_000
  tokens: int = 2_500_000
  problems: int = 4_500_000
  pictures: int = 7_500_000


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
  """Folders of one name are told apart by the ones that they are in, as many as
  it needs."""
  parts = [reading.absolute(run.path).parts for run in runs]
  for count in range(1, max(map(len, parts)) + 1):
    names = [run.name for run in runs]
    for run, part in zip(runs, parts):
      same = {other for name, other in zip(names, parts) if name == run.name}
      if count == 1 or len(same) > 1:
        run.name = '/'.join(part[-count:])


def build(runs: Sequence[reading.Run], budget: Budget = Budget()) -> str:
  """The page of some runs. Their notes grow by what it has to leave out."""
  series = [curves.series(run) for run in runs]
  found = samples.collect(runs, budget.samples, budget.tokens)
  asked = problems.collect(runs, budget.problems)
  parts, where = pictures.chunks(_images(runs, found, asked, budget.pictures))
  plotly, plotly_hash = _plotly()
  head = {
      'runs': [{'name': run.name, **one._asdict()}
               for run, one in zip(runs, series)],
      'charts': curves.charts([one.columns for one in series]),
      'images': where, 'samples': len(found.index['run']),
      'tokensInChunk': tokens.CHUNK,
      'problems': [{'name': one.name, 'evaluations': one.evaluations,
                    'count': len(one.index['at'])} for one in asked]}
  script = '\n'.join(map(_asset, _SCRIPTS))
  views = [_view(run, one, rows)
           for run, one, rows in zip(runs, series, found.rows)]
  data = {'head': entries.packed(head), 'samples': entries.packed(
      {'index': found.index, 'rewards': found.rewards})}
  data |= _named('samples', found.chunks) | _named('tokens', found.tokens)
  for k, one in enumerate(asked):
    data[f'problems-{k}'] = entries.packed(one.index)
    data |= _named(f'problems-{k}', one.chunks)
  data |= _named('pictures', map(entries.packed, parts))
  return _template().render(
      title=', '.join(run.name for run in runs), views=views,
      compare=len(runs) > 1, tables=scores.tables(list(runs)),
      parts=scores.groups(runs),
      between=settings.differing([run.config for run in runs])
      if len(runs) > 1 else (),
      made=time.strftime('%Y-%m-%d %H:%M:%S %Z'),
      count=head['samples'] + sum(one['count'] for one in head['problems']),
      css=_asset('page.css'), script=script,
      policy=f'{_hash(script)} {plotly_hash}', plotly=plotly, data=data)


def _named(name: str, chunks: Iterable[str]) -> dict[str, str]:
  return {f'{name}-chunk-{i}': chunk for i, chunk in enumerate(chunks)}


def _images(runs: Sequence[reading.Run], found: samples.Samples,
            asked: Sequence[problems.Problems], budget: int) -> dict[str, str]:
  """{name: data URI}; those of samples first."""
  images: dict[str, str] = {}
  for i, run in enumerate(runs):
    rows = [*found.rows[i]]
    for one in asked:
      mine = {k for k, e in enumerate(one.evaluations) if e['run'] == i}
      rows += [row for row, k in zip(one.rows, one.index['evaluation'])
               if k in mine]
    new = [name for name in entries.thumbnails(rows) if name not in images]
    images |= pictures.collect(run, new, budget // len(runs))
  return images


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
