"""Operations of a program, and of a model by formula.

A program's are counted in what jax traced, bodies of loops as often as they
run, whatever the compiler makes of it. Letters as in `mmr1.types`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import re
from typing import Any

from jax.extend import core as extend_core

from mmr1.planning import towers


_VISITS = re.compile(r'visits_(\d+)_blocks')


def operations(jaxpr: Any, trips: int = 1, visits: int | None = None) -> float:
  """Floating point operations of all matrix products, on all devices together.

  Args:
    jaxpr: open or closed.
    trips: of loops whose length is decided at run time.
    visits: blocks of scores that a kernel of attention does not skip, all
      heads together, where a scope around it says so ('visits_40_blocks').

  Of branches the dearest counts, but where the model says that it is taken in
  some of the turns only (a scope 'share_4_of_32').
  """
  total = 0.0
  for equation in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    name, params = equation.primitive.name, equation.params
    said = _VISITS.search(str(equation.source_info.name_stack))
    inner = dict(trips=trips, visits=int(said[1]) if said else visits)
    if name == 'dot_general':
      total += _product(equation)
    elif name == 'scan':
      total += params['length'] * operations(params['jaxpr'], **inner)
    elif name == 'while':
      total += trips * operations(params['body_jaxpr'], **inner)
    elif name == 'cond':
      total += of_branches(
          [operations(branch, **inner) for branch in params['branches']],
          str(equation.source_info.name_stack))
    elif name == 'pallas_call':
      total += _steps(params['grid_mapping'].grid, inner['visits']) * (
          operations(params['jaxpr'], trips))
    elif name == 'shard_map':
      total += params['mesh'].size * operations(params['jaxpr'], **inner)
    else:
      total += sum(operations(part, **inner)
                   for part in extend_core.jaxprs_in_params(params))
  return total


def _steps(grid: Sequence[Any], visits: int | None) -> int:
  """Steps of a kernel's grid. One of attention is over heads, blocks of queries
  and blocks of keys, in some order, below what it is mapped over."""
  grid = [n for n in grid if isinstance(n, int)]
  if visits is None:
    return math.prod(grid)
  return math.prod(grid[:-3]) * visits


_SHARE = re.compile(r'share_(\d+)_of_(\d+)')


def of_branches(each: Sequence[float], scope: str) -> float:
  """What branches come to, from what each does and the scope they are in."""
  share = _SHARE.search(scope)
  if not share:
    return max(each)
  dear = int(share[1]) / int(share[2])
  return dear * max(each) + (1 - dear) * min(each)


def _product(equation: Any) -> float:
  (contract, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(
      left[i] for i in contract)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
  """One pass over N prompts and their completions.

  Fields:
    prompts, group, length: N, G, T.
    prompt: P. patches: S.
    head: tokens that logits are made of.
  """
  prompts: int
  group: int
  length: int
  prompt: int
  patches: int
  head: int


def forward(config: Any, work: Work) -> dict[str, float]:
  """Operations of one forward pass, by part.

  Of the masked half of causal scores none count.

  Args:
    config: of the model; with a `vision`, see `towers`, or none.
    work: what it reads.
  """
  c, w = config, work
  attention = c.head_width * (c.heads + 2 * c.kv_heads + c.heads)
  layer = 2 * c.width * (attention + 3 * c.mlp_width)
  whole = getattr(c, 'whole_prompt', False)  # it is not read causally
  pairs = w.prompt**2 / (1 if whole else 2) + w.group * (
      w.length * w.prompt + w.length**2 / 2)
  scores = 4 * c.heads * c.head_width * c.depth * w.prompts * pairs
  found = {
      'prompt': c.depth * layer * w.prompts * w.prompt,
      'completions': c.depth * layer * w.prompts * w.group * w.length,
      'scores': scores,
      'head': 2.0 * c.width * c.vocab * w.head,
      'tower': 0.0}
  if w.patches and hasattr(config, 'vision'):
    found['tower'] = w.prompts * towers.operations(config, w.patches)
  return found


# Forward passes that a gradient is worth, and those of what layers compute
# again: with 'dots' the products with weights are kept.
_GRADIENT = 3.0
_AGAIN = {'none': {}, 'layer': dict.fromkeys(
    ('prompt', 'completions', 'scores', 'tower'), 1.0), 'dots': {'scores': 1.0}}


def gradient(parts: Mapping[str, float], remat: str) -> dict[str, float]:
  """Operations of a gradient from those of its forward pass, by part.

  The head is always computed again, see `forward.token_scores`.
  """
  again = {'head': 1.0, **_AGAIN[remat]}
  return {name: value * (_GRADIENT + again.get(name, 0.0))
          for name, value in parts.items()}
