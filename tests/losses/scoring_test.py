"""Losses of reward models, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import types
from mmr1.losses import scoring


def block(lengths, **extra):
  """Of completions of these lengths, [N, G]."""
  lengths = np.asarray(lengths)
  n, g = lengths.shape
  mask = np.arange(max(1, lengths.max())) < lengths[..., None]
  return types.Block(
      prompts=None, completions=None, mask=jnp.asarray(mask),
      advantage=jnp.zeros((n, g, 1)), extra={
          'margin': jnp.ones((n, g, 1)),
          'label': jnp.broadcast_to(jnp.asarray([[1.0], [0.0]])[:g], (n, g, 1)),
          **extra})


def scores(said):
  return types.Scores(logp=None, entropy=None, reward=jnp.asarray(
      said, jnp.float32)[..., None])


def value(term, said, lengths, given=None, **kwargs):
  total, count = term(
      scores(said), block(lengths, **(given or {})), {}, **kwargs)
  return float(total / count)


def test_bradley_terry_by_hand():
  # -log sigma(1.3 - .4) = log(1 + e^-.9) = log 1.40657.
  assert value(scoring.bradley_terry, [[1.3, .4]], [[3, 5]]) == pytest.approx(
      .341154, abs=1e-6)
  # Equal scores: ln 2. Two pairs: their mean.
  assert value(scoring.bradley_terry, [[2., 2.], [1.3, .4]], [[1, 1], [2, 1]]
               ) == pytest.approx((.693147 + .341154) / 2, abs=1e-6)


def test_a_margin_is_subtracted():
  # .9 - .5 = .4: log(1 + e^-.4) = .513015; with m = 2: log(1 + e^.1) = .744397.
  assert value(scoring.bradley_terry, [[1.3, .4]], [[3, 5]], margin=.5
               ) == pytest.approx(.513015, abs=1e-6)
  assert value(scoring.bradley_terry, [[1.3, .4]], [[3, 5]], dict(
      margin=jnp.full((1, 2, 1), 2.0)), margin=.5) == pytest.approx(
          .744397, abs=1e-6)


@pytest.mark.parametrize('term', [
    scoring.bradley_terry, scoring.bce, scoring.zero, scoring.square])
def test_m8_far_apart_is_finite(term):
  for said in ([[1e4, -1e4]], [[-1e4, 1e4]], [[0, 0]]):
    total, slope = jax.value_and_grad(lambda x: term(
        scores(said).replace(reward=x), block([[3, 5]]), {})[0])(
            scores(said).reward)
    assert np.isfinite(total) and np.isfinite(slope).all()


def test_length_normalisation_by_hand():
  # 1.3 / ln 121 = .271071, .4 / ln 301 = .070088: log(1 + e^-.200983).
  np.testing.assert_allclose(scoring.normalised(
      jnp.asarray([1.3, .4]), jnp.asarray([120, 300])), [.271071, .070088],
                             atol=1e-6)
  assert value(scoring.bradley_terry, [[1.3, .4]], [[120, 300]],
               length_norm=True) == pytest.approx(.597696, abs=1e-6)


def test_zero_and_square_by_hand():
  # (1.3 + .4)^2 = 2.89, x .01 = .0289; (1.69 + .16) / 2 = .925.
  assert .01 * value(scoring.zero, [[1.3, .4]], [[3, 5]]) == pytest.approx(.0289)
  assert value(scoring.square, [[1.3, .4]], [[3, 5]]) == pytest.approx(.925)


def test_bce_by_hand():
  # -log sigma(1.3) = .241008, -log sigma(-.4) = .913015.
  assert value(scoring.bce, [[1.3, .4]], [[3, 5]]) == pytest.approx(
      (.241008 + .913015) / 2, abs=1e-6)
  # Single completions with labels of their own: y = .25 at s = 1.3 is
  # .25 x .241008 + .75 x 1.541008.
  assert value(scoring.bce, [[1.3]], [[4]], dict(
      label=jnp.full((1, 1, 1), .25))) == pytest.approx(1.216008, abs=1e-6)


@pytest.mark.parametrize('term', [
    scoring.bradley_terry, scoring.zero, scoring.square, scoring.bce])
def test_m9_rows_that_are_not_there_count_for_nothing(term):
  said = [[1.3, .4], [50., -50.]]
  given = block([[3, 5], [0, 0]])
  total, count = term(scores(said), given, {})
  alone, one = term(scores(said[:1]), block([[3, 5]]), {})
  assert (float(total), float(count)) == (float(alone), float(one))
  gradient = jax.grad(lambda x: term(
      types.Scores(None, None, reward=x), given, {})[0])(scores(said).reward)
  assert not np.any(np.asarray(gradient)[1]) and np.any(gradient[0])
  # Counts depend on masks alone.
  assert float(term(scores([[0., 0.], [0., 0.]]), given, {})[1]) == float(count)


def test_bradley_terry_does_not_know_where_zero_is_and_the_zero_term_does():
  def gradient(term, shift):
    return np.asarray(jax.grad(lambda x: term(types.Scores(
        None, None, reward=x + shift), block([[3, 5]]), {})[0])(
            scores([[1.3, .4]]).reward)).sum()
  # The sum over both is the gradient of a number added to every score.
  assert gradient(scoring.bradley_terry, 0.) == 0.
  assert gradient(scoring.bradley_terry, 7.) == 0.
  # 2 (s_w + s_l), twice: 4 x 1.7.
  assert gradient(scoring.zero, 0.) == pytest.approx(6.8, rel=1e-6)


def test_what_is_logged():
  said = scoring.bradley_terry.parts(
      scores([[1.3, .4], [0., 1.]]), block([[3, 5], [1, 2]]), {})
  means = {name: float(total / count) for name, (total, count) in said.items()}
  assert means == pytest.approx(
      dict(accuracy=.5, ahead=-.05, chosen=.65, rejected=.7))


def test_m22_single_completions_are_no_pairs():
  with pytest.raises(ValueError, match='groups of 1'):
    scoring.bradley_terry(scores([[1.]]), block([[2]]), {})


def test_no_term_divides_a_pair():
  """What `update` asks: groups stay whole in their chunk."""
  assert all(term.whole for term in (
      scoring.bradley_terry, scoring.zero, scoring.square, scoring.bce))
