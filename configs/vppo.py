r"""VPPO: Spotlight on Token Perception for Multimodal Reinforcement Learning.

arXiv 2510.09285 (ICLR 2026). https://github.com/huaixuheqing/VPPO-RL

What is new, on top of DAPO: how much each token depends on the picture, from a
second pass with black patches, decides which tokens carry the gradient (the
40% of each response that depend most) and how much a response's advantage
weighs (its mean dependency, scaled so that the mean factor is 1).

  python -m mmr1.main --config=configs/vppo.py
  python -m mmr1.main --config=configs/vppo.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.data.path=/data/virl39k.parquet

Arguments, joined by commas: a scale of `common.MODELS`; `paper`: dependency is
the KL over the vocabulary, as printed, in place of the code's estimate from the
sampled token.

Ablations:
  --config.rl.weights="()"                         DAPO
  --config.weights.perception.kwargs.keep=1.0      shaping only (TAS)
  --config.weights.perception.kwargs.low=1.0       filtering only (TGF)
  --config.views.masked.kwargs.black=0.3           mask ratio
  --config.rl.entropy.coefficient=0.0              without the entropy penalty
  --config.rl.weights="('perception','entropy')"   with the 80/20 mask (here the
                                                   cut, in the code the union)

Marked [ours]: the paper gives no value. In the tiny run everything but the
objective is ours.
"""

from configs import common

OPTIONS = ('paper',)


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'vppo')
  form = 'paper' if 'paper' in options else 'code'
  c = common.get_base(scale)
  c.name = 'vppo'
  c.views.masked = common.view(
      'mask', black=0.5, divergence='kl' if form == 'paper' else None)
  c.weights.perception = dict(
      fn='mmr1.papers.vppo:token_perception',
      kwargs=dict(view='masked', form=form, keep=0.4, low=0.9))
  c.weights.entropy = dict(fn='high_entropy', kwargs=dict(fraction=0.2))
  c.rl.weights = ('perception',)
  c.rl.watch = ('masked',)
  # The penalty: the estimate -log pi of the entropy is minimised.
  c.rl.entropy.coefficient = -0.12 if c.scale == 'qwen3_vl_8b' else -0.06
  c.rl.entropy.source = 'sampled'
  c.rl.advantage.kwargs = dict(std='group', ddof=1, eps=1e-6)
  c.rl.policy.kwargs = dict(eps_low=0.2, eps_high=0.28, dual_clip=3.0)
  c.rl.kl.coefficient = 0.0
  c.rl.rewards = ('result',)
  c.rl.select.fn = 'drop_zero_std'
  c.rl.select.kwargs = dict(column='result', low=0.01, high=0.99)
  (_tiny if c.scale == 'tiny' else _real)(c)
  return c


def _tiny(c):
  """Chains about digits that only the picture tells; all numbers [ours]."""
  common.small_digits(c)
  c.rl.rounds = 2
  c.vppo = common.overlay(c.rl, steps=20)
  c.stages = ('vppo',)


def _real(c):
  """The paper's scale: ViRL39K, two epochs."""
  common.boxed(c)
  c.data.prompt_tokens = 4096
  c.rl.optimizer.lr, c.rl.optimizer.weight_decay = 1e-6, 1e-2
  c.rl.prompts_per_step = 384
  c.rl.minibatches_per_step = 3  # of 128 prompts
  c.rl.old = 'recompute'
  c.rl.rounds = 20  # the tries of EasyR1
  # avg@8 at temperature 1.
  c.evaluation.max_new_tokens, c.evaluation.samples_per_problem = 2048, 8
  c.vppo = common.overlay(
      c.rl, steps=130 if c.scale == 'qwen3_vl_8b' else 202,
      samples_per_prompt=8, max_new_tokens=2048, chunks_per_minibatch=8,
      length_buckets=(512, 1024))
  c.stages = ('vppo',)
