r"""ARES: Adaptive Reasoning via Difficulty-aware Token-level Entropy Shaping.

arXiv 2510.08457 (ICLR 2026). https://github.com/shawn0728/ARES

What is new: moments at which the entropy of the next tokens is high after a
word that turns the reasoning ('wait', 'but') are counted in every response; too
many are punished where a problem is easy, too few where it is hard (AEPO), and
the KL term weighs by difficulty. Before it a cold start in which traces of hard
problems are longer (AdaCS).

  python -m mmr1.main --config=configs/ares.py
  python -m mmr1.main --config=configs/ares.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.data.path=/data/virl39k.parquet \
      --config.cold_start.data=/data/ares_cold_start.parquet

Arguments, joined by commas: a scale of `common.MODELS`; `paper`: reward,
difficulties, windows and threshold as printed, in place of the code's.

Ablations:
  --config.rl.combine.kwargs.alpha=0.0 --config.rl.combine.kwargs.lr=0.0
                                            no entropy score (of the code's form)
  --config.rl.hooks="('tau',)" --config.rl.advantage.kwargs.relaxed=1.0
                                            one KL weight, 1, for all
  --config.traces.kwargs.fitting_lengths=False
                                            the cold start without AdaCS
  --config.probes.high_entropy.kwargs.triggers="('wait','but')"
                                            moments at these words only

`triggers` are lower-case words that are one token; (): our list,
`mmr1.papers.ares.entropy.TRIGGERS`, in place of the released one of 174.
Marked [ours]: neither paper nor code gives a value; for SFT they give none. In
the tiny run everything but the objective is ours.
"""

from configs import common

OPTIONS = ('paper',)
KL = 'kl_by_difficulty'


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'ares')
  form = 'paper' if 'paper' in options else 'code'
  c = common.get_base(scale)
  c.name = 'ares'
  paper = 'mmr1.papers.ares.'
  c.views.own = common.view('same')
  windows = dict(reads='entropy', width=4, form=form)
  counted = dict(threshold=1.5, triggers=(), **windows)
  c.probes.level = common.probe(
      f'{paper}entropy:highest', 'own', percent=95.0, **windows)
  c.probes.high_entropy = common.probe(
      f'{paper}entropy:moments', 'own', **counted)
  c.probes.soft_cost = common.probe(
      f'{paper}entropy:soft_cost', 'own', **counted)
  c.rl.probes = ('level', 'high_entropy', 'soft_cost')
  c.rl.combine = dict(fn=f'{paper}shaping:shaped', kwargs=dict(
      count='high_entropy', form=form, alpha=0.5, lr=0.05, most=2.0))
  c.rl.advantage = dict(fn=f'{paper}penalty:graded', kwargs=dict(
      easy=1.0, medium=1.0, hard=1.0, cost='soft_cost', form=form,
      relaxed=0.67, least=0.5, ddof=1, eps=1e-6))
  c.rl.policy.kwargs = dict(eps_low=0.2, eps_high=0.3, dual_clip=3.0)
  c.rl.kl.coefficient = 0.0  # the term of the library is in its place
  c.terms[KL] = common.term(f'{paper}penalty:by_difficulty', 0.01)
  c.rl.terms = (KL,)
  c.hooks.tau = dict(fn=f'{paper}entropy:followed', kwargs=dict(
      knob=('high_entropy/threshold', 'soft_cost/threshold'), form=form,
      decay=0.99))
  c.hooks.beta = dict(fn=f'{paper}penalty:steered', kwargs=dict(
      knob=('advantage/easy', 'advantage/medium', 'advantage/hard'),
      metric=f'term/{KL}', target=0.01, calls=1, every=100))
  c.rl.hooks = ('tau', 'beta')
  c.rewards.format.weight = 0.0  # logged
  c.rl.rewards = ('result', 'format')
  (_tiny if c.scale == 'tiny' else _real)(c)
  return c


def _tiny(c):
  """Chains of one to three operations on two or three digits."""
  common.small_digits(c)
  c.evaluation.max_new_tokens = c.rl.max_new_tokens = 96
  for name in ('high_entropy', 'soft_cost'):
    c.probes[name].kwargs.threshold = 0.5
  c.probes.level.kwargs.percent = 75.0  # its few words are seldom above 95
  c.hooks.beta.kwargs.every = 1
  c.traces = common.overlay(
      c.collect, engine='mmr1.papers.ares.lengths:adaptive', size=512,
      kwargs=dict(responses=8, slip=0.5, doubts=1, fitting_lengths=True,
                  ends=()))
  c.cold_start = common.overlay(
      c.sft, data='traces', steps=20, max_new_tokens=96,
      optimizer=dict(lr=2e-4, warmup_steps=3, lr_decay='cosine'))
  c.ares = common.overlay(c.rl, steps=12)
  c.stages = ('traces', 'cold_start', 'ares')


def _real(c):
  """The scale of the code: ViRL39K, 512 prompts a step."""
  common.boxed(c)
  c.data.prompt_tokens = 4096
  c.data.min_pixels, c.data.max_pixels = 262_144, 4_194_304
  c.data.patches = 15_360  # larger pictures would not fit 4,096 tokens
  c.cold_start = common.overlay(  # 224K traces, two epochs [ours]
      c.sft, steps=7_000, rows_per_step=64, max_new_tokens=16_384,
      optimizer=dict(lr=1e-5, warmup_steps=350, lr_decay='cosine'))
  c.rl.optimizer.lr, c.rl.optimizer.weight_decay = 1e-6, 1e-2
  c.rl.top_p = 0.99
  c.rl.prompts_per_step = 512
  c.rl.minibatches_per_step = 4  # of 128 prompts
  c.rl.old = 'recompute'
  c.rl.select = dict(fn='drop_zero_std', kwargs=dict(
      column='overall', low=0.01, high=0.99))
  c.rl.rounds = 20  # [EasyR1]; at each of them targets and alphas move
  # Microbatches of a step: 4,096 responses, 4 on each of 8 devices [ours].
  c.hooks.beta.kwargs.calls = 128
  c.evaluation.max_new_tokens = 8192  # as in training [ours]
  c.ares = common.overlay(  # steps [ours]
      c.rl, steps=150, samples_per_prompt=8, max_new_tokens=8192,
      chunks_per_minibatch=8, length_buckets=(1024, 2048, 4096))
  c.stages = ('cold_start', 'ares')
