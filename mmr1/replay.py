"""The command that trains on a recorded batch again.

  python -m mmr1.replay --workdir=runs/forkme \\
      --rollout=runs/forkme/rollouts/grpo_11.npz --repeat=5

The batch is a rollout of `record_every` or one of bad_batches/. Neither data nor
sampler are needed; parameters and optimiser are those of the checkpoint right
before the step, else of one further back or of the stage's start, and it says
which. It prints the metrics beside those of the run, equal to the last bit if
the checkpoint was the one right before and the machine is the same, and the
seconds of each repeat. The run is only read: it may be going on.
"""

import importlib
import sys
import tempfile
import time
from typing import Any

from absl import flags
from etils import epath
import jax

from mmr1 import checkpoint
from mmr1 import compiles
from mmr1 import context
from mmr1.data import datasets
from mmr1 import guard
from mmr1 import log
from mmr1 import loop
from mmr1 import command_line
from mmr1 import profiling
from mmr1 import recording
from mmr1 import release
from mmr1 import resolve
from mmr1 import sharding
from mmr1 import runner
from mmr1 import training
from mmr1 import workdir as workdir_lib

# Of its own: a process may import several commands with flags of one name.
_FLAGS = flags.FlagValues()
for _name, _help in (
    ('workdir', 'Folder of the run.'),
    ('rollout', 'A file of its rollouts/ or bad_batches/.'),
    ('profile', 'Folder for a trace of the repeats after the first, which '
                'compiles, or of the only one.'),
    ('model', 'Where the base model is now, if it was moved.')):
  flags.DEFINE_string(_name, None, _help, flag_values=_FLAGS)
flags.DEFINE_integer('step', None, 'Checkpoint to start from; 0: where the '
                     'stage starts. Default: the last one before the step.',
                     lower_bound=0, flag_values=_FLAGS)
flags.DEFINE_integer('repeat', 1, 'Updates, each on what the one before left.',
                     lower_bound=1, flag_values=_FLAGS)
flags.DEFINE_bool('help', False, 'Shows this.', flag_values=_FLAGS)


def main(argv: list[str]) -> None:
  if not command_line.own_flags(_FLAGS, argv, __doc__, {
      'workdir': 'run', 'rollout': 'file'}):
    return
  try:
    replay(_FLAGS.workdir, _FLAGS.rollout, step=_FLAGS.step,
           repeat=_FLAGS.repeat, profile=_FLAGS.profile, model=_FLAGS.model)
  except ValueError as error:
    if not command_line.is_message(error):
      raise
    sys.exit(f'mmr1: {error}')


def replay(
    workdir: str,
    rollout: str,
    *,
    step: int | None = None,
    repeat: int = 1,
    profile: str | None = None,
    model: str | None = None,
) -> dict[str, float]:
  """Trains on a recorded batch again, and prints what came of it.

  Args:
    workdir: of the run.
    rollout: the file.
    step: checkpoint to start from, 0: the stage's start; None: the last one
      before the step.
    repeat: updates; each goes on from the state that the one before left,
      since there may be no room for two states.
    profile: folder for a trace.
    model: where the base model is, if not at the run's model.path.

  Returns:
    The metrics of the first update.

  Raises:
    ValueError: no run, no record, no such checkpoint.
  """
  record = recording.load(workdir_lib.absolute(rollout))
  run = workdir_lib.absolute(workdir)
  config = release.run_config(run, model)
  if record.stage not in config.stages:
    raise ValueError(
        f'--rollout: it is of stage {record.stage!r}; the run in {run} has '
        f'{config.stages}. Is it of another run?')
  runner.set_up_jax(config)
  with tempfile.TemporaryDirectory() as scratch:
    ctx = _open(config, run, record.stage, scratch)
    try:
      return _replay(ctx, record, step, repeat, profile)
    finally:
      ctx.close()


def _open(config: resolve.Section, run: epath.Path, stage: str,
          scratch: str) -> context.Context:
  """The run, to be read."""
  processor = datasets.open_processor(config.model, config.data)
  policy, base = context.open_model(
      config.model, datasets.model_path(config.model.path), processor,
      sharding.default())
  before = config.stages[:config.stages.index(stage)]
  return context.Context(
      config=config, path=run,
      logger=log.Logger(scratch, quiet=True, tensorboard=False),
      checkpoints=checkpoint.Checkpoints(run, read_only=True),
      interrupt=guard.Interrupt(), compiles=compiles.CompileCounter(),
      processor=processor, policy=policy, base=base, order=config.stages,
      models=[name for name in before
              if config[name].kind in context.POLICIES])


def _replay(ctx, record, asked, repeat, profile) -> dict[str, float]:
  stage, k = record.stage, record.step - 1
  section = ctx.config[stage]
  module = importlib.import_module(f'mmr1.stages.{section.kind}')
  number = _choose(ctx.checkpoints.steps(stage), stage, k, asked)
  learner = module.learner(ctx, stage, section)
  state = learner.start.state
  if number:
    state = loop.restore(
        ctx, stage, state, learner.start.stored, number).tree
  print(f'{stage}, step {record.step}, from '
        + (f'checkpoint {stage}_{number}' if number else 'where it starts')
        + ('.' if number == k else f'; the run made it from the state after '
           f'step {k}, so numbers differ.'))
  batch = tuple(map(ctx.policy.layout.spread, record.batch))
  knobs, first = training.traced(record.knobs), None
  stop = profiling.start(profile) if profile and repeat == 1 else None
  for i in range(repeat):
    if i == 1 and profile:
      stop = profiling.start(profile)
    compiled, began = ctx.compiles.count, time.perf_counter()
    with jax.profiler.StepTraceAnnotation('step', step_num=i + 1):
      state, metrics = learner.update(state, batch, knobs, k)
      jax.block_until_ready((state, metrics))
    seconds = time.perf_counter() - began
    compiled = ctx.compiles.count - compiled
    print(f'update {i + 1}: {seconds:.3f} s'
          + (f', {compiled} programs compiled' if compiled else ''))
    first = first or {
        name: float(x) for name, x in jax.device_get(dict(metrics)).items()}
  if stop is not None:
    stop()
    print(f'trace: {profile}')
  _show(first, _row(ctx.path, record))
  return first


def _choose(there: list[int], stage: str, before: int,
            asked: int | None) -> int:
  """The checkpoint to start from; 0: none, the stage's start."""
  if asked is None:
    return max((step for step in there if step <= before), default=0)
  if asked and asked not in there:
    raise ValueError(
        f'--step: {stage!r} has no checkpoint of step {asked}; there are '
        f'{there}, and 0 is where the stage starts.')
  return asked


def _row(run: epath.Path, record: recording.Record) -> dict[str, Any]:
  """What the run wrote of the step."""
  path, result = run / 'metrics.jsonl', {}
  for row in log.read_rows(path) if path.exists() else ():
    if (row['stage'], row['step']) == (record.stage, record.step):
      result.update(row)
  return result


def _show(metrics: dict[str, float], row: dict[str, Any]) -> None:
  """The numbers, those of the run beside them, and whether they agree."""
  known = [name for name in metrics if name in row]
  for name in sorted(metrics):
    print(f'  {name:28} {metrics[name]!r:24} {row.get(name, "")!s}'.rstrip())
  # repr: nan is a string in the row, and equals itself here.
  other = [name for name in known
           if repr(metrics[name]) != repr(float(row[name]))]
  if not known:
    print('metrics.jsonl has no row of this step.')
  elif other:
    print(f'{len(other)} of {len(known)} numbers differ from the row in '
          f'metrics.jsonl, the first is {sorted(other)[0]}.')
  else:
    print(f'all {len(known)} numbers are those in metrics.jsonl, bit for bit.')


if __name__ == '__main__':
  main(sys.argv)
