r"""VL-Rethinker: incentivizing self-reflection of VLMs with RL.

Wang et al., arXiv 2504.08837 (NeurIPS 2025).
https://github.com/TIGER-AI-Lab/VL-Rethinker

What is new: selective sample replay (SSR): of a rollout only responses with an
advantage train, and what is missing to half of it comes from a memory of
earlier ones, drawn by |A|. Forced rethinking: "Wait, ..." is put behind finished
responses, the policy goes on, and what then ends right replaces the response,
with an SFT loss beside.

  python -m mmr1.main --config=configs/vl_rethinker.py
  python -m mmr1.main --config=configs/vl_rethinker.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2.5-VL-7B-Instruct \
      --config.data.path=/data/ViRL39K.parquet

Arguments: a scale of `common.MODELS`; `ssr` (no forced rethinking), `filter`
(in place of replay: what has an advantage, again and again) or `grpo` (neither
nor: all responses), joined by commas.

Ablations:
  --config.rl.select.kwargs.power=2.0 --config.rl.replay.kwargs.power=2.0
                                               alpha, 1 in the paper
  --config.rl.revise.kwargs.queries=0.25       of the prompts; not known [ours]
  --config.terms.imitation.coefficient=0.0     no SFT loss
  --config.rewards.outcome.kwargs.native_waits=False
  --config.rewards.outcome.kwargs.form=released

The paper's old log-probs are those of the policy at the start of a step, of a
response of the memory those of its own. The code bounds a loss above 10; here it
is not bounded. In the tiny run everything but the objective is ours.
"""

from configs import common

OPTIONS = ('ssr', 'filter', 'grpo')
_REPLAY = 'mmr1.papers.vl_rethinker_replay'


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, options = common.split(arg, OPTIONS, 'vl_rethinker')
  c = common.get_base(scale)
  c.name = 'vl_rethinker'
  c.rewards.outcome = common.reward(
      'mmr1.papers.vl_rethinker:outcome', native_waits=True, form='valid',
      boxed=True)
  c.rewards.correct = common.reward('answer.correct', 0.0, boxed=True)
  c.rewards.waits = common.reward('mmr1.papers.vl_rethinker:waited', 0.0)
  c.rl.rewards = ('outcome', 'correct', 'waits')
  c.rl.advantage.fn = 'dr_grpo'
  c.rl.policy.kwargs = dict(eps_low=0.2, eps_high=0.35)
  c.rl.old = 'recompute'
  c.rl.kl.coefficient = 0.0
  c.terms.imitation = common.term(f'{_REPLAY}:imitation', 0.05)
  if 'grpo' not in options:
    c.rl.select = dict(fn=f'{_REPLAY}:selected', kwargs=dict(power=1.0))
    c.rl.replay.fn = f'{_REPLAY}:refilled'
    c.rl.replay.kwargs = dict(power=1.0, floor=1e-4)
  if 'filter' in options:
    c.rl.select = dict(fn=f'{_REPLAY}:filtered', kwargs=dict())
    c.rl.replay.fn = None
  if not options:
    c.rl.terms = ('imitation',)
    c.rl.revise = dict(
        fn='mmr1.papers.vl_rethinker:rethink', temperature=0.9,
        kwargs=dict(queries=1.0, share=0.5, neutral=0.5),
        keep=dict(fn='mmr1.papers.vl_rethinker:rethought', kwargs=dict()))
  (_tiny if c.scale == 'tiny' else _real)(c)
  return c


def _tiny(c):
  """Digits, answered in tags. The embedded model doubts in one line and knows
  no box, so it goes on inside its thinking; all numbers [ours]."""
  common.small_digits(c)
  c.rl.max_new_tokens = 64
  c.rewards.outcome.kwargs.boxed = False
  c.rewards.correct.kwargs.boxed = False
  if c.rl.revise.fn is not None:
    c.rl.revise.kwargs = dict(
        longest=48, queries=0.5, share=1.0, neutral=0.5,
        marks=(('Wait', 'last'), ('</think>', 'last')),
        texts=(' Hmm, wait.', ' Wait, is that right?',
               ' Wait, let me check.', ' Hmm, check again.'))
    c.rl.revise.keep.kwargs = dict(least=4)
  _memory(c)
  c.vl_rethinker = common.overlay(c.rl, steps=16)
  c.stages = ('vl_rethinker',)


def _real(c):
  """The paper's scale: ViRL39K, 1024 responses of which 512 train, 3 epochs."""
  c.data.instruction = (
      'Please reason step by step, and put your final answer within \\boxed{}.')
  c.data.prompt_tokens = 2048
  c.rl.optimizer.lr = 1e-6
  c.rl.prompts_per_step, c.rl.samples_per_prompt = 128, 8
  c.rl.max_new_tokens, c.rl.top_p = 2048, 0.95
  if c.rl.revise.fn is not None:
    c.rl.revise.kwargs.longest = c.rl.max_new_tokens - 1024
  _memory(c)
  if c.rl.replay.fn is None:
    c.rl.minibatches_per_step = 2  # an update is of 512 responses here too
  c.evaluation.temperature = 0.6
  c.evaluation.max_new_tokens = 2048  # as in training [ours]
  c.vl_rethinker = common.overlay(
      c.rl, steps=3 * 39_000 // 128, chunks_per_minibatch=8,
      length_buckets=(512, 1024))
  c.stages = ('vl_rethinker',)


def _memory(c):
  """Half of a rollout is kept, and at most as many train again."""
  half = c.rl.prompts_per_step * c.rl.samples_per_prompt // 2
  if c.rl.replay.fn is not None:
    c.rl.replay.capacity = c.rl.replay.rows = half
