r"""Critic-V: VLM Critics Help Catch VLM Errors in Multimodal Reasoning.

arXiv 2411.18203 (CVPR 2025). https://github.com/kyrieLei/Critic-V (data only)

What is new: a critic that writes what is wrong with an answer, trained by DPO
from critiques ranked by rule: errors are put into answers and recorded, and a
critique is worth the overlap of what it names with them. The reasoner stays as
it is; critiques change its prompt (stage `refine`).

  python -m mmr1.main --config=configs/critic_v.py
  python -m mmr1.main --config=configs/critic_v.py:qwen2_5_vl_7b \
      --config.model.path=/models/Qwen2-VL-7B-Instruct \
      --config.critic.data=/data/critique_vqa.jsonl \
      --config.data.path=/data/questions.parquet

`critic.data` has columns `problem` (what the critic is asked, as
`mmr1.papers.critic_v:ask` writes it), `chosen` and `rejected`. Arguments: a
scale of `common.MODELS`. `rounds` counts critiques: 1 at scale, as in the runs
that are reported (answer, critique, answer), 2 in the tiny run, for the loop of
Algorithm 3.

Ablations:
  --config.critic_v.rounds=0                   the reasoner alone; also 1, 2, 3
  --config.critic_v.critic=self                the reasoner criticises itself
  --config.critic_v.critic=critic_start        a critic before DPO (tiny run)
  --config.critic_v.fixed=Check.               the same words always
  --config.critic_v.history=accumulate         all critiques stay in the prompt
  --config.critic.loss.kwargs.beta=0.1
  --config.pairs.kwargs.temperatures="(0.7,1.0,1.3)"
                                               critiques are the critic's own

Marked [ours]: the paper gives no value. In the tiny run everything but the
scores, the pairs, the loss, the adapters and the loop is ours.
"""

from configs import common


def get_config(arg: str | None = None):
  """The config; `arg` as in the module's docstring."""
  scale, _ = common.split(arg, (), 'critic_v')
  c = common.get_base(scale)
  c.name = 'critic_v'
  c.preference.loss.kwargs = dict(beta=1.0, length='sum')
  c.preference.lora.rank, c.preference.lora.alpha = 8, 16.0
  c.preference.instruction = ''
  c.refine.ask.fn = 'critic_v.ask'
  c.refine.rewrite.fn = 'critic_v.reflect'
  c.refine.satisfied.fn = 'critic_v.satisfied'
  c.refine.history = 'replace'
  (_tiny if c.scale == 'tiny' else _real)(c)
  return c


def _tiny(c):
  """Rows of digits that a reasoner misreads; all numbers [ours]."""
  c.model.layers = 'scan'  # compiles faster
  c.data.mixture, c.data.weights = ('reading',), (1.0,)
  c.tasks.reading.max_digits = 3
  c.data.instruction = ''
  c.data.prompt_tokens, c.data.patches = 112, 32
  c.evaluation.examples, c.evaluation.max_new_tokens = 32, 16
  c.sft.rows_per_step, c.sft.init, c.sft.instruction = 16, 'base', ''
  c.sft.max_new_tokens = 64
  c.sft.optimizer.lr, c.sft.optimizer.warmup_steps = 1e-3, 10
  c.sft.optimizer.b2, c.sft.optimizer.lr_decay = 0.98, 'cosine'
  c.lessons = common.overlay(
      c.collect, engine='critic_v.lessons', size=1024, kwargs=dict(
          misread={'3': 8, '5': 6, '9': 4}, recall=0.7, false=0.2))
  c.reasoner = common.overlay(
      c.sft, data='lessons', steps=56, max_new_tokens=16)
  c.starts = common.overlay(
      c.collect, engine='critic_v.starts', size=2048, kwargs=dict(
          recall=0.6, false=0.3, clean=0.2, most=5))
  c.critic_start = common.overlay(c.sft, data='starts', steps=72)
  c.pairs = common.overlay(
      c.collect, engine='critic_v.pairs', init='critic_start', size=384,
      kwargs=dict(recalls=(0.9, 0.6, 0.3), falses=(0.05, 0.2, 0.4),
                  temperatures=(), max_new_tokens=64, most=5, alpha=0.1))
  c.critic = common.overlay(
      c.preference, init='critic_start', data='pairs', steps=24,
      pairs_per_step=16, max_new_tokens=64,
      optimizer=dict(lr=5e-4, warmup_steps=5, lr_decay='cosine'))
  c.refine.examples, c.refine.prompts_per_batch = 128, 128
  c.refine.max_new_tokens, c.refine.critic_tokens = 16, 64
  c.refine.score.fn, c.refine.init = 'critic_v.told', 'reasoner'
  c.refine.rounds = 2
  c.untrained = common.overlay(c.refine, critic='critic_start')
  c.critic_v = common.overlay(c.refine, critic='critic')
  c.stages = ('lessons', 'reasoner', 'starts', 'critic_start', 'pairs',
              'critic', 'untrained', 'critic_v')


def _real(c):
  """The paper's scale: 29,012 pairs, 3 epochs, 8 an update."""
  c.data.instruction = ('Please try to answer the question with short words or '
                        'phrases if possible.')
  c.data.max_pixels, c.data.min_pixels = 262_144, 3136
  c.data.patches = 1344
  # LoRA on all linear layers of the decoder, 2,048 tokens with the prompt.
  c.critic = common.overlay(
      c.preference, init='base', data='data/critique_vqa.jsonl', steps=10_880,
      pairs_per_step=8, max_new_tokens=1024,
      optimizer=dict(lr=5e-6, warmup_steps=1088, lr_decay='cosine'))
  c.data.prompt_tokens = 1024
  c.refine.examples, c.refine.init = 1024, 'base'
  c.refine.rounds = 1  # answer, critique, answer
  c.refine.max_new_tokens, c.refine.critic_tokens = 1024, 1024
  c.critic_v = common.overlay(c.refine, critic='critic')
  c.stages = ('critic', 'critic_v')
