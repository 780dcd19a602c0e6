"""A run's folder, and the one rule of resuming (M15)."""

from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils

from mmr1 import hosts
from mmr1 import resolve


DRY_RUN = 'dry_run'  # what a dry run leaves; a run may begin beside it
# Where a run runs, not what it computes: a run may go on elsewhere. Results are
# then those of the other devices, equal in rounding and not to the last bit.
_PLACE = ('mesh.', 'cpu_devices:', 'cache_dir:', 'stall_s:')


class Workdir:
  """A run's folder: a new one, or one whose config equals this one.

  Attributes:
    path: the folder.
    continued: True if the run had begun before.
    moved: what differs in where it runs now, lines 'key: before -> now'.
  """

  def __init__(self, path: Any, config: Any, *, fresh: bool = False):
    """Applies the resume rule.

    Args:
      path: local path or gs://.
      config: the resolved config.
      fresh: wipe an earlier run first.

    Raises:
      ValueError: another config (shows the difference), a folder with files
        that is no run of ours (never wiped), or one that not all hosts see.
    """
    self.path = absolute(path)
    file = self.path / 'config.json'
    (ours, lines), error = hosts.attempt(
        lambda: self._look(file, config, fresh), (False, []))
    hosts.share(None, error)  # all have looked before anything changes
    if ours and fresh:
      self._wipe()
      ours = False
    self.moved = lines
    if jax.process_index() == 0 and (self.moved or not ours):
      self.path.mkdir(parents=True, exist_ok=True)
      write_whole(file, resolve.to_json(config))
    self.continued = ours
    barrier('workdir')
    hosts.share(None, None if file.exists() else (
        f'workdir: {self.path} does not hold the config.json that host 0 wrote '
        'there. Checkpoints need one folder that all hosts see: gs://, or a '
        'disk that they share.'))

  def _look(self, file: epath.Path, config: Any,
            fresh: bool) -> tuple[bool, list[str]]:
    """(there is a run here, what differs in where it ran)."""
    if self.path.exists() and not self.path.is_dir():
      raise ValueError(f'workdir: {self.path} is a file. Choose a folder.')
    ours = file.exists()
    if not ours and self.path.exists() and any(
        entry.name not in (_temporary(file).name, DRY_RUN)
        for entry in self.path.iterdir()):
      raise ValueError(
          f'workdir: {self.path} has files but no config.json: not a run of '
          'mmr1. Choose another --workdir.')
    if not ours or fresh:
      return ours, []
    return True, self._compare(resolve.from_json(file.read_text()), config)

  def _compare(self, old: dict[str, Any], new: Any) -> list[str]:
    lines = resolve.difference(old, new)
    if any(not line.startswith(_PLACE) for line in lines):
      more = f'\n  ... {len(lines) - 20} more' if len(lines) > 20 else ''
      raise ValueError(
          f'workdir: {self.path} holds a run with another config:\n  '
          + '\n  '.join(lines[:20]) + more
          + '\nChoose another --workdir, or start over with --fresh.')
    return lines

  def _wipe(self) -> None:
    barrier('wipe')  # nobody still reads
    if jax.process_index() == 0:
      # config.json last: a kill in between must not make the folder foreign.
      for entry in list(self.path.iterdir()):
        if entry.name != 'config.json':
          entry.rmtree() if entry.is_dir() else entry.unlink()
      (self.path / 'config.json').unlink()
    barrier('wiped')


def absolute(path: Any) -> epath.Path:
  """`~` and relative paths made absolute; gs:// as it is."""
  path = epath.Path(path).expanduser()
  # epath would put the current folder in front of a gs:// path.
  return path if path.is_absolute() else path.absolute()


def write_whole(path: epath.Path, content: str | bytes) -> None:
  """Writes a whole file or nothing, creating its folder."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(content, str):
    content = content.encode()
  _temporary(path).write_bytes(content)
  _temporary(path).replace(path)


def _temporary(path: epath.Path) -> epath.Path:
  return path.parent / f'.{path.name}.tmp'


def copy(source: epath.Path, target: epath.Path) -> None:
  """Copies a file, or a folder into another, between local and gs://."""
  if source.is_dir():
    for entry in source.iterdir():
      copy(entry, target / entry.name)
  elif source.exists():
    target.parent.mkdir(parents=True, exist_ok=True)
    source.copy(target, overwrite=True)


def barrier(name: str) -> None:
  """Waits for the other hosts."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
