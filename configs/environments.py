"""Sections of `environments`, part of common.py."""

from ml_collections import config_dict


def environment(
    fn: str, *, stop: tuple[str, ...] = (), max_turns: int = 4,
    turn_tokens: int | None = None, observation_tokens: int = 64,
    observation_patches: int = 0, images: int = 0, workers: int = 4,
    limit_s: float = 30.0, **kwargs) -> config_dict.ConfigDict:
  """What answers the turns of a completion, see `mmr1.environments`.

  Args:
    fn: of mmr1/papers, or `mmr1.envs.<module>:<name>`; `kwargs` are its own.
    stop: strings that end a turn, beside the end of a turn in the chat.
    max_turns: of the assistant.
    turn_tokens: that it samples in each at most; None: what is left of
      max_new_tokens, which counts all tokens of an episode.
    observation_tokens, observation_patches: of what comes back at most.
    images: that come back in an episode at most.
    workers: threads that ask.
    limit_s: seconds that an answer may take.
  """
  tokens = config_dict.placeholder(int)
  tokens.set(turn_tokens)
  return config_dict.ConfigDict(dict(
      fn=fn, kwargs=kwargs, stop=stop, max_turns=max_turns, turn_tokens=tokens,
      observation_tokens=observation_tokens,
      observation_patches=observation_patches, images=images, workers=workers,
      limit_s=limit_s))
