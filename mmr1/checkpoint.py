"""Checkpoints that survive kill -9, and the resume rule (M15).

    <workdir>/config.json                   the resolved config
    <workdir>/checkpoints/<stage>_<step>/   Orbax: state (arrays), extra (JSON);
                                            METRIC, where it came later
    <workdir>/DONE/<stage>.json             the stage is finished

Orbax writes under a temporary name and renames: what has its final name is
whole. Arrays are stored flat under their names, so a checkpoint may hold part
of a tree (frozen parameters are referenced by their stage, not copied).
"""

from collections.abc import Callable, Iterable, Mapping
import json
import re
from typing import Any, NamedTuple
import warnings

from etils import epath
import jax
import orbax.checkpoint as ocp

from mmr1 import resolve
from mmr1 import stored
from mmr1 import trees
from mmr1 import workdir as workdir_lib

Tree = Any
_METRIC = 'METRIC'


class Restored(NamedTuple):
  """A checkpoint: `step`, the `tree` in the target's structure, `extra`, and
  `arrays` where they were asked for."""
  step: int
  tree: Tree
  extra: dict[str, Any]
  arrays: dict[str, jax.Array]


class Checkpoints:
  """The checkpoints of one run; `root` is its workdir."""

  def __init__(
      self,
      workdir: Any,
      *,
      keep: int = 2,
      background: bool = False,
      read_only: bool = False,
      older: Iterable[tuple[str, str]] = (),
  ):
    """Opens `<workdir>/checkpoints` and removes what a kill left half-written.

    Args:
      workdir: local path or gs://.
      keep: latest checkpoints to keep per stage, besides the best.
      background: write on a thread; a checkpoint then counts from the next
        `save` or `wait` on.
      read_only: change nothing: the run may be going on elsewhere.
      older: (part of a leaf's name, what it was in earlier versions), for
        checkpoints that do not have the leaf.
    """
    if keep < 1:
      raise ValueError(f'keep: got {keep}; allowed: at least 1.')
    self.root = workdir_lib.absolute(workdir)
    self._folder = self.root / 'checkpoints'
    self._keep = keep
    self._older = tuple(older)
    self._metrics: dict[str, float | None] = {}  # by folder name
    self._writing = self._folder  # the last that was begun
    kind = ocp.AsyncCheckpointer if background else ocp.Checkpointer
    self._orbax = kind(ocp.CompositeCheckpointHandler())
    if jax.process_index() == 0 and not read_only:
      self._folder.mkdir(parents=True, exist_ok=True)
      for path in self._folder.iterdir():
        if '.orbax-checkpoint-tmp' in path.name:
          path.rmtree()
    workdir_lib.barrier('checkpoints')

  def save(
      self,
      stage: str,
      step: int,
      tree: Tree,
      extra: Mapping[str, Any],
      *,
      arrays: Mapping[str, Any] = {},
      metric: float | None = None,
      only: Iterable[str] = ('.*',),
  ) -> epath.Path:
    """Writes `<stage>_<step>`, then drops what is no longer to be kept.

    Args:
      stage: name of the stage.
      step: steps finished, >= 0. An existing checkpoint is replaced.
      tree: any tree of arrays; they come back bit for bit.
      extra: JSON values: data position, counters.
      arrays: {name: array} besides the tree.
      metric: for `best`; None: not evaluated here.
      only: regexes of the leaf names to store ('params/policy/.*').

    Raises:
      ValueError: `extra` is no JSON, a pattern matches nothing.
    """
    kept = stored.arrays(tree, only, arrays)
    record = stored.record(extra, metric, kept)
    path = self._path(stage, step)
    self.wait()
    self._writing = path
    self._write(lambda: self._orbax.save(
        path, force=True, args=ocp.args.Composite(
            state=ocp.args.PyTreeSave(kept), extra=ocp.args.JsonSave(record))))
    self._metrics[path.name] = metric
    self._prune(stage, step)
    return path

  def score(self, stage: str, step: int, metric: float) -> None:
    """Gives a checkpoint its metric; it is not replaced, so never missing."""
    self.wait()
    path = self._path(stage, step)
    if jax.process_index() == 0:
      workdir_lib.write_whole(path / _METRIC, json.dumps(metric))
    self._metrics[path.name] = metric
    workdir_lib.barrier('score')

  def restore(
      self,
      stage: str,
      target: Tree,
      *,
      step: int | str = 'latest',
      only: Iterable[str] = ('.*',),
      where: Callable[[jax.ShapeDtypeStruct], Any] | None = None,
  ) -> Restored | None:
    """Reads a checkpoint into the structure of `target`.

    Args:
      stage: name of the stage.
      target: tree of arrays or shape structs. Shapes and dtypes must agree;
        shardings are the target's. Leaves outside `only` come back as they
        are in the target.
      step: 'latest' (falls back to the one before, with a warning, where a
        checkpoint cannot be read), 'best', or a number.
      only: regexes of the leaf names to read.
      where: shape -> sharding of the arrays besides the tree; None: they are
        not read.

    Returns:
      None if the stage has no checkpoint.

    Raises:
      ValueError: none can be read; the tree does not fit.
    """
    self.wait()
    candidates = (self.steps(stage)[::-1] if step == 'latest' else
                  [self.best(stage) if step == 'best' else step])
    if candidates in ([], [None]):
      return None
    errors = []
    for number in candidates:
      path = self._path(stage, number)
      try:
        return Restored(number, *self._read(path, target, only, where))
      except _Mismatch as error:
        raise ValueError(f'{path}: {error}') from error
      except Exception as error:  # whatever a damaged file can raise
        errors.append(f'{path}: {type(error).__name__}: {error}'[:500])
        warnings.warn(f'Unreadable checkpoint, trying an older one. '
                      f'{errors[-1]}', stacklevel=2)
    raise ValueError('No readable checkpoint of stage '
                     f'{stage!r}:\n' + '\n'.join(errors))

  def steps(self, stage: str) -> list[int]:
    """Steps of the stage's committed checkpoints, ascending."""
    there = self._folder.iterdir() if self._folder.exists() else ()
    found = (re.fullmatch(rf'{re.escape(stage)}_(\d+)', path.name)
             for path in there)
    return sorted(int(match[1]) for match in found if match)

  def best(self, stage: str) -> int | None:
    """Step of the best metric (the later of equals); None without metrics."""
    self.wait()
    return self._best(stage)

  def _best(self, stage: str) -> int | None:
    scored = [(metric, step) for step in self.steps(stage)
              if (metric := self.metric(stage, step)) is not None]
    return max(scored)[1] if scored else None

  def finish(self, stage: str, record: Mapping[str, Any]) -> None:
    """Marks the stage as done; its last and its best checkpoint stay."""
    self.wait()
    if jax.process_index() == 0:
      workdir_lib.write_whole(self.root / 'DONE' / f'{stage}.json',
             json.dumps(dict(record), indent=2) + '\n')
      self._drop(stage, keep=1)
    workdir_lib.barrier('finish')

  def done(self, stage: str) -> dict[str, Any] | None:
    """The record given to `finish`, or None."""
    path = self.root / 'DONE' / f'{stage}.json'
    return json.loads(path.read_text()) if path.exists() else None

  def wait(self) -> None:
    """Blocks until a checkpoint written in the background is committed.

    Raises:
      ValueError: it could not be written.
    """
    if isinstance(self._orbax, ocp.AsyncCheckpointer):
      self._write(self._orbax.wait_until_finished)

  def _write(self, call: Callable[[], Any]) -> None:
    try:
      call()
    except Exception as error:  # whatever a disk or Orbax can raise
      stage, _, _ = self._writing.name.rpartition('_')
      raise ValueError(
          f'checkpoint {self._writing} could not be written '
          f'({type(error).__name__}: {str(error).strip().splitlines()[0][:300]}'
          f'). Whole ones of {stage!r}: {self.steps(stage)}. Is the disk full? '
          'Make room; the same command goes on from the last.') from error

  def close(self) -> None:
    """Waits, and releases Orbax's threads."""
    self.wait()
    self._orbax.close()

  def _path(self, stage: str, step: int) -> epath.Path:
    return self._folder / f'{stage}_{step}'

  def metric(self, stage: str, step: int) -> float | None:
    """What `save` or `score` gave a checkpoint; None: nothing yet."""
    path = self._path(stage, step)
    if path.name not in self._metrics:
      try:
        later = path / _METRIC
        self._metrics[path.name] = (
            json.loads(later.read_text()) if later.exists()
            else self._extra(path)['metric'])
      except Exception as error:  # whatever a damaged file can raise
        warnings.warn(f'{path}: no metric can be read '
                      f'({type(error).__name__}: {error}).', stacklevel=3)
        self._metrics[path.name] = None
    return self._metrics[path.name]

  def _extra(self, path: epath.Path) -> dict[str, Any]:
    # Not by Orbax, whose hosts wait for each other: one may look alone.
    return json.loads((path / 'extra' / 'metadata').read_text())

  def _read(self, path, target, only, where):
    if not path.exists():
      raise _Mismatch('there is no such checkpoint.')
    chosen = trees.named(trees.select(target, only, 'checkpoint.only'))
    extra = self._extra(path)
    wanted = {k: v for k, v in trees.named(target).items()
              if chosen[k] and v.size}
    held = {name: next((
        older for older in (name, *(name.replace(*o) for o in self._older))
        if older in extra['arrays']), name) for name in wanted}
    for name, leaf in wanted.items():
      if held[name] not in extra['arrays']:
        raise _Mismatch(f'holds no {name!r}. '
                        f'{resolve.nearest(name, extra["arrays"])}')
      want = [str(leaf.dtype), list(leaf.shape)]
      if (got := extra['arrays'][held[name]]) != want:
        raise _Mismatch(f'{name!r} is {got}; this run needs {want}.')
    asked = {held[name]: leaf for name, leaf in wanted.items()}
    asked |= stored.besides(extra, where)
    arrays = self._orbax.restore(path, args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
            asked, partial_restore=True,
            restore_args=ocp.checkpoint_utils.construct_restore_args(asked)),
    )).state
    tree = jax.tree_util.tree_map_with_path(
        lambda p, leaf: arrays.get(held.get(trees.name_of(p)), leaf), target)
    return tree, extra['extra'], stored.named_besides(arrays)

  def _prune(self, stage: str, current: int) -> None:
    if jax.process_index() == 0:
      # Later ones could not be read, else the stage had gone on from them.
      self._remove(stage, (s for s in self.steps(stage) if s > current))
      # One more than asked for while the current one is being written.
      pending = not self._path(stage, current).exists()
      self._drop(stage, keep=self._keep - pending or 1)

  def _drop(self, stage: str, keep: int) -> None:
    steps = self.steps(stage)
    self._remove(stage, {*steps} - {*steps[-keep:], self._best(stage)})

  def _remove(self, stage: str, steps: Iterable[int]) -> None:
    for step in steps:
      self._path(stage, step).rmtree()


class _Mismatch(Exception):
  """The checkpoint is fine but is not what was asked for."""
