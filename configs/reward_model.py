"""Defaults of stages of kind `reward_model`, and of their use as judges."""

from ml_collections import config_dict

ConfigDict = config_dict.ConfigDict
placeholder = config_dict.placeholder


def heads() -> dict:
  """Keys of `model` about heads of one number."""
  return dict(
      scalars=(),  # 'value', 'reward'
      # The form of a new one of the latter: linear layers, what is between
      # them ('silu', 'tanh', 'gelu', 'relu', 'none'), whether they have a bias.
      reward_head=dict(layers=1, activation='silu', bias=False))


def stage(training: dict) -> ConfigDict:
  """The family's section; `training`: keys of every kind that trains."""
  return ConfigDict(dict(
      kind='reward_model',
      # Pairs: sections of `tasks`, and their weights. A world whose examples
      # have two completions, or dict(path=...), a file with columns chosen and
      # rejected (and eval_path, or one of every data.holdout is held out).
      mixture=(), weights=(),
      pairs_per_step=32,
      chunks_per_step=1,  # of pairs, which stay whole
      max_new_tokens=128,  # pairs with a longer completion are left out
      instruction=placeholder(str),  # of its prompts; None: data.instruction
      terms=('bradley_terry',),  # sections of `terms`
      # Held-out pairs, and what a tie counts for: 'half' or 'wrong'.
      examples=512, pairs_per_batch=64, ties='half',
      **{key: value for key, value in training.items() if key != 'data'}))


def terms(term) -> dict:
  """Sections of `terms` that the stage may name, made by `common.term`."""
  fn = 'mmr1.losses.scoring:{}'.format
  return dict(
      bradley_terry=term(
          fn('bradley_terry'), 1.0, margin=0.0, length_norm=False),
      zero=term(fn('zero'), 0.01, length_norm=False),
      square=term(fn('square'), 0.001), bce=term(fn('bce'), 1.0))


def judge(*params: str, instruction: str | None = None,
          memory: str = 'device', chunks: int = 1) -> ConfigDict:
  """A section of `judges`: the mean score of reward models, a column.

  Args:
    *params: of each, a stage before, 'base' or a folder.
    instruction: under which they read the problem; None: data.instruction.
    memory: where their parameters wait, 'device' or 'host'.
    chunks: pieces that the responses of a group are read in.
  """
  said = placeholder(str)
  said.set(instruction)
  return ConfigDict(dict(
      kind='score', params=params, instruction=said, memory=memory,
      chunks=chunks))
