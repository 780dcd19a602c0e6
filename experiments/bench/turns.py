"""Sampled tokens per second of episodes beside those of single turns.

  python -m experiments.bench.turns

On `w1`: 4 prompts x 8 samples. One turn of 128 tokens, and three turns of 43
with something after each but the last: some words, or words and a picture of
224 x 224 (64 tokens; 64 pictures a rollout, where the prompts have 4). They are
measured in turns; what the environment does, encoding pictures included,
counts. Leaves experiments/results/bench/turns.json.
"""

import dataclasses
import json
import pathlib
import platform
import statistics
import tempfile
import time

from absl import app
from absl import flags
import jax
import numpy as np
from PIL import Image

from experiments.bench import engine_mmr1
from experiments.bench import workloads
from mmr1 import environments
from mmr1 import playing
from mmr1 import records
from mmr1.sampling import keys
from mmr1.sampling import sample

flags.DEFINE_integer('measured', 9, 'Measurements of each.')
FLAGS = flags.FLAGS
TURNS, TURN = 3, 43
# What is said at most: (tokens, patches).
SAID = {'words': (20, 0), 'pictures': (96, 256)}
OUT = pathlib.Path(__file__).parents[1] / 'results' / 'bench' / 'turns.json'


class Answers:
  """Answers every turn but the last with words, and perhaps a picture."""
  role = 'user'

  def __init__(self, *, pictures: bool):
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    self._images = (Image.fromarray(pixels),) if pictures else ()

  def reset(self, example, seed):
    return 0

  def step(self, state, said):
    return state + 1, records.Observation(
        text='Look again.', images=self._images, call={},
        done=state + 1 == TURNS)


class Player(playing.Player):
  """Turns end at their cap here, since eos is never drawn."""

  def _heard(self, at, one):
    super()._heard(at, one)
    return True


def single(engine: engine_mmr1.Engine) -> tuple[float, int]:
  """(seconds, sampled tokens) of a rollout of one turn."""
  began = time.perf_counter()
  rollout = engine.rollout()
  seconds = time.perf_counter() - began
  return seconds, int((np.asarray(rollout.completions.kind) == 1).sum())


def episodes(engine: engine_mmr1.Engine,
             env: environments.Environment) -> tuple[float, int]:
  """The same of episodes."""
  length = TURNS * TURN + (TURNS - 1) * env.observation_tokens
  ctx, began = engine.ctx, time.perf_counter()
  prompts = engine.prompts()
  group = engine.workload['group']
  player = Player(
      env, ctx.processor, {i: e for i, (e, _) in enumerate(engine.taken.pairs)},
      np.asarray(prompts.next_position), group=group, length=length, seed=0)
  sampler = ctx.sampler
  rollout = jax.block_until_ready(sampler(
      sampler.publish(engine.state.params['policy']), prompts,
      keys.step_key(0, 1, engine.steps), sample.knobs(max_new_tokens=length),
      engine.state.step, group=group, length=length, player=player))
  seconds = time.perf_counter() - began
  kinds = np.asarray(rollout.completions.kind)
  assert all(len(one) == len(player.trajectories[0][0])
             for row in player.trajectories for one in row)
  return seconds, int((kinds == 1).sum())


def environment(said: str) -> environments.Environment:
  """With `said` of SAID after every turn but the last."""
  tokens, patches = SAID[said]
  return environments.Environment(
      name=said, fn=Answers(pictures=patches > 0), stop=(), max_turns=TURNS,
      turn_tokens=TURN, observation_tokens=tokens, observation_patches=patches,
      images=TURNS if patches else 0, workers=2, limit_s=60.0)


def rounds(engine: engine_mmr1.Engine, said: str) -> dict[str, object]:
  """Single turns and episodes by turns."""
  env = environment(said)
  single(engine), episodes(engine, env)  # compiles
  rows = [(single(engine), episodes(engine, env))
          for _ in range(FLAGS.measured)]
  rates = [[tokens / seconds for seconds, tokens in row] for row in rows]
  ratios = [several / one for one, several in rates]
  return {
      'rounds': [{'single_tokens_per_s': a, 'episodes_tokens_per_s': b,
                  'single_tokens': row[0][1], 'episode_tokens': row[1][1]}
                 for (a, b), row in zip(rates, rows)],
      'ratio_min': min(ratios), 'ratio_median': statistics.median(ratios)}


def main(_) -> None:
  # Both sides with a cache that grows with the tokens.
  workload = dataclasses.replace(
      workloads.named('w1'), sampler=(('cache_chunk', 64),))
  found = {
      'command': 'python -m experiments.bench.turns', 'jax': jax.__version__,
      'machine': platform.processor() or platform.machine()}
  with tempfile.TemporaryDirectory() as root:
    folder = pathlib.Path(root) / 'w1'
    workloads.build(workload, folder)
    engine = engine_mmr1.Engine(
        folder, str(pathlib.Path(root) / 'run'), repeated=False, cpu_devices=2)
    found.update((said, rounds(engine, said)) for said in SAID)
    engine.ctx.close()
  OUT.write_text(json.dumps(found, indent=1) + '\n')
  print(json.dumps(found, indent=1))


if __name__ == '__main__':
  engine_mmr1.define_flags()
  app.run(main)
