r"""VOGUE: Guiding Exploration with Visual Uncertainty (later: DUPL).

arXiv 2510.01444 (v2 and v3 are called DUPL). https://github.com/ruiiu/DUPL

What is new: every prompt has a raw and a noisy branch. The symmetric KL of the
next-token distributions after both pictures is a visual uncertainty, added to
the noisy branch's advantage; the token's entropy is added to both. Each bonus
is capped by half of the advantage. The chance that a response of the noisy
branch is the one trained on falls from 1 to 0 over the run.

  python -m mmr1.main --config=configs/vogue.py
  python -m mmr1.main --config=configs/vogue.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.data.path=/data/mmrl30k.parquet

Arguments, joined by commas: a scale of `common.MODELS`; `code`: the released
code's reading, one group of raw pictures, the noisy branch a second pass over
the same responses, both uncertainties from the sampled token (the default is
Algorithm 1: two groups, the whole vocabulary).

Ablations (of Algorithm 1; `code` has the alphas, its chance at
rl.advantage.kwargs.noisy_frac, and at .sign, -1, its switch for late training):
  --config.rl.advantage.kwargs.alpha_visual=0.0    without visual uncertainty
  --config.rl.advantage.kwargs.alpha_entropy=0.0   without entropy
  --config.views.raw.divergence=reverse_kl         forward KL(raw || noisy)
  --config.views.noisy.kwargs.noise=0.2            the scripts' sigma
  --config.rl.select.kwargs.noisy_frac=0.5 --config.rl.hooks="()"
                                                   a fixed chance
  --config.rl.select.kwargs.draw=step              one draw per step
Plain GRPO: `code` with both alphas 0.

Marked [ours]: the paper gives no value. In the tiny run everything but the
objective is ours.
"""

from configs import common

OPTIONS = ('code',)


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'vogue')
  c = common.get_base(scale)
  c.name = 'vogue'
  code = 'code' in options
  # The paper: sigma .4; the code's scripts: .2. Flips and turns as in the code.
  c.views.noisy = common.view(
      'perturb', flip_h=0.5, flip_v=0.5, degrees=10.0, brightness=0.15,
      contrast=0.15, noise=0.2 if code else 0.4)
  bonus = dict(alpha_visual=1.0, beta_visual=2.0, alpha_entropy=0.4,
               beta_entropy=2.0, ddof=1, eps=1e-6)
  if code:
    c.rl.advantage.fn = 'mmr1.papers.vogue:uncertainty_of_samples'
    c.rl.advantage.kwargs = dict(
        view='noisy', noisy_frac=1.0, sign=1.0, **bonus)
    knob = 'advantage/noisy_frac'
  else:
    c.views.raw = common.view('same', divergence='symmetric_kl')
    c.rl.branches = ('raw', 'noisy')
    c.rl.advantage.fn = 'mmr1.papers.vogue:uncertainty'
    c.rl.advantage.kwargs = dict(view='raw', **bonus)
    c.rl.select.fn = 'mmr1.papers.vogue:branch'
    c.rl.select.kwargs = dict(noisy_frac=1.0, draw='response')
    knob = 'select/noisy_frac'
  c.rl.policy.kwargs = dict(eps_low=0.2, eps_high=0.3, dual_clip=3.0)
  c.rl.kl.coefficient = 0.0
  c.rewards.result.weight, c.rewards.format.weight = 0.9, 0.1
  c.rl.rewards = ('result', 'format')
  (_tiny if c.scale == 'tiny' else _real)(c)
  c.hooks.anneal = dict(fn='linear', kwargs=dict(
      knob=knob, start=1.0, end=0.0, steps=common.placeholder(int)))
  c.rl.hooks = ('anneal',)
  return c


def _tiny(c):
  """Digits; no flips or turns, which would change them; numbers [ours]."""
  common.small_digits(c)
  for key in ('flip_h', 'flip_v', 'degrees'):
    c.views.noisy.kwargs[key] = 0.0
  c.rl.prompts_per_step = 8  # of two branches
  c.vogue = common.overlay(c.rl, steps=20)
  c.stages = ('vogue',)


def _real(c):
  """The paper's scale: MMRL30k, 200 steps."""
  common.boxed(c)
  c.data.prompt_tokens = 2048
  c.data.min_pixels, c.data.max_pixels = 262_144, 4_194_304
  c.data.patches = 8192  # larger pictures would not fit 2,048 tokens
  c.rl.optimizer.lr, c.rl.optimizer.weight_decay = 1e-6, 1e-2
  c.rl.prompts_per_step = 256
  c.rl.minibatches_per_step = 2  # of 128 prompts
  c.rl.old = 'recompute'
  c.evaluation.max_new_tokens = 2048  # as in training [ours]
  c.vogue = common.overlay(
      c.rl, steps=200, samples_per_prompt=5, max_new_tokens=2048,
      chunks_per_minibatch=5, length_buckets=(512, 1024))
  c.stages = ('vogue',)
