"""Generation alone: tokens per second against HF generate and Tunix's sampler.

  python -m experiments.bench.generate
      [--workloads=w1,w2] [--engines=mmr1,repeated,trl,tunix] [--rounds=5]

'trl' is HF generate, which TRL calls, with `num_return_sequences` = G. Two
lanes are mmr1 against itself: on w5, whose rows end early, 'full' runs the same
rows to the cap (useful tokens per second should not fall far below it); on w1
'cap1024' draws as many tokens under a cap of 1,024 (which should not cost).
Leaves experiments/results/bench/generate.json.
"""

from absl import app

from experiments.bench import compare
from experiments.bench import rounds
from experiments.bench import workloads

WORKLOADS = ('w1', 'w2', 'w3', 'w4', 'w5')
# mmr1 on another workload, beside the engines: {workload: {label: other}}.
_AGAINST_ITSELF = {'w1': {'cap1024': 'cap1024'}, 'w5': {'full': 'w5full'}}


def lanes(name: str, engines: list[str]) -> dict[str, rounds.Lane]:
  """Engines that can run a workload, and what mmr1 is compared with itself."""
  w = workloads.named(name)
  result = {engine: rounds.Lane(engine, w, w.rows)
            for engine in rounds.able(engines, w)}
  if 'mmr1' in engines:
    for label, other in _AGAINST_ITSELF.get(name, {}).items():
      result[label] = rounds.Lane('mmr1', workloads.named(other), w.rows)
  return result


def main(argv):
  del argv
  compare.run('generate', 'generation', WORKLOADS, 'generate', lanes)


if __name__ == '__main__':
  app.run(main)
