"""Runs an ablation: changes of one config, each on several seeds.

  python -m experiments.sweep experiments/sweeps/ptst.py
  python -m experiments.sweep experiments/sweeps/kl.py --seeds=0,1,2 --jobs=2 \
      --config.rl.prompts_per_step=24

All overrides are checked before anything starts. Each run is a process with a
workdir of its own, runs/<sweep>/<run>_seed<k>, and goes on where it was when
the command is given again. At the end: a table over seeds, in summary.md too;
the record sweep.json; and one report of all runs, compare.html. What a sweep
file holds is in experiments/sweep_file.py and docs/ablations.md.
"""

import json
import pathlib
import shlex
import sys
import time

from absl import flags
import jax

from experiments import board as board_lib
from experiments import launch
from experiments import sweep_file
from experiments import sweep_results
from mmr1 import resolve
from mmr1 import workdir as workdir_lib
from mmr1.reporting import page

_FLAGS = flags.FlagValues()
flags.DEFINE_integer(
    'jobs', None, 'Runs at a time. Default: as many as cores and memory allow; '
    'on accelerators one.', flag_values=_FLAGS)
flags.DEFINE_list('seeds', None, "In place of the file's.", flag_values=_FLAGS)
flags.DEFINE_list('runs', None, 'Only these of the file, by name; the first is '
                  'what the others are compared with.', flag_values=_FLAGS)
flags.DEFINE_integer('steps', None, 'Of each stage that trains, at most.',
                     flag_values=_FLAGS)
flags.DEFINE_string('arg', '', "Of the config, before the file's: a scale.",
                    flag_values=_FLAGS)
flags.DEFINE_string('work', None, 'Folder of all runs. Default: runs/<sweep>.',
                    flag_values=_FLAGS)
flags.DEFINE_bool('fresh', False, 'Start all of them over.',
                  flag_values=_FLAGS)
flags.DEFINE_bool('check', False, 'Checks, prints the commands, starts '
                  'nothing.', flag_values=_FLAGS)
flags.DEFINE_bool('help', False, 'Shows this.', flag_values=_FLAGS)

_SHOWN = 12  # last lines of a run that failed


def main(argv: list[str]) -> int:
  """Returns the exit code: 0, 1 if a run failed, 130 if stopped."""
  everywhere = [arg for arg in argv if arg.startswith('--config.')]
  try:
    rest = _FLAGS([arg for arg in argv if arg not in everywhere])[1:]
    if _FLAGS.help:
      print(f'{__doc__}{_FLAGS.get_help()}')
      return 0
    if len(rest) != 1:
      raise ValueError(f'got {rest}; needed is the file of one sweep, as in '
                       'experiments/sweeps/ptst.py.')
    # Its plans hold arrays; accelerators are left to the runs.
    jax.config.update('jax_platforms', 'cpu')
    sweep = _chosen(sweep_file.read(rest[0], _FLAGS.arg))
    planned = sweep_file.plan(
        sweep, everywhere=everywhere, steps=_FLAGS.steps)
    work = pathlib.Path(_FLAGS.work or f'runs/{sweep.name}')
    jobs = [_job(one, work) for one in planned]
    if _FLAGS.check:
      print('\n'.join(shlex.join(('python', *job.command[1:]))
                      for job in jobs))
      return 0
    parts = launch.slots(launch.machine(), _FLAGS.jobs,
                         each=max(one.cores for one in planned) or 2)
  except (ValueError, flags.Error) as error:
    sys.exit(f'sweep: {error}')
  command = shlex.join(('python', '-m', 'experiments.sweep', *argv[1:]))
  return _run(sweep, planned, jobs, parts, work, command)


def _chosen(sweep: sweep_file.Sweep) -> sweep_file.Sweep:
  """With the runs and seeds that the command line asks for."""
  if _FLAGS.seeds is not None:
    try:
      sweep = sweep._replace(seeds=tuple(map(int, _FLAGS.seeds)))
    except ValueError:
      raise ValueError(
          f'--seeds: got {",".join(_FLAGS.seeds)}; needed are integers, as in '
          '0,1,2.') from None
    sweep_file.check_twice('--seeds', sweep.seeds)
  if _FLAGS.runs is not None:
    for name in _FLAGS.runs:
      if name not in sweep.runs:
        raise ValueError(f'--runs: {sweep.name} has no run {name!r}. '
                         f'{resolve.nearest(name, sweep.runs)}')
    sweep = sweep._replace(
        runs={name: sweep.runs[name] for name in _FLAGS.runs})
  return sweep


def _job(one: sweep_file.Planned, work: pathlib.Path) -> launch.Job:
  workdir = work / one.name
  return launch.Job(
      one.name, (sys.executable, '-m', 'mmr1.main', one.flags[0],
                 f'--workdir={workdir}', *one.flags[1:],
                 *(['--fresh'] if _FLAGS.fresh else [])),
      workdir, work / 'logs' / f'{one.name}.log', one.steps,
      over=not _FLAGS.fresh and _is_over(workdir, one.resolved))


def _is_over(workdir: pathlib.Path, resolved: str) -> bool:
  """Whether a run of this very config has ended there."""
  return (workdir / 'FINISHED').exists() and (
      workdir / 'config.json').read_text() == resolved


def _run(sweep, planned, jobs, parts, work, command) -> int:
  began = time.time()
  with board_lib.Board() as board:
    board.say(f'{sweep.question}\n{len(jobs)} runs, {min(len(parts), len(jobs))}'
              f' at a time, in {work}')
    ended = launch.run(jobs, parts, board)
  results = [sweep_results.Result(
      one.run, one.seed, job.workdir, end.state,
      sweep_results.evaluations(job.workdir) if end.state == 'done' else {})
             for one, job, end in zip(planned, jobs, ended)]
  text = sweep_results.table(results, sweep.metrics)
  about = {'command': command, 'question': sweep.question, 'began': began,
           'seconds': time.time() - began, 'jobs': len(parts),
           'runs': {name: dict(run) for name, run in sweep.runs.items()},
           'processes': [{
               'name': job.name, 'command': shlex.join(job.command),
               'state': end.state, 'code': end.code,
               'seconds': round(end.seconds, 1), 'continued': end.continued}
                         for job, end in zip(jobs, ended)]}
  workdir_lib.write_whole(workdir_lib.absolute(work / 'sweep.json'), json.dumps(
      sweep_results.record(results, sweep.metrics, about), indent=1) + '\n')
  workdir_lib.write_whole(
      workdir_lib.absolute(work / 'summary.md'),
      sweep_results.summary(sweep.question, command, text))
  print(f'\n{text}\n')
  return _close(ended, work)


def _close(ended: list[launch.Ended], work: pathlib.Path) -> int:
  """The report, and what did not end well."""
  begun = [one.job.workdir for one in ended
           if (one.job.workdir / 'metrics.jsonl').exists()]
  if begun:
    print(f'report  {page.write(begun, work / "compare.html")}')
  print(f'record  {work / "sweep.json"}')
  for one in ended:
    if one.state == 'failed':
      lines = one.job.log.read_text(errors='replace').splitlines()[-_SHOWN:]
      print(f'\n{one.job.name} failed ({one.code}); the end of {one.job.log}:',
            *lines, sep='\n  ')
  stopped = [one.job.name for one in ended if one.state == 'stopped']
  if stopped:
    print(f'\nnot finished: {", ".join(stopped)}. The same command goes on.')
    return 130
  return int(any(one.state == 'failed' for one in ended))


if __name__ == '__main__':
  sys.exit(main(sys.argv))
