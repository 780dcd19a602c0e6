"""Episodes on the host: limits, failures, what rewards see."""

import dataclasses
import json
import re
import threading
import time
import types as types_lib

import numpy as np
from PIL import Image
import pytest

from mmr1 import environments
from mmr1 import episodes
from mmr1 import hosts
from mmr1 import playing
from mmr1 import records
from mmr1 import types
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.sampling import chunks

T = 160


@pytest.fixture(scope='module')
def processor():
  return processor_lib.Processor.open('mmr1/assets/tiny')


class World:
  """Counts what it is told; acts by the last word of a turn."""
  role = 'user'

  def reset(self, example, seed):
    return {'seed': seed, 'n': 0}

  def step(self, state, sample):
    said = sample.turns[-1].text
    state = {**state, 'n': state['n'] + 1}
    if said == 'break':
      raise KeyError('nothing here')
    if said == 'sleep':
      time.sleep(1)
    if said == 'look':
      return state, records.Observation(
          text=f'{state["n"]}', images=(Image.new('RGB', (32, 16)),),
          reward=.5, call={'n': state['n']})
    if said == 'long':
      return state, records.Observation(text='a b c d ' * 30, call={})
    if said == 'change':
      sample.text = 'another'
    if said == 'meta':
      sample.example.meta['answer_type'] = 'another'
    if said == 'open':
      return state, records.Observation(text='!', done=True)
    if said == 'bad':
      return state, records.Observation(text='no', call={}, error='invalid')
    return state, records.Observation(done=True, reward=1.0)


def player(processor, group=4, length=T, **kwargs):
  env = environments.Environment(**{**dict(
      name='w', fn=World(), stop=(), max_turns=3, turn_tokens=None,
      observation_tokens=64, observation_patches=16, images=1, workers=4,
      limit_s=.3), **kwargs})
  example = records.Example(uid=7, question='?', answer='1')
  return playing.Player(
      env, processor, {0: example}, np.array([5]), group=group, length=length,
      seed=0)


def says(processor, *texts, why='eos'):
  return {(0, g): chunks.Stopped(
      encode.encode_completion(text, processor), why)
          for g, text in enumerate(texts) if text is not None}


def test_every_failure_is_an_observation_and_the_others_go_on(processor):
  one = player(processor)
  told = one.step(says(processor, 'break', 'sleep', 'look', 'bad'))
  assert set(told) == {(0, g) for g in range(4)}  # nobody was lost
  texts = [processor.tokenizer.decode(told[0, g].tokens) for g in range(4)]
  assert "Error: KeyError: 'nothing here'" in texts[0]
  assert 'Error: no result within 0.3 s' in texts[1]
  assert one.step(says(processor, *['end'] * 4)) == {}
  made = one.metrics()
  assert made['env/errors'] == 3 / 4 and made['env/calls'] == 1
  assert made['env/turns'] == 2 and made['env/answer_frac'] == 1
  assert made['env/images'] == 1 / 4 and one.done.all()
  sample = one.told([records.Sample(
      text='x', tokens=(), kinds=(), length=0, truncated=False,
      example=records.Example(uid=7), uid=7, group=0, slot=g)
                     for g in range(4)])
  assert [s.calls[0].error for s in sample] == [
      'env_error', 'timeout', '', 'invalid']
  assert sample[2].text == 'look\nend' and sample[2].end == 'answer'
  assert sample[2].rewards == (.5, 1.0)
  assert [t.role for t in sample[2].turns] == ['assistant', 'user', 'assistant']


@pytest.mark.parametrize('raises, error', [(True, 'env_error'), (False, '')])
def test_half_a_character_in_what_an_environment_says(processor, raises, error):
  """JSON of the model may hold a lone surrogate, which no tokenizer takes."""
  class Tools(World):
    def step(self, state, sample):
      text = 'no tool ' + json.loads(sample.turns[-1].text)['name']
      if raises:
        raise ValueError(text)
      return state, records.Observation(text=text, call={})
  one = player(processor, group=1, fn=Tools())
  told = one.step(says(processor, r'{"name": "\ud83d"}'))
  assert 'no tool ?' in processor.tokenizer.decode(told[0, 0].tokens)
  assert one._own[0, 0].turns[-1].error == error
  # The end of an episode too is read: by rewards, and by who writes it down.
  class Last(World):
    def step(self, state, sample):
      return state, records.Observation(text='\ud83d', done=True)
  one = player(processor, group=1, fn=Last())
  one.step(says(processor, 'x'))
  assert one._own[0, 0].turns[-1].text == 'x?'


def test_an_exception_leaves_the_others_as_they_were(processor):
  a, b = player(processor), player(processor)
  x = a.step(says(processor, 'look', 'bad', 'break'))
  y = b.step(says(processor, 'look', 'bad', 'bad'))
  for g in (0, 1):
    np.testing.assert_array_equal(x[0, g].tokens, y[0, g].tokens)
    np.testing.assert_array_equal(x[0, g].patches, y[0, g].patches)


def test_limits_end_episodes_with_what_was_sampled(processor):
  one = player(processor)
  told = one.step({**says(processor, 'look', 'long', 'look'),
                   (0, 3): chunks.Stopped(np.array([65, 66]), 'length')})
  assert set(told) == {(0, 0), (0, 2)}
  assert one.ends == {(0, 1): 'overflow', (0, 3): 'length'}
  # A second picture is one too many; then the last turn.
  assert set(one.step(says(processor, 'bad', None, 'look'))) == {(0, 0)}
  assert one.ends[0, 2] == 'max_images'
  assert not one.step(says(processor, 'bad')) and (
      one.ends[0, 0] == 'max_turns') and not one.done.any()
  for g in range(4):
    assert one.trajectories[0][g].kind[-1] == types.KIND_SAMPLED
    # M5: what did not fit left neither words nor a picture.
    assert one.trajectories[0][g].patches == 16 * (g in (0, 2))
    assert len(one.trajectories[0][g].parts) == (0 if g in (1, 3) else 2 - g // 2)
  made = one.metrics()
  for end in ('overflow', 'length', 'max_images', 'max_turns'):
    assert made[f'env/{end}_frac'] == .25
  assert made['env/answer_frac'] == made['env/turn_length_frac'] == 0
  assert made['env/tokens'] == np.mean([
      len(whole) for whole in one.trajectories[0]])
  tight = player(processor, length=20)
  assert not tight.step(says(processor, 'look')) and (
      tight.ends[0, 0] == 'overflow')


def test_a_turn_and_an_episode_have_caps_of_their_own(processor):
  """Of three tokens each: an episode that ran into both has ended by its own."""
  for turn, length, end in (
      (3, T, 'turn_length'), (None, 3, 'length'), (3, 3, 'length')):
    one = player(processor, group=1, turn_tokens=turn, length=length)
    one.step({(0, 0): chunks.Stopped(np.array([65, 66, 67]), 'length')})
    assert one.ends == {(0, 0): end} and not one.done.any()


def test_a_short_last_batch_of_an_evaluation_counts_as_many_as_it_has():
  # Three episodes of one turn and one of five: 8 / 4; who lacks a name has 0.
  made = episodes.pooled(
      [{'env/turns': 1.0}, {'env/turns': 5.0, 'env/x_frac': 1.0}], [3, 1])
  assert made == {'env/turns': 2.0, 'env/x_frac': .25}


def test_m25_an_environment_cannot_change_what_it_is_shown(processor):
  one = player(processor, group=3)
  told = one.step(says(processor, 'change', 'meta', 'look'))
  assert set(told) == {(0, 0), (0, 1), (0, 2)}
  assert not one.step(says(processor, *['end'] * 3))
  blank = records.Sample(
      text='x', tokens=(), kinds=(), length=0, truncated=False,
      example=records.Example(uid=7), uid=7, group=0, slot=0)
  samples = one.told([dataclasses.replace(blank, slot=g) for g in range(3)])
  assert [s.calls[0].error for s in samples] == ['env_error', 'env_error', '']
  assert samples[0].text == 'change\nend' and not samples[1].example.meta


def test_what_an_end_says_is_read_and_made_no_tokens(processor):
  one = player(processor, group=1)
  assert one.step(says(processor, 'look')) and not one.step(
      says(processor, 'open'))
  sample, = one.told([records.Sample(
      text='x', tokens=(), kinds=(), length=0, truncated=False,
      example=records.Example(uid=7), uid=7, group=0, slot=0)])
  assert sample.text == 'look\nopen!' and sample.turns[-1].text == 'open!'
  whole = one.trajectories[0][0]
  assert whole.kind[-1] == types.KIND_SAMPLED
  assert whole.tokens[-1] == processor.eos_id


class Letters:
  """A tokenizer of one character a token."""

  def __init__(self, letters):
    self.letters = letters

  def __len__(self):
    return len(self.letters)

  def decode(self, tokens, **kwargs):
    return ''.join(self.letters[token] for token in tokens)

  def __call__(self, text, **kwargs):
    return {'input_ids': [self.letters.index(letter) for letter in text]}


def test_what_stops_a_turn_is_of_the_tokenizer():
  """Also where one lies in memory where another was before."""
  for letters in ('ab', 'ba') * 10:
    processor = types_lib.SimpleNamespace(
        tokenizer=Letters(letters), vocab_size=2, pad_id=-1, eos_id=-1)
    table = environments.table(processor, ('a',))
    assert environments.table(processor, ('a',)) is table
    assert table[0].tolist() == [int(x == 'a') for x in letters]
    del processor


@pytest.mark.parametrize('stop', ['\u7b54\u6848', '\u3002', '<|im_end|>'])
def test_a_string_that_would_never_stop_a_turn_is_refused(processor, stop):
  """Characters that the tokenizer cuts into bytes, and a special token."""
  assert environments.table(processor, ('</answer>',)).shape[0] == 10
  with pytest.raises(ValueError, match=f"'{re.escape(stop)}' would never end"):
    player(processor, stop=('</answer>', stop))


def test_m13_an_environment_that_always_fails_stops_the_run(processor):
  one = player(processor)
  one.step(says(processor, *['break'] * 4))
  with pytest.raises(RuntimeError, match='all 4 calls of a rollout failed'):
    one.metrics()


def test_a_failed_call_or_two_are_not_always(processor):
  """The only one of a rollout may have come on a busy machine."""
  one = player(processor)
  one.step(says(processor, 'end', 'end', 'end', 'sleep'))
  one.step(says(processor, None, None, None, 'end'))
  assert one.metrics()['env/errors'] == 1 / 4


@pytest.mark.parametrize('reward', [float('nan'), float('inf'), None, 'one'])
def test_a_reward_that_is_no_number_is_a_failure(processor, reward):
  class Paying(World):
    def step(self, state, sample):
      return state, records.Observation(done=True, reward=reward)
  one = player(processor, group=1, fn=Paying())
  told = one.step(says(processor, 'end'))
  assert one._outcomes[0].error == 'env_error' and not one.rewards.any()
  said = processor.tokenizer.decode(told[0, 0].tokens)
  assert 'Error: ValueError: ' in said and str(reward) in said


def test_samples_of_a_group_begin_alike(processor):
  one = player(processor)
  assert len({one._own[0, g].state['seed'] for g in range(4)}) == 1


class Unready(World):
  def reset(self, example, seed):
    raise KeyError('no board')


def test_what_an_episode_cannot_begin_with_is_named_on_all_hosts(
    processor, monkeypatch):
  said = r"environments.w: no episode can begin with uid 7 .*no board"
  with pytest.raises(ValueError, match=said):
    player(processor, fn=Unready())
  told = []
  def gather(own):
    told.append(own)
    return [(None, None), own]
  monkeypatch.setattr(hosts, 'count', lambda: 2)
  monkeypatch.setattr(hosts, 'gather', gather)
  with pytest.raises(ValueError, match=f'host 1 of 2: .*{said}'):
    player(processor, fn=Unready())
  assert 'no board' in told[0][1]


def traced(processor, *turns, **kwargs):
  env = player(processor, **kwargs).env
  return episodes.imitated(
      env, processor, records.Example(uid=1, meta={'turns': turns}), 3,
      length=T, seed=0)


def test_traces_are_episodes(processor):
  made = traced(processor, 'look', 'end')
  kinds = made.kind
  assert {*kinds} == {types.KIND_EXPERT, types.KIND_OBSERVATION}
  assert made.tokens[kinds == types.KIND_EXPERT].tolist() == [
      *encode.encode_completion('look', processor),
      *encode.encode_completion('end', processor)]
  assert made.patches == 16 and made.turns == 2
  # A string that ends turns stands for eos.
  made = traced(processor, 'look', 'fin', stop=('ook', 'k'))
  assert (made.tokens == processor.eos_id).sum() == 3  # two of the frame


@pytest.mark.parametrize('turns, kwargs, match', [
    ((), {}, 'no turns'),
    (('look',), {}, 'goes on'),
    (('end', 'end'), {}, "ends with 'answer'"),
    (('long', 'end'), {}, "ends with 'overflow'"),
    (('a look b', 'end'), dict(stop=('look',)), 'would have ended'),
    (('look', 'x' * 40), dict(turn_tokens=30), 'turn 1 has 41 tokens; .* 30'),
])
def test_m22_traces_that_are_none(processor, turns, kwargs, match):
  with pytest.raises(ValueError, match=match):
    traced(processor, *turns, **kwargs)


def test_m10_steps_that_never_return_cost_no_one_else_its_turn():
  """Two places, both hung: the other six are heard all the same, and what is
  late has had the limit from its own start on."""
  free = threading.Event()

  def step(i):
    if i < 2:
      free.wait(30)
    if i == 5:
      raise KeyError('five')
    return 10 * i
  began = time.monotonic()
  found = environments.together(step, range(8), 2, .2)
  took = time.monotonic() - began
  free.set()
  assert took < .2 + 1  # the limit and a second
  assert [found[i] for i in (2, 3, 4, 6, 7)] == [
      (10 * i, None) for i in (2, 3, 4, 6, 7)]
  assert found[5] == (None, ('env_error', "KeyError: 'five'"))
  assert found[0] == found[1] == (
      None, ('timeout', 'no result within 0.2 s'))
