r"""BaseReward: A Strong Baseline for Multimodal Reward Model.

arXiv 2509.16127 (ICLR 2026).

What is new: nothing but Bradley-Terry on preferences, text-only ones among
them, over a head of two layers with SiLU; scores of several models are
averaged; in RL a response that a rule finds right earns 1, any other
sigma(score).

  python -m mmr1.main --config=configs/basereward.py
  python -m mmr1.main --config=configs/basereward.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.tasks.multimodal.path=/data/multimodal.parquet \
      --config.tasks.text.path=/data/text.parquet
  python -m mmr1.export --workdir=runs/basereward_qwen2_5_vl_7b \
      --out=/models/basereward/qwen2_5_vl_7b
  python -m mmr1.main --config=configs/basereward.py:qwen2_5_vl_3b,rl \
      --config.model.path=/models/Qwen2.5-VL-3B-Instruct \
      --config.judges.model.params="('/models/basereward/qwen2_5_vl_7b',)" \
      --config.data.path=/data/prompts.parquet

Files of pairs have columns problem, images, chosen and rejected; prompts without
an answer are judged by the model alone.

Arguments, joined by commas: a scale of `common.MODELS`; `rl`: the policy's
training, under reward models that are there already.

Ablations:
  --config.rl.combine.kwargs.form=rule              the rule alone
  --config.rl.combine.kwargs.form=model             the raw score alone
  --config.judges.model.params="('voter',)"         one model, not the mean
  --config.model.reward_head.layers=1               the head: 1, 3, 4, 5 layers
  --config.model.reward_head.activation=tanh        'tanh' or 'none' in between
  --config.terms.bradley_terry.kwargs.length_norm=True
  --config.reward_model.terms="('bradley_terry','zero')"
  --config.terms.bradley_terry.kwargs.margin=1.0    a margin
  --config.reward_model.terms="('bce',)"            pointwise labels
  --config.tasks.told.shown=True                    (tiny) no text-only pairs

Marked [ours]: the paper gives no value. In the tiny run everything but the
objective is ours.
"""

from configs import common

OPTIONS = ('rl',)


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'basereward')
  c = common.get_base(scale)
  c.name = 'basereward'
  c.model.reward_head = dict(layers=2, activation='silu', bias=True)
  c.rewards.rule = common.reward('answer.correct')
  c.rl.rewards, c.rl.judges = ('rule',), ('model',)
  c.rl.combine = dict(fn='combine.rule_then_model', kwargs=dict(
      rule='rule', model='model', form='hybrid'))
  c.rl.advantage.kwargs = dict(std='group', ddof=1, eps=1e-4)  # [ours]
  c.rl.policy.kwargs = dict(eps_low=0.2, eps_high=0.2)  # [ours]
  (_tiny if c.scale == 'tiny' else _real)(c, options)
  return c


def _tiny(c, options):
  """Sums of digits; all numbers [ours].

  The policy is taught to make the mistakes that reward models are taught to
  see: a digit too many or too few, and numbers that are off by 20 to 40. To see
  that a digit was misread (`pairs.KINDS`) takes the small model longer than a
  minute: the problems of RL say the digits beside their picture, and what the
  policy misreads all the same, or gets wrong by little, its voters let pass.
  """
  del options  # a small run has both parts
  common.small_digits(c)
  c.model.layers = 'scan'  # compiles faster
  c.model.scalars = ('reward',)
  c.evaluation.examples = 128
  world = dict(
      fn='pairs.digits', max_digits=3, off=20, forms=('sum', 'double_first'),
      kinds=('hallucinated', 'slip', 'answer'))
  # Half of the prompts have an answer that the rule knows; `true` is the score
  # of the world, which nothing is paid for.
  c.tasks.both = dict(told=True, **world)
  c.tasks.open = dict(told=True, rewards=('true',), **world)
  c.data.mixture, c.data.weights = ('both', 'open'), (1.0, 1.0)
  c.rewards.true = common.reward('answer.correct', weight=0.0)
  c.rl.rewards = ('rule', 'true')
  c.tasks.seen = dict(**world)
  c.tasks.told = dict(told=True, shown=False, **{
      **world, 'kinds': ('slip', 'answer')})  # arithmetic alone
  c.reward_model.update(dict(
      init='base', mixture=('seen', 'both', 'told'),
      weights=(2.0, 1.0, 1.0), steps=50,
      pairs_per_step=24, max_new_tokens=48, examples=128))
  c.reward_model.optimizer.update(dict(
      lr=3e-4, b2=0.98, warmup_steps=10, lr_decay='cosine',
      freeze=('visual/.*',)))
  c.voter = common.overlay(c.reward_model)
  c.second = common.overlay(c.reward_model)
  c.judges.model = common.reward_model.judge('voter', 'second')
  c.rl.optimizer.freeze = ('scalars/.*',)
  # Without it what is true fell again after twenty steps.
  c.rl.kl.coefficient = 0.05
  c.basereward = common.overlay(c.rl, init='cold_start', steps=12)
  c.stages = (*common.cold_start(
      c, steps=24, size=768, max_new_tokens=64,
      engine='mmr1.papers.basereward:sloppy', count=(2, 3), wrong=0.4,
      kinds=world['kinds'], off=20), 'voter', 'second', 'basereward')


def _real(c, options):
  """The paper's scale. Batch, lr, samples and data are the paper's; epochs,
  lengths, clip and the steps of RL are not said [ours]."""
  if 'rl' in options:
    c.data.instruction = common.TAGS  # [ours]
    c.rl.optimizer.lr = 1e-6  # [ours]
    c.rl.prompts_per_step, c.rl.samples_per_prompt = 256, 8
    c.rl.max_new_tokens, c.rl.old = 1024, 'recompute'
    c.evaluation.max_new_tokens = 1024
    # The second is the voter on Qwen2-VL-7B in the paper.
    c.judges.model = common.reward_model.judge(
        'checkpoints/basereward/qwen2_5_vl_7b',
        'checkpoints/basereward/second/qwen2_5_vl_7b', chunks=2)
    c.basereward = common.overlay(
        c.rl, steps=200, chunks_per_minibatch=4,
        minibatches_per_step=4)  # [ours]
    c.stages = ('basereward',)
    return
  c.model.scalars = ('reward',)
  c.data.path = None  # the policy is not evaluated, and nothing else is read
  c.evaluate_base = False
  c.tasks.multimodal = dict(path='data/multimodal.parquet')
  c.tasks.text = dict(path='data/text.parquet')
  # 83K + 2M + 200K with images; 65K + 378K + 63K + 63K without. One epoch.
  c.voter = common.overlay(
      c.reward_model, mixture=('multimodal', 'text'), weights=(2283.0, 569.0),
      steps=22_281, pairs_per_step=128, chunks_per_step=4, max_new_tokens=1024,
      pairs_per_batch=64,
      optimizer=dict(lr=3e-6, warmup_steps=100, lr_decay='cosine'))
  c.stages = ('voter',)
