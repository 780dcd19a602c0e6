"""The update alone, and what XLA counts in it with and without groups.

  python -m experiments.bench.update
      [--workloads=w1,w2] [--engines=mmr1,repeated,trl,tunix] [--rounds=5]
      [--flops=w2]

The update is the gradient of the objective and AdamW, taken out of whole steps;
the reference pass is not in it. --flops names workloads whose prefill and
update are counted, see `experiments.bench.flops`; '' counts none. Leaves
experiments/results/bench/update.json.
"""

from absl import app
from absl import flags

from experiments.bench import compare
from experiments.bench import flops

WORKLOADS = ('w1', 'w2', 'w3', 'w4')
_FLOPS = flags.DEFINE_list('flops', ['w2'], 'Workloads to count.')


def main(argv):
  del argv
  counted = {name: flops.measure(name) for name in _FLOPS.value if name}
  flops.show(counted)
  compare.run('update', 'update', WORKLOADS, 'step', compare.lanes, 'update',
              flops=counted)


if __name__ == '__main__':
  app.run(main)
