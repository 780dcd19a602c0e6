"""A trace of some steps of a stage, `--profile=<stage>:<first>-<last>`.

TensorBoard's profile plugin, XProf and Perfetto open what it leaves:

    <workdir>/profile/plugins/profile/<time>/<host>.xplane.pb
                                             <host>.trace.json.gz

Host rows have 'step' with its number and the phases inside it ('data',
'sample', 'score', 'reference', 'update'); device rows have the programs, as
'jit_update', and in them the scopes of the model.
"""

from collections.abc import Callable
import re
import tempfile
from typing import Any

from etils import epath
import jax

from mmr1 import resolve
from mmr1 import workdir as workdir_lib


class Profile:
  """Traces the steps it was asked for; without a request, none."""

  def __init__(self, asked: str | None = None, config: Any = None,
               folder: Any = None):
    """Reads and checks the request.

    Args:
      asked: '<stage>:<first>-<last>', steps counted from 1 as in
        metrics.jsonl, both included, or '<stage>:<step>'; None: nothing.
      config: the resolved config.
      folder: where to, local or gs://.

    Raises:
      ValueError: no such steps.
    """
    self._stage, self._steps, self._folder = None, range(0), folder
    self._running, self._traced = None, False
    if asked is None:
      return
    form = re.fullmatch(r'(.+):(\d+)(?:-(\d+))?', asked)
    if not form:
      raise ValueError(
          f'--profile: got {asked!r}; write <stage>:<first>-<last>, as in '
          f"'{config.stages[-1]}:3-5'.")
    name, first, last = form[1], int(form[2]), int(form[3] or form[2])
    known = [stage for stage in config.stages
             if 'steps' in config[stage]]
    if name not in known:
      raise ValueError(f'--profile: {name!r} is no stage of this run that '
                       f'trains. {resolve.nearest(name, known)}')
    if not 1 <= first <= last <= config[name].steps:
      raise ValueError(
          f'--profile: got steps {first} to {last}; {name!r} has the steps 1 '
          f'to {config[name].steps} ({name}.steps).')
    self._stage, self._steps = name, range(first, last + 1)

  def step(self, stage: str, number: int, fn: Callable[..., Any],
           *args) -> Any:
    """fn(*args), traced if it is one of the steps.

    Args:
      stage: its name.
      number: of the step, from 1.
      fn: gives something with a `state`, which the last traced step waits for.
    """
    if stage != self._stage or number not in self._steps:
      return fn(*args)
    if not self._traced:  # a run that goes on may come in between
      self._running, self._traced = start(self._folder), True
    with jax.profiler.StepTraceAnnotation('step', step_num=number):
      result = fn(*args)
    if number == self._steps[-1]:
      jax.block_until_ready(result.state)
      self._stop()
    return result

  def _stop(self) -> None:
    if self._running is not None:
      stop, self._running = self._running, None
      stop()

  def close(self, warn: Callable[[str], None]) -> None:
    """Ends a trace whose steps were not all made; says if there is none."""
    self._stop()
    if self._steps and not self._traced:
      warn(f'--profile: of {self._stage!r} none of the steps '
           f'{self._steps[0]} to {self._steps[-1]} ran in this process, so '
           'there is no trace. Steps that are done do not run again.')


def start(folder: Any) -> Callable[[], None]:
  """Starts a trace; what it returns ends it and puts it into `folder`."""
  remote = '://' in str(folder)
  local = tempfile.mkdtemp(prefix='mmr1-profile-') if remote else str(folder)
  options = jax.profiler.ProfileOptions()
  # Every Python call would be an event: large files, and steps far slower.
  options.python_tracer_level = 0
  jax.profiler.start_trace(local, profiler_options=options)

  def stop():
    jax.profiler.stop_trace()
    if remote:
      workdir_lib.copy(epath.Path(local), epath.Path(folder))
      epath.Path(local).rmtree()
  return stop
