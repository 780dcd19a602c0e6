"""The floors of the code base, read from its imports without running it."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

FLOORS = (
    # F0
    ('records', 'types', 'average_precision', 'masked', 'columns', 'text', 'positions', 'trees',
     'resolve', 'overlays', 'sections', 'boxes', 'pixels', 'puzzle_rules'),
    # F1
    ('models', 'data', 'rewards', 'losses', 'advantages', 'returns', 'credit',
     'select', 'hooks', 'views', 'envs', 'flows', 'merging'),
    # F2
    ('mesh', 'arrays', 'hosts', 'sharding', 'policy', 'batch', 'optim',
     'checkpoint', 'stored', 'workdir', 'log', 'progress', 'console', 'printer', 'thumbnails', 'compiles', 'guard', 'forward', 'update', 'objective',
     'sampling', 'context', 'loop', 'training', 'rl_setup', 'handover',
     'release', 'lineage', 'buckets', 'learner', 'phases', 'profiling',
     'watchdog', 'recording', 'rollouts', 'looks', 'passes', 'sockets',
     'environments', 'playing', 'episodes', 'sample_rows', 'average', 'weighing', 'judged', 'judging', 'revising', 'experience', 'probing', 'asking', 'rl_checks', 'judges',
     'evaluations', 'evaluation_records', 'grades', 'refining', 'pairwise', 'scoring', 'significance', 'judge_models',
     'score_judges', 'generator', 'flow_objectives', 'flow_setup',
     'flow_update', 'detect_setup', 'picture_judges', 'parents', 'fusing', 'config_checks', 'gold', 'first_samples'),
    # F3
    ('papers',),
    # F4
    ('stages',),
    # F5
    ('main', 'command_line', 'dry_run', 'evaluate', 'runner', 'banner', 'plan', 'export', 'report',
     'compare', 'replay', 'planning', 'tables', 'reporting', 'results'),
)
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
# Packages of this floor never know each other.
APART = 1

NO_JAX = ('records', 'text', 'positions', 'pixels', 'boxes', 'puzzle_rules',
          'rewards', 'select', 'resolve', 'overlays', 'sections', 'data.tasks',
          'data.benchmarks', 'data.benchmark_rows', 'significance', 'reporting')
JAX = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'grain', 'chex'}
DEVICE = ('losses', 'advantages', 'returns', 'credit', 'models', 'flows')
HOST = {'mmr1.data', 'mmr1.rewards', 'PIL', 'grain'}

FORBIDDEN_NAMES = ('util', 'helper', 'misc', 'manager', 'common')


def module_name(path):
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


@functools.cache
def sources():
  """{module name: (path, tree)} of mmr1/ and configs/."""
  return {
      module_name(path): (path, ast.parse(path.read_text(), str(path)))
      for folder in ('mmr1', 'configs')
      for path in sorted((ROOT / folder).rglob('*.py'))}


def imported_modules(name, tree, is_package, known):
  """Absolute names of what a module imports, inside functions as well.

  The root package is the exception: what its functions import on demand
  (`mmr1.run`) is not imported by those who import a part of it.
  """
  nodes = tree.body if name == 'mmr1' else list(ast.walk(tree))
  out = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      out |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ''
      if node.level:
        up = name.split('.')
        up = up[:len(up) - node.level + is_package]
        base = '.'.join(up + ([base] if base else []))
      for alias in node.names:
        full = f'{base}.{alias.name}'
        out.add(full if full in known else base)
  return out


@functools.cache
def edges():
  """{module: modules it imports}, ancestors' packages included."""
  known = set(sources())
  graph = {}
  for name, (path, tree) in sources().items():
    found = imported_modules(name, tree, path.name == '__init__.py', known)
    graph[name] = {
        '.'.join(full.split('.')[:i + 1])
        for full in [*found, name.rpartition('.')[0]]
        for i in range(full.count('.') + 1)} - {''}
  return graph


def closure(start):
  """Everything that importing `start` may import, with the way there."""
  way, todo = {start: ()}, [start]
  while todo:
    name = todo.pop()
    for other in edges().get(name, ()):
      if other not in way:
        way[other] = way[name] + (name,)
        todo.append(other)
  return way


def members(*names):
  assert set(names) <= {m.removeprefix('mmr1.') for m in sources()}
  return [m for m in sources() for n in names
          if m == f'mmr1.{n}' or m.startswith(f'mmr1.{n}.')]


def ways(start, banned):
  """'a -> b -> c' for every c of `banned` that a module of `start` reaches."""
  return [' -> '.join((*way, other))
          for name in members(*start) for other, way in closure(name).items()
          if any(other == b or other.startswith(f'{b}.') for b in banned)]


def unit(module):
  return module.split('.')[1] if module.startswith('mmr1.') else None


def test_every_module_has_a_floor():
  units = {unit(name) for name in sources() if unit(name)}
  assert units <= set(FLOOR), f'give these a floor: {units - set(FLOOR)}'


def test_imports_go_down():
  wrong = []
  for name, others in edges().items():
    for other in others:
      a, b = unit(name), unit(other)
      if a is None or b is None or a not in FLOOR or b not in FLOOR:
        continue
      up = FLOOR[b] > FLOOR[a]
      beside = a != b and FLOOR[a] == FLOOR[b] == APART
      if up or beside:
        wrong.append(f'{name} (F{FLOOR[a]}) imports {other} (F{FLOOR[b]})')
  assert not wrong, '\n'.join(wrong)


def test_papers_do_not_know_each_other():
  wrong = [
      f'{name} imports {other}'
      for name in members('papers') for other in edges()[name]
      if other.startswith('mmr1.papers.')
      and other.split('.')[2] != name.split('.')[2]]
  assert not wrong, '\n'.join(wrong)


def test_stage_kinds_meet_only_in_the_context():
  """A kind is a module of stages/ with `run`; no other there imports it."""
  defines = lambda name, fn: any(
      isinstance(node, ast.FunctionDef) and node.name == fn
      for node in sources()[name][1].body)
  kinds = {name for name in members('stages') if defines(name, 'run')}
  assert kinds
  wrong = [f'{name} imports {other}' for name in members('stages')
           for other in edges()[name] & kinds
           if not other.startswith(f'{name}.')]
  assert not wrong, '\n'.join(wrong)


def test_no_cycles():
  wrong = []
  for name in sources():
    for other in edges()[name]:
      if (other in sources() and other != name
          and not name.startswith(f'{other}.') and name in closure(other)):
        wrong.append(f'{name} <-> {other}')
  assert not wrong, '\n'.join(wrong)


def test_host_modules_never_import_jax():
  """Second law: reward and data workers stay without jax."""
  wrong = ways(NO_JAX, JAX)
  assert not wrong, '\n'.join(wrong)


def test_host_modules_bring_no_jax_when_run():
  """The same for what third-party packages bring along."""
  code = (
      f'import sys\nfor name in {members(*NO_JAX)!r}:\n'
      '  __import__(name)\n'
      "  assert 'jax' not in sys.modules, name\n")
  result = subprocess.run(
      [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr[-2000:]


def test_device_modules_never_import_host_code():
  """Second law: losses, advantages and models."""
  wrong = ways(DEVICE, HOST)
  assert not wrong, '\n'.join(wrong)


def test_configs_import_only_common():
  wrong = []
  families = {  # defaults of a kind of stages, parts of common.py
      name for name, (_, tree) in sources().items()
      if name.startswith('configs.') and not any(
          isinstance(node, ast.FunctionDef) and node.name == 'get_config'
          for node in tree.body)}
  for name in sources():
    if not name.startswith('configs'):
      continue
    allowed = {'configs', 'configs.common', 'ml_collections'}
    if name == 'configs.common':
      allowed |= {'mmr1', 'mmr1.resolve', *families}
    for other in edges()[name]:
      if (other not in allowed and other != 'ml_collections.config_dict'
          and other.split('.')[0] not in sys.stdlib_module_names):
        wrong.append(f'{name} imports {other}')
  assert not wrong, '\n'.join(wrong)


def test_no_torch_at_run_time():
  banned = {'torch', 'tensorflow', 'vllm', 'trl', 'torchvision'}
  wrong = [f'{name} imports {other}' for name in sources()
           for other in edges()[name] if other.split('.')[0] in banned]
  assert not wrong, '\n'.join(wrong)


def python_files():
  return [path for folder in ('mmr1', 'configs', 'tests', 'experiments')
          for path in sorted((ROOT / folder).rglob('*.py'))]


def test_files_are_short():
  wrong = []
  for path in python_files():
    name = path.relative_to(ROOT)
    # common.py is one list: every default of every config.
    long = name.parts[0] == 'tests' or name.parts[:2] in (
        ('mmr1', 'models'), ('configs', 'common.py'))
    lines = len(path.read_text().splitlines())
    if lines > (500 if long else 300):
      wrong.append(f'{name}: {lines} lines')
  assert not wrong, '\n'.join(wrong)


def test_functions_are_short():
  wrong = []
  for path in python_files():
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        # The docstring does not count: shapes and sources need room.
        body = node.body[1:] if ast.get_docstring(node) else node.body
        lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        if lines > 60:
          wrong.append(f'{path.relative_to(ROOT)}:{node.lineno} {node.name}: '
                       f'{lines} lines')
  assert not wrong, '\n'.join(wrong)


def test_file_names_say_what_is_inside():
  wrong = [
      str(path.relative_to(ROOT)) for path in python_files()
      if any(word in path.stem for word in FORBIDDEN_NAMES)
      and path != ROOT / 'configs' / 'common.py']
  assert not wrong, '\n'.join(wrong)


def test_nothing_is_swallowed_silently():
  """`except Exception: pass` and bare `except:` have no place."""
  wrong = []
  for path in python_files():
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ExceptHandler):
        broad = node.type is None or getattr(node.type, 'id', '') in (
            'Exception', 'BaseException')
        silent = all(isinstance(n, (ast.Pass, ast.Continue)) for n in node.body)
        if node.type is None or broad and silent:
          wrong.append(f'{path.relative_to(ROOT)}:{node.lineno}')
  assert not wrong, '\n'.join(wrong)


# The test of the test: a walk that sees nothing would pass everything.


@pytest.mark.parametrize('code, is_package, expected', [
    ('import jax.numpy as jnp', False, {'jax.numpy'}),
    ('def f():\n  from mmr1.data import x', False, {'mmr1.data.x'}),
    ('from mmr1.data import thing', False, {'mmr1.data'}),
    ('from . import b', False, {'mmr1.data.b'}),
    ('from . import b', True, {'mmr1.data.a.b'}),
    ('from .. import types', False, {'mmr1.types'}),
    ('try:\n  import grain\nexcept ImportError:\n  grain = 1', False,
     {'grain'}),
])
def test_the_walk_sees(code, is_package, expected):
  known = {'mmr1.data.x', 'mmr1.data.b', 'mmr1.data.a.b', 'mmr1.types'}
  assert imported_modules(
      'mmr1.data.a', ast.parse(code), is_package, known) == expected


@pytest.fixture
def changed(monkeypatch):
  """(module, line) -> the code base with that line at its end."""
  original = sources()
  def change(name, line):
    path, tree = original[name]
    more = ast.parse(ast.unparse(tree) + f'\n{line}')
    monkeypatch.setitem(
        globals(), 'sources', lambda: {**original, name: (path, more)})
    edges.cache_clear()
  yield change
  edges.cache_clear()


@pytest.mark.parametrize('name, line, start, banned, way', [
    # Directly, inside a function, and three modules away.
    ('mmr1.text', 'import jax.numpy as jnp', NO_JAX, JAX,
     'mmr1.text -> jax'),
    ('mmr1.select', 'def f():\n  from mmr1 import trees', NO_JAX, JAX,
     'mmr1.select -> mmr1.trees -> jax'),
    ('mmr1.sections', 'import flax.struct', NO_JAX, JAX,
     'mmr1.resolve -> mmr1.overlays -> mmr1.sections -> flax'),
    # By way of the package that every module of it imports.
    ('mmr1.rewards', 'import grain', NO_JAX, JAX,
     'mmr1.rewards.math -> mmr1.rewards -> grain'),
    ('mmr1.masked', 'from mmr1.rewards import text', DEVICE, HOST,
     'mmr1.losses.kl -> mmr1.masked -> mmr1.rewards'),
])
def test_a_violation_is_found(changed, name, line, start, banned, way):
  assert not ways(start, banned)
  changed(name, line)
  found = ways(start, banned)
  head, tail = way.split(' -> ')[0], way.split(' -> ')[-1]
  assert any(w.startswith(head) and w.endswith(tail) for w in found), found


def test_the_walk_follows_chains():
  # trees imports jax and resolve; resolve imports sections.
  assert closure('mmr1.trees')['mmr1.sections'][0] == 'mmr1.trees'
  assert any(name.split('.')[0] == 'jax' for name in closure('mmr1.trees'))
  assert 'mmr1.sections' in closure('mmr1.resolve')
  assert not any(
      name.split('.')[0] == 'jax' for name in closure('mmr1.resolve'))
