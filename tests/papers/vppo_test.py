"""VPPO: which tokens are kept, what a response weighs, two steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import vppo as config
from mmr1 import resolve
from mmr1 import rl_setup
from mmr1 import sockets
from mmr1 import types
from mmr1.losses import reduce
from mmr1.papers import vppo

# The second row ends after four tokens.
OLD = ((-0.2, -1.0, -0.5, -0.3, -0.1), (-0.4,) * 5)
BLIND = ((-2.2, -1.0, -0.4, -1.3, -0.1), (-0.4, -0.6, -0.4, -0.4, -0.4))
MASK = ((True,) * 5, (True,) * 4 + (False,))


def final(arg=None, **flat):
  """The resolved config with changes, dots as __."""
  c = config.get_config(arg)
  c.update_from_flattened_dict(
      {key.replace('__', '.'): value for key, value in flat.items()})
  return resolve.finalise(c)


def of(old=OLD, blind=BLIND, mask=MASK, kind=None, **fields):
  """A block of rows [R, T] as one group."""
  old, blind, mask = (jnp.array(x)[None] for x in (old, blind, mask))
  kind = jnp.ones(mask.shape, jnp.int8) if kind is None else jnp.array(
      kind, jnp.int8)[None]
  return types.Block(**{**dict(
      prompts=None, mask=mask, advantage=jnp.ones((*mask.shape[:2], 1)),
      completions=types.Completions(tokens=None, kind=kind, positions=None),
      old=old, extra={'view/masked': blind}), **fields})


def depending(values, mask=None):
  """A block whose tokens depend so much on the picture, over the vocabulary."""
  values = jnp.array(values)[None]
  mask = jnp.ones(values.shape, bool)[0] if mask is None else mask
  return of(values[0], values[0], mask, extra={'pair/masked': values})


_weigh = jax.jit(functools.partial(vppo.token_perception, None, key=None),
                 static_argnames=('form', 'keep', 'low'))


def weigh(block, **kw):
  return np.asarray(_weigh(block=block, **kw))[0]


# The weight.


def test_dependency_keep_and_alpha_by_hand():
  # d = -2, 0, .1, -1, 0 and 0, -.2, 0, 0: exp(d) - d - 1.
  block = of()
  np.testing.assert_allclose(
      vppo.dependency(block, view='masked', form='code')[0],
      [[1.135335, 0, 0.005171, 0.367879, 0], [0, 0.018731, 0, 0, 0]],
      atol=1e-6)
  # ceil(.4 x 5) = ceil(.4 x 4) = 2 of each: tokens 0 and 3; token 1 and, of
  # equals, the first. s = 1.508386 / 5 = .301677, .018731 / 4 = .004683, so
  # n = 1, 0, mean .5; high = .9 + .1 / .5 = 1.1; alpha = 1.1, .9.
  np.testing.assert_allclose(
      weigh(block), [[1.1, 0, 0, 1.1, 0], [0.9, 0.9, 0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize('s, alpha', [
    # n = 0, .25, .75, 1, mean .5: high = .9 + .1 / .5 = 1.1.
    ([0.1, 0.2, 0.4, 0.5], [0.9, 0.95, 1.05, 1.1]),
    # n = 0, 0, 0, 1, mean .25: high = .9 + .1 / .25 = 1.3.
    ([0.0, 0.0, 0.0, 1.0], [0.9, 0.9, 0.9, 1.3]),
    # Nothing between the smallest and the largest.
    ([0.3, 0.3, 0.3, 0.3 + 5e-7], [1.0] * 4)])
def test_alpha_by_hand(s, alpha):
  got = weigh(depending([[x] for x in s]), form='paper')
  np.testing.assert_allclose(got[:, 0], alpha, atol=1e-6)
  assert got.mean() == pytest.approx(1, abs=1e-6)


def test_alpha_is_of_means_over_the_responses_own_tokens():
  # s = .8 / 4 = .2 and .4 / 1 = .4 (sums would be the other way round), where
  # masked tokens are anything: n = 0, 1; alpha = .9, 1.1.
  block = depending([[0.8, 0.0, 0.0, 0.0], [0.4, 9.0, jnp.nan, jnp.inf]],
                    [[True] * 4, [True, False, False, False]])
  np.testing.assert_allclose(
      weigh(block, form='paper', keep=1.0),
      [[0.9] * 4, [1.1, 0, 0, 0]], atol=1e-6)


def test_every_response_keeps_its_own_ceil():
  """Of n tokens ceil(.4 n), the largest, whatever the others depend on; a
  quantile of the batch would take none of the first rows."""
  t = 20
  rng = np.random.default_rng(0)
  values = rng.random((t, t)) * np.logspace(-4, 0, t)[:, None]
  mask = np.arange(t) < np.arange(1, t + 1)[:, None]
  kept = weigh(depending(values, mask), form='paper') > 0
  for n in range(1, t + 1):
    largest = np.argsort(-values[n - 1, :n])[:-(-4 * n // 10)]
    assert set(np.flatnonzero(kept[n - 1])) == set(largest), n


def test_bounds_of_the_codes_estimate():
  # d = 3: 16.1, at most 10; d = -30 is taken as -20: 19, at most 10.
  block = of([[-3.1, -0.1, -0.1]], [[-0.1, -30.1, -1.1]], [[True] * 3])
  np.testing.assert_allclose(
      vppo.dependency(block, view='masked', form='code')[0],
      [[10, 10, 0.367879]], atol=1e-6)


def test_without_old_it_is_the_samplers():
  block = of()
  sampled = block.replace(
      old=None, extra={**block.extra, 'sampler_logp': block.old})
  np.testing.assert_array_equal(weigh(sampled), weigh(block))


def test_a_blind_policy_weighs_all_alike():
  """S = 0 everywhere: alpha is 1, not nan, and of equals the first are kept."""
  for block, kw in ((of(blind=OLD), {}),
                    (depending(np.zeros((2, 5)), MASK), dict(form='paper'))):
    assert weigh(block, **kw).tolist() == [
        [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]]


def test_one_half_at_a_time():
  assert weigh(of(), low=1.0).tolist() == [[1, 0, 0, 1, 0], [1, 1, 0, 0, 0]]
  np.testing.assert_allclose(
      weigh(of(), keep=1.0), [[1.1] * 5, [0.9] * 4 + [0]], atol=1e-6)


def test_rows_without_a_token_do_not_count():
  # As above with two more rows, of which one is the smallest and one the
  # largest, all masked: minimum, maximum and mean are those of the others.
  block = of((*OLD, OLD[0], OLD[0]), (*BLIND, OLD[0], (-30.0,) * 5),
             (*MASK, (False,) * 5, (False,) * 5))
  np.testing.assert_allclose(weigh(block), [
      [1.1, 0, 0, 1.1, 0], [0.9, 0.9, 0, 0, 0], [0] * 5, [0] * 5], atol=1e-6)
  assert not weigh(of(mask=np.zeros((2, 5), bool))).any()
  # A single row is as wide as itself.
  assert weigh(of(OLD[:1], BLIND[:1], MASK[:1])).tolist() == [[1, 0, 0, 1, 0]]


def test_experts_tokens_do_not_count():
  # The third row is a trace; of the first the trace ends with token 0: left
  # are S = 0, .005171, .367879, 0, s = .0932625 over 4 tokens, ceil(1.6) = 2.
  kind = np.ones((3, 5))
  kind[2], kind[0, 0] = types.KIND_EXPERT, types.KIND_EXPERT
  block = of((*OLD, OLD[0]), (*BLIND, (-30.0,) * 5), (*MASK, MASK[0]), kind)
  np.testing.assert_allclose(weigh(block), [
      [0, 0, 1.1, 1.1, 0], [0.9, 0.9, 0, 0, 0], [0] * 5], atol=1e-6)


def test_unknown_forms_and_missing_divergences_are_named():
  with pytest.raises(ValueError, match="form='k3' is not one of"):
    weigh(of(), form='k3')
  with pytest.raises(ValueError, match="set views.masked.divergence to 'kl'"):
    weigh(of(), form='paper')


# The loss.


def weighed_loss(block, logp, arg='qwen2_5_vl_7b'):
  """{term: loss}, {term: its slope in log pi} of the config's objective."""
  c = final(arg)
  made = rl_setup.objective_of(c.vppo, 'vppo', c)
  block = block.replace(weight=_weigh(block=block))
  def loss(logp, term):
    scores = types.Scores(logp=logp, entropy=jnp.zeros_like(logp))
    return made.knobs[f'coef/{term.name}'] * reduce.finish(
        *term.fn(scores, block, made.knobs))
  return {term.name: jax.jit(jax.value_and_grad(loss), static_argnums=1)(
      logp, term) for term in made.terms}


def test_the_mean_counts_dropped_tokens_and_they_feel_the_penalty_alone():
  # Ratio 1, A 1, 5 tokens of which 2 are kept; one response, so alpha = 1:
  # -2 / 5. The penalty is .06 x mean(-log pi) = .06 x 2.1 / 5 = .0252.
  block = of(OLD[:1], BLIND[:1], MASK[:1])
  made = weighed_loss(block, block.old)
  assert set(made) == {'policy', 'entropy'}
  (policy, slope), (penalty, entropy) = made['policy'], made['entropy']
  assert policy == pytest.approx(-2 / 5, abs=1e-6)
  assert penalty == pytest.approx(0.0252, abs=1e-6)
  # Of tokens 0 and 3: -1 / 5 each; of the others exactly nothing.
  np.testing.assert_allclose(slope[0, 0], [-0.2, 0, 0, -0.2, 0], atol=1e-6)
  assert slope[0, 0].tolist()[1:3] == [0, 0] and slope[0, 0, 4] == 0
  np.testing.assert_allclose(entropy[0, 0], [-0.06 / 5] * 5, rtol=1e-6)


def test_alpha_on_the_loss_is_alpha_on_the_advantage():
  """Through both clips and the bound of negative advantages."""
  ratios = np.array([[1.5, 1.0, 1.0, 1.1, 1.0], [4.0, 0.7, 1.0, 1.0, 1.0]])
  block = of(advantage=jnp.array([[[2.0], [-3.0]]]))
  logp = block.old + jnp.log(ratios)[None]
  # Kept: 1.5 (clipped to 1.28) and 1.1 with A = 1.1 x 2 = 2.2; 4.0 (cut at 3)
  # and .7 (clipped to .8) with A = .9 x -3 = -2.7; over all 9 tokens:
  # (-2.2 x (1.28 + 1.1) + 2.7 x (3 + .8)) / 9 = 5.024 / 9.
  loss, _ = weighed_loss(block, logp)['policy']
  assert loss == pytest.approx(5.024 / 9, abs=1e-5)


# The config.


@pytest.mark.parametrize('arg, penalty, steps', [
    ('qwen2_5_vl_3b', 0.06, 202), ('qwen2_5_vl_7b', 0.06, 202),
    ('qwen2_5_vl_32b', 0.06, 202), ('qwen3_vl_8b', 0.12, 130)])
def test_the_papers_numbers(arg, penalty, steps):
  c = final(arg)
  s = c.vppo
  assert c.stages == ('vppo',) and s.steps == steps
  made = rl_setup.objective_of(s, 'vppo', c)
  assert {name: x for name, x in made.knobs.items() if 'coef' in name} == {
      'coef/policy': 1.0, 'coef/entropy': -penalty}
  assert not made.reference and s.entropy.source == 'sampled'
  assert s.policy.kwargs.as_dict() == dict(
      eps_low=0.2, eps_high=0.28, dual_clip=3.0)
  assert s.policy.reduce == 'token_mean' and s.advantage.fn == 'grpo'
  assert s.advantage.kwargs.as_dict() == dict(std='group', ddof=1, eps=1e-6)
  assert s.weights == ('perception',) and s.rewards == ('result',)
  weight = c.weights.perception
  assert weight.fn == 'mmr1.papers.vppo:token_perception'
  assert weight.kwargs.as_dict() == dict(
      view='masked', form='code', keep=0.4, low=0.9)
  (look,) = sockets.looks(s, 'vppo', c, sockets.requested(s, c, made))
  assert look.fn.keywords['black'] == 0.5 and look.divergence is None
  assert (look.params, look.when) == ('policy', 'rollout')
  assert s.select.kwargs.as_dict() == dict(
      column='result', low=0.01, high=0.99)
  assert s.select.fn == 'drop_zero_std' and s.rounds > 1
  assert (s.samples_per_prompt, s.prompts_per_step) == (8, 384)
  assert s.prompts_per_step // s.minibatches_per_step == 128
  assert s.epochs_per_step == 1 and s.old == 'recompute'
  assert (s.temperature, s.max_new_tokens) == (1.0, 2048)
  assert c.data.prompt_tokens == 4096
  assert (s.optimizer.lr, s.optimizer.weight_decay) == (1e-6, 1e-2)


def plan(arg=None, **flat):
  """({weight: function}, look) that the stage's learner would have."""
  c = final(arg, **flat)
  made = rl_setup.setup(c.vppo, 'vppo', c).objective
  (look,) = sockets.looks(
      c.vppo, 'vppo', c, sockets.requested(c.vppo, c, made))
  return sockets.weights(c, c.vppo.weights), look


def test_the_ablations():
  none, look = plan(rl__weights=())
  assert not none and look.name == 'masked'  # watched: DAPO and its log
  shaping, _ = plan(weights__perception__kwargs__keep=1.0)
  filtering, _ = plan(weights__perception__kwargs__low=1.0)
  np.testing.assert_allclose(
      shaping['perception'](None, of(), None)[0],
      [[1.1] * 5, [0.9] * 4 + [0]], atol=1e-6)
  assert filtering['perception'](None, of(), None)[0].tolist() == [
      [1, 0, 0, 1, 0], [1, 1, 0, 0, 0]]
  assert plan(views__masked__kwargs__black=0.3)[1].fn.keywords['black'] == 0.3
  both, _ = plan(rl__weights=('perception', 'entropy'))
  assert [sockets.reads_scores(x) for x in both.values()] == [False, True]
  assert both['entropy'].keywords == dict(fraction=0.2)
  paper, look = plan('paper')
  assert paper['perception'].keywords['form'] == 'paper'
  assert look.divergence.__name__ == 'kl'
  c = final(rl__entropy__coefficient=0.0)
  assert [x.name for x in rl_setup.objective_of(
      c.vppo, 'vppo', c).terms] == ['policy']
  # Without the weight and unwatched there is no pass.
  c = final(rl__weights=(), rl__watch=())
  assert not sockets.requested(
      c.vppo, c, rl_setup.objective_of(c.vppo, 'vppo', c))
