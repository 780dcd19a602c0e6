"""Frozen models that read the responses of a step: opened, and asked."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmr1 import arrays
from mmr1 import context
from mmr1 import hosts
from mmr1 import records
from mmr1 import types
from mmr1.data import datasets
from mmr1.data import processor as processor_lib
from mmr1.models import partition


def processor_of(config: Any, path: str, where: str,
                 own: processor_lib.Processor) -> processor_lib.Processor:
  """That of a folder, which must write text as the same tokens as `own`.

  Raises:
    ValueError: it does not; `where` is the key that names the folder.
  """
  found = datasets.open_processor(config.model, config.data, path)
  if (found.tokenizer.get_vocab() != own.tokenizer.get_vocab()
      or (found.eos_id, found.pad_id) != (own.eos_id, own.pad_id)):
    raise ValueError(
        f'{where}: the tokenizer of {path!r} is not that of '
        f'{config.model.path!r}: a judge reads the tokens that were sampled. '
        'Take a checkpoint of the same family.')
  return found


class Model:
  """A frozen model and how problems are put to it.

  Attributes:
    policy: the model.
    processor: of its checkpoint.
    shape: its prompts.
    params: () -> its parameters, on the devices.
    ours: whether `policy` is the run's own.
  """

  def __init__(self, ctx: context.Context, params: str, where: str,
               section: Any, heads: Mapping[str, Any] | None = None):
    """Opens it.

    Args:
      ctx: the run.
      params: 'base', a stage that trained, or a folder.
      where: the section's key, for messages.
      section: reads instruction and memory.
      heads: of a folder, see `context.open_model`.

    Raises:
      ValueError: a folder that cannot be used.
    """
    config, name = ctx.config, ctx.named(params)
    self.ours = name == 'base' or name in config.stages
    if self.ours:
      self.policy, self.processor = ctx.policy, ctx.processor
      tree = ctx.params(name)
    else:
      path = datasets.model_path(name)
      self.processor = processor_of(
          config, path, f'{where}.params', ctx.processor)
      self.policy, tree = context.open_model(
          config.model, path, self.processor, ctx.policy.layout, heads)
    self.shape = datasets.shape(
        config.data, self.processor, section.instruction)
    cast = partition.cast(tree, self.policy.module.config.compute_dtype)
    if 'scalars' in tree:  # small, and computed in float32
      cast = {**cast, 'scalars': tree['scalars']}
    self.params = _held(self.policy.layout.own(cast), section.memory)
    ctx.forget_base()  # the copy does

  def prompts(self, examples: Sequence[records.Example],
              n: int) -> tuple[types.Prompts, np.ndarray]:
    """Its prompts, and bool[N], those that fit; the others are a blank. A
    collective.

    Args:
      examples: of this host, `layout.own_rows(n)`.
      n: rows in all.
    """
    layout, blank = self.policy.layout, records.Example(uid=0, question='?')
    rows = layout.own_rows(n)

    def encoded():
      made = [self.shape.encode(e, e.uid) for e in examples]
      fits = [not isinstance(one, records.Broken) for one in made]
      return [one[1] if fit else self.shape.encode(blank, 0)[1]
              for one, fit in zip(made, fits)], fits
    (made, fits), error = hosts.attempt(encoded, ([], []))
    every = hosts.share((rows, fits, [
        (len(one.tokens), len(one.patches)) for one in made]), error)
    known = np.zeros(n, bool)
    for places, fitting, _ in every:
      known[places] = fitting
    needs = tuple(map(max, zip(*(one for *_, part in every for one in part))))
    return layout.spread_own(
        self.shape.collate(made, needs=needs), n), known

  def readable(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """bool[N, G], responses i32[N, G, T] whose tokens it all has."""
    inside = np.arange(tokens.shape[2]) < lengths[..., None]
    return (np.where(inside, tokens, 0) < self.processor.vocab_size).all(-1)


def _held(params: Any, memory: str) -> Callable[[], Any]:
  if memory != 'host':
    return lambda: params
  there = arrays.in_host(params)
  return lambda: arrays.on_device(there)
