"""Rows of the samples file: whose tokens, with which numbers."""

import types as simple_types

import jax.numpy as jnp
import numpy as np

from mmr1 import judged
from mmr1 import records
from mmr1 import sample_rows
from mmr1 import types
from mmr1.rewards import score

G, T = 3, 4
KINDS = np.array([[1, 1, 0, 0], [1, 2, 2, 1], [1, 3, 1, 0]], np.int8)
TOKENS = np.array([[5, 2, 0, 0], [5, 9, 9, 7], [5, 6, 7, 0]])
NAMES = {2: '<end>', 5: 'a', 6: '\u2581b', 7: 'c', 9: '<cell>'}


class Tokenizer:
  """A word a token; 2 and 9 are special."""

  def convert_ids_to_tokens(self, token):
    return NAMES[token]

  def decode(self, ids, **kwargs):
    return ''.join(NAMES[i].strip('\u2581') for i in ids if i not in (2, 9))


PROCESSOR = simple_types.SimpleNamespace(
    tokenizer=Tokenizer(), pad_id=0, eos_id=2)


def filled(advantage):
  """One group: a plain answer, an episode, and one with a token put in."""
  kind = jnp.asarray(KINDS)[None]
  wide = jnp.arange(G * T, dtype=jnp.float32).reshape(1, G, T) / 8
  rollout = types.Rollout(
      prompts=None, completions=types.Completions(
          tokens=jnp.asarray(TOKENS)[None], kind=kind, positions=None),
      logp=-wide, behaviour=-wide, done=jnp.ones((1, G), bool),
      version=jnp.int32(0), entropy=wide)
  columns = np.array([[[1.0], [np.nan], [0.5]]])
  samples = [records.Sample(
      text='a', tokens=tuple(map(int, TOKENS[g][KINDS[g] > 0])),
      kinds=tuple(map(int, KINDS[g][KINDS[g] > 0])), length=2, truncated=False,
      example=records.Example(uid=3, question='Q', answer='1'), uid=3, group=0,
      slot=g, **(dict(end='answer', turns=(
          records.Turn('assistant', 'a'),
          records.Turn('tool', 'see', call={'x': (1, 2)}, error='late')))
                 if g == 1 else {})) for g in range(G)]
  arrays = judged.Arrays(
      spoken=np.asarray(KINDS == 1)[None], lengths=np.full((1, G), 2),
      done=np.ones((1, G), bool), whole=np.asarray((KINDS > 0).sum(-1))[None],
      cut=np.zeros((1, G), bool), branch=np.zeros(1, np.int32),
      expert=np.zeros((1, G), bool), baseline=np.zeros(1),
      turn=np.zeros((1, G, T), np.int8), turn_rewards=np.zeros((1, G, 1)))
  return judged.Filled(
      rollout, {}, arrays, judged.Judged(
          samples, score.Scored(columns, ('r',), {}, ()), 2 * columns,
          advantage, np.array([[2, 0, 1]]), {}))


def test_what_is_logged_is_what_was_used():
  rows = sample_rows.rows(
      filled(np.array([[[1.0], [0.0], [-1.0]]], np.float32)), 1, PROCESSOR,
      count=0)
  assert [row['advantage'] for row in rows] == [1.0, 0.0, -1.0]
  # Combined: twice the column, whose nan is no value.
  assert rows[0]['reward'] == 2.0 and np.isnan(rows[1]['reward'])
  assert [row['kept'] for row in rows] == [2, 0, 1]
  assert not any('tokens' in row for row in rows)
  assert rows[1]['end'] == 'answer' and rows[1]['turns'][1] == {
      'role': 'tool', 'text': 'see', 'images': [], 'call': {'x': (1, 2)},
      'error': 'late'}
  assert 'turns' not in rows[0]


def test_tokens_have_their_numbers():
  advantage = np.arange(G * T, dtype=np.float32).reshape(1, G, T)
  rows = sample_rows.rows(filled(advantage), 1, PROCESSOR, count=3)
  first, episode, edited = (row['tokens'] for row in rows)
  # A special token is named; entropy is k / 8 of the k-th entry.
  assert first == {'text': ['a', '<end>'], 'kind': 'ss',
                   'entropy': [0.0, 0.125], 'logp': [0.0, -0.125],
                   'advantage': [0.0, 1.0]}
  # Of the environment's tokens nothing is known, and cells are named once.
  assert episode['text'] == ['a', '<cell>', '', 'c']
  assert episode['kind'] == 'soos'
  assert episode['entropy'] == [0.5, None, None, 0.875]
  assert edited['kind'] == 'sfs' and edited['text'][1] == ' b'
  # The completion's advantage is the mean of its tokens': (4 + 7) / 2.
  assert rows[1]['advantage'] == 5.5


def test_best_and_worst_first_and_not_too_long(monkeypatch):
  one = filled(np.zeros((1, G, 1), np.float32))
  def which(count):
    return [i for i, row in enumerate(sample_rows.rows(
        one, 1, PROCESSOR, count=count)) if 'tokens' in row]
  # Rewards 2, none, 1: none is the worst.
  assert [which(count) for count in (1, 2, 9)] == [[0], [0, 1], [0, 1, 2]]
  monkeypatch.setattr(sample_rows, 'TOKENS', 2)
  cut = sample_rows.rows(one, 1, PROCESSOR, count=3)[1]['tokens']
  assert cut['kind'] == 'so' and cut['left_out'] == 2
