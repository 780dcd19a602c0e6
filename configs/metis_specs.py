r"""Metis-SPECS: Self-distilled Preference-based Cold Start.

arXiv 2510.25801 (ICLR 2026). https://github.com/Kwen-Chen/SPECS-VL (weights and
a project page; no code)

What is new: the cold start is a preference and not an imitation. A short RL run
makes right answers in the right form; the same texts with broken tags are what
they are preferred to (DPO from the base, with the NLL of the chosen one); then
RL. The Generalisation Factor compares cold starts by what they gain under the
instruction they were trained on and under another one.

  python -m mmr1.main --config=configs/metis_specs.py
  python -m mmr1.main --config=configs/metis_specs.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.data.path=/data/orsta_virl.parquet

Arguments, joined by commas: a scale of `common.MODELS`; `sft` (a cold start
that imitates the chosen texts), `ipo` or `simpo` in place of DPO.

Ablations:
  --config.pairs.kwargs.coupled=True           wrong answers are rejected too
  --config.pairs.kwargs.rejects=base           rejected texts are the base's
  --config.pairs.init=base                     the base is its own teacher
  --config.cold_start.nll.coefficient=0.0      DPO alone
  --config.cold_start.reference=zero           not the paper: another reference
Another teacher is a folder that `pairs.init` names.

Marked [ours]: the paper gives no value. In the tiny run everything but the
objective and the order of stages is ours.
"""

from configs import common

OPTIONS = ('sft', 'ipo', 'simpo')
SHORT = 'Think first, then answer.'  # the small model seldom uses its tags
OTHER = 'Answer with a number only.'
INSTRUCTION = (
    'Put your reasoning between <think> and </think> and your answer between '
    '<answer> and </answer>, as in <think> ... </think><answer> The answer is '
    '\\boxed{...} </answer>.')  # [ours]


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'metis_specs')
  if len(options) > 1:
    raise ValueError(f'metis_specs:{arg}: take one of {OPTIONS}.')
  c = common.get_base(scale)
  c.name = 'metis_specs'
  c.rewards.format.weight, c.rewards.result.weight = 0.5, 1.0
  c.rl.rewards = ('format', 'result')
  c.rl.kl.coefficient = 0.0
  c.rl.policy.kwargs = dict(eps_low=0.2, eps_high=0.28)  # DAPO's
  # Beta is LLaMA-Factory's default, as is the mean over each chosen text.
  c.preference.loss.kwargs = dict(beta=0.1, length='sum')
  c.preference.nll.coefficient, c.preference.nll.reduce = 1.0, 'seq_mean'
  if options & {'ipo', 'simpo'}:
    (c.preference.loss.fn,) = options
    c.preference.loss.kwargs = (
        dict(beta=0.1) if 'ipo' in options else dict(beta=2.0, gamma=1.0))
  c.evaluation.also = ('other_form',)
  c.evaluation.summary.fn = 'metis_specs.factor'
  c.evaluation.summary.kwargs = dict(outside='other_form', beta=2.0)
  c.evaluations.other_form = dict(instruction=OTHER, parser='lenient')
  c.evaluation.parser = 'strict'
  (_tiny if c.scale == 'tiny' else _real)(c, 'sft' in options)
  c.stages = ('zero', 'pairs', 'cold_start', 'metis_specs')
  return c


def _tiny(c, imitate):
  """Sums of digits under an instruction that the small model hardly follows;
  all numbers [ours]."""
  common.small_digits(c)
  c.data.instruction = SHORT
  c.evaluation.examples = 96
  c.rl.optimizer.lr = 2e-4
  c.zero = common.overlay(c.rl, steps=12)
  c.pairs = common.overlay(
      c.collect, engine='metis_specs.pairs', init='zero', size=256,
      kwargs=dict(rollouts=4, max_new_tokens=48, screen='steps.true_steps',
                  rejects='chosen', coupled=False))
  shared = dict(
      init='base', data='pairs', steps=12, max_new_tokens=64,
      optimizer=dict(lr=1e-4, warmup_steps=2))
  c.cold_start = (common.overlay(c.sft, rows_per_step=16, **shared) if imitate
                  else common.overlay(
                      c.preference, pairs_per_step=16, **shared))
  c.metis_specs = common.overlay(c.rl, init='cold_start', steps=12)


def _real(c, imitate):
  """The paper's scale: 86K problems, about 9K pairs."""
  c.data.instruction = INSTRUCTION
  c.data.prompt_tokens = 4096
  c.evaluation.max_new_tokens = 10_240
  c.rl.optimizer.lr = 1e-6
  c.rl.prompts_per_step, c.rl.samples_per_prompt = 128, 8
  c.rl.max_new_tokens = 10_240
  c.rl.chunks_per_minibatch, c.rl.length_buckets = 8, (1024, 2048, 4096)
  c.zero = common.overlay(c.rl, steps=100)  # 'short' [ours]
  c.pairs = common.overlay(
      c.collect, engine='metis_specs.pairs', init='zero',
      size=16_384,  # problems, to solve some 9K of them [ours]
      kwargs=dict(rollouts=8,  # [ours]
                  max_new_tokens=10_240, screen='', rejects='chosen',
                  coupled=False))
  # Nothing screens the reasoning at this scale: the paper's screen is a model
  # that is not released; `pairs.kwargs.screen` takes a reward. 16,384 tokens
  # with the prompt; one epoch of 9K [ours].
  shared = dict(
      init='base', data='pairs', steps=140, max_new_tokens=12_288,
      length_buckets=(1024, 2048, 4096), eval_every=20,
      optimizer=dict(lr=1e-6))
  c.cold_start = (
      common.overlay(c.sft, rows_per_step=64, chunks_per_step=2, **shared)
      if imitate else common.overlay(
          c.preference, pairs_per_step=64, chunks_per_step=2, **shared))
  c.metis_specs = common.overlay(c.rl, init='cold_start', steps=670)  # [ours]
