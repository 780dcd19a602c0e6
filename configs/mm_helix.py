r"""MM-HELIX: Long-Chain Reflective Reasoning, and AHPO.

arXiv 2510.08540 (ICLR 2026). https://github.com/PhoenixZ810/MM-HELIX (puzzles
only; the training code is not released)

What is new: puzzles with verifiers, reflective traces elicited from their
solver's steps, and one stage in which a prompt that the policy solves fewer
than two times of five also learns from its trace.

  python -m mmr1.main --config=configs/mm_helix.py
  python -m mmr1.main --config=configs/mm_helix.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.data.path=/data/mm_helix_100k.parquet

`data.path` has columns of answers and of traces (`data.completion_column`),
empty where there is none, as of the paper's 15K prompts of MMK12: there the
objective is GRPO's. A column `puzzle` is what the verifier reads.

Arguments, joined by commas: a scale of `common.MODELS`; `shared`: one
normaliser for samples and traces (the paper's eq. 5, its Z [ours]).

Ablations:
  --config.rl.advantage.kwargs.threshold=0   GRPO alone
  --config.rl.advantage.kwargs.threshold=6   Static-AHPO: every trace, always
  --config.terms.guided.coefficient=0.5      [ours]
  --config.tasks.puzzles.kinds="('maze','sudoku')"

Marked [ours]: the paper gives no value; it gives neither learning rate nor
clip, lengths or steps. In the tiny run everything but the objective is ours.
"""

from configs import common


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, ('shared',), 'mm_helix')
  c = common.get_base(scale)
  c.name = 'mm_helix'
  c.terms.guided = common.term('mmr1.papers.mm_helix:guided', 1.0)
  c.terms.shared = common.term(
      'mmr1.papers.mm_helix:shared', 1.0, eps_low=0.2, eps_high=0.2)  # [ours]
  c.rl.terms = ('guided',)
  c.rl.experts = 1
  c.rl.advantage.fn = 'mmr1.papers.mm_helix:hybrid'
  c.rl.advantage.kwargs = dict(threshold=2, success=1.0, ddof=1, eps=1e-6)
  c.rl.policy.kwargs = dict(eps_low=0.2, eps_high=0.2)  # [ours]
  c.rl.policy.reduce = 'seq_mean'
  c.rl.kl.coefficient = 0.0
  # 1 solved, .1 only well written, 0: as in the paper's figure.
  c.rewards.result.weight, c.rewards.format.weight = 0.9, 0.1
  c.rl.rewards = ('result', 'format')
  c.rl.samples_per_prompt = 6  # five and the trace
  if 'shared' in options:
    c.rl.terms, c.rl.policy.coefficient = ('shared',), 0.0
  (_tiny if c.scale == 'tiny' else _real)(c)
  return c


def _tiny(c):
  """Containers, which the model has never seen: only traces show how. All
  numbers [ours]; of the other kinds `sliding` and `twenty_four` fit the shapes
  below, and take longer."""
  c.data.mixture, c.data.weights = ('puzzles',), (1.0,)
  c.data.instruction = common.TAGS
  c.tasks.puzzles.kinds = ('container',)
  c.tasks.puzzles.levels = (1, 1)
  c.data.prompt_tokens, c.data.patches = 144, 96
  c.evaluation.examples, c.evaluation.max_new_tokens = 128, 112
  c.rl.optimizer.lr = 4e-4
  c.rl.prompts_per_step, c.rl.max_new_tokens = 12, 112
  c.traces = common.overlay(
      c.collect, engine='mmr1.papers.mm_helix:elicited', size=512,
      kwargs=dict(rounds=0))
  c.mm_helix = common.overlay(c.rl, data='traces', steps=30)
  c.stages = ('traces', 'mm_helix')


def _real(c):
  """The paper's scale: 37K prompts, 128 a step."""
  c.data.instruction = common.TAGS  # [ours]
  c.data.prompt_tokens, c.rl.experts_required = 2048, False
  c.rl.optimizer.lr, c.rl.optimizer.weight_decay = 1e-6, 1e-2  # [ours]
  c.rl.prompts_per_step = 128
  # As the paper evaluates models that think.
  c.evaluation.temperature, c.evaluation.max_new_tokens = 0.6, 32_768
  c.mm_helix = common.overlay(  # steps, lengths [ours]
      c.rl, steps=290, max_new_tokens=8192, chunks_per_minibatch=6,
      length_buckets=(1024, 2048, 4096))
  c.stages = ('mm_helix',)
