"""A user's own functions; configs name them 'tests.own:<function>'."""

import numpy as np

bad_steps = set()  # steps at which `poisoned` is poisoned
calls = [0]


def even(sample, knobs):
  """Something that varies inside a group whatever the model is."""
  del knobs
  return float(sum(sample.tokens) % 2 == 0)


even.range = (0.0, 1.0)


def anyhow(sample, knobs, **kwargs):
  """The same in place of a reward that has keywords."""
  del kwargs
  return even(sample, knobs)


anyhow.range = (0.0, 1.0)


def flat(sample, knobs):
  """The same value for everybody: no group varies."""
  del sample, knobs
  return 0.9


flat.range = (0.0, 1.0)


def some(sample, knobs):
  """0, None, 1, None, ...: every second sample has no value."""
  del knobs
  return None if sample.slot % 2 else float(sample.slot % 4 == 2)


some.range = (0.0, 1.0)


def nothing(sample, knobs):
  """Never a value."""
  del sample, knobs
  return None


nothing.range = (0.0, 1.0)


def sometimes(sample, knobs):
  """Fails on one sample of four."""
  del knobs
  if sample.slot == 1:
    raise RuntimeError('slot 1 is odd')
  return float(sample.slot % 2)


sometimes.range = (0.0, 1.0)


def infinite(sample, knobs):
  """A value that no reward may have."""
  del sample, knobs
  return float('inf')


infinite.range = (0.0, 1.0)


def poisoned(rewards, tokens=None):
  """Advantage 0, 1, 0, 1, ...; at `bad_steps` (counted in calls) infinite."""
  del tokens
  calls[0] += 1
  n, g = rewards.shape[:2]
  advantage = np.broadcast_to(
      np.arange(g)[:, None] % 2, (n, g, 1)).astype(np.float32)
  return advantage * np.inf if calls[0] in bad_steps else advantage


def no_number(seed, split, i, **kwargs):
  """A task with a mistake in it."""
  del seed, split, i, kwargs
  return int('seven')


def seldom(sample, knobs):
  """As `even` for prompts with an even uid; the others are all wrong."""
  return even(sample, knobs) * (sample.uid % 2 == 0)


seldom.range = (0.0, 1.0)


def late(sample, knobs):
  """1 for every second sample of a group."""
  del knobs
  return float(sample.slot % 2)


late.range = (0.0, 1.0)


def totalled(reply):
  """A score of whatever a judge says."""
  return sum(map(ord, reply)) % 101 / 100


def summed(reply):
  """A score of whatever a judge says, or none."""
  return None if sum(map(ord, reply)) % 4 == 0 else totalled(reply)


def never(said):
  """Whatever a critic says, something is wrong."""
  del said
  return False
