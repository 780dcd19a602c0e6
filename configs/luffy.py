r"""LUFFY: Learning to Reason under Off-Policy Guidance.

Yan et al., arXiv 2504.14945 (NeurIPS 2025). https://github.com/ElliottYan/LUFFY

What is new: one of the 8 responses of a group is a demonstration from the data.
It is scored like the others, is in the group's mean, and learns by a shaped
weight f(p) = p / (p + .1) in place of a ratio, so that tokens which the policy
finds unlikely learn most. Nothing is clipped.

  python -m mmr1.main --config=configs/luffy.py
  python -m mmr1.main --config=configs/luffy.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.data.path=/data/openr1.parquet

`data.path` has a column of traces (`data.completion_column`). Arguments: a scale
of `common.MODELS`, and `split` (the mean of a group is that of its own samples)
or `multitask` (the baseline: GRPO, and an SFT loss on the demonstrations, which
are in no group's mean), joined by commas.

Ablations:
  --config.terms.shaped.kwargs.shape=False     weight p
  --config.terms.shaped.kwargs.gamma=0.01
  --config.rl.experts=0 --config.rl.terms="()" plain Dr. GRPO, without a clip
  --config.rl.policy.surrogate=clip            with the clip

The paper evaluates at temperature .6, AIME and AMC by the mean of 32 answers
(evaluation.samples_per_problem=32); here one answer is sampled.

Marked [ours]: the paper gives no value. In the tiny run everything but the
objective is ours.
"""

from configs import common

OPTIONS = ('split', 'multitask')


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'luffy')
  c = common.get_base(scale)
  c.name = 'luffy'
  c.terms.shaped = common.term(
      'mmr1.papers.luffy:shaped', 1.0, gamma=0.1, shape=True)
  # sft_loss_coef of the repository's mix_ppo_trainer.yaml.
  c.terms.imitation = common.term('mmr1.papers.luffy:imitation', 1.0)
  c.rl.experts = 1
  c.rl.terms = ('imitation',) if 'multitask' in options else ('shaped',)
  c.rl.advantage.fn, c.rl.advantage.kwargs = 'dr_grpo', {}
  if options:
    c.rl.advantage.fn = 'mmr1.papers.luffy:split_mean'
  c.rl.policy.surrogate, c.rl.policy.kwargs = 'linear', {}
  # The code: sum / T of a micro-batch, then the mean over micro-batches: a mean
  # over rows of sum / T, times the rows of one of them.
  c.rl.policy.reduce, c.rl.policy.rows = 'constant', 'all'
  c.rl.entropy.coefficient, c.rl.entropy.reduce = 1e-3, 'token_mean'
  c.rl.kl.coefficient = 0.0
  (_tiny if c.scale == 'tiny' else _real)(c)
  return c


def _tiny(c):
  """Answers that the embedded model does not give: told to say what it sees it
  names the digits and stops, so that its own samples earn nothing. Traces by
  the worlds' solver reason and answer in tags; all numbers [ours]."""
  common.small_digits(c)
  c.data.instruction = 'Only say what you see.'
  c.rewards.hard = common.reward('mmr1.papers.vision_r1:hard_format_result')
  c.rl.rewards = ('hard',)
  c.rl.optimizer.lr = 2e-4
  c.evaluation.parser = 'strict'
  c.traces = common.overlay(
      c.collect, engine='mmr1.data.traces:solved', size=768)
  c.luffy = common.overlay(c.rl, data='traces', steps=20)
  c.stages = ('traces', 'luffy')


def _real(c):
  """The paper's scale: 45K prompts with traces, about 500 steps."""
  common.boxed(c)
  # math-verify, the code's, reads more than boxes.
  c.rewards.result.kwargs = dict(strict=False)
  c.data.prompt_tokens = 1024
  c.data.patches = 2560
  c.data.max_pixels = 401_408  # the paper's problems have no pictures [ours]
  c.rl.rewards = ('result',)
  c.rl.optimizer.lr = 1e-6
  c.rl.optimizer.weight_decay = 1e-2  # the default of mix_fsdp_worker.py
  c.rl.prompts_per_step = 128
  c.rl.minibatches_per_step = 2
  c.rl.old = 'recompute'
  c.rl.policy.length = 8192 / 64  # micro-batches of 64 rows, as in train.sh
  c.evaluation.temperature, c.evaluation.max_new_tokens = 0.6, 8192
  c.luffy = common.overlay(
      c.rl, steps=500, samples_per_prompt=8, max_new_tokens=8192,
      chunks_per_minibatch=8, length_buckets=(1024, 2048, 4096))
  c.stages = ('luffy',)
