r"""GRPO-CARE: Consistency-Aware Reinforcement Learning for Multimodal Reasoning.

arXiv 2506.16141 (ACL Findings 2026). https://github.com/TencentARC/GRPO-CARE

What is new: on top of accuracy a bonus for those right answers of a group whose
likelihood, given their own reasoning and under a slowly moving average of the
policy, is at least the mean of the right ones. There is no KL term.

  python -m mmr1.main --config=configs/grpo_care.py
  python -m mmr1.main --config=configs/grpo_care.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.data.path=/data/seed_bench_r1.jsonl

Arguments: a scale of `common.MODELS`, and `general`, joined by commas (margin
.01, the run on Video-R1-260k, 4,000 of its prompts).

Ablations:
  --config.rl.combine.kwargs.bonus=0.0      plain GRPO
  --config.views.slow.params=policy         the policy as its own judge
  --config.views.slow.params=reference      a judge that never moves
  --config.rl.ema.decay=0.9                 a faster one
  --config.rl.kl.coefficient=0.04           with the KL penalty; to the average:
                                            --config.rl.reference=ema

Marked [ours]: the paper gives no value. In the tiny run everything but the
objective is ours.
"""

from configs import common

OPTIONS = ('general',)


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'grpo_care')
  c = common.get_base(scale)
  c.name = 'grpo_care'
  c.rl.ema.decay, c.rl.ema.every = 0.995, 10
  c.views.slow = common.view('same', params='ema')
  c.probes.likelihood = common.probe(
      'likelihood.answer', 'slow', opening=True)
  c.rl.probes = ('likelihood',)
  c.rl.combine.fn = 'mmr1.papers.grpo_care:consistency'
  c.rl.combine.kwargs = dict(
      accuracy='result', likelihood='likelihood', bonus=0.5, cap=0.95,
      margin=0.01 if 'general' in options else 0.0, least=0.1)
  c.rl.rewards = ('result', 'format')
  c.rl.advantage.kwargs = dict(std='group', ddof=1, eps=1e-4)
  # One update per rollout, without a clip: every ratio is 1.
  c.rl.policy.surrogate, c.rl.policy.kwargs = 'linear', {}
  c.rl.policy.reduce, c.rl.policy.rows = 'seq_mean', 'all'
  c.rl.kl.coefficient = 0.0
  # Of the ablation: the log-ratio within 10, the value without a bound.
  c.rl.kl.kwargs = dict(
      difference_clamp=10.0, value_clamp=common.placeholder(float))
  (_tiny if c.scale == 'tiny' else _real)(c, options)
  return c


def _tiny(c, options):
  """Sums of digits; all numbers [ours].

  The cold start has both styles: chains that come to the answer, and some that
  come to another number. `consistent` counts the former. The world `motion`
  (four cells to choose from) is for models that see where a shape is.
  """
  del options
  common.small_digits(c)
  c.rewards.consistent = common.reward(
      'mmr1.papers.grpo_care:consistent', weight=0.0)
  c.rl.rewards = ('result', 'format', 'consistent')
  c.grpo_care = common.overlay(c.rl, steps=20)
  styles = common.cold_start(
      c, steps=16, size=512, engine='mmr1.papers.grpo_care:two_styles',
      careless=0.3)
  c.stages = (*styles, 'grpo_care')


def _real(c, options):
  """The paper's scale: one epoch of SEED-Bench-R1, 4 prompts a step."""
  c.data.instruction = common.TAGS  # [ours]
  c.data.prompt_tokens = 16_384
  c.data.max_pixels = 401_408
  c.data.patches = 53_248  # 13K cells of frames [ours]
  c.rl.optimizer.lr, c.rl.optimizer.weight_decay = 1e-6, 1e-2
  c.rl.optimizer.lr_decay, c.rl.optimizer.clip_norm = 'cosine', 5.0
  c.rl.top_p = 0.95
  # A prompt on each of 4 GPUs; here a batch that divides over more, for as many
  # prompts [ours]. The average then moves 18 times for 150. The paper's:
  # --config.rl.prompts_per_step=4 --config.grpo_care.steps=1500 (general: 1000).
  c.rl.prompts_per_step = 32
  c.evaluation.max_new_tokens = 768  # as in training [ours]
  c.grpo_care = common.overlay(
      c.rl, steps=125 if 'general' in options else 188,
      samples_per_prompt=8, max_new_tokens=768, chunks_per_minibatch=4)
  c.stages = ('grpo_care',)
