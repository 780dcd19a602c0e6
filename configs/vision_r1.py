"""Vision-R1: Incentivizing Reasoning Capability in Multimodal LLMs.

Huang et al., arXiv 2503.06749 (ICLR 2026). https://github.com/Osilly/Vision-R1

What is new: a cold start whose chains of thought a text reasoner wrote from
descriptions of the images (modality bridging); then GRPO under a hard reward,
1 if format AND answer are right and 0 otherwise, with progressive thinking
suppression (PTST): first a short cap with a large group, then a longer cap
with a smaller one, length x group constant.

  python -m mmr1.main --config=configs/vision_r1.py
  python -m mmr1.main --config=configs/vision_r1.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.data.path=/data/rl.parquet

Arguments, joined by commas: a scale of `common.MODELS`, and one of the paper's
ablations: `zero` (no cold start, soft reward, an instruction in the prompt),
`long` (cold start, then one stage with the long cap and a group of 4), `ci`
(cold start only).

Marked [ours]: the paper gives no value. RL hyper-parameters it does not print
are those of EasyR1's file of the week it was written.
"""

from configs import common

ABLATIONS = ('zero', 'long', 'ci')


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, ablations = common.split(arg, ABLATIONS, 'vision_r1')
  if len(ablations) > 1:
    raise ValueError(f'vision_r1:{arg}: give at most one scale and one ablation '
                     f'of {ABLATIONS}.')
  c = common.get_base(scale)
  c.name = 'vision_r1'
  c.rewards.hard = dict(
      fn='mmr1.papers.vision_r1:hard_format_result', weight=1.0,
      in_pool=False, limit_s=5.0, kwargs=dict())
  c.rl.rewards = ('hard',)
  c.rl.advantage.kwargs = dict(std='group', ddof=1, eps=1e-6)
  c.rl.policy.kwargs = dict(eps_low=0.2, eps_high=0.2)
  c.rl.policy.reduce = 'token_mean'
  c.rl.kl.coefficient = 1e-2
  c.rl.kl.estimator = 'k3'
  c.rl.entropy.coefficient = 1e-3  # [EasyR1 of that week]
  (_tiny if c.scale == 'tiny' else _real)(c)
  for ablation in ablations:
    _ablate(c, ablation)
  return c


def _tiny(c):
  """The embedded model on the procedural worlds; all numbers [ours]."""
  c.stages = ('bridge', 'cold_start', 'think_short', 'think_long')
  c.data.mixture = ('digits', 'geometry')
  c.data.weights = (0.4, 0.6)
  c.bridge = common.overlay(c.collect, engine='vision_r1_bridge.bridge',
                            size=1536, kwargs=dict(overlong=0.67))
  c.cold_start = common.overlay(
      c.sft, data='bridge', steps=32, rows_per_step=32, max_new_tokens=144,
      optimizer=dict(lr=3e-4, warmup_steps=5, lr_decay='cosine'))
  c.rl.optimizer.lr = 1e-4
  c.rl.prompts_per_step = 12
  c.think_short = common.overlay(
      c.rl, steps=30, max_new_tokens=48, samples_per_prompt=16)
  c.think_long = common.overlay(
      c.rl, steps=8, max_new_tokens=96, samples_per_prompt=8,
      carry=('optimizer',))


def _real(c):
  """The paper's scale."""
  c.stages = ('cold_start', 'think_short', 'think_long')
  # LLaMA-Factory's defaults freeze tower and projector in SFT [inferred].
  c.sft.data = 'train'
  c.cold_start = common.overlay(
      c.sft, steps=12_500, rows_per_step=32, max_new_tokens=16_384,
      optimizer=dict(lr=5e-6, warmup_steps=625, lr_decay='cosine',
                     freeze=('visual/.*',)))
  c.rl.optimizer.lr = 1e-6  # [EasyR1]
  c.rl.optimizer.weight_decay = 1e-2  # [EasyR1]
  c.rl.prompts_per_step = 512  # [EasyR1]
  c.rl.minibatches_per_step = 4  # [EasyR1]
  c.rl.old = 'recompute'
  c.rl.checkpoint_every = 5
  c.think_short = common.overlay(
      c.rl, steps=100, max_new_tokens=4096, samples_per_prompt=16,
      chunks_per_minibatch=16, length_buckets=(1024, 2048))
  # Reference at the switch: unknown; EasyR1 resumed keeps the cold start.
  c.think_long = common.overlay(
      c.rl, steps=100, max_new_tokens=8192, samples_per_prompt=8,
      chunks_per_minibatch=8, length_buckets=(2048, 4096),
      carry=('optimizer',), reference='cold_start')
  c.evaluation.temperature = 0.6
  c.evaluation.top_p = 0.95
  c.evaluation.max_new_tokens = 16_000


def _ablate(c, name: str):
  """The paper's ablations, as a change of stages."""
  tiny = c.scale == 'tiny'
  if name == 'ci':
    c.stages = tuple(s for s in c.stages if not s.startswith('think'))
  elif name == 'long':
    c.stages = tuple(s for s in c.stages if s != 'think_short')
    c.think_long.max_new_tokens = 192 if tiny else 16_384
    c.think_long.samples_per_prompt = 4
    c.think_long.chunks_per_minibatch = 1 if tiny else 4
    c.think_long.steps = 60 if tiny else 300
    c.think_long.carry = ()
    c.think_long.reference = 'init'
  else:  # zero
    c.stages = ('think_short',)
    c.think_short.steps = 60 if tiny else 300
    c.data.instruction = common.TAGS  # the paper's, in our words
    c.rewards.soft = dict(
        fn='mmr1.papers.vision_r1:soft_format_result', weight=1.0,
        in_pool=False, limit_s=5.0, kwargs=dict())
    c.think_short.rewards = ('soft',)
