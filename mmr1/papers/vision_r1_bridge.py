"""Vision-R1's data engine: modality bridging (arXiv 2503.06749, section 3.2).

Image and question become text so that a reasoner without eyes can think about
them; its long chain of thought is then given back to the image:

  1. captioner(image, q, y)           -> pseudo-CoT: caption and reasoning
  2. captioner(image, q, pseudo-CoT)  -> description with every needed fact
  3. reasoner(description, q)         -> chain of thought and answer
  4. filter: the answer must be y; the chain must not contradict it; words that
     speak of a description are replaced by words that speak of an image
  5. record {image, q, <think> chain </think><answer> Final Answer:y </answer>}

The paper uses Qwen2.5-VL-72B and DeepSeek-R1. Here both are pluggable: an
OpenAI-compatible endpoint, a local model through the sampler, or, for the
procedural worlds, a symbolic stand-in. The paper prints neither its filter
rules nor its word list; ours are `consistent` and `REPLACEMENTS`.
"""

from collections.abc import Sequence
import re
from typing import Any

import numpy as np

from mmr1 import records
from mmr1 import text
from mmr1.data import traces
from mmr1.rewards import answer as answer_lib
from mmr1.rewards import pool
from mmr1.sampling import responders

# What the text reasoner is told [paper, figure]; the other prompts are ours.
REASON = ('Following the above image description, think step by step and '
          'answer the following question directly.')
PSEUDO_COT = (
    'Describe the image in one sentence, then reason step by step to the '
    'answer.\nQuestion: {question}\nCorrect answer: {answer}')
DESCRIBE = (
    'Question about the image: {question}\nThinking process: {thought}\n'
    'Write a description of the image that holds every detail needed to '
    'answer the question correctly. Do not answer it.')
# Ours: the chain must read as written by somebody who sees the image.
REPLACEMENTS = (
    (r'\b[Tt]he (?:image )?description (?:says|states|mentions|gives)\b:?',
     'I see'),
    (r'\b[Aa]ccording to the (?:image )?description\b', 'In the image'),
    (r'\b[Tt]he (?:image )?description\b', 'the image'),
)
REFLECTIVE = ('Wait', 'Hmm', 'Mistake', 'Alternatively', 'Check')
_EQUATION = re.compile(r'=\s*(-?\d+(?:\.\d+)?)')


def bridge(
    examples: Sequence[records.Example],
    ctx: Any,
    init: str,
    *,
    captioner: str = 'symbolic',
    reasoner: str = 'symbolic',
    use_pseudo_cot: bool = True,
    keep_thought: bool = True,
    overlong: float = 0.5,
    error_rate: float = 0.05,
    url: str = '',
    caption_model: str = '',
    reason_model: str = '',
    max_new_tokens: int = 64,
    timeout_s: float = 120.0,
    workers: int = 8,
) -> tuple[list[records.Example], dict[str, int]]:
  """The engine of a `collect` stage.

  Args:
    examples: problems with gold answers.
    ctx: the run (for local models and the cache of replies).
    init: model that a 'local' responder answers with.
    captioner, reasoner: 'symbolic', 'endpoint' or 'local'.
    use_pseudo_cot: False skips step 1, so that the description is a mere
      caption (an ablation: facts get lost and the filter rejects more).
    keep_thought: False empties the chain (the card's 'SFT without CoT').
    overlong: symbolic reasoner: how much it doubts; 0 writes short chains.
    error_rate: symbolic reasoner: chance of a wrong last step.
    url, caption_model, reason_model, timeout_s, workers: of the endpoint.
    max_new_tokens: of endpoint and local model.

  Returns:
    Examples with one completion each, and counts of every outcome.
  """
  def respond(kind, model, symbolic):
    if kind == 'symbolic':
      return symbolic
    return responders.make(
        kind, ctx, init=init, url=url, model=model,
        max_new_tokens=max_new_tokens, timeout_s=timeout_s, workers=workers)
  see = respond(captioner, caption_model, SymbolicCaptioner())
  think = respond(reasoner, reason_model, SymbolicReasoner(
      seed=ctx.config.seed, overlong=overlong, error_rate=error_rate))
  thoughts = [''] * len(examples)
  if use_pseudo_cot:
    thoughts = see([responders.Request(
        e, PSEUDO_COT.format(question=plain(e), answer=e.answer), e.images)
        for e in examples])
  described = see([responders.Request(
      e, DESCRIBE.format(question=plain(e), thought=thought or ''), e.images)
      for e, thought in zip(examples, thoughts)])
  replies = think([responders.Request(
      e, f'{description or ""}\n\n{REASON}\n{plain(e)}')
      for e, description in zip(examples, described)])
  return keep(examples, replies, keep_thought=keep_thought)


def plain(example: records.Example) -> str:
  """The question without media placeholders."""
  return re.sub(r'<(?:image|video)>', '', example.question).strip()


def keep(
    examples: Sequence[records.Example],
    replies: Sequence[str | None],
    *,
    keep_thought: bool = True,
) -> tuple[list[records.Example], dict[str, int]]:
  """Step 4 and 5: filter, rewrite, pair with the image again.

  Returns:
    Kept examples with their completion, and counts: 'examples', 'no_reply',
    'unparsed', 'wrong_answer', 'inconsistent', and 'words/<word>' over the
    kept chains (the paper's table of reflective words).
  """
  counts = dict.fromkeys(
      ('examples', 'no_reply', 'unparsed', 'wrong_answer', 'inconsistent',
       *(f'words/{w.lower()}' for w in REFLECTIVE)), 0)
  kept = []
  for example, reply in zip(examples, replies):
    counts['examples'] += 1
    reason, thought, final = judge(example, reply)
    if reason:
      counts[reason] += 1
      continue
    thought = replaced(thought)
    for word in REFLECTIVE:
      counts[f'words/{word.lower()}'] += len(
          re.findall(rf'\b{word}\b', thought, re.IGNORECASE))
    body = thought if keep_thought else 'See the image.'
    kept.append(_with_completion(
        example, f'<think>{body}</think>'
        f'<answer> Final Answer:{final} </answer>'))
  return kept, counts


def judge(
    example: records.Example, reply: str | None,
) -> tuple[str, str, str]:
  """(why it is dropped or '', chain, answer) of one reasoner reply."""
  if not reply:
    return 'no_reply', '', ''
  thought, found, final = reply.rpartition('Answer:')
  thought, final = thought.strip(), final.strip()
  thought = thought.removesuffix('Final').strip()
  if not found or not thought or not final:
    return 'unparsed', '', ''
  try:
    right = answer_lib.match(final, example)
  except (pool.TimedOut, pool.WorkerDied):
    right = False
  if not right:
    return 'wrong_answer', '', ''
  if not consistent(thought, final):
    return 'inconsistent', '', ''
  return '', thought, final


def consistent(thought: str, final: str) -> bool:
  """Ours: the last equation of the chain gives the answer, where both exist.

  'x=3, 3+4=7' agrees with 7 and not with 8; a chain without equations or an
  answer that is no number says nothing.
  """
  results = _EQUATION.findall(thought)
  value = text.parse_number(final)
  if not results or value is None:
    return True
  return text.parse_number(results[-1]) == value


def replaced(thought: str) -> str:
  """The chain in words of somebody who sees the image."""
  for pattern, by in REPLACEMENTS:
    thought = re.sub(pattern, by, thought)
  return thought


def _with_completion(
    example: records.Example, completion: str) -> records.Example:
  return records.Example(**{
      **example.__dict__, 'meta': dict(example.meta),
      'completions': (completion,)})


# Stand-ins for the procedural worlds: they read the symbolic scene.


class SymbolicCaptioner:
  """A captioner that loses facts unless a line of thought names them."""

  def __call__(
      self, requests: Sequence[responders.Request]) -> list[str | None]:
    return [self._one(request) for request in requests]

  def _one(self, request: responders.Request) -> str:
    meta = request.example.meta
    if request.prompt.startswith(PSEUDO_COT[:40]):
      return f'{meta["caption"]}. {"; ".join(meta["facts"])}. ' + traces.chain(
          meta['facts'], meta['steps'])
    named = [fact for fact in meta['facts'] if fact in request.prompt]
    return '. '.join([meta['caption'], *named])


class SymbolicReasoner:
  """A solver that sees only the description, and doubts itself at length.

  The number of doubts grows with the steps of the problem, so that chains of
  hard problems run over any short cap: what the cold start learns from them
  is to over-think.
  """

  def __init__(self, *, seed: int, overlong: float, error_rate: float):
    self._seed = seed
    self._overlong = overlong
    self._error_rate = error_rate

  def __call__(
      self, requests: Sequence[responders.Request]) -> list[str | None]:
    return [self._one(request) for request in requests]

  def rounds(self, difficulty: int, rng: np.random.Generator) -> int:
    """Doubts in one chain: geometric, likelier on hard problems."""
    again = min(0.95, self._overlong * (0.4 + 0.3 * difficulty))
    count = 0
    while count < 6 and rng.random() < again:
      count += 1
    return count

  def _one(self, request: responders.Request) -> str:
    example = request.example
    meta = example.meta
    rng = np.random.default_rng([self._seed, 401, example.uid])
    description = request.prompt.partition(REASON)[0]
    seen = [fact for fact in meta['facts'] if fact in description]
    if len(seen) < len(meta['facts']):
      guess = int(rng.integers(0, 20))
      return f'The description says {"; ".join(seen) or "little"}. Answer: {guess}'
    steps = list(meta['steps'])
    final = str(example.answer)
    if rng.random() < self._error_rate:
      steps[-1] = traces.slip(steps[-1], rng)
      final = steps[-1].rpartition('=')[2]
    thought = traces.verbose(
        meta['facts'], steps, rng,
        rounds=self.rounds(meta['difficulty'], rng), slip_rate=0.2)
    thought = thought.replace('I see', 'The description says', 1)
    return f'{thought} Answer: {final}'


