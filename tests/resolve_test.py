"""Names, overlays, the final config, and what was read of it."""

import json
import math
import pathlib
import subprocess
import sys
import textwrap

import ml_collections
from ml_collections import config_dict
import pytest

from configs import common
from mmr1 import resolve

ConfigDict = ml_collections.ConfigDict


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A package `worlds` as mmr1.rewards is one: worlds/shapes.py, broken.py."""
  folder = tmp_path / 'worlds'
  folder.mkdir()
  (folder / '__init__.py').write_text('')
  (folder / 'shapes.py').write_text(textwrap.dedent('''
      import math
      LIMIT = 3
      def area(sample, knobs, *, side, scale=1.0): return side * scale
      def count(sample, *, knobs=None, **extra): return extra
      def own(sample, limit=2): return limit
      def _hidden(): pass
      '''))
  (folder / 'broken.py').write_text('import no_such_package_at_all\n')
  monkeypatch.syspath_prepend(tmp_path)
  yield 'worlds'
  for name in [n for n in sys.modules if n.split('.')[0] == 'worlds']:
    del sys.modules[name]


class TestFunction:

  def test_by_path(self, package):
    assert resolve.function('shapes.area', package)(0, 0, side=3) == 3
    assert resolve.function('area', 'worlds.shapes')(0, 0, side=3) == 3
    assert resolve.function('math:floor', package) is math.floor

  @pytest.mark.parametrize('name, near', [
      ('shapes.aera', 'shapes.area'),     # misspelt function
      ('shape.area', 'shapes.area'),      # misspelt module
      ('area', 'shapes.area'),            # module forgotten
      ('forms.count', 'shapes.count'),    # right function, wrong module
      ('worlds.shapes:cont', 'count'),    # a user's own
  ])
  def test_m22_nearest_names(self, package, name, near):
    with pytest.raises(ValueError) as error:
      resolve.function(name, package)
    assert near in str(error.value) and name in str(error.value)

  @pytest.mark.parametrize('name', [
      'shapes.LIMIT', 'shapes._hidden', 'shapes.', 'a b', '', 'no_mod_x:f', 3])
  def test_what_is_no_function(self, package, name):
    with pytest.raises(ValueError):
      resolve.function(name, package)

  def test_a_missing_dependency_is_not_a_typo(self, package):
    with pytest.raises(ModuleNotFoundError, match='no_such_package_at_all'):
      resolve.function('broken.f', package)


class TestKwargs:

  def check(self, name, kwargs, **rest):
    fn = resolve.function(f'shapes.{name}', 'worlds')
    resolve.check_kwargs(fn, kwargs, 'rl.rewards.x', **rest)

  def test_good(self, package):
    self.check('area', {'side': 2})
    self.check('area', {}, provided=('side',))
    self.check('count', {'anything': 2})
    self.check('own', {'limit': 2})

  @pytest.mark.parametrize('name, kwargs, words', [
      ('area', {'side': 1, 'scael': 2}, ('rl.rewards.x.scael', 'scale')),
      ('area', {'scale': 2}, ("'side' is missing", 'side, scale=1.0')),
      ('area', {'side': 1, 'sample': 2}, ('rl.rewards.x.sample',)),
  ])
  def test_m22_bad(self, package, name, kwargs, words):
    with pytest.raises(ValueError) as error:
      self.check(name, kwargs)
    assert all(word in str(error.value) for word in words)
    assert 'sample, knobs' in str(error.value)  # the signature


def base():
  c = ConfigDict()
  c.seed = 0
  c.stages = ()
  c.model = ConfigDict(dict(path='tiny', layers=2))
  c.rl = ConfigDict(dict(
      kind='rl', lr=1e-4, steps=100, sampled=True, names=('a',),
      length=config_dict.placeholder(int),
      kl=dict(coefficient=0.0, estimator='k3'),
      advantage=dict(fn='grpo', ddof=1),
      reward=dict(fn='math', weight=1.0, kwargs=dict(strict=True)),
      free=dict()))
  c.sft = ConfigDict(dict(kind='sft', lr=1e-3))
  c.evaluate = ConfigDict(dict(kind='evaluate', examples=8))
  return c


def paper():
  c = base()
  c.short = resolve.overlay(c.rl, steps=5, kl=dict(coefficient=1))
  c.long = resolve.overlay(c.rl)
  c.stages = ('short', 'long')
  return c


class TestOverlay:

  def test_inherits_and_sets(self):
    f = resolve.finalise(paper())
    assert (f.short.steps, f.long.steps) == (5, 100)
    assert (f.short.kl.coefficient, f.short.kl.estimator) == (1.0, 'k3')
    assert f.long.kl.coefficient == 0.0 and f.short.kind == 'rl'
    assert f.short.length is None

  def test_an_int_becomes_the_float_of_the_family(self):
    f = resolve.finalise(paper())
    assert type(f.short.kl.coefficient) is float

  def test_family_moves_who_does_not_set_its_own(self):
    c = paper()
    c.rl.steps = 7
    c.rl.lr = 1
    f = resolve.finalise(c)
    assert (f.short.steps, f.long.steps) == (5, 7)
    assert f.short.lr == f.long.lr == 1.0

  @pytest.mark.parametrize('changes, words', [
      (dict(stepz=3), ('rl.stepz', 'steps')),
      (dict(kl=dict(coeficient=1.0)), ('rl.kl.coeficient', 'coefficient')),
      (dict(steps='many'), ('rl.steps', 'int')),
      (dict(steps=2.5), ('rl.steps', 'int')),
      (dict(kl=2), ('rl.kl', 'section')),
      (dict(steps=dict(a=1)), ('rl.steps', 'single value')),
  ])
  def test_m22_typos_and_types(self, changes, words):
    with pytest.raises(ValueError) as error:
      resolve.overlay(base().rl, **changes)
    assert all(word in str(error.value) for word in words)

  def test_free_names(self):
    c = base()
    c.s = resolve.overlay(
        c.rl, free=dict(a=1), reward=dict(kwargs=dict(limit=3)),
        judge=dict(path='x'))
    c.stages = ('s',)
    f = resolve.finalise(c)
    assert f.s.free.a == 1 and f.s.judge.path == 'x'
    assert f.s.reward.kwargs.as_dict() == {'limit': 3, 'strict': True}

  def test_another_fn_leaves_the_arguments_of_the_first(self):
    c = base()
    c.s = resolve.overlay(
        c.rl, advantage=dict(fn='rloo', tau=0.5), reward=dict(fn='choice'))
    c.stages = ('s',)
    f = resolve.finalise(c)
    assert f.s.advantage.as_dict() == {'fn': 'rloo', 'tau': 0.5}
    assert f.s.reward.as_dict() == {'fn': 'choice', 'kwargs': {}, 'weight': 1.0}

  def test_a_bare_none_has_no_type(self):
    c = base()
    c.rl.bare = None
    with pytest.raises(ValueError, match='bare'):
      resolve.overlay(c.rl)


class TestFinalise:

  @pytest.mark.parametrize('change, words', [
      (lambda c: c.update(stages=('shrot',)), ("'shrot'", 'short')),
      (lambda c: c.update(stages=('model',)), ("'model'",)),
      (lambda c: c.update(stages=('short', 'short')), ('twice',)),
      (lambda c: c.short.update(kind='rll'), ("'rll'", 'rl')),
  ])
  def test_m22_stages(self, change, words):
    c = paper()
    change(c)
    with pytest.raises(ValueError) as error:
      resolve.finalise(c)
    assert all(word in str(error.value) for word in words)

  def test_families_and_unused_stages_are_left_out(self):
    c = paper()
    c.stages = ('short',)
    assert list(resolve.finalise(c)) == ['model', 'seed', 'stages', 'short']
    assert list(resolve.finalise(c, direct=('evaluate',))) == [
        'evaluate', 'model', 'seed', 'stages', 'short']

  @pytest.mark.parametrize('path, word', [
      ('rl.steps', None),            # long takes it
      ('rl.kl.coefficient', None),
      ('evaluate.examples', None),   # the run reads it itself
      ('model.path', None),
      ('short.steps', None),
      ('sft.lr', 'no stage of this run is of kind'),
  ])
  def test_m22_an_override_without_effect(self, path, word):
    if word is None:
      resolve.finalise(paper(), [path], ('evaluate',))
    else:
      with pytest.raises(ValueError, match=word):
        resolve.finalise(paper(), [path], ('evaluate',))

  def test_m22_an_argument_of_a_function_that_no_stage_calls(self):
    c = base()
    c.rl.advantage = dict(fn='grpo', kwargs=dict(eps=1e-6))
    c.one = resolve.overlay(c.rl, advantage=dict(fn='dr_grpo'))
    c.stages = ('one',)
    with pytest.raises(ValueError, match='one name another function'):
      resolve.finalise(c, ['rl.advantage.kwargs.eps'])
    c.two = resolve.overlay(c.rl)
    c.stages = ('one', 'two')
    resolve.finalise(c, ['rl.advantage.kwargs.eps'])

  def test_m22_an_override_that_all_stages_hide(self):
    c = paper()
    c.stages = ('short',)
    with pytest.raises(ValueError, match='short set their own'):
      resolve.finalise(c, ['rl.steps'])
    with pytest.raises(ValueError, match='not among the stages'):
      resolve.finalise(c, ['long.steps'])

  def test_dicts_in_lists_are_refused(self):
    c = base()
    c.seed_list = ({'a': 1},)
    with pytest.raises(ValueError, match='seed_list'):
      resolve.finalise(c)


class TestSection:

  def test_read_only_and_nearest(self):
    f = resolve.finalise(paper())
    with pytest.raises(ValueError, match='read-only'):
      f.short.steps = 3
    with pytest.raises(ValueError, match="'short.stepz'.*steps"):
      f.short.stepz
    assert f.short.where == 'short' and f.model.path == 'tiny'
    assert 'kl' in f.short and 'kk' not in f.short

  def test_reads_are_recorded(self):
    s = resolve.Section({'a': 1, 'b': {'c': 2, 'd': 3}, 'e': {'g': 1}})
    assert s.unread() == ('a', 'b.c', 'b.d', 'e.g')
    s.b  # going through a section reads nothing
    assert s.unread() == ('a', 'b.c', 'b.d', 'e.g')
    assert (s.a, s['b'].d) == (1, 3)
    assert s.unread() == ('b.c', 'e.g')
    assert dict(**s.e) == {'g': 1} and s.b.as_dict() == {'c': 2, 'd': 3}
    assert s.unread() == ()

  def test_looking_reads_nothing(self):
    f = resolve.finalise(paper())
    before = f.unread()
    repr(f), resolve.to_json(f), resolve.difference(f, f), list(f), len(f)
    assert f.unread() == before

  def test_a_reserved_key(self):
    with pytest.raises(ValueError, match="'unread'"):
      resolve.Section({'a': {'unread': 1}})


class TestUnread:

  def test_m22_changed_but_unread(self):
    f = resolve.finalise(paper())
    f.model.as_dict(), f.seed
    with pytest.raises(ValueError) as error:
      resolve.changed_but_unread(f, base())
    # Only what differs from the family's default: steps and the coefficient.
    lines = str(error.value).split('\n')[1:]
    assert lines == ['  short.kl.coefficient = 1.0 (default 0.0)',
                     '  short.steps = 5 (default 100)']
    f.short.steps, f.short.kl.coefficient
    resolve.changed_but_unread(f, base())

  def test_within(self):
    f = resolve.finalise(paper())
    resolve.changed_but_unread(f, base(), within=('long', 'model'))
    with pytest.raises(ValueError):
      resolve.changed_but_unread(f, base(), within=('short',))

  def test_m22_what_is_offered_need_not_be_named(self):
    c = common.get_base()
    c.stages, c.rl.rewards = ('rl',), ('named',)
    for name in ('named', 'offered'):
      c.rewards[name] = dict(fn='x', weight=2.0, in_pool=False, limit_s=1.0,
                             kwargs=dict())
    final = resolve.finalise(c)
    final.rewards.named.fn
    def check(*overrides):
      resolve.changed_but_unread(
          final, common.get_base(), within=('rewards',),
          libraries=('rewards',), overrides=overrides)
    with pytest.raises(ValueError, match='rewards.named.weight = 2.0') as error:
      check()
    assert 'offered' not in str(error.value)
    final.rewards.named.as_dict()
    check()
    # What the command line sets must have an effect.
    with pytest.raises(ValueError, match='rewards.offered.weight = 2.0'):
      check('rewards.offered.weight')

  @pytest.mark.parametrize('change, key', [
      (lambda c: c.update(seed=1), 'seed'),
      (lambda c: c.model.update(layers=3), 'model.layers'),
      (lambda c: c.update(extra=1), 'extra'),
      (lambda c: c.evaluate.update(examples=9), 'evaluate.examples'),
      (lambda c: c.rl.update(lr=1.0), 'long.lr'),
      (lambda c: c.rl.update(names=('b',)), 'long.names'),
      (lambda c: c.rl.update(length=3), 'long.length'),
  ])
  def test_m22_each_place(self, change, key):
    c = paper()
    with c.unlocked():
      change(c)
    f = resolve.finalise(c, direct=('evaluate',))
    f.short.as_dict()
    with pytest.raises(ValueError, match=f'  {key} = '):
      resolve.changed_but_unread(f, base())


class TestJson:

  def test_round_trip(self):
    f = resolve.finalise(paper())
    back = resolve.from_json(resolve.to_json(f))
    assert back == f.as_dict()
    assert back['stages'] == ('short', 'long')
    assert back['short']['length'] is None
    assert resolve.difference(f, back) == []
    assert resolve.to_json(back) == resolve.to_json(f)

  def test_difference(self):
    a = {'a': 1, 'b': {'c': (1, 2), 'd': None}, 'e': float('nan')}
    b = {'a': 1, 'b': {'c': (1, 3)}, 'e': float('nan'), 'f': 'x'}
    assert resolve.difference(a, b) == [
        'b.c: (1, 2) -> (1, 3)', 'b.d: None -> (absent)',
        "f: (absent) -> 'x'"]
    assert resolve.difference({'a': True}, {'a': 1}) == ['a: True -> 1']


def test_workdir_name():
  assert resolve.default_workdir('configs/vision_r1.py') == 'runs/vision_r1'
  assert resolve.default_workdir(
      '/x/vision_r1.py:qwen2_5_vl_7b') == 'runs/vision_r1_qwen2_5_vl_7b'


def test_command_line(tmp_path):
  """Typed overrides of placeholders, through absl in a process of its own."""
  root = pathlib.Path(__file__).parent.parent
  (tmp_path / 'c.py').write_text(textwrap.dedent('''
      from ml_collections import ConfigDict, config_dict
      from mmr1 import resolve
      def get_config(arg=None):
        c = ConfigDict(dict(stages=('long',), rl=dict(
            kind='rl', lr=1e-4, steps=100, sampled=True, names=('a',),
            length=config_dict.placeholder(int), kl=dict(coefficient=0.0))))
        c.long = resolve.overlay(c.rl)
        return c
      '''))
  (tmp_path / 'm.py').write_text(textwrap.dedent(f'''
      import json, sys
      sys.path.insert(0, {str(root)!r})
      from absl import app
      from ml_collections import config_flags
      from mmr1 import resolve
      FLAG = config_flags.DEFINE_config_file('config')
      def main(_):
        from absl import flags
        paths = config_flags.get_override_values(flags.FLAGS['config'])
        f = resolve.finalise(FLAG.value, paths)
        print(json.dumps([sorted(paths), repr(f.long.lr), f.long.sampled,
                          f.long.names, f.long.length,
                          f.long.steps, f.long.kl.coefficient]))
      app.run(main)
      '''))
  run = lambda *flags: subprocess.run(
      [sys.executable, 'm.py', '--config=c.py', *flags], cwd=tmp_path,
      capture_output=True, text=True)
  result = run(
      '--config.long.lr=3e-6', '--config.long.sampled=false',
      "--config.long.names=('x','y')", '--config.rl.length=7',
      '--config.long.kl.coefficient=2')
  assert result.returncode == 0, result.stderr
  assert json.loads(result.stdout) == [
      ['long.kl.coefficient', 'long.lr', 'long.names', 'long.sampled',
       'rl.length'], '3e-06', False, ['x', 'y'], 7, 100, 2.0]
  typo = run('--config.long.stepz=3')
  assert typo.returncode != 0 and 'stepz' in typo.stderr


def test_m22_a_section_is_not_replaced_by_the_command_line():
  c = common.get_base()
  c.stages = ('rl',)
  with pytest.raises(ValueError, match=(
      r'--config.rewards.format.kwargs is a section.*<key>=<value>')):
    resolve.finalise(c, ['rewards.format.kwargs'])
