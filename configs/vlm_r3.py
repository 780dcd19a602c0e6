r"""VLM-R3: Region Recognition, Reasoning and Refinement (R-GRPO).

arXiv 2505.16192, NeurIPS 2025. https://github.com/justgogorunrun/VLM-R3

What is new: the chain of thought is written around regions. Where the policy
writes a box, the part of the picture comes back inside its own turn; rewards
pay for regions, but on right answers only, and the gradient covers words and
boxes and no picture.

  python -m mmr1.main --config=configs/vlm_r3.py
  python -m mmr1.main --config=configs/vlm_r3.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.data.path=/data/rl_5k.jsonl \
      --config.cold_start.data=/data/vlir.jsonl

Records of the cold start have `turns`: the pieces of the thought, each up to the
end of a box. Arguments, joined by commas: a scale of `common.MODELS`;
`released`: rewards and sizes of the code where they are not the paper's (formats
count .5, lengths are those of the shortest piece between boxes, one box is as
good as two, and an answer that is opened counts as closed). Ablations:
  --config.environments.region.kwargs.blank=True     no picture comes back
  --config.rl.rewards="('result','format','length')" regions are not paid
  --config.vlm_r3.init=base                          no cold start

Marked [ours]: the paper gives no value. In the tiny run everything but the
objective is ours.
"""

from configs import common

OPTIONS = ('released',)
_PAPER = 'mmr1.papers.vlm_r3'
_STOP = (']}', '] }', ']\n}', '</answer>')


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'vlm_r3')
  form = 'released' if 'released' in options else 'paper'
  c = common.get_base(scale)
  c.name = 'vlm_r3'
  c.rewards.format = common.reward(
      f'{_PAPER}:answered', weight=0.5 if form == 'released' else 1.0)
  c.rewards.length = common.reward(f'{_PAPER}:length', form=form)
  c.rewards.region = common.reward(f'{_PAPER}:regions', form=form)
  c.rl.rewards = ('result', 'format', 'length', 'region')
  c.rl.advantage.kwargs = dict(std='group', ddof=1, eps=1e-4)
  c.rl.policy.kwargs = dict(eps_low=0.2, eps_high=0.28)
  c.rl.policy.reduce = 'seq_mean'
  c.rl.kl.coefficient = 0.0
  # Vision encoder and merger stay as they are, in both stages.
  if c.scale != 'tiny':
    c.sft.optimizer.freeze = c.rl.optimizer.freeze = ('visual/.*',)
  (_tiny if c.scale == 'tiny' else _real)(c, form)
  c.rl.env = c.sft.env = c.evaluation.env = 'region'
  return c


def _tiny(c, form):
  """Two rows of small digits, or one of large ones; all numbers [ours].

  The small model's tower has to learn where the digits are, and trains.
  """
  c.model.layers = 'scan'  # compiles faster
  c.data.mixture, c.data.weights = ('zoom',), (1.0,)
  c.tasks.zoom = dict(fn='zoom.zoom', scale=4, small=1.0, regions=2,
                      columns=1)
  c.data.instruction = common.TAGS
  c.data.max_pixels, c.data.patches = 1024, 16
  c.environments.region = common.environment(
      'mmr1.envs.crop:Crop', stop=_STOP, max_turns=4, turn_tokens=64,
      observation_tokens=16, observation_patches=16, images=3,
      rule=f'{_PAPER}:region', form='inline', role='', lenient=True,
      blank=False, close=form == 'released',
      size=(('unit', 16), ('least', 512), ('most', 1024)))
  c.rewards.zoomed = common.reward('mmr1.envs.crop:zoomed', weight=0.0)
  c.rl.rewards = (*c.rl.rewards, 'zoomed')
  c.evaluation.max_new_tokens = c.rl.max_new_tokens = 160
  c.evaluation.examples = 96
  c.rl.optimizer.lr = 1e-4
  c.rl.prompts_per_step, c.rl.samples_per_prompt = 12, 8
  c.vlm_r3 = common.overlay(c.rl, steps=8)
  c.stages = (*common.cold_start(
      c, steps=40, size=960, max_new_tokens=160, engine='vlm_r3.looked',
      blind=0.3), 'vlm_r3')


def _real(c, form):
  """The paper's scale."""
  c.data.instruction = (
      'Think first. For key areas call the crop tool by writing {"bbox_2d": '
      '[x1, y1, x2, y2]}. Think inside <think> </think>, answer inside <answer> '
      '</answer>.')  # in our words
  # The code's of RL. [ours] for the paper, which gives none, and in the cold
  # start, where the code has 1,605,632 pixels at most.
  c.data.prompt_tokens = 5120
  c.data.min_pixels, c.data.max_pixels = 3136, 3_211_264
  c.data.patches = 17_408  # 4,096 cells and windows [ours]
  c.environments.region = common.environment(
      'mmr1.envs.crop:Crop', stop=_STOP, max_turns=8, turn_tokens=2048,
      observation_tokens=1040, observation_patches=5120, images=7,
      rule=f'{_PAPER}:region', form='inline', role='', lenient=True,
      blank=False, close=form == 'released', size=())
  c.evaluation.max_new_tokens = 8192
  released = form == 'released'
  c.cold_start = common.overlay(
      c.sft, data='data/vlir.jsonl', steps=246 if released else 554,
      rows_per_step=192 if released else 64,
      chunks_per_step=6 if released else 2,
      # The code's with the prompt; of the paper [ours].
      max_new_tokens=4096 if released else 8192,
      optimizer=dict(lr=2e-7, warmup_steps=8 if released else 0,
                     lr_decay='cosine'))
  c.rl.optimizer.lr = 1e-6
  # A batch that divides over more devices [ours]; about 16 prompts in the paper,
  # of 5,000 in 300 steps, and 8 in the code, which goes through them twice.
  c.rl.prompts_per_step, c.rl.samples_per_prompt = 32, 5
  c.vlm_r3 = common.overlay(
      c.rl, steps=312 if released else 300, max_new_tokens=16_384,
      chunks_per_minibatch=5)
  c.stages = ('cold_start', 'vlm_r3')
