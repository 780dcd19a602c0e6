"""Executes the notebooks and writes them back with their outputs.

  pip install nbclient ipykernel
  python -m experiments.notebooks.execute                  # all
  python -m experiments.notebooks.execute experiments/notebooks/2_ablation.ipynb
  python -m experiments.notebooks.execute --links          # no execution

Each starts from nothing: a kernel of its own, and runs in a folder that is
empty. The first two cells of a notebook, its badge and what it installs, are
written here, so that the address of the repository is in one place. Where a
cell fails nothing is written.
"""

from collections.abc import Iterator, Sequence
import json
import os
import pathlib
import re
import shutil
import sys
import time
from typing import Any

from absl import flags

# Where the notebooks are opened and cloned from: set it to your fork, then run
# the command with --links.
REPOSITORY = 'https://github.com/OWNER/mmr1'
BRANCH = 'main'

_FLAGS = flags.FlagValues()
flags.DEFINE_bool('links', False, 'Writes the first two cells, runs nothing.',
                  flag_values=_FLAGS)

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parent.parent
RUNS = 'runs/notebooks'
_COLAB = 'https://colab.research.google.com'
_TIMEOUT_S = 3600
_SETUP = '''\
# In a checkout this installs nothing. Elsewhere, as on Colab, it takes minutes.
import os, pathlib, shutil, subprocess, sys
here = pathlib.Path.cwd()
places = (here, here / 'mmr1', *here.parents)
root = next((x for x in places if (x / 'mmr1/runner.py').exists()), None)
if root is None:
    root = here / 'mmr1'
    subprocess.run(['git', 'clone', '--depth=1', '{repository}', root], check=True)
    tpu = any(name.startswith('TPU_') for name in os.environ)
    jax = ['jax[cuda12]'] if shutil.which('nvidia-smi') else ['jax[tpu]'] if tpu else []
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '-r',
                    root / 'requirements.txt', *jax], check=True)
os.chdir(root)
sys.path.insert(0, str(root))'''


def names() -> list[str]:
  """Of all notebooks, in order."""
  return sorted(path.stem for path in FOLDER.glob('*.ipynb'))


def badge(name: str) -> str:
  """The line of Markdown that opens a notebook in Colab."""
  path = REPOSITORY.removeprefix('https://github.com/')
  return (f'[![Open in Colab]({_COLAB}/assets/colab-badge.svg)]({_COLAB}/github/'
          f'{path}/blob/{BRANCH}/experiments/notebooks/{name}.ipynb)')


def setup() -> str:
  """The cell that installs where it must."""
  return _SETUP.format(repository=REPOSITORY)


def linked(name: str, notebook: dict[str, Any]) -> dict[str, Any]:
  """With the badge at the head of the first cell, and the second cell."""
  first, second = notebook['cells'][:2]
  lines = text(first).split('\n')
  if lines[0].startswith('[![Open in Colab'):
    lines = lines[1:]
  first['source'] = '\n'.join([badge(name), *lines])
  second['source'] = setup()
  return notebook


def text(cell: dict[str, Any]) -> str:
  """A cell's source, which a file may hold as a list of lines."""
  source = cell['source']
  return source if isinstance(source, str) else ''.join(source)


def execute(name: str, *, cwd: pathlib.Path = FOLDER) -> dict[str, Any]:
  """The notebook after its cells have run, in the folder `cwd`.

  Raises:
    nbclient.exceptions.CellExecutionError: of the first cell that failed.
  """
  import nbclient
  import nbformat
  # Read anew: what Jupyter saved has lists of lines.
  notebook = nbformat.reads(json.dumps(linked(name, read(name))), as_version=4)
  client = nbclient.NotebookClient(
      notebook, timeout=_TIMEOUT_S, kernel_name='python3',
      resources={'metadata': {'path': str(cwd)}})
  return clean(json.loads(nbformat.writes(client.execute())))


def clean(notebook: dict[str, Any]) -> dict[str, Any]:
  """Without times and machines, so that an execution changes what it must.

  Prints become one stream of plain text for each cell: without colours, what
  libraries say on stderr, and lines of progress that say what time is left.
  """
  notebook['metadata'] = {
      'kernelspec': {'display_name': 'Python 3', 'language': 'python',
                     'name': 'python3'},
      'language_info': {'name': 'python'}}
  for number, cell in enumerate(notebook['cells']):
    cell['metadata'], cell['id'] = {}, f'cell-{number}'
    if cell['cell_type'] == 'code':
      cell['outputs'] = list(_joined(cell['outputs']))
  return notebook


def _joined(outputs: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
  printed = []
  for output in outputs:
    if output.get('name') == 'stderr':
      continue
    said = _printed(output)
    if said is not None:
      printed.append(said)
      continue
    yield from _stream(printed)
    printed = []
    output.pop('metadata', None)
    if output['output_type'] in ('display_data', 'execute_result'):
      output['metadata'] = {}
    yield output
  yield from _stream(printed)


def _printed(output: dict[str, Any]) -> str | None:
  """Text of a print, also of rich's, which are pages; None: no print."""
  if output['output_type'] == 'stream':
    return text({'source': output['text']})
  page = text({'source': output.get('data', {}).get('text/html', '')})
  if page.startswith('<pre style='):
    return text({'source': output['data']['text/plain']})
  return None


def _stream(printed: Sequence[str]) -> Iterator[dict[str, Any]]:
  plain = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', ''.join(printed))
  lines = [line.replace(f'{ROOT}/', '') for line in plain.splitlines(True)
           if not re.search(r'[1-9]\d*:\d\d left|0:(?!00)\d\d left', line)]
  if lines:
    yield {'output_type': 'stream', 'name': 'stdout', 'text': ''.join(lines)}


def read(name: str) -> dict[str, Any]:
  """A notebook as JSON.

  Raises:
    ValueError: there is none of this name.
  """
  if name not in names():
    raise ValueError(f'{name}: no such notebook; there are '
                     f'{", ".join(names())}.')
  return json.loads((FOLDER / f'{name}.ipynb').read_text())


def write(name: str, notebook: dict[str, Any]) -> None:
  (FOLDER / f'{name}.ipynb').write_text(
      json.dumps(notebook, indent=1, ensure_ascii=False) + '\n')


def main(argv: list[str]) -> None:
  try:
    wanted = [pathlib.Path(path).stem for path in _FLAGS(argv)[1:]]
    os.environ.pop('MMR1_STEPS', None)  # what is kept is the whole run
    for name in wanted or names():
      if _FLAGS.links:
        write(name, linked(name, read(name)))
        continue
      read(name)
      shutil.rmtree(ROOT / RUNS / name, ignore_errors=True)
      began = time.time()
      write(name, execute(name))
      size = (FOLDER / f'{name}.ipynb').stat().st_size
      print(f'{name}: {time.time() - began:.0f} s, {size / 1000:.0f} kB')
  except (ValueError, flags.Error) as error:
    sys.exit(f'notebooks: {error}')


if __name__ == '__main__':
  main(sys.argv)
