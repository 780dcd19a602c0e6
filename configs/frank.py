r"""FRANK: a Training-Free and R1-like MLLM by Layer-wise Closed-form Fusion.

arXiv 2505.16151.

What is new: no gradient. A model that sees and a language model that reasons,
both of one base, are fused decoder layer by decoder layer. How much of each is
taken follows in closed form from the norms of their task vectors, weighed by a
prior: layers that look more at images are for seeing. How much they do is
measured, and an exponential fitted to it.

  python -m mmr1.main --config=configs/frank.py
  python -m mmr1.main --config=configs/frank.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.frank.base=/models/Qwen2.5-7B \
      --config.frank.parents.reasoning=/models/Open-Reasoner-Zero-7B \
      --config.data.path=/data/captions.parquet \
      --config.data.eval_path=/data/mmmu.parquet

The tiny run makes its pair first: one model trains on pictures in an ink that
the embedded model hardly reads, the other on problems as text, of an operation
that it was not taught. Held out are such problems about such pictures, which
need both.

At scale nothing trains. One model at a time is on the devices, in bfloat16, to
be measured and evaluated; fusing takes host memory of a few layers, so that
there is nothing for `mmr1.plan` to plan.

Arguments, joined by commas: a scale of `common.MODELS`; `compare`: the other
ways to fuse as well, each a stage.

Ablations:
  --config.frank.rule.kwargs.prior=none               without the prior
  --config.frank.rule.kwargs.prior=linear             a linear one
  --config.frank.rule.kwargs.alpha=0.3                a fixed decay; .5
  --config.frank.rule.kwargs.prior_norm=max_to_one    1 in its highest layer
  --config.frank.rule.fn=fixed                        task arithmetic, .3 of each
  --config.frank.rule.fn=whole_model                  MetaGPT
  --config.frank.rule.fn=interpolation                half of each

Marked [ours]: the paper gives no value. It fuses Idefics3-8B and
DeepSeek-R1-Distill-Llama-8B, NVILA-15B and R1-Distill-Qwen-14B, InternVL2.5-38B
and QwQ-32B. Idefics3 and NVILA are none of the families here; the last pair is,
with InternVL in the hf layout. The pairs below are of the same kind: QwQ-32B
and Qwen2.5-VL-32B are both of Qwen2.5-32B, Open-Reasoner-Zero-7B and
Qwen2.5-VL-7B of Qwen2.5-7B. (R1-Distill-Qwen-7B is not: its base is
Qwen2.5-Math-7B.) In the tiny run everything but the rule is ours.
"""

from configs import common

OPTIONS = ('compare',)
# Of the language models, by the scale of the one that sees [ours].
PAIRS = {'qwen2_5_vl_7b': ('qwen2_5_7b', 'open_reasoner_zero_7b'),
         'qwen2_5_vl_32b': ('qwen2_5_32b', 'qwq_32b')}


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'frank')
  c = common.get_base(scale)
  c.name = 'frank'
  c.merge.rule.kwargs = dict(
      prior='exponential', prior_norm='sum_over_layers',
      alpha=common.placeholder(float))
  (_tiny if c.scale == 'tiny' else _real)(c)
  if 'compare' in options:
    _compare(c)
  return c


def _tiny(c):
  """Three and four digits; all numbers [ours].

  Embeddings and final norm stay those of the base, which the fused model has,
  and answers are spelt as the embedded model spells them.
  """
  common.small_digits(c)
  c.tasks.digits.forms = ('triple_first',)
  c.tasks.digits.min_digits, c.tasks.digits.max_digits = 3, 4
  c.tasks.digits.ink = 0.4  # the embedded model hardly reads it
  c.evaluation.max_new_tokens = 64
  words = ('language/embed', 'language/norm/.*')
  c.pictures = common.overlay(
      c.collect, init='base', engine='mmr1.data.traces:seen', size=1536)
  c.texts = common.overlay(
      c.collect, init='base', engine='mmr1.data.traces:told', size=2048,
      kwargs=dict(ending='<answer> Final Answer:{} </answer>'))
  c.vision = common.overlay(
      c.sft, init='base', data='pictures', instruction='Only say what you see.',
      steps=64, rows_per_step=32, max_new_tokens=24, optimizer=dict(
          lr=8e-4, warmup_steps=5, lr_decay='cosine', freeze=words))
  c.reasoning = common.overlay(
      c.sft, init='base', data='texts', steps=64, rows_per_step=32,
      max_new_tokens=64, optimizer=dict(
          lr=3e-4, warmup_steps=5, lr_decay='cosine',
          freeze=('visual/.*', *words)))
  c.merge.parents = dict(vision='vision', reasoning='reasoning')
  c.merge.share.examples = 64
  c.frank = common.overlay(c.merge)
  c.stages = ('pictures', 'texts', 'vision', 'reasoning', 'frank')


def _real(c):
  """The attention of 1,000 pictures of COCO; nothing trains."""
  base, reasoning = PAIRS.get(c.scale, ('base', 'reasoning'))
  c.model.param_dtype = 'bfloat16'
  c.data.instruction = 'Think step by step.'  # its words are not known [ours]
  c.evaluation.max_new_tokens = 16_384  # [ours]
  c.evaluation.temperature, c.evaluation.top_p = 0.6, 0.95  # [ours]
  c.merge.base = f'checkpoints/{base}'
  c.merge.parents = dict(
      vision='base', reasoning=f'checkpoints/{reasoning}')
  c.merge.share.examples = 1000
  c.frank = common.overlay(c.merge)
  c.stages = ('frank',)


def _compare(c):
  """The paper's other ways; the highest layer at 1 and the mean are ours."""
  kwargs = lambda **given: dict(rule=dict(kwargs=given))
  rule = lambda fn: dict(rule=dict(fn=fn))
  for name, change in (
      ('no_prior', kwargs(prior='none')),
      ('linear', kwargs(prior='linear')),
      ('alpha_3', kwargs(alpha=0.3)),
      ('alpha_5', kwargs(alpha=0.5)),
      ('max_to_one', kwargs(prior_norm='max_to_one')),
      ('arithmetic', rule('fixed')),
      ('metagpt', rule('whole_model')),
      ('mean', rule('interpolation'))):
    c[name] = common.overlay(c.merge, **change)
    c.stages += (name,)
