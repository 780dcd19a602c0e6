"""What sections have to agree on, and keys that are read late."""

from collections.abc import Iterable
from typing import Any

from mmr1 import forward


def lengths(config: Any, policy: forward.Policy) -> None:
  """Prompts and completions must fit the positions of the model."""
  limit = policy.module.config.max_positions
  for name in ('evaluation', *config.stages):
    if 'max_new_tokens' not in config[name]:
      continue
    prompt, length = config.data.prompt_tokens, config[name].max_new_tokens
    if prompt + length > limit:
      raise ValueError(
          f'{name}.max_new_tokens: got {length}; with data.prompt_tokens='
          f'{prompt} that is more than the {limit} positions of the model '
          '(max_position_embeddings in its config.json).')


def cut_answers(config: Any) -> list[str]:
  """A sentence for every stage of one turn that samples completions longer than
  those of its evaluation."""
  most = config.evaluation.max_new_tokens
  return [
      f'evaluation.max_new_tokens is {most}, {name} writes up to '
      f'{config[name].max_new_tokens}: longer answers are cut and count as '
      f'wrong. Take --config.evaluation.max_new_tokens='
      f'{config[name].max_new_tokens}.'
      for name in config.stages
      if config[name].kind == 'rl' and config[name].env is None
      and config[name].max_new_tokens > most]


def data_keys(config: Any, overrides: Iterable[str]) -> None:
  """Refuses a `data` key from the command line that nothing looks at.

  A key that the config file sets may be idle: a paper names its worlds, and a
  file replaces them.
  """
  idle = sorted({*overrides} & {*config.data.unread()})
  if idle:
    other = 'without data.path' if config.data.path is None else (
        'with data.path' if config.data.eval_path is None
        else 'with data.path and data.eval_path')
    raise ValueError(f'--config.{idle[0]} has no effect {other}.')


def read_the_rest(config: Any) -> None:
  """Keys that are used later than set-up's end, or only in some runs."""
  config.name, config.scale, config.seed, config.evaluate_base
  config.tensorboard, config.report
  config.evaluation.as_dict()
  config.data.as_dict()
