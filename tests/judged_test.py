"""Rollouts that fill one step: whose rows, rewards and samples it has then."""

import jax.numpy as jnp
import numpy as np

from mmr1 import judged
from mmr1 import judging
from mmr1 import records
from mmr1 import select
from mmr1 import types
from mmr1.rewards import score

N, G, T = 4, 2, 3


def filled(tag, good, *, more=True, **says):
  """A rollout whose every array says which it is and which row: 10 tag + n."""
  rows = 10.0 * tag + np.arange(N)
  def wide(*shape):
    return jnp.broadcast_to(
        jnp.asarray(rows).reshape((N,) + (1,) * len(shape)), (N, *shape))
  rollout = types.Rollout(
      prompts=types.Prompts(
          tokens=wide(5), mask=wide(5) > 0, positions=wide(5, 3),
          next_position=wide(), media={}, uid=wide()),
      completions=types.Completions(
          tokens=wide(G, T), kind=wide(G, T), positions=wide(G, T, 3)),
      logp=wide(G, T), behaviour=wide(G, T), done=wide(G) > 0,
      version=jnp.int32(tag))
  keep = np.repeat(np.asarray(good, bool)[:, None], G, 1)
  columns = np.array(wide(G, 1), np.float64)
  example = records.Example(uid=0)
  samples = [records.Sample(
      text=f'{tag}', tokens=(), kinds=(), length=0, truncated=False,
      example=example, uid=n, group=n, slot=g)
             for n in range(N) for g in range(G)]
  scored = score.Scored(
      columns, ('a',), {'reward/a/mean': columns.mean(),
                        'reward/error_frac': 0.1 * tag}, ())
  arrays = judged.Arrays(
      spoken=np.array(wide(G, T)) % 2 == 0, lengths=np.array(wide(G)),
      done=np.array(wide(G)) > 0, whole=np.array(wide(G)),
      cut=np.array(wide(G)) < 0, branch=np.array(wide()),
      expert=np.zeros((N, G), bool), baseline=np.array(wide()),
      turn=np.array(wide(G, T)), turn_rewards=np.array(wide(G, 1)))
  return judged.Filled(
      rollout, {'look': types.Seen(logp=wide(G, T))}, arrays, judged.Judged(
          samples, scored, columns, np.array(wide(G, 1), np.float32), keep,
          {'select/zero_std_groups': int(N - np.sum(good))}, more,
          says=({**says},)))


def test_good_groups_take_the_places_of_dropped_ones():
  """Rows 1 and 3 are free; rows 0 and 2 of the next are good, and move in."""
  one = filled(0, [True, False, True, False])
  two = one.with_next(filled(1, [True, False, True, False]))
  expected = [0, 10, 2, 12]
  for leaf in (two.rollout.logp[:, 0, 0], two.rollout.prompts.uid,
               two.rollout.completions.tokens[:, 1, 2],
               two.looks['look'].logp[:, 0, 0], two.arrays.lengths[:, 0], two.arrays.whole[:, 1],
               two.judged.rewards[:, 0, 0], two.judged.advantage[:, 1, 0],
               two.judged.scored.columns[:, 0, 0]):
    assert np.asarray(leaf).tolist() == expected
  assert two.judged.keep.all() and not two.short and two.rounds == 2
  assert one.short and not filled(0, [True, False, True, True], more=False).short
  # Samples carry the place that they have now.
  assert [(s.text, s.group, s.slot) for s in two.judged.samples] == [
      (str(tag), n, g) for n, tag in enumerate('0101') for g in range(G)]
  # The mean reward is of what is trained on; what failed, of all that was made.
  assert two.judged.scored.metrics['reward/a/mean'] == np.mean(expected)
  assert two.judged.scored.metrics['reward/error_frac'] == 0.05
  assert two.judged.counts['select/zero_std_groups'] == 4
  # The version is that of the first rollout, made by the same parameters.
  assert int(two.rollout.version) == 0


def test_a_step_may_stay_short_and_the_surplus_is_cut():
  one = filled(0, [False, False, True, True])
  two = one.with_next(filled(1, [False, True, False, False]))
  assert two.judged.rewards[:, 0, 0].tolist() == [11, 1, 2, 3]
  assert two.judged.good.tolist() == [True, False, True, True] and two.short
  three = two.with_next(filled(2, [True, True, True, True]))
  # Only one place was left: the first of four good groups has it.
  assert three.judged.rewards[:, 0, 0].tolist() == [11, 20, 2, 3]
  assert not three.short and three.rounds == 3
  # Fractions over the rounds: (0 + .1 + .2) / 3.
  np.testing.assert_allclose(
      three.judged.scored.metrics['reward/error_frac'], 0.1)


def test_what_combine_says_is_its_mean_over_the_rounds():
  """A share that is .6 in both stays .6, and what one round alone says is no
  mean with 0. What select dropped is a sum."""
  one = filled(0, [True, False, False, False], unit=.6, share=.2)
  two = one.with_next(filled(1, [False] * N, unit=.6, mean=3.0))
  three = two.with_next(filled(2, [True] * N, unit=.6, share=.7, mean=4.0))
  np.testing.assert_allclose(
      [three.judged.said[name] for name in ('unit', 'share', 'mean')],
      [.6, .45, 3.5])
  logged = judging.report(three)
  assert logged['unit'] == three.judged.said['unit']
  assert logged['select/zero_std_groups'] == 3 + 4 + 0


def varying(tag, vary):
  """A rollout of which `drop_zero_std` wants two groups that vary."""
  columns = np.where(np.asarray(vary)[:, None], [0.0, 1.0], 1.0)
  keep, _, more, _ = select.drop_zero_std(
      {'a': columns}, columns[..., None], {}, {}, None, column='a', groups=2)
  return filled(tag, keep[:, 0], more=more)


def test_no_more_groups_are_taken_than_are_missing():
  one = varying(0, [True, False, False, False])
  assert one.judged.more == 1 and one.short
  # One and one of two; and one was enough.
  for rest in ([False, True, True], [False] * 3):
    two = one.with_next(varying(1, [True, *rest]))
    assert two.judged.good.tolist() == [True, True, False, False]
    assert two.judged.rewards[:, 0, 0].tolist() == [0, 10, 2, 3]
    assert not two.short and 'select/short' not in judging.report(two)
  # Nothing was found, and the next finds it.
  two = one.with_next(varying(1, [False] * N))
  assert two.short and judging.report(two)['select/short'] == 1
  three = two.with_next(varying(2, [True] * N))
  assert three.judged.rewards[:, 0, 0].tolist() == [0, 20, 2, 3]
  assert not three.short
