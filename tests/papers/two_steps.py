"""Two steps of a paper's own stage on the tests' random model, kept to be
checked: in numpy, and by passes that share no code with looks and updates."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from mmr1 import forward
from mmr1 import looks as looks_lib
from mmr1 import types
from mmr1 import views
from mmr1.stages import rl
from tests import small

N, G, T = 4, 4, 8
MINIBATCHES = 2


class Update(NamedTuple):
  """One update: whose parameters, of what, and what it said.

  Fields:
    start: the parameters that made the step's rollout.
    params: those before this update.
    block: its minibatch.
    metrics: of the update alone.
  """
  start: Any
  params: Any
  block: types.Block
  metrics: dict[str, float]


class Run(NamedTuple):
  """Two steps.

  Fields:
    trainer: after them.
    state: the last.
    updates: of both steps.
    metrics, samples: of each step, as logged.
    compiled: programs after each step.
  """
  trainer: rl.Trainer
  state: types.TrainState
  updates: list[Update]
  metrics: list[dict[str, float]]
  samples: list[list[dict[str, Any]]]
  compiled: list[int]


def small_stage(config, stage, *, reward, **flat):
  """The config with the stage alone, few small prompts and two minibatches of
  two chunks each; `result` is a function of `tests.own`."""
  config.stages = (stage,)
  config.rewards.result.fn = f'tests.own:{reward}'
  # Pictures that say more than the digits of the tiny run.
  config.data.mixture, config.data.weights = ('shapes',), (1.0,)
  config.data.patches, config.data.instruction = 64, None
  section = config[stage]
  section.steps, section.prompts_per_step = 3, N  # one to spare
  section.samples_per_prompt, section.max_new_tokens = G, T
  section.old, section.minibatches_per_step = 'recompute', MINIBATCHES
  section.chunks_per_minibatch = 2
  section.optimizer.lr = 0.02  # so that updates differ
  config.update_from_flattened_dict(
      {key.replace('__', '.'): value for key, value in flat.items()})
  return config


def take(config, stage, open_run, folder) -> Run:
  """Opens the stage and takes its two steps."""
  ctx, plans = open_run(config, folder)
  one = rl.Trainer(ctx, stage, ctx.config[stage], plans[stage])
  updates, starts, inner = [], [], one.learner._train_step

  def train_step(state, batch, knobs, ref):
    params = jax.tree.map(np.array, state.params['policy'])
    (block,) = jax.device_get(batch)
    state, metrics = inner(state, batch, knobs, ref)
    updates.append(Update(starts[-1], params, block, numbers(metrics)))
    return state, metrics
  one.learner._train_step = train_step

  state, metrics, samples, compiled = one.start.state, [], [], []
  for k in range(2):
    starts.append(jax.tree.map(np.array, state.params['policy']))
    step = one.step(state, k)
    state = step.state
    metrics.append(numbers(step.metrics))
    samples.append(step.samples())
    compiled.append(ctx.compiles.count)
  assert len(updates) == 2 * MINIBATCHES
  return Run(one, state, updates, metrics, samples, compiled)


def numbers(metrics):
  return {name: np.asarray(x).item()
          for name, x in jax.device_get(dict(metrics)).items()}


# Passes.


@functools.cache
def _masking(pixels, black):
  return jax.jit(looks_lib.Look('masked', functools.partial(
      views.mask, pixels=pixels, black=black)).shown)


def masked(run, prompts, black):
  """The prompts with black patches, as the view 'masked' draws them."""
  return jax.device_get(_masking(
      run.trainer._ctx.processor.patch_pixels, black)(prompts))


def log_probs(run, params, prompts, block):
  """f32[N, G, T] of the block's completions after these prompts."""
  return np.asarray(small.logp(
      run.trainer._ctx.policy, params, prompts, block.completions,
      forward.completion_mask(block.completions), np.float32(1.0))[0])


def distributions(run, params, prompts, block):
  """log p f64[N, G, T, V]; ids that may not be chosen have -inf."""
  logits = np.asarray(small.logits(
      run.trainer._ctx.policy, params, prompts, block.completions,
      np.float32(1.0)), np.float64)
  top = logits.max(-1, keepdims=True)
  return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


# Arithmetic.


def mean(x, mask):
  return np.where(mask, x, 0).sum() / max(mask.sum(), 1)


def k3(x, y):
  """exp(y - x) - (y - x) - 1, clamped as in EasyR1."""
  d = np.clip(np.float64(y) - x, -20, 20)
  return np.clip(np.exp(d) - d - 1, -10, 10)


def clipped(logp, old, advantage, low, high, dual):
  """The loss of tokens: PPO's, two ends, and its bound where A < 0."""
  r = np.exp(np.float64(logp) - old)
  loss = np.maximum(-advantage * r, -advantage * np.clip(r, 1 - low, 1 + high))
  return np.where(advantage < 0, np.minimum(-advantage * dual, loss), loss)
