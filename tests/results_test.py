"""`mmr1.run` as a notebook sees it: several runs of a process, their results."""

import builtins
import signal

import pytest

import mmr1
from configs import forkme
from mmr1 import context
from mmr1 import results
from mmr1 import runner


def small(shrink, **flat):
  return shrink(forkme.get_config(), **{
      'grpo__steps': 2, 'grpo__prompts_per_step': 2, 'grpo__max_new_tokens': 8,
      'grpo__samples_per_prompt': 2, 'evaluate_base': False, **flat})


@pytest.fixture(scope='module')
def two(shrink, tmp_path_factory):
  """Results of two runs of this process; the second has another config."""
  folder = tmp_path_factory.mktemp('results')
  handler = signal.getsignal(signal.SIGINT)
  made = [mmr1.run(small(shrink, **flat), folder / name, quiet=True)
          for name, flat in (('a', {}), ('b', dict(
              grpo__steps=3, grpo__temperature=2.0)))]
  assert signal.getsignal(signal.SIGINT) is handler
  return made


def test_each_run_is_its_own(two):
  a, b = two
  assert [len(a.rows('grpo')), len(b.rows('grpo'))] == [2, 3]
  assert a.curve('grpo', 'entropy')[0] < b.curve('grpo', 'entropy')[0]
  assert a == {'grpo': a['grpo']} and a['grpo']['eval/n'] == 6


def test_samples_and_files(two):
  a, _ = two
  first = a.samples('grpo')[0]
  assert {'prompt', 'completion', 'rewards', 'advantage'} <= first.keys()
  assert (a.workdir / 'samples' / 'images' / first['images'][0]).exists()
  assert a.report == a.workdir / 'report.html' and a.workdir.is_absolute()


def test_it_shows_the_table(two):
  a, _ = two
  greedy = f'{a["grpo"]["eval/accuracy"]:.3f}'
  assert greedy in repr(a) and 'grpo' in repr(a) and 'greedy' in repr(a)
  assert a._repr_html_().count('<tr>') == 2 and greedy in a._repr_html_()
  assert repr(results.Results({}, a.workdir)) == 'no evaluation'
  shown = results.Results({'<b>': dict(a['grpo'])}, a.workdir)._repr_html_()
  assert '<b>' not in shown and '&lt;b&gt;' in shown


def test_m22_what_is_not_there_is_named(two):
  a, _ = two
  with pytest.raises(ValueError, match="no step has 'reward/men'.*reward/mean"):
    a.curve('grpo', 'reward/men')
  with pytest.raises(ValueError, match="'grop' is no stage.*grpo"):
    a.samples('grop')


def test_m22_a_misspelt_key_is_refused(shrink, tmp_path):
  """A config that is not locked takes any name: nothing reads this one."""
  config = small(shrink)
  config.grpo.kl.coeficient = 0.5
  with pytest.raises(ValueError, match='grpo.kl.coeficient = 0.5'):
    mmr1.run(config, tmp_path / 'run', quiet=True)
  assert not (tmp_path / 'run').exists()


def test_a_path_stands_for_its_config(monkeypatch, tmp_path):
  asked = []
  monkeypatch.setattr(runner, 'run', lambda config, workdir, **kwargs: (
      asked.append((config.name, config.scale, kwargs['defaults'].scale)), {}
  )[1])
  mmr1.run('configs/vision_r1.py:qwen2_5_vl_7b', tmp_path)
  assert asked == [('vision_r1', 'qwen2_5_vl_7b', 'qwen2_5_vl_7b')]
  with pytest.raises(ValueError, match='configs/no.py is no file'):
    mmr1.run('configs/no.py', tmp_path)


def test_m16_an_interrupted_notebook_goes_no_further(
    shrink, monkeypatch, tmp_path):
  """A script leaves with exit code 0; a notebook must not run its next cell."""
  def stopped(*args, **kwargs):
    raise context.Preempted()
  monkeypatch.setattr(runner, 'run', stopped)
  with pytest.raises(context.Preempted):
    mmr1.run(small(shrink), tmp_path)
  monkeypatch.setattr(builtins, '__IPYTHON__', True, raising=False)
  with pytest.raises(KeyboardInterrupt, match='state is saved'):
    mmr1.run(small(shrink), tmp_path)
