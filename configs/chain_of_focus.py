r"""Chain-of-Focus: adaptive visual search and zooming by reinforcement learning.

arXiv 2505.15436. https://github.com/xtong-zhang/Chain-of-Focus

What is new: the policy decides for each question whether and where to zoom, by
calls of a tool that brings a part of the picture, enlarged. A cold start on
traces teaches the form of a call, GRPO when to make one.

  python -m mmr1.main --config=configs/chain_of_focus.py
  python -m mmr1.main --config=configs/chain_of_focus.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.data.path=/data/rl_10k.jsonl \
      --config.cold_start.data=/data/mm_cof.jsonl

The cold start's records have `turns`, what the assistant says turn by turn; the
environment is asked again for what came in between.

Arguments, joined by commas: a scale of `common.MODELS`; a reward of the release:
`r0` (words shared with the gold answer), `r1` (their F1 itself, answers of 10
words at most), `r2` (.8 / .2, more of them, as short), `r4` (+1 for a call of
the tool where the answer is right), `r5` (+.5), `r6` (+.5 for a call where it
is wrong; r4 to r6 pay for a call that brings nothing too, as the release does);
or `plain`, without the group-aware reward in the tiny run, or `adaptive`, with
it at scale. Ablations:
  --config.environments.zoom.kwargs.blank=True     crops show nothing
  --config.rl.env=None --config.evaluation.env=None  no tool

Marked [ours]: the paper gives no value. In the tiny run everything but the
objective is ours.
"""

from configs import common

OPTIONS = ('r0', 'r1', 'r2', 'r4', 'r5', 'r6', 'plain', 'adaptive')
_PAPER = 'mmr1.papers.chain_of_focus'


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'chain_of_focus')
  if len(options - {'plain', 'adaptive'}) > 1:
    raise ValueError(f'chain_of_focus:{arg}: take one of the rewards.')
  c = common.get_base(scale)
  c.name = 'chain_of_focus'
  c.rewards.result.weight = 0.9
  c.rewards.format = common.reward(f'{_PAPER}:tags', weight=0.1)
  c.rewards.zoomed = common.reward('mmr1.envs.crop:zoomed', weight=0.0)
  c.rl.rewards = ('result', 'format', 'zoomed')
  c.rl.advantage.kwargs = dict(std='group', ddof=1, eps=1e-6)
  c.rl.policy.kwargs = dict(eps_low=0.2, eps_high=0.2)
  c.rl.kl.coefficient, c.rl.kl.estimator = 1e-3, 'k3'
  _reward(c, options)
  (_tiny if c.scale == 'tiny' else _real)(c)
  if ('adaptive' in options or c.scale == 'tiny') and 'plain' not in options:
    c.rl.combine = dict(fn=f'{_PAPER}:adaptive', kwargs=dict(
        g=f'{_PAPER}:thrift', scale=0.5))
  return c


def _reward(c, options):
  """The variants of the release."""
  if options & {'r0', 'r1', 'r2'}:
    c.rewards.result = common.reward(
        f'{_PAPER}:overlap', weight=0.8 if 'r2' in options else 0.9,
        least=None if 'r1' in options else 0.5, above='r2' in options,
        released=False)
    c.rewards.format.weight = 0.2 if 'r2' in options else 0.1
  if options & {'r1', 'r2'}:
    c.rewards.format.kwargs.longest = 10
  for name, weight in (('r4', 1.0), ('r5', 0.5), ('r6', 0.5)):
    if name in options:
      c.rewards.tool = common.reward(
          f'{_PAPER}:tool', weight=weight,
          answer='wrong' if name == 'r6' else 'right')
      c.rl.rewards = (*c.rl.rewards, 'tool')


def _tiny(c):
  """Digits that are large or small; all numbers [ours]."""
  c.model.layers = 'scan'  # compiles faster
  c.data.mixture, c.data.weights = ('zoom',), (1.0,)
  c.tasks.zoom = dict(fn='zoom.zoom', scale=4, small=0.6, columns=1)
  c.data.instruction = common.TAGS
  c.data.max_pixels, c.data.patches = 1024, 16
  c.environments.zoom = common.environment(
      'mmr1.envs.crop:Crop', max_turns=2, turn_tokens=64,
      observation_tokens=40, observation_patches=32, images=1,
      rule=f'{_PAPER}:enlarged', form='tool', prompt='', role='user',
      blank=False, size=(('grow', 1.0), ('times', 1.0), ('unit', 16),
                         ('least', 512), ('most', 512)))
  for name, needed in (('zoomed_small', True), ('zoomed_large', False)):
    c.rewards[name] = common.reward(
        'mmr1.envs.crop:zoomed', weight=0.0, needed=needed)
  c.rl.rewards = (*c.rl.rewards, 'zoomed_small', 'zoomed_large')
  c.rl.env = c.sft.env = c.evaluation.env = 'zoom'
  c.evaluation.max_new_tokens = c.rl.max_new_tokens = 128
  c.evaluation.examples = 128
  c.rl.optimizer.lr = 1e-4
  c.rl.prompts_per_step, c.rl.samples_per_prompt = 12, 8
  c.chain_of_focus = common.overlay(c.rl, steps=10)
  c.stages = (*common.cold_start(
      c, steps=60, size=1440, max_new_tokens=128,
      engine='chain_of_focus.explored', small=0.7, large=0.3),
              'chain_of_focus')
  c.cold_start.rows_per_step = 16
  c.cold_start.optimizer.lr, c.cold_start.optimizer.b2 = 1e-3, 0.98


def _real(c):
  """The paper's scale."""
  c.data.system = (
      'You may call image_zoom_in_tool(bbox_2d: [x1, y1, x2, y2], label: str), '
      'which returns that part of the image, enlarged.')  # in our words
  c.data.instruction = (
      'Answer as <think> </think> <tool_call>{"name": "image_zoom_in_tool", '
      '"arguments": {"bbox_2d": [x1, y1, x2, y2], "label": "..."}}</tool_call>, '
      'as often as you need, or <think> </think> <answer> </answer>.')
  c.data.prompt_tokens = 25_600
  c.data.min_pixels, c.data.max_pixels = 12_544, 14_745_600
  c.data.patches = 79_872  # 19,968 cells [ours]
  c.environments.zoom = common.environment(
      'mmr1.envs.crop:Crop', max_turns=4, observation_tokens=1360,
      observation_patches=5376, images=3, rule=f'{_PAPER}:enlarged',
      form='tool', role='user', blank=False,
      size=(('most', 1_003_520),),  # 1,280 cells; 5,120 in the code
      prompt='\nLook at the enlarged part, then call again or answer.')
  c.rl.env = c.sft.env = c.evaluation.env = 'zoom'
  c.evaluation.max_new_tokens = 8192
  c.cold_start = common.overlay(
      c.sft, data='data/mm_cof.jsonl', steps=500, rows_per_step=32,  # [ours]
      max_new_tokens=16_384,  # [ours]; 81,920 with the prompt in the code
      lora=dict(rank=32, alpha=64.0, train=('visual/merger/.*',)),
      optimizer=dict(lr=1e-5, warmup_steps=50, lr_decay='cosine'))
  c.rl.optimizer.lr = 1e-6
  c.rl.prompts_per_step, c.rl.samples_per_prompt = 64, 6
  c.chain_of_focus = common.overlay(
      c.rl, steps=2340, max_new_tokens=32_756, chunks_per_minibatch=6)
  c.stages = ('cold_start', 'chain_of_focus')
