"""Stage `merge`: a model made of others that have one base, without a gradient.

  theta = theta_0 + sum_t lambda_t (theta_t - theta_0)

in every decoder layer, lambda_t by a rule of `mmr1.merging`; everything else is
that of one parent. What the rule reads is measured first: the norms of the task
vectors and, if asked for, how much each layer looks at images.

The result is a folder, <workdir>/merged/<stage>, written tensor by tensor.
<workdir>/merged/<stage>.json says what was measured and what came of it.
"""

from collections.abc import Mapping
import contextlib
import functools
import json
from typing import Any

import jax
import numpy as np

from mmr1 import arrays
from mmr1 import context
from mmr1 import fusing
from mmr1 import merging
from mmr1 import parents as parents_lib
from mmr1 import policy as policy_lib
from mmr1 import resolve
from mmr1 import types
from mmr1 import workdir as workdir_lib
from mmr1.data import datasets
from mmr1.data import pipeline


def setup(section: Any, stage: str, config: Any) -> Mapping[str, Any]:
  """Checks the section before anything runs, with a trial of its rule."""
  parents = section.parents.as_dict()
  if not parents:
    raise ValueError(f'{stage}.parents: empty; name at least one, as in '
                     "parents=dict(vision='base', reasoning='sft').")
  if parents_lib.BASE in parents:
    raise ValueError(f'{stage}.parents: {parents_lib.BASE!r} is the name of '
                     'what they have in common; call the parent otherwise.')
  models = parents_lib.named(section)
  for key, name in models.items():
    if name in ('previous', 'base', *config.stages):  # a folder: see `check`
      context.check_init(name, stage, config, key)
  parents_lib.distinct(models, stage)
  for key, more in (('rest', ()), ('embeddings', (parents_lib.BASE,))):
    if section[key] not in (*parents, *more):
      raise ValueError(f'{stage}.{key}: got {section[key]!r}; allowed: '
                       f'{(*parents, *more)}.')
  share = section.share
  if share.examples < 0 or share.prompts_per_batch < 1:
    raise ValueError(
        f'{stage}.share: got examples={share.examples}, prompts_per_batch='
        f'{share.prompts_per_batch}; allowed: 0 (not measured) or more, and at '
        'least 1.')
  if share.of not in parents:
    raise ValueError(f'{stage}.share.of: got {share.of!r}; allowed: '
                     f'{tuple(parents)}.')
  section.leaves  # read in run
  rule = resolve.function(section.rule.fn, 'mmr1.merging')
  kwargs = section.rule.kwargs.as_dict()
  resolve.check_kwargs(rule, kwargs, f'{stage}.rule.kwargs')
  rule = functools.partial(rule, **kwargs)
  try:
    rule(merging.Measured(
        {name: np.ones(2) for name in parents},
        np.array([0.6, 0.3]) if share.examples else None))
  except ValueError as error:
    raise ValueError(f'{stage}.rule: {error}') from error
  return {'rule': rule}


def run(
    ctx: context.Context, stage: str, section: Any, plan: Mapping[str, Any],
) -> None:
  """Measures, fuses, evaluates. One model is in memory at a time, and none
  while they are fused."""
  models = {key: ctx.named(name)
            for key, name in parents_lib.named(section).items()}
  parents_lib.distinct(models, stage)
  _warn(ctx, stage, models)
  ctx.watchdog.begin(f'{stage}: merging')
  share = None
  if section.share.examples:
    share = look(ctx, stage, section.share,
                 ctx.params(models[f'parents.{section.share.of}']))
  ctx.forget_base()
  with contextlib.ExitStack() as stack:
    module = ctx.policy.module
    family = fusing.Family({
        key.removeprefix('parents.'): stack.enter_context(parents_lib.opened(
            ctx.config, ctx.lineage, module, name))
        for key, name in models.items()}, section, module, ctx.lineage.structs)
    grams = family.grams()
    norms = {name: grams[:-1, i, i] for i, name in enumerate(family.parents)}
    coefficients = plan['rule'](merging.Measured(norms, share))
    family.write(ctx.lineage.merged(stage), coefficients,
                 ctx.config.model.param_dtype)
  record = {
      'models': models, 'rule': section.rule.as_dict(),
      **_numbers(family.parents, grams, share, coefficients)}
  if jax.process_index() == 0:
    workdir_lib.write_whole(
        ctx.path / 'merged' / f'{stage}.json',
        json.dumps(record, indent=2) + '\n')
  _show(ctx, stage, record)
  ctx.watchdog.begin(f'{stage}: evaluation')
  result = dict(ctx.evaluate(ctx.lineage.at(stage, 0).tree, stage, 0))
  ctx.logger.truncate(stage, -1)
  ctx.logger.write(stage, 0, {**_metrics(record), **result})
  ctx.logger.flush()  # before DONE: a marker promises the row
  ctx.checkpoints.finish(stage, {'step': 0, 'eval': result})


def _warn(ctx, stage, models) -> None:
  for key, name in models.items():
    if name == 'base' or name in ctx.order:
      continue
    told = parents_lib.rotary_differs(ctx.config, name)
    if told:
      ctx.logger.warn(
          f'{stage}.{key}: {name!r} has other rotary positions than '
          f'model.path ({told}): is it of the same base? The result has those '
          'of model.path.')


# What the layers look at.


def look(ctx: context.Context, stage: str, section: Any,
         params: Any) -> np.ndarray:
  """f64[L], attention of words to images in each layer, a mean over prompts.

  Args:
    ctx: the run.
    stage: its name, for errors.
    section: reads examples and prompts_per_batch.
    params: of the model that looks.

  Raises:
    ValueError: a model that reads text alone; prompts without images.
  """
  policy, shape = ctx.policy, ctx.shape()
  if not hasattr(policy.module, 'attention_share'):
    raise ValueError(f'{stage}.share.examples: model.path reads text alone, so '
                     'there is no attention to images. Set it to 0.')
  pairs, _ = pipeline.all_examples(
      datasets.open_split(ctx.config, 'train'), shape, section.examples,
      max_broken_frac=ctx.config.data.max_broken_frac)
  encoded = [one for _, one in pairs if len(one.patches)]
  if not encoded:
    raise ValueError(
        f'{stage}.share.examples: none of the {len(pairs)} prompts has an '
        'image. Set it to 0, or take data with images.')
  size, seen = min(section.prompts_per_batch, len(encoded)), []
  for start in range(0, len(encoded), size):
    part = encoded[start:start + size]
    prompts = policy.layout.spread(
        shape.collate(part, pad_rows=size - len(part)))
    sums, counts = arrays.fetch(_shares(policy, params, prompts))
    seen.append((sums / np.maximum(counts, 1)[:, None])[counts > 0])
  return np.concatenate(seen).mean(0, dtype=np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _shares(policy: policy_lib.Policy, params: Any, prompts: types.Prompts):
  """f32[N, L] and f32[N], see `vision_language.Model.attention_share`."""
  sums, counts = policy.apply(
      policy.gathered(params), prompts, method='attention_share')
  return sums.T, counts


# What is told.


def _numbers(parents, grams, share, coefficients) -> dict[str, Any]:
  """Everything per layer, as JSON has it."""
  layers, rest = grams[:-1], grams[-1]
  lengths = np.sqrt(np.einsum('lpp->lp', layers))
  scale = lengths[:, :, None] * lengths[:, None]
  cosines = np.divide(layers, scale, out=np.zeros_like(layers),
                      where=scale > 0)
  fits = share is not None and len(share) > 1 and (share > 0).all()
  return {
      'share': None if share is None else share.tolist(),
      'alpha': merging.fit_decay(share) if fits else None,
      'squared_norms': {name: layers[:, i, i].tolist()
                        for i, name in enumerate(parents)},
      'squared_norms_beside_layers': {
          name: rest[i, i] for i, name in enumerate(parents)},
      'cosines': {f'{parents[i]}, {parents[j]}': cosines[:, i, j].tolist()
                  for i in range(len(parents)) for j in range(i)},
      'coefficients': {name: coefficients[name].tolist() for name in parents}}


def _metrics(record) -> dict[str, float]:
  found = {f'merge/{name}/mean': np.mean(x)
           for name, x in record['coefficients'].items()}
  every = np.array([*record['coefficients'].values()])
  found['merge/kept_layers'] = int((every == 0).all(0).sum())
  if record['share'] is not None:
    found['merge/share/mean'] = np.mean(record['share'])
  return {**found, 'merge/alpha': record['alpha']}


def _show(ctx, stage, record) -> None:
  """A row for every layer."""
  columns = {'share': record['share']} if record['share'] else {}
  columns |= {f'|{name}|^2': x for name, x in record['squared_norms'].items()}
  columns |= record['cosines'] | record['coefficients']
  rows = [(str(i + 1), *(f'{x:.4g}' for x in row))
          for i, row in enumerate(zip(*columns.values()))]
  ctx.logger.table(rows, ('layer', *columns), f'{stage}: task vectors, their '
                   'cosine, and what of them is taken')
  for name, norms in record['squared_norms'].items():
    if not any(norms):
      ctx.logger.warn(f'{stage}.parents.{name}: its layers are those of the '
                      'base. Is it the model that you mean?')
  if record['alpha'] is not None:
    ctx.logger.note(f'{stage}: attention to images falls by exp(-alpha) a '
                    f'layer, alpha {record["alpha"]:.4f}')
