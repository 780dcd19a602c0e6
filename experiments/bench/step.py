"""A whole GRPO step: mmr1 against its peers, and against itself without groups.

  python -m experiments.bench.step
      [--workloads=w1,w2] [--engines=mmr1,repeated,trl,tunix] [--rounds=5]

A step is generation, the reference's log-probabilities and one update by
AdamW; loading data and rewards are left out. 'repeated' is mmr1 with every
prompt G times in the batch, groups of one, and the group's advantages. Peers
need `python -m experiments.bench.install_peers` first; one that is missing is
named and stands as 'not measured'. Leaves experiments/results/bench/step.json.
"""

from absl import app

from experiments.bench import compare

WORKLOADS = ('w1', 'w2', 'w3', 'w4', 'w5')


def main(argv):
  del argv
  compare.run('step', 'GRPO step', WORKLOADS, 'step', compare.lanes)


if __name__ == '__main__':
  app.run(main)
