"""`python -m mmr1.main` in processes that start at once and die on cue.

Every run is a process of its own, forked from one that has imported the
command and has not started jax. It may be told to get a signal at an exact
moment of the run, which nobody can hit from outside.
"""

import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import tempfile
from typing import NamedTuple


class Result(NamedTuple):
  """How a run ended: exit code (negative: the signal) and what it printed."""
  code: int
  out: str
  err: str


class Moment(NamedTuple):
  """When a run is sent a signal.

  Fields:
    call: 'write' (a training row was written), 'save' (a checkpoint is about
      to be), 'finish' (DONE is about to be written).
    stage, step: of the call.
    signal: what is sent.
  """
  call: str
  stage: str
  step: int | None = None
  signal: int = signal.SIGKILL


class Shell:
  """Starts runs; a context manager."""

  def __init__(self, root: pathlib.Path):
    self._root = root
    self._fork = multiprocessing.get_context('forkserver')
    self._fork.set_forkserver_preload(['tests.warm'])
    self._folder = tempfile.TemporaryDirectory()
    self._count = 0

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._folder.cleanup()

  def run(self, *args: str, cwd, moment: Moment | None = None) -> Result:
    """Runs the command in the folder `cwd` and waits for its end.

    A first argument 'forkme' or 'vision_r1:...' is the config's name.
    """
    return self.call(_main, self._argv(args), moment, cwd=cwd)

  def hosts(self, *commands: tuple[str, ...], cwd,
            moments: dict[int, Moment] | None = None) -> list[Result]:
    """The same on several hosts at once, one command each; all are waited
    for."""
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{free.getsockname()[1]}'
    begun = [
        self._begin(_main, self._argv(args), (moments or {}).get(i), cwd=cwd,
                    env={'MMR1_COORDINATOR': address, 'MMR1_HOST': str(i),
                         'MMR1_HOSTS': str(len(commands))})
        for i, args in enumerate(commands)]
    return [self._end(*one) for one in begun]

  def _argv(self, args):
    name, colon, arg = args[0].partition(':')
    file = self._root / 'configs' / f'{name}.py'
    return ['mmr1.main', f'--config={file}{colon}{arg}', *args[1:]]

  def call(self, target, *args, cwd) -> Result:
    """Calls a function of this module in a process and waits for its end."""
    return self._end(*self._begin(target, *args, cwd=cwd))

  def _begin(self, target, *args, cwd, env=None):
    self._count += 1
    base = pathlib.Path(self._folder.name) / str(self._count)
    outputs = [f'{base}.out', f'{base}.err']
    process = self._fork.Process(
        target=_call, args=(outputs, str(cwd), target, args, env or {}))
    process.start()
    return process, outputs

  def _end(self, process, outputs) -> Result:
    process.join()
    return Result(process.exitcode,
                  *(pathlib.Path(path).read_text() for path in outputs))


def _call(outputs, cwd, target, args, env):
  os.environ.update(env)
  for number, path in enumerate(outputs, start=1):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, number)
  os.chdir(cwd)
  try:
    target(*args)
  finally:
    sys.stdout.flush()
    sys.stderr.flush()


def _main(argv, moment):
  sys.argv = argv  # the overrides of a config are read from there
  from absl import app
  from mmr1 import main
  if moment is not None:
    _arm(Moment(*moment))
  app.run(main.main, argv=argv, flags_parser=main.parse)


def own_code(argv):
  """The command with modules of the current folder, as `python -m` has them."""
  sys.path.insert(0, os.getcwd())
  _main(argv, None)


def export(argv):
  """`python -m mmr1.export`, and which devices it took."""
  from mmr1 import export as command
  command.main(['export', *argv])
  import jax
  print('devices:', jax.config.jax_platforms)


def killed_export(kwargs, name, call):
  """An export killed at the n-th call of a function of `tensor_files`."""
  from mmr1 import release
  from mmr1.models import tensor_files
  original, count = getattr(tensor_files, name), [0]

  def counting(*args, **kw):
    count[0] += 1
    if count[0] == call:
      os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kw)
  setattr(tensor_files, name, counting)
  release.export(**kwargs)


def _arm(moment: Moment) -> None:
  """Sends this process the signal at the moment."""
  from mmr1 import checkpoint
  from mmr1 import log

  def send(stage, step):
    if stage == moment.stage and moment.step in (None, step):
      os.kill(os.getpid(), moment.signal)

  write = log.Logger.write
  save = checkpoint.Checkpoints.save
  finish = checkpoint.Checkpoints.finish

  def writing(self, stage, step, metrics):
    write(self, stage, step, metrics)
    if 'loss' in metrics or 'grad_norm' in metrics:  # a step's row
      send(stage, step)

  def saving(self, stage, step, *args, **kwargs):
    send(stage, step)
    return save(self, stage, step, *args, **kwargs)

  def finishing(self, stage, record):
    send(stage, None)
    return finish(self, stage, record)
  if moment.call == 'write':
    log.Logger.write = writing
  elif moment.call == 'save':
    checkpoint.Checkpoints.save = saving
  else:
    checkpoint.Checkpoints.finish = finishing
