"""What the recorded rollouts of a run say about tokens: curves for papers.py.

Each function takes the path of one `rollouts/<stage>_<step>.npz` (written under
`rl.record_every`) and returns numbers for that step.
"""

import functools
import json
import pathlib

import numpy as np
import transformers

from mmr1 import types
from mmr1.losses import kl

MODEL = pathlib.Path(__file__).parents[1] / 'mmr1' / 'assets' / 'tiny'


@functools.cache
def _pieces() -> tuple[str, ...]:
  """The text of every token of the embedded model; its embedding has rows
  beyond the tokenizer's, which are sampled now and then."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
  rows = json.loads((MODEL / 'config.json').read_text())
  return tuple(tokenizer.decode([i])
               for i in range(rows['text_config']['vocab_size']))


def classes(tokens: np.ndarray) -> np.ndarray:
  """What each token i64[T] of a completion about digits is, str[T].

  'digits': one read from the picture, in the first sentence; 'numbers': one of
  the chain or the answer; 'words': all else.
  """
  seen, reading = [], True
  for token in tokens:
    piece = _pieces()[token]
    number = any(c.isdigit() for c in piece)
    seen.append(
        ('digits' if reading else 'numbers') if number else 'words')
    reading = reading and '.' not in piece
  return np.asarray(seen)


def share_kept(path: pathlib.Path, *, keep: float = 0.4) -> dict[str, float]:
  """Of each class the share among the ceil(keep n) tokens that depend most.

  `keep` of the tokens are kept over all, so that a share above it is more than
  chance. The dependency is VPPO's (mmr1/papers/vppo.py), computed here anew
  from the recorded log-probs.
  """
  kept, count = {}, {}
  with np.load(path) as record:
    tokens, kind = record['0/completions/tokens'], record['0/completions/kind']
    own = record['0/extra/sampler_logp']
    blind = record['0/extra/view/masked']
  value = np.asarray(kl.k3(own, blind))
  for n, g in np.ndindex(kind.shape[:2]):
    size = int((kind[n, g] == types.KIND_SAMPLED).sum())
    if not size:
      continue
    depends, what = value[n, g, :size], classes(tokens[n, g, :size])
    best = np.argsort(-depends, kind='stable')[:int(np.ceil(keep * size))]
    for name in ('digits', 'numbers', 'words'):
      count[name] = count.get(name, 0) + int((what == name).sum())
      kept[name] = kept.get(name, 0) + int((what[best] == name).sum())
  return {f'kept/{name}': kept[name] / max(count[name], 1) for name in count}


def branches(path: pathlib.Path) -> dict[str, float]:
  """Entropy of the raw and of the noisy branch, and the visual uncertainty of
  the noisy one, means over all of their tokens, trained on or not; nothing of
  a run without branches."""
  with np.load(path) as record:
    if '0/extra/pair/raw' not in record:
      return {}
    live = record['0/completions/kind'] == types.KIND_SAMPLED
    entropy, pair = (record[f'0/extra/{name}/raw']
                     for name in ('entropy', 'pair'))
  mean = lambda x, at: float(x[at::2][live[at::2]].mean())
  return {'entropy/raw': mean(entropy, 0), 'entropy/noisy': mean(entropy, 1),
          'uncertainty/noisy': mean(pair, 1)}


def sizes(path: pathlib.Path) -> dict[str, float]:
  """Of what trained in a step, replayed or not and as often as it did: the mean
  size of its advantage, and the share that has one."""
  size, count, some = 0.0, 0.0, 0.0
  with np.load(path) as record:
    for block in ('0', '1'):
      if f'{block}/mask' not in record:
        continue
      there = record[f'{block}/mask'].any(-1).astype(float)
      if f'{block}/times' in record:
        there = there * record[f'{block}/times'][..., 0]
      a = np.abs(record[f'{block}/advantage'][..., 0])
      size, count = size + (a * there).sum(), count + there.sum()
      some += ((a > 0) * there).sum()
  return {'train/size': size / max(count, 1),
          'train/effective': some / max(count, 1)}


def own(path: pathlib.Path) -> dict[str, float]:
  """Share of the right ones among the policy's own samples, without traces."""
  with np.load(path) as record:
    sampled = (record['0/completions/kind'] == types.KIND_SAMPLED).any(-1)
    return {'own/solved': float(record['rewards/result'][sampled].mean())}


def by_difficulty(path: pathlib.Path) -> dict[str, float]:
  """Mean length of responses to easy problems (two thirds of the group right at
  least) and to hard ones (less than a third); none of such, no number."""
  with np.load(path) as record:
    lengths = (record['0/completions/kind'] == types.KIND_SAMPLED).sum(-1)
    right = record['rewards/result'].mean(1)
  found = {'easy': right >= 2 / 3 - 1e-9, 'hard': right < 1 / 3 - 1e-9}
  return {f'length/{name}': float(lengths[at].mean())
          for name, at in found.items() if at.any()}
