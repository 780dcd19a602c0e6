"""AdamW over the trainable part of the parameters, and the non-finite guard.

Frozen parameters are split off before anything else (`trees.partition`): the
train step differentiates the trainable half alone, and the optimiser is built
over it, so a frozen parameter has neither a gradient nor a moment (M21).
"""

import re
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mmr1 import trees

Array = jax.Array
Tree = Any


class Optimizer(NamedTuple):
  """What `make` returns.

  Fields:
    tx: acts on the trainable half (`trees.partition(params, mask)[0]`).
    mask: tree of bools over all parameters, True where trainable.
    schedule: i32[] updates applied so far -> f32[] learning rate.
  """
  tx: optax.GradientTransformation
  mask: Tree
  schedule: optax.Schedule


@flax.struct.dataclass
class Guard:
  """Counters of updates that were not applied; lives in `TrainState.aux`.

  Fields:
    consecutive: i32[], skipped updates in a row up to now.
    total: i32[], skipped updates since the start of the stage.
  """
  consecutive: Array
  total: Array


def make(section: Any, params: Tree, total_steps: int,
         trains: Tree | None = None) -> Optimizer:
  """AdamW with clipping, warm-up, decay and freezing.

  u = -lr(t) * multiplier * (adam(clip(g)) + weight_decay * p)

  (Loshchilov & Hutter 2019, equation in Algorithm 2, lr-coupled decay as in
  optax.adamw and torch.optim.AdamW.) Gradients, both moments' arithmetic and
  the second moment are float32 whatever the parameters are; `moment_dtype`
  says how the first moment is stored. (A bfloat16 second moment would stand
  still: with b2 = 0.999 its increments are below its resolution.)

  Args:
    section: has the keys
      lr: peak learning rate, >= 0.
      lr_decay: 'constant', 'linear' or 'cosine', after the warm-up.
      lr_end: learning rate at `total_steps`, as a fraction of `lr`.
      warmup_steps: linear from 0; the first update has lr / warmup_steps.
      b1, b2, eps, weight_decay: as in optax.adamw.
      decay_mask: 'matrices' (no decay on biases and norm scales) or 'all'.
      moment_dtype: 'float32' or 'bfloat16'.
      clip_norm: global norm above which gradients are scaled down; inf: never.
      freeze: regexes of whole parameter names, such as 'visual/.*'.
      lr_multipliers: 'regex:factor', the first that matches counts.
    params: nested dict of arrays or shape structs.
    total_steps: updates in the stage.
    trains: tree of bools, what may train at all; None: everything.

  Raises:
    ValueError: a value out of range; a regex without a match; all is frozen.
  """
  _check(section, total_steps)
  frozen = trees.select(params, section.freeze, 'freeze')
  mask = jax.tree.map(lambda f, t: t and not f, frozen, trains or jax.tree.map(
      lambda f: True, frozen))
  trainable, _ = trees.partition(params, mask)
  if not trainable:
    raise ValueError(f'freeze: {section.freeze} leaves nothing to train.')
  schedule = _schedule(section, total_steps)
  multipliers = _multipliers(trainable, section.lr_multipliers)
  decayed = jax.tree.map(
      lambda name: section.decay_mask == 'all' or not _is_vector(name),
      trees.names(trainable))
  steps = [
      optax.clip_by_global_norm(section.clip_norm)
      if section.clip_norm != float('inf') else optax.identity(),
      optax.scale_by_adam(
          section.b1, section.b2, section.eps,
          mu_dtype=jnp.dtype(section.moment_dtype)),
      optax.add_decayed_weights(section.weight_decay, decayed),
      optax.stateless(lambda updates, _: jax.tree.map(
          lambda u, m: u * m, updates, multipliers)),
      optax.scale_by_learning_rate(schedule),
  ]
  return Optimizer(_in_float32(optax.chain(*steps)), mask, schedule)


def _check(section: Any, total_steps: int) -> None:
  def need(ok, key, value, allowed):
    if not ok:
      raise ValueError(f'{key}: got {value!r}; allowed: {allowed}.')
  need(section.lr >= 0, 'lr', section.lr, 'a number >= 0')
  need(total_steps >= 1, 'total_steps', total_steps, 'at least 1')
  need(0 <= section.warmup_steps <= total_steps, 'warmup_steps',
       section.warmup_steps, f'0 to the number of updates, {total_steps}')
  need(section.lr_decay in ('constant', 'linear', 'cosine'), 'lr_decay',
       section.lr_decay, "'constant', 'linear', 'cosine'")
  need(0 <= section.lr_end <= 1, 'lr_end', section.lr_end,
       'a fraction of lr, 0 to 1')
  need(0 <= section.b1 < 1, 'b1', section.b1, '0 <= b1 < 1')
  need(0 <= section.b2 < 1, 'b2', section.b2, '0 <= b2 < 1')
  need(section.eps > 0, 'eps', section.eps, 'a number > 0')
  need(section.weight_decay >= 0, 'weight_decay', section.weight_decay,
       'a number >= 0')
  need(section.decay_mask in ('matrices', 'all'), 'decay_mask',
       section.decay_mask, "'matrices', 'all'")
  need(section.moment_dtype in ('float32', 'bfloat16'), 'moment_dtype',
       section.moment_dtype, "'float32', 'bfloat16'")
  need(section.clip_norm > 0, 'clip_norm', section.clip_norm,
       'a number > 0, or inf for no clipping')


def _schedule(section: Any, total_steps: int) -> optax.Schedule:
  peak, warmup = section.lr, section.warmup_steps
  rest = max(1, total_steps - warmup)
  if section.lr_decay == 'constant':
    after = optax.constant_schedule(peak)
  elif section.lr_decay == 'linear':
    after = optax.linear_schedule(peak, peak * section.lr_end, rest)
  else:
    after = optax.cosine_decay_schedule(peak, rest, section.lr_end)
  if not warmup:
    return after
  # Not from 0: the first update of a warm-up over k steps has lr / k.
  ramp = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
  return optax.join_schedules([ramp, after], [warmup])


def _is_vector(name: str) -> bool:
  """A bias or a norm's scale. By name: stacked layers add an axis to both."""
  *parents, last = name.split('/')
  return last in ('bias', 'scale') or any('norm' in part for part in parents)


def _multipliers(trainable: Tree, rules: tuple[str, ...]) -> Tree:
  parsed = []
  for rule in rules:
    pattern, _, factor = rule.rpartition(':')
    try:
      value = float(factor)
    except ValueError:
      value = 0.0
    if not pattern or not 0 < value < float('inf'):
      raise ValueError(
          f'lr_multipliers: got {rule!r}; write "regex:factor" with a factor '
          '> 0, as in "visual/.*:0.1". To train nothing there, use freeze.')
    trees.select(trainable, (pattern,), 'lr_multipliers')
    parsed.append((pattern, value))
  return jax.tree.map(
      lambda name: next(
          (v for pattern, v in parsed if re.fullmatch(pattern, name)), 1.0),
      trees.names(trainable))


def _in_float32(
    tx: optax.GradientTransformation) -> optax.GradientTransformation:
  f32 = lambda tree: trees.cast(tree, jnp.float32)
  return optax.GradientTransformation(
      lambda params: tx.init(f32(params)),
      lambda grads, state, params: tx.update(f32(grads), state, f32(params)))


def learning_rate(optimizer: Optimizer, opt_state: Tree) -> Array:
  """f32[], the learning rate the next applied update will have."""
  # The last part of the chain is the schedule's.
  return jnp.asarray(optimizer.schedule(opt_state[-1].count), jnp.float32)


def restart_schedule(opt_state: Tree) -> Tree:
  """A carried optimiser state at the start of another stage's schedule.

  Moments and Adam's own count (its bias correction) stay.
  """
  *rest, schedule = opt_state
  return (*rest, schedule._replace(count=jnp.zeros_like(schedule.count)))


def init_guard() -> Guard:
  """Counters at zero."""
  return Guard(jnp.int32(0), jnp.int32(0))


def guarded_update(
    optimizer: Optimizer,
    grads: Tree,
    loss: Array,
    opt_state: Tree,
    trainable: Tree,
    guard: Guard,
    idle: Array | bool = False,
) -> tuple[Tree, Tree, Guard, dict[str, Array]]:
  """One update, or none if the loss or a gradient is not finite (M8).

  A skipped update leaves parameters, moments and counts untouched, hence also
  the learning rate: the schedule counts applied updates.

  Args:
    optimizer: from `make`.
    grads: like `trainable`.
    loss: f32[].
    opt_state: `optimizer.tx.init(trainable)`.
    trainable: trainable half of the parameters.
    guard: counters.
    idle: bool[], nothing was there to train on: no update either, which is
      nothing to worry about.

  Returns:
    trainable, opt_state, guard, metrics: 'grad_norm' (before clipping, M24),
    'lr' (of this update), 'update/skipped' (0 or 1),
    'update/skipped_in_a_row', 'update/skipped_total', 'update/idle'.
  """
  norm = trees.global_norm(grads)
  # A norm that overflows although each gradient is finite is bad as well:
  # clipping would turn the update into zeros.
  ok = jnp.isfinite(loss) & jnp.isfinite(norm)
  rate = learning_rate(optimizer, opt_state)
  updates, after = optimizer.tx.update(grads, opt_state, trainable)
  moved = optax.apply_updates(trainable, updates)
  pick = lambda new, old: jax.tree.map(
      lambda n, o: jnp.where(ok & jnp.logical_not(idle), n, o), new, old)
  skipped = 1 - ok.astype(jnp.int32)
  guard = Guard(
      consecutive=(guard.consecutive + 1) * skipped,
      total=guard.total + skipped)
  metrics = {
      'grad_norm': norm, 'lr': rate, 'update/skipped': skipped,
      'update/skipped_in_a_row': guard.consecutive,
      'update/skipped_total': guard.total,
      'update/idle': jnp.asarray(idle, jnp.int32)}
  return pick(moved, trainable), pick(after, opt_state), guard, metrics


def check_guard(consecutive: int, limit: int, dumped: str) -> None:
  """Host side: stops the run after `limit` skipped updates in a row.

  Raises:
    FloatingPointError: names the dumped batch.
  """
  if consecutive >= limit:
    raise FloatingPointError(
        f'{int(consecutive)} updates in a row had a non-finite loss or '
        f'gradient. The last batch is in {dumped}. Likely causes: learning '
        'rate too high, a reward that is not finite, bfloat16 overflow.')


def table(params: Tree, mask: Tree) -> list[tuple[str, str, str]]:
  """Rows (module, trainable, total) by top two path parts, and their sum.

  For example [('visual/blocks', '0', '1,024'), ..., ('total', ...)].
  """
  totals: dict[str, list[int]] = {}
  flags = trees.named(mask)
  for name, leaf in trees.named(params).items():
    module = '/'.join(name.split('/')[:-1][:2]) or name
    row = totals.setdefault(module, [0, 0])
    row[0] += leaf.size if flags[name] else 0
    row[1] += leaf.size
  totals['total'] = [sum(row[i] for row in totals.values()) for i in (0, 1)]
  return [(module, f'{train:,}', f'{total:,}')
          for module, (train, total) in totals.items()]
