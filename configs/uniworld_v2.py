r"""UniWorld-V2, Edit-R1: Reinforce Image Editing with Diffusion Negative-aware
Finetuning and Implicit MLLM Feedback.

arXiv 2510.16888. https://github.com/PKU-YuanGroup/UniWorld-V2; its optimiser is
DiffusionNFT, arXiv 2509.16117, https://github.com/NVlabs/DiffusionNFT.

What is new: a flow model is improved by rewards without trajectories or
likelihoods. Any solver samples pictures from the old parameters; rewards,
normalised by group, become r in [0, 1]; the model learns by a pair of
regressions on new noisings of those pictures, weighted r and 1 - r. The reward
is the expectation over the digit tokens that a model of language and vision
would write first. Groups in which nothing is left to learn are dropped.

  python -m mmr1.main --config=configs/uniworld_v2.py
  python -m mmr1.main --config=configs/uniworld_v2.py:paper
  python -m mmr1.main --config=configs/uniworld_v2.py:qwen2_5_vl_32b \
      --config.model.path=/models/Qwen2.5-VL-32B-Instruct

There is no FLUX or Qwen-Image here: a small diffusion transformer that edits
pictures of one shape is pretrained first, on pairs of which 40% follow an
instruction drawn anew (a third another one). `paper` has the paper's numbers on a larger one; with a scale of
`common.MODELS` that model is the judge. Without one the score compares pixels
with the target.

Arguments: a scale, and of these, joined by commas:
  paper      the paper's numbers
  judge      the embedded model is the judge; it cannot judge edits, the run
             shows the way
  flow_grpo  PPO on the steps of a stochastic solver instead (Flow-GRPO)
  dpo        Diffusion-DPO of the best against the worst of each group

Ablations:
  --config.nft.advantage.kwargs.std=group       local standard deviation
  --config.nft.select.kwargs.mean=2.0 --config.nft.select.kwargs.std=-1.0
                                                no filter
  --config.nft.select.kwargs.either=False       the filter of the text
  --config.nft.old.rate=0.001                   old parameters lag (type 1)
  --config.nft.objective.kwargs.beta=0.1        stronger guidance
  --config.nft.objective.kwargs.use=positive    good samples alone

Marked [ours]: the paper gives no value. In the tiny run everything but the
objective is ours.
"""

from configs import common

OBJECTIVES = ('flow_grpo', 'dpo')
OPTIONS = ('paper', 'judge', *OBJECTIVES)


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'uniworld_v2')
  if len(options & {*OBJECTIVES}) > 1:
    raise ValueError(f'uniworld_v2:{arg}: give one of {OBJECTIVES}.')
  c = common.get_base(scale)
  c.name = 'uniworld_v2'
  c.stages = ('pretrain', 'nft')
  c.evaluate_base = False  # no stage trains the model of language
  c.data.path = None
  c.tasks.noisy_edits = dict(fn='edits.edits', noise=0.4, scale=1)
  c.flow.optimizer.b1, c.flow.optimizer.b2 = 0.9, 0.999
  c.flow.optimizer.eps, c.flow.optimizer.clip_norm = 1e-8, 1.0
  c.flow.optimizer.weight_decay = 1e-4
  c.flow.optimizer.decay_mask = 'all'
  c.flow.solver_steps, c.flow.evaluation.steps = 6, 15
  c.flow.evaluation.examples = 128
  c.pretrain = common.overlay(
      c.flow, world='noisy_edits', samples_per_prompt=1, condition_dropout=0.1,
      steps=800, prompts_per_step=64, log_every=10, checkpoint_every=100,
      samples_every=200,
      optimizer=dict(lr=3e-3, warmup_steps=20, lr_decay='cosine'))
  c.nft = common.overlay(
      c.flow, objective=_objective(options),
      solver=_solver(options), steps=60, prompts_per_step=12,
      samples_per_prompt=8, eval_every=20, optimizer=dict(lr=3e-4),
      select=dict(fn='drop_saturated', kwargs=dict(
          mean=0.9, std=0.05, either=True, ban=True)))
  if 'judge' in options or c.scale != 'tiny':
    _judge(c)
  if 'paper' in options or c.scale != 'tiny':
    _paper(c)
  return c


def _objective(options):
  if 'flow_grpo' in options:
    return dict(fn='flow_grpo', kwargs=dict(clip_range=1e-4, kl=0.0))
  if 'dpo' in options:
    return dict(fn='dpo', kwargs=dict(beta=20.0))  # [ours]: of pixels' errors
  return dict(fn='nft', kwargs=dict(
      beta=1.0, clip=5.0, use='all', kl=1e-4, fraction=0.99))


def _solver(options):
  if 'flow_grpo' in options:
    return dict(fn='flow_sde', kwargs=dict(eta=0.7))
  return dict(fn='dpm2', kwargs=dict())


def _judge(c):
  """Reads the source and the picture under a rubric [ours]."""
  c.judges.editor = common.judge(
      'base', instruction=(
          'The second picture should be the first, changed as the instruction '
          'above says, and otherwise the same. How well does it follow? '
          'Answer with a number from 0 to 5 alone.'), suffix='')
  c.nft.judge = 'editor'
  if c.scale == 'tiny':
    c.data.prompt_tokens = 160
  else:  # two pictures, enlarged to 224 x 224
    c.data.min_pixels, c.data.max_pixels = 50_176, 50_176
    c.data.prompt_tokens, c.data.patches = 320, 640


def _paper(c):
  """24 x 12 samples; the generator, its pretraining and rounds are [ours]."""
  c.generator.size, c.tasks.edits.scale, c.tasks.noisy_edits.scale = 32, 2, 2
  c.generator.width, c.generator.layers, c.generator.heads = 384, 12, 6
  c.generator.dtype, c.generator.remat = 'bfloat16', True
  c.pretrain.steps, c.pretrain.prompts_per_step = 50_000, 256
  c.pretrain.optimizer.lr, c.pretrain.optimizer.warmup_steps = 3e-4, 1000
  c.pretrain.checkpoint_every = 1000
  c.nft.steps, c.nft.prompts_per_step, c.nft.samples_per_prompt = 1000, 24, 12
  c.nft.lora.rank, c.nft.lora.alpha = 32, 64.0
  c.nft.old.rate, c.nft.old.cap = 0.001, 0.5  # type 1
