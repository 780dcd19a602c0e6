r"""PAPO: Perception-Aware Policy Optimization for Multimodal Reasoning.

Wang et al., arXiv 2507.06448 (ICLR 2026). https://github.com/MikeWangWZHL/PAPO

What is new: an implicit perception loss. The response is scored a second time
with random patches of the image black, and the divergence of both policies is
maximised on top of GRPO or DAPO; minimising both policies' entropies (double
entropy) keeps this unbounded term from being hacked.

  python -m mmr1.main --config=configs/papo.py
  python -m mmr1.main --config=configs/papo.py:qwen2_5_vl_7b,dapo \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.data.path=/data/virl39k.parquet

Arguments, joined by commas: a scale of `common.MODELS`; `dapo` (clip-higher, no
reference, groups that are all right or all wrong are resampled) or `no_ref`
(GRPO without the reference); `recompute`: the masked policy is scored at every
update and has a gradient, which makes the double entropy a true one.

Ablations:
  --config.terms.perception.coefficient=0.0   plain GRPO (the log keeps
                                              view/masked/drop)
  --config.terms.perception.kwargs.form=paper the printed, inverse ratio
  --config.views.masked.kwargs.black=0.8      mask ratio
  --config.rl.entropy.coefficient=0.0         without the entropy of the policy
  --config.terms.blind_entropy.coefficient=0.0
                                              or of the masked one
  --config.terms.perception.kwargs.value_clamp=0.2
                                              k up to .2 (off in the code)
The code's fraction of a response's tokens that count, those with the largest k
(.2; off), no flag sets: it is the keyword `top` of terms.perception in this file.
Annealing of gamma: a hook `linear` on 'coef/perception' (and, in proportion, on
both entropies). The auxiliary SFT loss of the code is not here.

Marked [ours]: the paper gives no value. In the tiny run everything but the
objective is ours.
"""

from configs import common

OPTIONS = ('dapo', 'no_ref', 'recompute')


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'papo')
  if {'dapo', 'no_ref'} <= options:
    raise ValueError(f"papo:{arg}: 'dapo' has no reference; take one of both.")
  c = common.get_base(scale)
  c.name = 'papo'
  recompute = 'recompute' in options
  c.views.masked = common.view(
      'mask', black=0.6, when='update' if recompute else 'rollout',
      gradient=recompute)
  large = c.scale.endswith(('_7b', '_8b', '_32b', '_72b'))
  gamma, eta = (0.02, 0.05) if large else (0.02, 0.0)
  if 'dapo' in options:
    gamma, eta = 0.01, 0.03
  elif 'no_ref' in options:
    gamma, eta = 0.01, 0.03
  c.terms.perception = common.term(
      'mmr1.papers.papo:perception', gamma, view='masked', form='code',
      difference_clamp=20.0, value_clamp=10.0)
  c.terms.blind_entropy = common.term(
      'mmr1.papers.papo:blind_entropy', eta, view='masked')
  c.rl.terms = ('perception', 'blind_entropy')
  c.rl.watch = ('masked',)
  # A bonus with a negative coefficient: the estimate -log pi is minimised.
  c.rl.entropy.coefficient = -eta
  c.rl.entropy.source = 'sampled'
  c.rl.advantage.kwargs = dict(std='group', ddof=1, eps=1e-6)
  c.rl.policy.kwargs = dict(
      eps_low=0.2, eps_high=0.28 if 'dapo' in options else 0.3, dual_clip=3.0)
  c.rl.kl.coefficient = 0.0 if {'dapo', 'no_ref'} & options else 1e-2
  c.rewards.result.weight, c.rewards.format.weight = 0.9, 0.1
  c.rl.rewards = ('result', 'format')
  if 'dapo' in options:
    c.rl.select.fn = 'drop_zero_std'
    c.rl.select.kwargs = dict(column='result', low=0.01, high=0.99)
  (_tiny if c.scale == 'tiny' else _real)(c, options)
  return c


def _tiny(c, options):
  """Digits, of which the text says nothing; all numbers [ours]."""
  common.small_digits(c)
  if 'dapo' in options:
    c.rl.rounds = 3
  c.papo = common.overlay(c.rl, steps=20)
  c.stages = ('papo',)


def _real(c, options):
  """The paper's scale: ViRL39K, two epochs."""
  c.data.prompt_tokens = 4096
  c.data.min_pixels, c.data.max_pixels = 200_704, 1_003_520
  common.boxed(c)
  c.rl.temperature, c.rl.top_p = 1.0, 0.99
  c.rl.optimizer.lr, c.rl.optimizer.weight_decay = 1e-6, 1e-2
  c.rl.prompts_per_step = 384
  c.rl.minibatches_per_step = 3  # of 128 prompts
  c.rl.old = 'recompute'
  if 'dapo' in options:
    c.rl.rounds = 20  # the tries of EasyR1
  # avg@8 at temperature 1.
  c.evaluation.max_new_tokens, c.evaluation.samples_per_problem = 2048, 8
  # 78K prompts: two epochs over 39K.
  c.papo = common.overlay(
      c.rl, steps=202, samples_per_prompt=5, max_new_tokens=2048,
      chunks_per_minibatch=5, length_buckets=(512, 1024))
  c.stages = ('papo',)
