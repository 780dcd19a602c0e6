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

from experiments.bench import flops
from experiments.bench import rounds
from experiments.bench import workloads

FLAGS = flags.FLAGS
WORKLOADS = ('w1', 'w2', 'w3', 'w4')
_FLOPS = flags.DEFINE_list('flops', ['w2'], 'Workloads to count.')


def main(argv):
  del argv
  engines, absent = rounds.present(FLAGS.engines or rounds.ENGINES)
  results, table = {}, []
  for name in FLAGS.workloads or WORKLOADS:
    w = workloads.named(name)
    found = rounds.measure(
        {engine: rounds.Lane(engine, w)
         for engine in rounds.able(engines, w)}, 'step')
    results[name] = dict(
        about=w.about, engines=found, ratios=rounds.ratios(found, 'update'))
    table += rounds.rows(name, found, rounds.able(absent, w), 'update')
  counted = {name: flops.measure(name) for name in _FLOPS.value if name}
  rounds.show('update', table)
  flops.show(counted)
  rounds.record('update', results, engines, absent, flops=counted)


if __name__ == '__main__':
  app.run(main)
