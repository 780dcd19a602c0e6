"""From a config to values and functions: names, overlays, the final config.

A name in a config IS the path of its code: under the root `mmr1.rewards` the
name 'grounding.iou' means `mmr1/rewards/grounding.py:iou`; 'pkg.mod:fn' means
a user's own function.

A stage section is an overlay on its family's section: each field is a typed
placeholder, None meaning 'take it from the family'. So `--config.rl.lr=1e-5`
moves every stage that does not set its own, and `--config.think_short.lr=3e-6`
moves one. `finalise` merges after the command line has spoken
(`mmr1.overlays`) and returns immutable sections which remember what was read
(`mmr1.sections`).
"""

import ast
import importlib
import importlib.util
import inspect
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mmr1 import overlays
from mmr1 import sections

# Sections that are there to be named by stages.
LIBRARIES = ('rewards', 'hooks', 'tasks', 'views', 'terms', 'weights', 'probes',
             'judges', 'evaluations')

Config = sections.Section  # what `finalise` returns
Section = sections.Section
overlay = overlays.overlay
finalise = overlays.finalise
changed_but_unread = sections.changed_but_unread
difference = sections.difference
from_json = sections.from_json
nearest = sections.nearest
to_json = sections.to_json


def function(name: str, root: str) -> Callable[..., Any]:
  """The function or class a config name stands for.

  Args:
    name: 'module.fn' below `root`, 'fn' in `root` itself, or 'pkg.mod:fn'.
    root: a module or package such as 'mmr1.rewards' or 'mmr1.advantages'.

  Raises:
    ValueError: no such module or function; lists the nearest that exist.
  """
  if not isinstance(name, str) or not re.fullmatch(
      r'[\w.]+(:\w+)?', name, re.ASCII):
    raise ValueError(
        f'{name!r} is not the name of a function. Write "module.fn" for '
        f'{root.replace(".", "/")}/module.py:fn, or "pkg.mod:fn" for your own.')
  own = ':' in name
  if own:
    module_name, attribute = name.split(':')
  else:
    module_name, _, attribute = f'{root}.{name}'.rpartition('.')
  if not _module_exists(module_name):
    hint = ('Your own code must be importable: run from the folder that holds '
            'it, or add that folder to PYTHONPATH.' if own
            else nearest(name, _public_names(root)))
    raise ValueError(f'{name!r}: there is no module {module_name}. {hint}')
  found = vars(importlib.import_module(module_name)).get(attribute)
  if attribute.startswith('_') or not callable(found):
    near = (nearest(attribute, _public_names(module_name)) if own
            else nearest(name, _public_names(root)))
    raise ValueError(
        f'{name!r}: module {module_name} has no public function {attribute!r}. '
        f'{near}')
  return found


def check_kwargs(
    fn: Callable[..., Any],
    kwargs: Mapping[str, Any],
    where: str,
    provided: Iterable[str] = (),
) -> None:
  """Checks config kwargs against a signature before anything runs.

  Args:
    fn: the function.
    kwargs: what the config gives, by keyword.
    where: the config key, for the message.
    provided: keyword arguments that the caller itself will add.

  Raises:
    ValueError: an unknown or a missing argument; shows the signature.
  """
  signature = inspect.signature(fn)
  parameters = signature.parameters.values()
  shown = f'{fn.__module__}.{fn.__qualname__}{signature}'
  allowed = {
      p.name for p in parameters if p.kind is p.KEYWORD_ONLY or (
          p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty)
  } - set(provided)
  if not any(p.kind is p.VAR_KEYWORD for p in parameters):
    for key in kwargs:
      if key not in allowed:
        raise ValueError(
            f'{where}.{key}: no such argument. {nearest(key, allowed)} '
            f'The signature is {shown}')
  for parameter in parameters:
    if (parameter.name in allowed and parameter.default is parameter.empty
        and parameter.name not in kwargs):
      raise ValueError(
          f'{where}: the argument {parameter.name!r} is missing. '
          f'The signature is {shown}')


def _module_exists(name: str) -> bool:
  try:
    return importlib.util.find_spec(name) is not None
  except ModuleNotFoundError as error:
    # A parent does not exist or is no package; not: a parent lacks something.
    if name.startswith(f'{error.name}.') or 'not a package' in str(error):
      return False
    raise


def _public_names(root: str) -> list[str]:
  """Names of the public functions and classes below root, without importing."""
  spec = importlib.util.find_spec(root)
  if spec is None:
    return []
  if not spec.submodule_search_locations:
    files = [(spec.origin, '')]
  else:
    files = []
    for folder in spec.submodule_search_locations:
      for file in sorted(pathlib.Path(folder).rglob('*.py')):
        parts = file.relative_to(folder).with_suffix('').parts
        parts = parts[:-1] if parts[-1] == '__init__' else parts
        files.append((file, ''.join(f'{part}.' for part in parts)))
  return [
      f'{prefix}{node.name}'
      for file, prefix in files
      for node in ast.parse(pathlib.Path(file).read_text()).body
      if isinstance(node, (ast.FunctionDef, ast.ClassDef))
      and not node.name.startswith('_')]


def default_workdir(config_path: str) -> str:
  """'configs/vision_r1.py:qwen2_5_vl_7b' -> 'runs/vision_r1_qwen2_5_vl_7b'."""
  path, _, arg = config_path.partition(':')
  return f'runs/{pathlib.PurePath(path).stem}{"_" if arg else ""}{arg}'
