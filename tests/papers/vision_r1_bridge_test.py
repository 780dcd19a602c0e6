"""Vision-R1's data engine on the procedural worlds, and its reading of R1."""

import collections
import time
import types

import numpy as np
import pytest

from mmr1 import records
from mmr1 import text
from mmr1.data import symbolic
from mmr1.data.tasks import digits
from mmr1.data.tasks import geometry
from mmr1.data.tasks import shapes
from mmr1.papers import vision_r1
from mmr1.papers import vision_r1_bridge as bridge_lib
from mmr1.rewards import pool
from mmr1.sampling import responders

CTX = types.SimpleNamespace(config=types.SimpleNamespace(seed=3))


@pytest.fixture(scope='module')
def examples():
  """60 items of three worlds, letters among them; uids are distinct."""
  return [
      *(digits.digits(0, 'train', i) for i in range(20)),
      *(geometry.geometry(0, 'train', i, uid_offset=100) for i in range(20)),
      *(shapes.shapes(0, 'train', i, uid_offset=200, as_choice=i % 4 == 0)
        for i in range(20))]


@pytest.fixture(scope='module')
def made(examples):
  return bridge_lib.bridge(examples, CTX, 'base', error_rate=0.1)


def example(answer='7', **meta):
  return records.Example(
      uid=0, question='<image>What is the sum?', answer=answer, meta=meta)


def reward(one):
  """What the paper's RL stage would give the example's completion."""
  return vision_r1.hard_format_result(records.Sample(
      text=one.completions[0], tokens=(), kinds=(), length=0, truncated=False,
      example=one, uid=one.uid, group=0, slot=0), {})


def think(one):
  return text.parse_think_answer(one.completions[0]).think


def check_sum(counts, kept):
  """Every example is kept or dropped for one reason."""
  dropped = (
      'unusable', 'no_reply', 'unparsed', 'wrong_answer', 'inconsistent')
  assert counts['examples'] == len(kept) + sum(counts[d] for d in dropped)


# With a pseudo-CoT and without.


def test_with_a_pseudo_cot_nearly_all_is_kept(made):
  """Only the solver's 10% of slips are lost: about 6 of 60."""
  kept, counts = made
  check_sum(counts, kept)
  assert counts['examples'] == 60 and 48 <= len(kept) < 60
  assert counts['wrong_answer'] == 60 - len(kept)
  assert len({one.uid for one in kept}) == len(kept)


def test_without_a_pseudo_cot_facts_are_lost_and_the_filter_rejects_more(
    examples, made):
  """A blind guess is right once in 20 numbers, 4 letters or 2 of yes, no."""
  kept, counts = bridge_lib.bridge(examples, CTX, '', use_pseudo_cot=False)
  check_sum(counts, kept)
  assert counts['wrong_answer'] > 40 > 12 > made[1]['wrong_answer']
  for one in kept:  # a lucky guess says that it is one
    assert 'guess' in think(one) and reward(one) == 1.0


def test_every_fact_reaches_the_reasoner_only_with_a_pseudo_cot(
    examples, monkeypatch):
  """What the reasoner is asked: never a picture, the facts, the question."""
  asked = []
  monkeypatch.setattr(
      bridge_lib.responders, 'make',
      lambda kind, ctx, **_: lambda requests: asked.extend(requests) or [
          f'Seen. Answer: {r.example.answer}' for r in requests])
  bridge_lib.bridge(examples, CTX, '', reasoner='endpoint')
  bridge_lib.bridge(
      examples, CTX, '', reasoner='endpoint', use_pseudo_cot=False)
  for one, full, poor in zip(examples, asked[:60], asked[60:]):
    seen, _, question = full.prompt.partition(bridge_lib.REASON)
    assert not full.images and not poor.images
    assert question.strip() == one.question.removeprefix('<image>')
    assert seen.startswith(one.meta['caption'])
    assert all(fact in seen for fact in one.meta['facts'])
    lost = poor.prompt.partition(bridge_lib.REASON)[0]
    assert not any(fact in lost for fact in one.meta['facts'])


def test_m12_every_kept_completion_earns_the_full_reward(examples, made):
  """One think block, one answer block, the form of the published records."""
  by_uid = {one.uid: one for one in examples}
  for one in made[0]:
    (completion,) = one.completions
    assert reward(one) == 1.0
    assert completion.startswith('<think>')
    assert completion.endswith(f'<answer> Final Answer:{one.answer} </answer>')
    assert all(completion.count(tag) == 1 for tag in (
        '<think>', '</think>', '<answer>', '</answer>'))
    source = by_uid[one.uid]  # all but the completion is the example's own
    assert (one.question, one.images, one.answer, dict(one.meta)) == (
        source.question, source.images, source.answer, dict(source.meta))


def test_chains_doubt_themselves_and_speak_of_an_image(made):
  kept, counts = made
  chains = [think(one) for one in kept]
  assert all('escription' not in chain for chain in chains)
  assert all(chain.startswith('I see') for chain in chains)
  words = collections.Counter()
  for chain in chains:
    for word in ('wait', 'hmm', 'check', 'mistake', 'alternatively'):
      words[word] += chain.lower().replace('.', ' ').replace(
          ',', ' ').split().count(word)
  assert {f'words/{w}': words[w] for w in words} == {
      k: v for k, v in counts.items() if k.startswith('words/')}
  assert min(words[w] for w in ('wait', 'hmm', 'check')) > 10


def test_overlong_chains_are_those_of_hard_problems(examples):
  """overlong = .5: another doubt with chance .2 + .15 difficulty, .35 for 1
  and .8 for 4. Three doubts or more: .35^3 = 4% and .8^3 = 51%."""
  solver = symbolic.Solver(seed=0, overlong=0.5, error_rate=0.0)
  rng = np.random.default_rng(0)
  share = [np.mean([solver.rounds(difficulty, rng) >= 3 for _ in range(2000)])
           for difficulty in (1, 2, 3, 4)]
  np.testing.assert_allclose(share, [.043, .125, .275, .512], atol=0.035)
  one = max(examples, key=lambda e: e.meta['difficulty'])
  seen = symbolic.description(one, symbolic.thought(one))
  short = symbolic.Solver(seed=0, overlong=0.0, error_rate=0.0)
  steps = ','.join(s for s in one.meta['steps'] if s not in one.meta['facts'])
  assert short.reply(one, seen) == (
      f'The description says {"; ".join(one.meta["facts"])}. {steps}. '
      f'Answer: {one.answer}')


def test_the_engine_repeats_itself_and_follows_the_seed(examples, made):
  again = bridge_lib.bridge(examples, CTX, 'base', error_rate=0.1)
  assert [e.completions for e in again[0]] == [
      e.completions for e in made[0]] and again[1] == made[1]
  other = types.SimpleNamespace(config=types.SimpleNamespace(seed=4))
  kept, _ = bridge_lib.bridge(examples, other, 'base', error_rate=0.1)
  assert [e.completions for e in kept] != [e.completions for e in made[0]]
  # An example's chain does not depend on its neighbours.
  kept, _ = bridge_lib.bridge(examples[30:], CTX, 'base', error_rate=0.1)
  alone = {e.uid: e.completions for e in kept}
  assert alone == {e.uid: e.completions for e in made[0] if e.uid in alone}


def test_errors_of_the_solver_are_all_filtered(examples):
  kept, counts = bridge_lib.bridge(examples, CTX, '', error_rate=1.0)
  assert not kept and counts['wrong_answer'] == counts['examples'] == 60


def test_without_thought_the_chain_is_empty(examples):
  kept, counts = bridge_lib.bridge(examples, CTX, '', keep_thought=False)
  assert {think(one) for one in kept} == {'See the image.'}
  assert all(reward(one) == 1.0 for one in kept)
  assert not any(v for k, v in counts.items() if k.startswith('words/'))


# Missing replies.


def test_an_example_without_a_reply_goes_no_further(examples, monkeypatch):
  """Example 0 loses its thought, 1 its description, 2 its chain, 3 is fine."""
  asked = collections.defaultdict(list)
  def answer(requests):
    replies = []
    for r in requests:
      step = ('thought' if 'Correct answer' in r.prompt else 'described'
              if 'Thinking process' in r.prompt else 'chain')
      asked[step].append(examples.index(r.example))
      lost = dict(thought=0, described=1, chain=2)[step]
      reply = {'thought': 'thought of it', 'described': 'description of it',
               'chain': f'3+4. Answer: {r.example.answer}'}[step]
      replies.append(None if examples.index(r.example) == lost else reply)
      assert bool(r.images) == (step != 'chain')
      if step != 'thought':
        before = {'described': 'thought of it', 'chain': 'description of it'}
        assert before[step] in r.prompt
    return replies
  monkeypatch.setattr(
      bridge_lib.responders, 'make', lambda kind, ctx, **_: answer)
  kept, counts = bridge_lib.bridge(
      examples[:4], CTX, '', captioner='endpoint', reasoner='endpoint')
  assert dict(asked) == {
      'thought': [0, 1, 2, 3], 'described': [1, 2, 3], 'chain': [2, 3]}
  assert [one.uid for one in kept] == [examples[3].uid]
  assert counts['no_reply'] == 3 and counts['examples'] == 4
  check_sum(counts, kept)


@pytest.mark.parametrize('one, options, message', [
    (example(), dict(captioner='oracle'), 'symbolic, endpoint, local'),
    (example(), dict(reasoner=''), 'symbolic, endpoint, local'),
    (example(), {}, 'no facts and steps'),
    (example(None, facts=(), steps=()), {}, 'no gold answer'),
    (records.Example(uid=0, answer='1', videos=(records.Video(()),),
                     meta=dict(facts=(), steps=())), {}, 'videos'),
    (example(facts=(), steps=()), dict(overlong=2.0), 'overlong=2.0'),
    (example(facts=(), steps=()), dict(error_rate=-.1), 'error_rate=-0.1')])
def test_bad_input_is_refused(one, options, message):
  with pytest.raises(ValueError, match=message):
    bridge_lib.bridge([one], CTX, '', **options)


# Reading and judging replies.


@pytest.mark.parametrize('reply, chain, final', [
    ('I see 3,4. 3+4=7. Answer: 7', 'I see 3,4. 3+4=7.', '7'),
    ('<think>\nHmm, 3+4=7.\n</think>\n\nIt is \\boxed{7}.', 'Hmm, 3+4=7.',
     '7'),
    # The server wrote the first tag itself.
    ('Hmm, 3+4=7.\n</think>\n**Final Answer:** 7', 'Hmm, 3+4=7.', '7'),
    ('<think>Hmm.</think>\nFirst 3.\nSo the answer is $7$.', 'Hmm.', '7'),
    ('<think>Hmm.</think><answer> Final Answer:7 </answer>', 'Hmm.', '7'),
    ('<think>Hmm.</think>7', 'Hmm.', '7'),
    ('<think>\\boxed{8}? No.</think> \\boxed{\\frac{7}{1}}',
     '\\boxed{8}? No.', '\\frac{7}{1}'),
    # No think block: up to where the last line announces the answer.
    ('The first is 3.\nThe answer: not yet.\nThen 4.\n**Final Answer:**\n7',
     'The first is 3.\nThe answer: not yet.\nThen 4.', '7'),
    ('First 3, then 4, which makes in all, as we see, \\boxed{7}.',
     'First 3, then 4, which makes in all, as we see, \\boxed{7}.', '7'),
    ('Seen. <answer> Final Answer: 7 </answer>', 'Seen.', '7'),
])
def test_replies_are_split(reply, chain, final):
  assert bridge_lib.split(reply) == (chain, final)
  assert bridge_lib.judge(example(), reply) == ('', chain, final)
  kept, counts = bridge_lib.keep([example()], [reply])
  assert reward(kept[0]) == 1.0
  check_sum(counts, kept)


@pytest.mark.parametrize('reply, why', [
    (None, 'no_reply'), ('', 'no_reply'), (' \n', 'no_reply'),
    ('<think>Hmm, it goes on and on, and then the cap', 'unparsed'),
    ('<think></think>7', 'unparsed'),
    ('7', 'unparsed'), ('Answer: 7', 'unparsed'),
    ('I cannot see the image that you speak of, so I have to stop.',
     'unparsed'),
    # Tags inside the chain: the reward would be 0 (M12).
    ('<think>a <think>b</think> c</think>7', 'unparsed'),
    ('<think>write <answer>7</answer></think>\\boxed{7}', 'unparsed'),
    ('3+4=8. Answer: 8', 'wrong_answer'),
    ('<think>3+4=7</think> \\boxed{8}', 'wrong_answer'),
    ('3+4=7. Answer: 7 or 8', 'wrong_answer'),
    ('3+4=8. Answer: 7', 'inconsistent'),
    ('<think>3+4=7, and 7+1=8.</think>\\boxed{7}', 'inconsistent')])
def test_replies_are_dropped(reply, why):
  kept, counts = bridge_lib.keep(
      [example(), example()], [reply, 'x. Answer: 7'])
  assert len(kept) == 1 and counts[why] == 1
  check_sum(counts, kept)


@pytest.mark.parametrize('meta', [
    dict(answer_type='letter'), dict(choices=('3', '4'))])
def test_m26_a_bad_gold_answer_is_counted_and_stops_nothing(meta):
  kept, counts = bridge_lib.keep(
      [example(**meta), example()], ['3+4=7. Answer: 7'] * 2)
  assert len(kept) == 1 and counts['unusable'] == 1
  check_sum(counts, kept)


@pytest.mark.parametrize('failure', [
    pool.TimedOut, pool.WorkerDied, pool.RemoteError])
def test_answers_that_cannot_be_checked_are_dropped(failure, monkeypatch):
  def fail(*args):
    raise failure('on purpose')
  monkeypatch.setattr(bridge_lib.answer_lib, 'match', fail)
  kept, counts = bridge_lib.keep([example()], ['3+4=7. Answer: 7'])
  assert not kept and counts['wrong_answer'] == 1


@pytest.mark.parametrize('part', [
    '*', '* ', '*a', 'answer', 'answer ', '<answer> ', '**final ', '=1', '1,',
    'the ', 'the given ', 'description ', ' ', '\n'])
def test_degenerate_replies_are_read_in_linear_time(part):
  """A model that repeats itself: 200,000 asterisks once took half an hour."""
  start = time.monotonic()
  bridge_lib.keep([example()], [part * (200_000 // len(part))])
  bridge_lib.replaced(part * (50_000 // len(part)))
  bridge_lib.consistent(part * (50_000 // len(part)), '7')
  assert time.monotonic() - start < 5


@pytest.mark.parametrize('chain, final, agrees', [
    ('x=3,3+4=7', '7', True), ('x=3,3+4=7', '8', False),
    # Commas between steps are not thousands, and those in thousands are.
    ('3+4=7,100+5=105', '105', True), ('3+4=7,100+5=105', '7', False),
    ('30*40=1,200.', '1200', True), ('1*1=1,200', '1', False),
    # 3 is no result of '= 3 + 4' nor of '= 3x', '= 3/4', '= 3 \times 2'.
    ('so 2 = 2 and x = 3 + 4', '2', True), ('x = 5, y = 3x', '5', True),
    ('x = 5 = 15/3', '5', True), ('x = 5, y = 3 \\times 2', '5', True),
    ('half of it: 5/2 = 2.5', '2.5', True), ('5/2 = 2.5', '2', False),
    ('1-4=\u22123', '-3', True), ('1-4=-3', '3', False),
    # What follows a check may end elsewhere.
    ('3+4=7. Check: 7-4=3', '7', True), ('3+4=7. Check: 7-4=3', '3', True),
    ('3+4=8. Check: 7-4=3', '7', False),
    ('3+4=8. No, mistake. 3+4=7.', '7', True),
    # Nothing to compare.
    ('three and four are seven', '7', True), ('3+4=8', 'red', True),
    ('3+4=8', '\\frac{7}{2}', True), ('3+4=7', '7 cm', True)])
def test_inconsistent_chains(chain, final, agrees):
  assert bridge_lib.consistent(chain, final) is agrees


@pytest.mark.parametrize('before, after', [
    ('The description says 3.', 'I see 3.'),
    ('Okay, the image description mentions: red', 'Okay, I see red'),
    ('According to the description, 3.', 'In the image, 3.'),
    ('so, based on the given image description, 3', 'so, in the image, 3'),
    ('The description shows 3. But this description provided is short',
     'The image shows 3. But the image is short'),
    ('it is described as red', 'it is red'),
    ('As described, 3.', 'As shown, 3.'),
    ('Image descriptions may lie', 'Image may lie'),
    ("The user's description tells us that", 'I see that'),
    ('the image shows 3', 'the image shows 3')])
def test_words_of_a_description_become_words_of_an_image(before, after):
  assert bridge_lib.replaced(before) == after


def test_conversations_are_asked_by_their_user_turns():
  one = records.Example(uid=0, answer='7', messages=(
      {'role': 'system', 'content': 'be brief'},
      {'role': 'user', 'content': '<image>How many?'}))
  assert bridge_lib.plain(one) == 'How many?'


def test_guesses_fit_the_question():
  rng = np.random.default_rng(0)
  def guesses(answer, **meta):
    return {symbolic.guess(example(answer, **meta), rng) for _ in range(400)}
  assert guesses('3', answer_type='number') == {str(i) for i in range(20)}
  assert guesses('B', answer_type='choice', choices=('1', '2', '3')) == {
      'A', 'B', 'C'}
  assert guesses('yes', answer_type='text') == {'yes', 'no'}
  assert guesses('red', answer_type='text') == {
      'red', 'green', 'blue', 'yellow'}


def test_requests_are_frozen():
  with pytest.raises(AttributeError):
    responders.Request(example(), 'p').prompt = 'q'
