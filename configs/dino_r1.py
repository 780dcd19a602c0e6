r"""DINO-R1: Incentivizing Reasoning Capability in Vision Foundation Models.

arXiv 2505.24025. https://github.com/Christinepan881/DINO-R1

What is new: group relative query optimisation (GRQO). The queries of a picture
are the group: each is rewarded by how well it fits some box, rewards are
normalised over the queries, and a KL keeps their objectness near that of the
model as it was at the epoch's start. No language model, no sampling.

  python -m mmr1.main --config=configs/dino_r1.py
  python -m mmr1.main --config=configs/dino_r1.py:paper

A small detector learns to find what instances in other pictures show (visual
prompts). There is no Swin, no BERT and no Objects365: attention is plain, names
of classes are learned vectors, there are no denoising queries, and the world is
one to four shapes.

Arguments, joined by commas:
  paper   the paper's numbers, on a larger detector
  sft     the same without the new term

Ablations:
  --config.dino_r1.queries.kwargs.mute=0      advantages without a gradient
  --config.dino_r1.queries.kwargs.alpha=0.0   the KL alone
  --config.dino_r1.queries.kwargs.beta=0.0    advantages alone

Marked [ours]: the paper gives no value. In the tiny run everything but the term
is ours.
"""

from configs import common

OPTIONS = ('paper', 'sft')


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'dino_r1')
  c = common.get_base(scale)
  c.name = 'dino_r1'
  c.stages = ('dino_r1',)
  c.evaluate_base = False  # no stage trains the model of language
  c.data.path = None
  c.detect.optimizer.weight_decay, c.detect.optimizer.clip_norm = 1e-4, 0.1
  c.detect.cost = dict(label=2.0, l1=5.0, giou=2.0)
  c.detect.loss = dict(label=1.0, l1=5.0, giou=2.0)
  c.dino_r1 = common.overlay(c.detect)
  if 'sft' not in options:
    # A third of the queries is muted, the last ones.
    c.dino_r1.queries.fn = 'dino_r1.grqo'
    c.dino_r1.queries.kwargs = dict(
        mute=c.detector.queries // 3, alpha=1e-2, beta=0.04)
  (_paper if 'paper' in options or c.scale != 'tiny' else _tiny)(c)
  return c


def _tiny(c):
  """Five epochs of 80 steps, the first of them without the term [ours].

  As on Objects365, where one epoch comes before those with it.
  """
  c.dino_r1.steps, c.dino_r1.reference_every = 400, 80
  c.dino_r1.queries.after = 80
  c.dino_r1.optimizer.lr, c.dino_r1.optimizer.warmup_steps = 2e-3, 20
  c.dino_r1.optimizer.lr_decay = 'cosine'
  c.dino_r1.optimizer.clip_norm = 1.0
  c.dino_r1.log_every = 5


def _paper(c):
  """Queries, mute, batch and optimiser are the paper's. Ours: the world of 128
  pixels, the detector's size, 20,000 pictures an epoch, a cosine for two drops
  of the learning rate."""
  c.detector.size, c.detector.width, c.detector.heads = 128, 256, 8
  c.detector.encoder, c.detector.decoder, c.detector.queries = 6, 6, 900
  c.detector.dtype = 'bfloat16'
  c.tasks.detection.canvas, c.tasks.detection.sides = 128, (16, 56)
  c.tasks.detection.by = 'kind'
  c.data.train_size = 20_000
  epoch = 20_000 // 64
  c.dino_r1.rows_per_step, c.dino_r1.alignment = 64, 100.0
  c.dino_r1.steps, c.dino_r1.reference_every = 12 * epoch, epoch
  # Twelve epochs, the term in all of them: the code's for COCO. Objects365 takes
  # 1 + 5, read as one epoch without: steps=1872, queries.after=312.
  c.dino_r1.queries.after = 0
  c.dino_r1.evaluation.examples = 1000
  c.dino_r1.optimizer.lr, c.dino_r1.optimizer.warmup_steps = 4e-4, 1000
  c.dino_r1.optimizer.lr_decay = 'cosine'
  if len(c.dino_r1.queries.kwargs):
    c.dino_r1.queries.kwargs.mute = 300
