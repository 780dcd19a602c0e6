r"""SophiaVL-R1: Reinforcing MLLMs Reasoning with Thinking Reward.

arXiv 2505.17018. https://github.com/kxfan2002/SophiaVL-R1

What is new: a model that was taught to score reasoning judges every response;
its score is added to the outcome, as far as the right and wrong responses of a
group say that it can be trusted, and less with every step (Trust-GRPO).

  python -m mmr1.main --config=configs/sophiavl_r1.py
  python -m mmr1.main --config=configs/sophiavl_r1.py:qwen2_5_vl_3b,judge \
      --config.model.path=/models/Qwen2.5-VL-3B-Instruct \
      --config.data.path=/data/thinking_156k.jsonl
  python -m mmr1.export --workdir=runs/sophiavl_r1_qwen2_5_vl_3b,judge \
      --out=/models/judge
  python -m mmr1.main --config=configs/sophiavl_r1.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.judges.thinking.params=/models/judge \
      --config.data.path=/data/sophiavl_r1_130k.jsonl

The judge's data has columns `given`, a list of the response and
`judges.thinking.suffix`, and `completion`, its score, '0.7'.

Arguments, joined by commas: a scale of `common.MODELS`; `judge`: its training
alone; `released`: the code's form (responses with an outcome below .2 are not
judged, decay over 500 steps, learning rate 6e-7, 'A,A' is right for 'A,B'); in
place of the judge `longer`, a score that rises with the length and is not to be
trusted, or `rule`, what the small judge learns from.

Ablations:
  --config.rl.combine.kwargs.trusting=False             gamma is 1
  --config.rl.hooks=()                                  no annealing
  --config.rl.combine.kwargs.trusting=False --config.rl.hooks=()
  --config.judges.thinking.params=base --config.stages="('sophiavl_r1',)"
                                                        an untrained judge
  --config.rl.combine.kwargs.alpha=0.0                  plain GRPO
  --config.rewards.outcome.kwargs.transcript=negative   the paper's -WER for OCR
Marked [ours]: the paper gives no value. In the tiny run everything but the
objective is ours.
"""

import math

from configs import common

OPTIONS = ('judge', 'released', 'longer', 'rule')
SHORT = 'Score the steps.'  # for the embedded model
INSTRUCTION = ('Here is a problem and a response to it. Rate the reasoning of '
               'the response from 0 to 1.')  # [ours]
SUFFIX = '\nScore: '  # [ours]


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'sophiavl_r1')
  if len(options - {'released'}) > 1:
    raise ValueError(
        f'sophiavl_r1:{arg}: take one of judge, longer and rule.')
  c = common.get_base(scale)
  c.name = 'sophiavl_r1'
  released = 'released' in options
  c.rewards.outcome = common.reward(
      'mmr1.papers.sophiavl_r1:outcome',
      transcript='exp', choices='released' if released else 'set')
  c.rl.rewards = ('outcome',)
  least, steps = common.placeholder(float), common.placeholder(int)
  if released:
    least.set(0.2)
    steps.set(500)
  c.rl.combine.fn = 'mmr1.papers.sophiavl_r1:trust'
  c.rl.combine.kwargs = dict(
      alpha=0.3, decay=1.0, trusting=True, judge_min_outcome=least)
  c.hooks.decay = dict(fn='exponential', kwargs=dict(
      knob='combine/decay', start=1.0, factor=math.exp(-1), steps=steps))
  c.rl.hooks = ('decay',)
  c.rl.advantage.kwargs = dict(std='group', ddof=1, eps=1e-6)
  c.rl.policy.kwargs = dict(eps_low=0.2, eps_high=0.2)
  c.rl.kl.coefficient = 0.04
  c.rl.entropy.coefficient = 1e-3
  (_tiny if c.scale == 'tiny' else _real)(c, released)
  if 'judge' in options:
    c.stages = c.stages[:c.stages.index('judge') + 1] if (
        'judge' in c.stages) else ('judge',)
  elif options & {'longer', 'rule'}:
    c.rewards.thinking = (
        common.reward('length.rising', weight=0.0, full=c.rl.max_new_tokens)
        if 'longer' in options else
        common.reward('steps.true_steps', weight=0.0))
    c.rl.rewards, c.stages = ('outcome', 'thinking'), ('sophiavl_r1',)
  else:
    c.rl.judges = ('thinking',)
  return c


def _tiny(c, released):
  """Sums of digits; all numbers [ours].

  Wrong results are off by 40 to 80, which the small model learns to see in a
  minute. Off by 1 or 2 (`traces.kwargs.off=1`) takes many more steps.
  """
  del released
  common.small_digits(c)
  # Of products the right ones look like the wrong results of other sums.
  c.tasks.digits.forms = ('sum', 'minus_last', 'double_first')
  c.evaluation.examples = 96
  c.traces = common.overlay(
      c.collect, engine='sophiavl_r1_judge.graded', size=2304,
      kwargs=dict(suffix=SUFFIX, off=40, again=0.2, cut=0.05, most=700))
  c.judge = common.overlay(
      c.sft, data='traces', instruction=SHORT, steps=140, rows_per_step=16,
      max_new_tokens=80,
      optimizer=dict(lr=1e-3, b2=0.98, warmup_steps=10, lr_decay='cosine',
                     freeze=('visual/.*',)))
  c.judges.thinking = common.judge('judge', instruction=SHORT, suffix=SUFFIX)
  c.sophiavl_r1 = common.overlay(c.rl, init='base', steps=8)
  c.stages = ('traces', 'judge', 'sophiavl_r1')


def _real(c, released):
  """The paper's scale: 1,500 steps of 16 prompts."""
  c.data.instruction = common.TAGS  # [ours]
  c.data.prompt_tokens = 8192
  c.data.max_pixels, c.data.patches = 4_194_304, 21_504
  # 2 epochs of 156K; batch and learning rate [ours].
  c.judge = common.overlay(
      c.sft, instruction=INSTRUCTION, steps=4875, rows_per_step=64,
      max_new_tokens=1152,
      optimizer=dict(lr=1e-5, warmup_steps=100, lr_decay='cosine'))
  c.judges.thinking = common.judge(
      'checkpoints/sophiavl_r1_judge', instruction=INSTRUCTION, suffix=SUFFIX)
  c.rl.optimizer.lr = 6e-7 if released else 5e-7
  c.rl.optimizer.weight_decay = 1e-2
  c.rl.optimizer.clip_norm = 4.0
  c.rl.prompts_per_step, c.rl.samples_per_prompt = 16, 8
  c.rl.max_new_tokens = 1024
  c.evaluation.max_new_tokens = 1024  # as in training [ours]
  c.sophiavl_r1 = common.overlay(c.rl, steps=1500, chunks_per_minibatch=2)
  c.stages = ('sophiavl_r1',)
