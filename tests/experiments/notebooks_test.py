"""Notebooks: their form, what they have kept, and, slowly, that they run."""

import ast
import pathlib
import re
import shutil

import pytest

from configs import forkme
from experiments.notebooks import execute
from experiments.notebooks import short

ROOT = pathlib.Path(__file__).parent.parent.parent
NAMES = execute.names()
EXPECTED = ['1_vision_r1', '2_ablation', '3_own_data_and_reward', '4_grpo_step',
            '5_hugging_face']


def code(notebook):
  """Sources of code cells, without lines of IPython's own."""
  return ['\n'.join(line for line in execute.text(cell).split('\n')
                    if line[:1] not in '%!')
          for cell in notebook['cells'] if cell['cell_type'] == 'code']


def outputs(notebook):
  return [output for cell in notebook['cells']
          for output in cell.get('outputs', ())]


def said(notebook):
  """All that was printed, and what results look like as text."""
  return '\n'.join(
      ''.join(output.get('text', output.get('data', {}).get('text/plain', '')))
      for output in outputs(notebook))


def pictures(notebook):
  return sum('image/png' in output.get('data', {})
             for output in outputs(notebook))


KEPT = [name for name in NAMES if outputs(execute.read(name))]


def kept(name):
  """A notebook with the outputs of its last execution."""
  if name not in KEPT:
    pytest.skip('no outputs: python -m experiments.notebooks.execute '
                f'experiments/notebooks/{name}.ipynb')
  return execute.read(name)


def test_all_are_there():
  assert NAMES == EXPECTED and {'1_vision_r1', '4_grpo_step'} <= {*KEPT}


@pytest.mark.parametrize('name', NAMES)
class TestForm:

  def test_valid(self, name):
    nbformat = pytest.importorskip('nbformat')
    nbformat.validate(nbformat.from_dict(execute.read(name)))

  def test_short_and_linked(self, name):
    notebook = execute.read(name)
    cells = notebook['cells']
    assert len(cells) <= 10
    assert execute.text(cells[0]).startswith(execute.badge(name))
    assert re.search(r'minute', execute.text(cells[0]))  # how long it takes
    assert execute.text(cells[1]) == execute.setup()
    assert (execute.FOLDER / f'{name}.ipynb').stat().st_size < 400_000

  def test_no_method_in_it(self, name):
    """A function may be a reward; the rest calls the project."""
    functions = [
        node for source in code(execute.read(name))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert len(functions) <= 1
    assert all(node.end_lineno - node.lineno < 10 for node in functions)

  def test_links_exist(self, name):
    for cell in execute.read(name)['cells']:
      if cell['cell_type'] == 'markdown':
        for link in re.findall(r'\]\(([^)]+)\)', execute.text(cell)):
          path, _, anchor = link.partition('#')
          if not path.startswith('http'):
            file = execute.FOLDER / path
            assert file.exists(), link
            heads = [re.sub(r'[^\w -]', '', line.lstrip('# ')).lower()
                     .replace(' ', '-')
                     for line in file.read_text().splitlines()
                     if line.startswith('#')]
            assert not anchor or anchor in heads, link

  def test_kept_outputs_are_of_a_run_to_the_end(self, name):
    notebook = kept(name)
    counts = [cell['execution_count'] for cell in notebook['cells']
              if cell['cell_type'] == 'code']
    assert counts == [*range(1, len(counts) + 1)]
    kinds = {output['output_type'] for output in outputs(notebook)}
    assert 'error' not in kinds and pictures(notebook)
    assert short.VARIABLE not in said(notebook)  # nothing was shortened
    assert len(said(notebook)) < 12_000

  def test_experiments_list_it(self, name):
    listed = (ROOT / 'experiments' / 'README.md').read_text()
    assert execute.badge(name) in listed and f'{name}.ipynb' in listed


# What was kept.


def accuracies(notebook):
  """{stage: (greedy, sampled)} of the table of a run."""
  rows = re.findall(r'^(\w+)  (0\.\d+) \([\d.-]+\)  (0\.\d+) ',
                    said(notebook), re.MULTILINE)
  return {stage: (float(a), float(b)) for stage, a, b in rows}


def test_vision_r1_rose():
  found = accuracies(kept('1_vision_r1'))
  assert [*found] == ['base', 'cold_start', 'think_short', 'think_long']
  for decoding in (0, 1):
    assert found['think_long'][decoding] > found['cold_start'][decoding] + .1


def test_own_pictures_were_learnt():
  found = accuracies(kept('3_own_data_and_reward'))
  assert found['grpo'][1] > found['base'][1]


@pytest.mark.parametrize('words', [
    '[N, P]      (4, 64)', '[N, G, T]   (4, 8, 48)',
    'width] (4, 4, 2, 64, 32)', 'ratio/max  1.0000'])
def test_the_step_has_these_shapes(words):
  """4 prompts x 8 samples: 4 (64 + 8 x 48) = 1792 tokens, not 32 (64 + 48)."""
  told = said(kept('4_grpo_step'))
  assert words in told
  assert 'tokens computed: 1792; with the prompt repeated: 3584' in told


def test_transformers_said_the_same():
  told = said(kept('5_hugging_face'))
  assert 'equal: True' in told
  for key in ('accuracy', 'accuracy_sampled'):
    first, second = re.search(rf'eval/{key} +(\S+) (\S+)', told).groups()
    assert first == second


# What executes them.


def test_the_address_is_in_one_place(monkeypatch):
  monkeypatch.setattr(execute, 'REPOSITORY', 'https://github.com/me/fork')
  one = execute.linked('4_grpo_step', execute.read('4_grpo_step'))
  first, second = map(execute.text, one['cells'][:2])
  assert first.count('[![') == 1 and 'github/me/fork/blob' in first
  assert "'https://github.com/me/fork'" in second


def test_outputs_are_cleaned():
  stream = {'output_type': 'stream', 'name': 'stdout'}
  notebook = {'metadata': {'x': 1}, 'cells': [{
      'cell_type': 'code', 'metadata': {'execution': 'time'}, 'source': 'x',
      'outputs': [
          {**stream, 'text': '\x1b[1ma\x1b[0m'}, {**stream, 'text': ['b\n']},
          {'output_type': 'stream', 'name': 'stderr', 'text': 'w'},
          {'output_type': 'display_data', 'data': {}, 'metadata': {'y': 1}},
          # A print of rich, and its lines of progress.
          {'output_type': 'display_data', 'metadata': {}, 'data': {
              'text/html': '<pre style="x">c</pre>',
              'text/plain': [f'c {execute.ROOT}/runs\n']}},
          {**stream, 'text': 'grpo 3/9, 0:41 left\ngrpo 9/9, 0:00 left\n'},
          ]}]}
  cell, = execute.clean(notebook)['cells']
  assert cell['metadata'] == {} and cell['outputs'] == [
      {**stream, 'text': 'ab\n'},
      {'output_type': 'display_data', 'data': {}, 'metadata': {}},
      {**stream, 'text': 'c runs\ngrpo 9/9, 0:00 left\n'}]


def test_shortening_is_asked_for_and_said(monkeypatch, capsys):
  whole = forkme.get_config()
  monkeypatch.delenv(short.VARIABLE, raising=False)
  assert short.shorten(forkme.get_config()) == whole
  assert not capsys.readouterr().out
  monkeypatch.setenv(short.VARIABLE, '2')
  config = short.shorten(forkme.get_config())
  assert config.grpo.steps == 2 and config.evaluation.examples == 16
  assert 'This is a test' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_it_runs(name, tmp_path, monkeypatch):
  """From nothing, in a checkout of its own, two steps of each stage."""
  pytest.importorskip('nbclient')
  pytest.importorskip('ipykernel')
  for folder in ('mmr1', 'configs', 'experiments'):
    shutil.copytree(ROOT / folder, tmp_path / folder,
                    ignore=shutil.ignore_patterns('results', '__pycache__'))
  monkeypatch.setenv(short.VARIABLE, '2')
  made = execute.execute(name, cwd=tmp_path / 'experiments' / 'notebooks')
  told = said(made)
  assert not any(output['output_type'] == 'error' for output in outputs(made))
  assert pictures(made) >= max(1, pictures(execute.read(name)))
  if name == '4_grpo_step':
    assert '(4, 8, 48)' in told and 'ratio/max  1.0000' in told
  else:
    assert f'{short.VARIABLE} is set: 2 steps' in told
  if name == '5_hugging_face':
    assert 'equal: True' in told
  if name == '2_ablation':
    assert 'McNemar' in told and '--config.rl.advantage.kwargs.std=none' in told
