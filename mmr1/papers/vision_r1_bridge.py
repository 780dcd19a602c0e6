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

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any

from mmr1 import records
from mmr1 import text
from mmr1.data import symbolic
from mmr1.rewards import answer as answer_lib
from mmr1.sampling import responders

# What the text reasoner is told [paper, figure]; the other prompts are ours.
REASON = ('Following the above image description, think step by step and '
          'answer the following question directly.')
PSEUDO_COT = (
    'Describe the image in one sentence, then reason step by step to the '
    'answer.\nQuestion: {question}\nCorrect answer: {answer}')
_PROCESS = 'Thinking process: '
DESCRIBE = (
    'Question about the image: {question}\n' + _PROCESS + '{thought}\n'
    'Write a description of the image that holds every detail needed to '
    'answer the question correctly. Do not answer it.')
# Ours: the chain must read as written by somebody who sees the image.
_SOME = (r'(?:the|this|that|your|our)\s+(?:(?:given|provided|above|image|visual'
         r"|user's)\s+)*description(?:\s+(?:provided|given|above)\b)?")
REPLACEMENTS = (
    (rf'\b{_SOME} (?:says|states|mentions|gives|notes|tells (?:us|me))\b:?',
     'I see'),
    (rf'\b(?:according to|based on|from|in|per) {_SOME}', 'in the image'),
    (rf'\b{_SOME}', 'the image'),
    (r'\b(?:image )?descriptions?\b', 'image'),
    (r'\bas described\b', 'as shown'),
    (r'\b(is|are|was|were) described as\b', r'\1'),
)
REFLECTIVE = ('Wait', 'Hmm', 'Mistake', 'Alternatively', 'Check')
DROPPED = ('unusable', 'no_reply', 'unparsed', 'wrong_answer', 'inconsistent')
_NUMBER = r'(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?'
# '= 7' but not the 3 of '= 3 + 4', '= 3x' or '= 3/4'.
_EQUATION = re.compile(
    rf'=\s*\$?(-?{_NUMBER})(?!\s*[-+*/^=(\\\u00d7\u00f7\u00b7]|[\w]|\.\d)')
_PLAIN = re.compile(rf'-?{_NUMBER}')
_CHECKING = re.compile(r'\b(?:check|verif)', re.IGNORECASE)
# Where a reply without a think block announces its answer.
_MARK = re.compile(
    r'(?:<answer>\s*)?(?<!\*)\**\b(?:final\s+)?answer\b\**\s*:\**\s*|<answer>',
    re.IGNORECASE)


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
    max_new_tokens: int = 4096,
    timeout_s: float = 600.0,
    workers: int = 8,
) -> tuple[list[records.Example], dict[str, int]]:
  """The engine of a `collect` stage.

  Args:
    examples: problems with gold answers; text and images only.
    ctx: the run (for local models and the cache of replies).
    init: model that a 'local' responder answers with.
    captioner, reasoner: 'symbolic', 'endpoint' or 'local'.
    use_pseudo_cot: False skips step 1, so that the description is a mere
      caption (an ablation: facts get lost and the filter rejects more).
    keep_thought: False empties the chain (the card's 'SFT without CoT').
    overlong: symbolic reasoner: how much it doubts; 0 writes short chains.
    error_rate: symbolic reasoner: chance of a wrong last step.
    url, caption_model, reason_model, timeout_s, workers: of the endpoint.
    max_new_tokens: of one reply of an endpoint or local model.

  Returns:
    Examples with one completion each, and counts as in `keep`. Without a
    reply in any of the three steps an example goes no further.

  Raises:
    ValueError: an unknown responder, or an example that cannot be used.
  """
  def respond(kind, model):
    return responders.make(
        kind, ctx, init=init, url=url, model=model,
        max_new_tokens=max_new_tokens, timeout_s=timeout_s, workers=workers)
  _check({'captioner': captioner, 'reasoner': reasoner}, examples)
  if captioner == 'symbolic':
    recall, describe = _recall, _describe
  else:
    recall = describe = respond(captioner, caption_model)
  if reasoner == 'symbolic':
    reason = functools.partial(_solve, solver=symbolic.Solver(
        seed=ctx.config.seed, overlong=overlong, error_rate=error_rate))
  else:
    reason = respond(reasoner, reason_model)
  thoughts: list[str | None] = [''] * len(examples)
  if use_pseudo_cot:
    thoughts = recall([responders.Request(
        e, PSEUDO_COT.format(question=plain(e), answer=e.answer), e.images)
        for e in examples])
  described = _ask(describe, thoughts, [responders.Request(
      e, DESCRIBE.format(question=plain(e), thought=thought), e.images)
      for e, thought in zip(examples, thoughts)])
  replies = _ask(reason, described, [responders.Request(
      e, f'{description}\n\n{REASON}\n{plain(e)}')
      for e, description in zip(examples, described)])
  return keep(examples, replies, keep_thought=keep_thought)


def _check(
    kinds: Mapping[str, str], examples: Sequence[records.Example]) -> None:
  """Refuses what would fail, or be lost, after much work."""
  allowed = ('symbolic', *responders.KINDS)
  for name, kind in kinds.items():
    if kind not in allowed:
      raise ValueError(
          f'bridge: {name}={kind!r}; allowed are {", ".join(allowed)}.')
  for example in examples:
    where = f'bridge: {example.source or "example"} (uid {example.uid})'
    if example.answer is None or example.videos:
      raise ValueError(
          f'{where} has {"videos" if example.videos else "no gold answer"}; '
          'needed are images or text, and an answer to filter by.')
    if 'symbolic' in kinds.values() and not (
        {'facts', 'steps'} <= set(example.meta)):
      raise ValueError(
          f"{where} has no facts and steps in its meta: 'symbolic' is for the "
          "procedural worlds. For other data set captioner and reasoner (in "
          "the kwargs of the collect stage) to 'endpoint', with a url, or to "
          "'local'; or train without a cold start, as configs/forkme.py.")


def _ask(
    responder: responders.Responder,
    before: Sequence[str | None],
    requests: Sequence[responders.Request],
) -> list[str | None]:
  """Replies; None, and not asked, where the step before has none."""
  replies = iter(responder(
      [r for r, reply in zip(requests, before) if reply is not None]))
  return [None if reply is None else next(replies) for reply in before]


def plain(example: records.Example) -> str:
  """The question, or the user's turns, without media placeholders."""
  return re.sub(r'<(?:image|video)>', '', example.asked).strip()


def keep(
    examples: Sequence[records.Example],
    replies: Sequence[str | None],
    *,
    keep_thought: bool = True,
) -> tuple[list[records.Example], dict[str, int]]:
  """Step 4 and 5: filter, rewrite, pair with the image again.

  Every kept completion earns 1.0 under the hard reward of the paper's RL
  (M12): one think and one answer block, no tag inside, the answer matches.

  Returns:
    Kept examples with their completion, and counts: 'examples' = kept +
    'unusable' (no answer could match the gold one) + 'no_reply' + 'unparsed' +
    'wrong_answer' + 'inconsistent', and 'words/<word>' over the kept chains
    (the paper's table of reflective words).
  """
  counts = dict.fromkeys(
      ('examples', *DROPPED, *(f'words/{w.lower()}' for w in REFLECTIVE)), 0)
  kept = []
  for example, reply in zip(examples, replies, strict=True):
    counts['examples'] += 1
    dropped, thought, final = judge(example, reply)
    thought = replaced(thought) if keep_thought else 'See the image.'
    completion = (f'<think>{thought}</think>'
                  f'<answer> Final Answer:{final} </answer>')
    parsed = text.parse_think_answer(completion)
    if not dropped and not (parsed.ok and answer_lib.right(
        parsed.answer, example)):
      dropped = 'unparsed'
    if dropped:
      counts[dropped] += 1
      continue
    for word in REFLECTIVE:
      counts[f'words/{word.lower()}'] += len(
          re.findall(rf'\b{word}\b', thought, re.IGNORECASE))
    kept.append(dataclasses.replace(example, completions=(completion,)))
  return kept, counts


def judge(
    example: records.Example, reply: str | None,
) -> tuple[str, str, str]:
  """(one of `DROPPED` or '', chain, answer) of one reasoner's reply."""
  if answer_lib.unusable(example):
    return 'unusable', '', ''
  if reply is None or not reply.strip():
    return 'no_reply', '', ''
  thought, final = split(reply)
  if not thought or not final or thought == final:
    return 'unparsed', '', ''
  if not answer_lib.right(final, example):
    return 'wrong_answer', '', ''
  if not consistent(thought, final):
    return 'inconsistent', '', ''
  return '', thought, final


def split(reply: str) -> tuple[str, str]:
  r"""Chain and answer of a reply, '' for what is not found.

  Read are `<think>chain</think> text`, also without its first tag (servers
  that prefill it), and plain 'chain Answer: 7'. The answer is what
  `text.extract_answer` finds, such as the last `\boxed{}`. Without a think
  block the chain ends where the last line announces the answer.
  """
  final = text.extract_answer(reply, strict=False) or ''
  final = text.unwrap(' '.join(final.split()))
  before, closed, _ = reply.rpartition('</think>')
  if closed:
    return before.strip().removeprefix('<think>').strip(), final
  marks = list(_MARK.finditer(reply))
  if marks and '\n' not in reply[marks[-1].end():].strip():
    reply = reply[:marks[-1].start()]
  return reply.strip(), final


def consistent(thought: str, final: str) -> bool:
  """Ours: the last equation of the chain gives the answer, where both exist.

  'x=3,3+4=7' agrees with 7 and not with 8. What follows the last 'check' or
  'verify' may end elsewhere: '3+4=7. Check: 7-4=3' agrees with 7. A chain
  without equations or an answer that is no plain number says nothing.
  """
  thought, final = text.fold(thought), text.fold(final)
  checks = [found.start() for found in _CHECKING.finditer(thought)]
  results = [_EQUATION.findall(part)[-1:]
             for part in (thought, thought[:checks[-1]] if checks else '')]
  if not any(results) or not _PLAIN.fullmatch(final):
    return True
  return any(text.parse_number(r) == text.parse_number(final)
             for part in results for r in part)


def replaced(thought: str) -> str:
  """The chain in words of somebody who sees the image."""
  for pattern, by in REPLACEMENTS:
    def capitalised(found, by=by):
      new = found.expand(by)
      return new[0].upper() + new[1:] if found[0][0].isupper() else new
    thought = re.sub(pattern, capitalised, thought, flags=re.IGNORECASE)
  return thought


def _recall(requests: Sequence[responders.Request]) -> list[str]:
  return [symbolic.thought(request.example) for request in requests]


def _describe(requests: Sequence[responders.Request]) -> list[str]:
  return [symbolic.description(r.example, r.prompt.partition(_PROCESS)[2])
          for r in requests]


def _solve(
    requests: Sequence[responders.Request], solver: symbolic.Solver,
) -> list[str]:
  return [solver.reply(r.example, r.prompt.partition(REASON)[0])
          for r in requests]
