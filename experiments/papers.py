"""Runs a paper's mechanism against plain GRPO on the same seeds; draws it.

  python -m experiments.papers --paper=luffy --seeds=0,1,2

Leaves experiments/results/<paper>/: a JSON for every arm and seed (command,
evaluations, curves, versions), curves.png and summary.md. An arm whose JSON is
there is not run again: delete it to do so. What a run prints is in <work>/logs.
The arms and what is drawn are in ARMS below; every arm is the tiny config with
the overrides listed there.
"""

from collections.abc import Callable
import json
import pathlib
import platform
import sys
from typing import NamedTuple

from absl import app
from absl import flags
import jax

from experiments import board as board_lib
from experiments import kept
from experiments import launch
from experiments import paper_figures
from mmr1 import log

flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds to run.')
flags.DEFINE_string('work', 'runs/papers', 'Where the runs go.')
flags.DEFINE_integer('jobs', 1, 'Runs at a time; their seconds are kept.')
FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).parent / 'results'


class Paper(NamedTuple):
  """What is compared and drawn.

  Fields:
    arms: {name: (argument of the config, overrides)}; the first is the paper.
    curves: metrics of the rl stage, or numbers of `rollouts`.
    steps: of the rl stage; more than the tiny config's.
    rollouts: numbers of a recorded step, of experiments/kept.py, or None.
    stage: which one; None: that of the paper's name.
    ends: metrics of its evaluation that the table shows; '<stage>:<metric>' of
      another's.
  """
  arms: dict[str, tuple[str, tuple[str, ...]]]
  curves: tuple[str, ...]
  steps: int = 30
  rollouts: Callable[[pathlib.Path], dict[str, float]] | None = None
  stage: str | None = None
  ends: tuple[str, ...] = ('eval/accuracy', 'eval/accuracy_sampled')


_UP_TO_MRL = "--config.stages=('text','cold_start','mrl')"
ARMS = {
    # The masked policy with a gradient, and a gamma that shows in 30 steps.
    'papo': Paper(
        {'papo': ('recompute', (
            '--config.terms.perception.coefficient=0.1',
            '--config.terms.blind_entropy.coefficient=0.05',
            '--config.rl.entropy.coefficient=-0.05')),
         'grpo': ('recompute', (
             '--config.terms.perception.coefficient=0.0',
             '--config.terms.blind_entropy.coefficient=0.0'))},
        ('view/masked/drop', 'reward/result/mean', 'entropy')),
    'vppo': Paper(
        {'vppo': ('', ()), 'dapo': ('', ('--config.rl.weights=()',))},
        ('kept/digits', 'kept/numbers', 'kept/words', 'grad_norm',
         'reward/result/mean'), rollouts=kept.share_kept),
    'vogue': Paper(
        {'vogue': ('', ()),
         'grpo': ('code', ('--config.rl.advantage.kwargs.alpha_visual=0.0',
                           '--config.rl.advantage.kwargs.alpha_entropy=0.0'))},
        ('uncertainty/noisy', 'entropy/raw', 'entropy/noisy', 'entropy',
         'select/noisy_frac', 'reward/result/mean'), rollouts=kept.branches),
    'grpo_care': Paper(
        {'grpo_care': ('', ()),
         'grpo': ('', ('--config.rl.combine.kwargs.bonus=0.0',))},
        ('reward/consistent/mean', 'reward/likelihood/mean',
         'reward/result/mean')),
    'luffy': Paper(
        {'luffy': ('', ()),
         'grpo': ('', ('--config.rl.experts=0', '--config.rl.terms=()'))},
        ('reward/mean', 'entropy', 'response_length/mean', 'grad_norm')),
    'revisual_r1': Paper(
        {'revisual_r1': ('', (_UP_TO_MRL,)), 'grpo': ('grpo', (_UP_TO_MRL,))},
        ('train/size', 'grad_norm', 'reward/result/mean', 'reward/length/mean',
         'response_length/mean'), rollouts=kept.sizes, stage='mrl'),
    'mm_helix': Paper(
        {'mm_helix': ('', ()),
         'static': ('', ('--config.rl.advantage.kwargs.threshold=6',)),
         'grpo': ('', ('--config.rl.experts=0', '--config.rl.terms=()'))},
        ('advantage/gate/mean', 'own/solved', 'entropy', 'grad_norm'),
        steps=60, rollouts=kept.own),
    'vl_rethinker': Paper(
        {'vl_rethinker': ('', ()), 'grpo': ('grpo', ())},
        ('train/effective', 'replay/rows', 'revise/kept', 'grad_norm',
         'reward/correct/mean'), rollouts=kept.sizes),
    'ares': Paper(
        {'ares': ('', ()),
         'grpo': ('', ('--config.rl.combine.kwargs.alpha=0.0',
                       '--config.rl.combine.kwargs.lr=0.0',
                       "--config.rl.hooks=('tau',)",
                       '--config.rl.advantage.kwargs.relaxed=1.0'))},
        ('length/easy', 'length/hard', 'aepo/easy/count', 'aepo/hard/count',
         'reward/result/mean'), rollouts=kept.by_difficulty),
    'recap': Paper(
        {'recap': ('', ()),
         'fixed': ('', ('--config.rl.combine.kwargs.form=none',))},
        ('reward/accuracy/weight', 'reward/read/weight', 'reward/nll/weight',
         'reward/accuracy/mean', 'reward/read/mean', 'reward/nll/mean')),
    # After the cold start by preference, and after one that imitates the same
    # chosen texts.
    'metis_specs': Paper(
        {'metis_specs': ('', ()), 'sft': ('sft', ())},
        ('reward/mean', 'reward/result/mean', 'reward/format/mean', 'entropy',
         'response_length/mean', 'grad_norm'), ends=(
             'cold_start:eval/accuracy', 'cold_start:eval/gain/in',
             'cold_start:eval/gain/out',
             'cold_start:eval/generalisation_factor', 'eval/accuracy',
             'eval/accuracy_sampled')),
    # Where does it zoom?
    'chain_of_focus': Paper(
        {'chain_of_focus': ('', ('--config.cold_start.steps=90',))},
        ('reward/zoomed_small/mean', 'reward/zoomed_large/mean',
         'reward/result/mean'), steps=24, ends=(
             'cold_start:eval/accuracy', 'cold_start:eval/accuracy_sampled',
             'eval/accuracy', 'eval/accuracy_sampled')),
    # Regions, and right answers with them.
    'vlm_r3': Paper(
        {'vlm_r3': ('', ('--config.cold_start.steps=60',))},
        ('env/calls', 'reward/zoomed/mean', 'reward/region/mean',
         'reward/result/mean'), steps=24, ends=(
             'cold_start:eval/accuracy', 'cold_start:eval/accuracy_sampled',
             'eval/accuracy', 'eval/accuracy_sampled')),
    'sophiavl_r1': Paper(
        {'sophiavl_r1': ('', ()),
         # In place of the judge a score that rises with the length.
         'longer': ('longer', ()),
         'grpo': ('', ('--config.rl.combine.kwargs.alpha=0.0',))},
        ('reward/thinking/mean', 'reward/trust/mean', 'reward/trust/weight',
         'reward/outcome/mean')),
    # What voters say, as sigma(score), and what is true.
    # With 12 prompts a step five steps are too few to see what is true.
    'basereward': Paper(
        {'hybrid': ('', (
            '--config.reward_model.steps=90',
            '--config.basereward.prompts_per_step=36'))},
        ('reward/model/unit', 'reward/true/mean', 'reward/model/mean',
         'judge/model/std'), ends=(
             'voter:eval/pair_accuracy', 'second:eval/pair_accuracy',
             'cold_start:eval/accuracy_sampled', 'eval/accuracy',
             'eval/accuracy_sampled')),
    # The critic before and after DPO, and what its critiques do to answers.
    'critic_v': Paper(
        {'critic_v': ('', (
            '--config.reasoner.steps=80', '--config.starts.size=4096',
            '--config.critic_start.steps=400', '--config.pairs.size=768'))},
        ('loss', 'rewards/margins', 'rewards/accuracies', 'grad_norm'), steps=64,
        stage='critic', ends=(
            'critic_v:eval/round_0/accuracy', 'untrained:eval/accuracy',
            'critic_v:eval/accuracy', 'untrained:eval/critic/jaccard',
            'critic_v:eval/critic/jaccard')),
    'uniworld_v2': Paper(
        {'nft': ('', ()), 'flow_grpo': ('flow_grpo', ())},
        ('reward/mean', 'grad_norm', 'select/kept_frac'), steps=60,
        stage='nft', ends=('eval/reward', 'eval/followed')),
    'dino_r1': Paper(
        {'dino_r1': ('', ()), 'sft': ('sft', ())},
        ('loss/label', 'loss/giou', 'queries/kl', 'queries/advantage'),
        steps=400, stage='dino_r1', ends=('eval/ap', 'eval/ap50')),
}
flags.DEFINE_enum('paper', None, [*ARMS], 'Which paper.', required=True)


def command(paper: str, arm: str, seed: str, workdir: pathlib.Path,
            ) -> list[str]:
  """The command line of a run."""
  spec = ARMS[paper]
  arg, overrides = spec.arms[arm]
  return [
      sys.executable, '-m', 'mmr1.main',
      f'--config=configs/{paper}.py' + (f':{arg}' if arg else ''),
      f'--workdir={workdir}', '--fresh', f'--config.seed={seed}',
      f'--config.{spec.stage or paper}.steps={spec.steps}',
      *(['--config.rl.record_every=1'] if spec.rollouts else []), *overrides]


def job(paper: str, arm: str, seed: str) -> launch.Job:
  """A run from scratch."""
  spec, work = ARMS[paper], pathlib.Path(FLAGS.work)
  name = f'{paper}_{arm}_{seed}'
  return launch.Job(
      name, tuple(command(paper, arm, seed, work / name)), work / name,
      work / 'logs' / f'{name}.log', {spec.stage or paper: spec.steps})


def read(paper: str, arm: str, seed: str, ended: launch.Ended) -> dict:
  """What a run has left: its command, evaluations and curves."""
  spec, workdir = ARMS[paper], ended.job.workdir
  rows = log.read_rows(workdir / 'metrics.jsonl')
  stage = spec.stage or paper
  steps = [row for row in rows if row['stage'] == stage and 'grad_norm' in row]
  if spec.rollouts:
    for row in steps:
      row.update(spec.rollouts(
          workdir / 'rollouts' / f'{stage}_{row["step"]}.npz'))
  curves = {key: [row.get(key) for row in steps] for key in spec.curves}
  return {
      'command': ' '.join(ended.job.command[1:]), 'arm': arm, 'seed': int(seed),
      'seconds': round(ended.seconds), 'jax': jax.__version__,
      'python': platform.python_version(), 'machine': platform.machine(),
      'evaluations': {
          row['stage']: {k: v for k, v in row.items() if k[:5] == 'eval/'}
          for row in rows if any(key[:5] == 'eval/' for key in row)},
      'curves': curves}


def main(argv):
  del argv
  out = ROOT / FLAGS.paper
  out.mkdir(parents=True, exist_ok=True)
  each = {f'{FLAGS.paper}_{arm}_{seed}': (arm, seed)
          for seed in FLAGS.seeds for arm in ARMS[FLAGS.paper].arms}
  files = {name: out / f'{arm}_{seed}.json'
           for name, (arm, seed) in each.items()}

  def keep(ended: launch.Ended) -> None:
    if ended.state == 'done':
      files[ended.job.name].write_text(json.dumps(
          read(FLAGS.paper, *each[ended.job.name], ended), indent=1))

  kept = [str(file) for file in files.values() if file.exists()]
  if kept:
    print(f'papers: not run again, remove to do so: {", ".join(kept)}')
  jobs = [job(FLAGS.paper, *each[name]) for name, file in files.items()
          if not file.exists()]
  if jobs:
    with board_lib.Board() as board:
      every = launch.run(
          jobs, launch.slots(launch.machine(), FLAGS.jobs), board, keep)
    lost = [str(one.job.log) for one in every if one.state != 'done']
    if lost:
      sys.exit(f'papers: not finished, see {", ".join(lost)}.')
  results = [json.loads(file.read_text()) for file in files.values()]
  results.sort(key=lambda r: (r['arm'], r['seed']))
  spec = ARMS[FLAGS.paper]
  paper_figures.draw(spec, results, out / 'curves.png')
  (out / 'summary.md').write_text(
      f'`python -m experiments.papers --paper={FLAGS.paper} '
      f'--seeds={",".join(FLAGS.seeds)}`\n\n'
      f'{paper_figures.table(spec, spec.stage or FLAGS.paper, results)}\n')


if __name__ == '__main__':
  app.run(main)
