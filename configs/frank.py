r"""FRANK: Training-Free and R1-like MLLM by Closed-form Fusion.

Unveiling the Compositional Ability Gap ... placeholder
"""

from configs import common


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, ('compare',), 'frank')
  c = common.get_base(scale)
  c.name = 'frank'
  c.merge.rule.kwargs = dict(
      prior='exponential', prior_norm='sum_over_layers',
      alpha=common.placeholder(float))
  c.merge.share.examples = 64
  _tiny(c)
  return c


def _tiny(c):
  common.small_digits(c)
  c.tasks.digits.forms = ('triple_first',)
  c.tasks.digits.min_digits, c.tasks.digits.max_digits = 3, 4
  c.evaluation.max_new_tokens = 64
  c.pictures = common.overlay(
      c.collect, init='base', engine='mmr1.data.traces:seen', size=1536)
  c.texts = common.overlay(
      c.collect, init='base', engine='mmr1.data.traces:told', size=1024)
  c.vision = common.overlay(
      c.sft, init='base', data='pictures', instruction='Only say what you see.',
      steps=48, rows_per_step=32, max_new_tokens=24,
      optimizer=dict(lr=5e-4, warmup_steps=5, lr_decay='cosine',
                     freeze=('language/embed', 'language/norm/.*')))
  c.reasoning = common.overlay(
      c.sft, init='base', data='texts', steps=40, rows_per_step=32,
      max_new_tokens=64,
      optimizer=dict(lr=5e-4, warmup_steps=5, lr_decay='cosine',
                     freeze=('visual/.*', 'language/embed', 'language/norm/.*')))
  parents = dict(vision='vision', reasoning='reasoning')
  c.frank = common.overlay(c.merge, parents=parents)
  c.no_prior = common.overlay(c.merge, parents=parents, rule=dict(kwargs=dict(prior='none')))
  c.max_to_one = common.overlay(c.merge, parents=parents, rule=dict(kwargs=dict(prior_norm='max_to_one')))
  c.arithmetic = common.overlay(c.merge, parents=parents, rule=dict(fn='fixed', kwargs=dict()))
  c.whole_model = common.overlay(c.merge, parents=parents, rule=dict(fn='whole_model', kwargs=dict()))
  c.mean = common.overlay(c.merge, parents=parents, rule=dict(fn='interpolation', kwargs=dict()))
  c.stages = ('pictures', 'texts', 'vision', 'reasoning', 'frank')
