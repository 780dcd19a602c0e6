r"""ReVisual-R1: Advancing Multimodal Reasoning: from Cold Start to Staged RL.

arXiv 2506.04207. https://github.com/CSfufu/Revisual-R1

What is new: three stages, a cold start on text alone, RL on pictures, RL on text
with the vision tower frozen. In the second, Prioritized Advantage Distillation:
responses whose advantage is too small or too large are dropped, the others are
drawn anew, by the size of their advantage; and a reward for short answers.

  python -m mmr1.main --config=configs/revisual_r1.py
  python -m mmr1.main --config=configs/revisual_r1.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.data.path=/data/grammar_multimodal.parquet \
      --config.cold_start.data=/data/grammar_text_traces.parquet \
      --config.trl.data=/data/grammar_text.parquet

Arguments, joined by commas: a scale of `common.MODELS`; `paper`: PAD as printed
(bounds included, softmax of |A| at a temperature that falls from 1 to .3) in
place of the code's; `grpo`: no PAD; the orders of the paper's ablation: `cs`
(cold start alone), `cs_mrl`, `cs_trl`, `cs_trl_mrl`.

Ablations:
  --config.mrl.select.kwargs.power=0.0      drawn anew with equal probability
  --config.mrl.select.kwargs.low=0.0 --config.mrl.select.kwargs.high=9.0
                                            nothing is dropped but A = 0
  --config.rewards.length.weight=0.0        without the reward on length
  --config.trl.kl.coefficient=0.0
  --config.hooks.entropy.kwargs.start=0.0   without the bonus on entropy
Marked [ours]: the paper gives no value. In the tiny run everything but the
objective is ours.
"""

from configs import common

ORDERS = {'cs': (), 'cs_mrl': ('mrl',), 'cs_trl': ('trl',),
          'cs_trl_mrl': ('trl', 'mrl')}
OPTIONS = ('paper', 'grpo', *ORDERS)
WEIGHT = 0.05  # w of the code


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'revisual_r1')
  if len(options & {*ORDERS}) > 1 or {'paper', 'grpo'} <= options:
    raise ValueError(
        f'revisual_r1:{arg}: take one of {tuple(ORDERS)}, and one of paper and '
        'grpo.')
  c = common.get_base(scale)
  c.name = 'revisual_r1'
  paper = 'mmr1.papers.revisual_r1:'
  # Totals with w: multimodal (1 - 4w) result, text (1 - 3w) and 2w repetition.
  for name, fn, weight in (
      ('result', 'answer.correct', 1 - 4 * WEIGHT),
      ('self_critic', f'{paper}self_critic', WEIGHT),
      ('image_revisit', f'{paper}image_revisit', WEIGHT),
      ('repetition', f'{paper}repetition', WEIGHT),
      ('text_result', 'answer.correct', 1 - 3 * WEIGHT),
      ('text_repetition', f'{paper}repetition', 2 * WEIGHT)):
    c.rewards[name] = common.reward(fn, weight)
  c.rewards.length = common.reward(
      f'{paper}efficient_length', WEIGHT, budget=8192, alpha=0.005, delta=0.5)
  c.rl.advantage.kwargs = dict(std='group', ddof=1, eps=1e-6)
  c.rl.policy.kwargs = dict(eps_low=0.2, eps_high=0.3, dual_clip=3.0)
  c.rl.kl.coefficient = 0.0
  c.rl.entropy.source = 'sampled'
  # 0 for 140 updates (the config of the code: 20), then .02 x .985 per update.
  c.hooks.entropy = dict(fn='exponential', kwargs=dict(
      knob='coef/entropy', start=0.02, factor=0.985**4, steps=1, begin=35,
      before=0.0))
  c.hooks.sharper = dict(fn='linear', kwargs=dict(
      knob='select/temperature', start=1.0, end=0.3,
      steps=common.placeholder(int)))
  (_tiny if c.scale == 'tiny' else _real)(c, _pad(options))
  for order in options & {*ORDERS}:
    first = c.stages[:c.stages.index('cold_start') + 1]
    c.stages = (*first, *ORDERS[order])
  return c


def _pad(options) -> dict:
  """What of an rl section the second stage changes."""
  if 'grpo' in options:
    return {}
  paper = 'paper' in options
  return dict(
      hooks=('sharper',) if paper else (),
      select=dict(fn='mmr1.papers.revisual_r1:distil', kwargs=dict(
          # The code's share; the paper's rho is not known [ours].
          form='paper' if paper else 'code', share=1.5, low=0.03, high=0.97,
          power=1.5, temperature=1.0)))


MRL = ('result', 'self_critic', 'image_revisit', 'repetition', 'length')
TRL = ('text_result', 'text_repetition', 'self_critic')


def _tiny(c, pad):
  """Sums of digits, as text and as pictures; all numbers [ours]."""
  common.small_digits(c)
  c.rewards.length.kwargs = dict(budget=56, alpha=0.05, delta=0.5)
  c.hooks.entropy.kwargs.update(factor=0.9, begin=2)
  c.text = common.overlay(
      c.collect, engine='mmr1.data.traces:told', size=512)
  c.cold_start = common.overlay(
      c.sft, data='text', steps=12, max_new_tokens=64,
      optimizer=dict(lr=1e-4, warmup_steps=3, lr_decay='cosine'))
  c.mrl = common.overlay(c.rl, steps=12, rewards=MRL, **pad)
  c.trl = common.overlay(
      c.rl, steps=8, rewards=TRL, data='text', hooks=('entropy',),
      kl=dict(coefficient=2e-3), optimizer=dict(freeze=('visual/.*',)))
  c.stages = ('text', 'cold_start', 'mrl', 'trl')


def _real(c, pad):
  """The paper's scale: 40K texts, 26K pictures, 30K texts."""
  common.boxed(c)
  for name in ('result', 'text_result'):  # the code reads more than boxes
    c.rewards[name].kwargs = dict(strict=False)
  c.data.prompt_tokens = 8192
  c.cold_start = common.overlay(
      c.sft, steps=5 * 40_000 // 32, rows_per_step=32,  # [ours]
      max_new_tokens=24_576,
      optimizer=dict(lr=2e-5, warmup_steps=312, lr_decay='cosine'))
  c.rl.optimizer.lr, c.rl.optimizer.weight_decay = 1e-6, 1e-2
  c.rl.top_p = 0.95
  c.rl.prompts_per_step = 512
  c.rl.minibatches_per_step = 4  # of 128 prompts
  c.rl.old = 'recompute'
  shape = dict(samples_per_prompt=8, max_new_tokens=8192,
               chunks_per_minibatch=8, length_buckets=(1024, 2048, 4096))
  c.evaluation.max_new_tokens = 8192  # as in training [ours]
  c.mrl = common.overlay(c.rl, steps=50, rewards=MRL, **shape, **pad)
  c.trl = common.overlay(
      c.rl, steps=58, rewards=TRL, hooks=('entropy',),
      kl=dict(coefficient=2e-3), optimizer=dict(freeze=('visual/.*',)), **shape)
  c.stages = ('cold_start', 'mrl', 'trl')
