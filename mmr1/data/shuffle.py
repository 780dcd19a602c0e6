"""Permutations that need no table: which item comes at a place of an epoch."""

import functools

import numpy as np


def shuffled(index: int, size: int, key: tuple[int, ...]) -> int:
  """Position `index` of a permutation of 0..size-1 that `key` draws.

  A Feistel network over the next power of four, walked until it falls inside:
  no table, so a source of millions costs nothing per epoch.
  """
  half = max(1, ((size - 1).bit_length() + 1) // 2)
  mask = (1 << half) - 1
  while True:
    left, right = index >> half, index & mask
    for key_word in _round_keys(key):
      left, right = right, left ^ (_mix(right ^ key_word) & mask)
    index = left << half | right
    if index < size:
      return index


@functools.lru_cache(maxsize=64)
def _round_keys(key: tuple[int, ...]) -> tuple[int, ...]:
  return tuple(int(x) for x in np.random.SeedSequence(key).generate_state(6))


def _mix(x: int) -> int:
  """The 32-bit finaliser of MurmurHash3."""
  x ^= x >> 16
  x = x * 0x85EBCA6B & 0xFFFFFFFF
  x ^= x >> 13
  x = x * 0xC2B2AE35 & 0xFFFFFFFF
  return x ^ x >> 16
