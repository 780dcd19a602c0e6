"""Immutable config sections which remember what was read (invariant M22)."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import config_dict


def nearest(name: str, known: Iterable[str]) -> str:
  """One sentence: 'Nearest: a, b.', for the end of an error message."""
  known = sorted(known)
  # Compare the last part too: a right function in a wrong module is near.
  tail = {k: k.rpartition('.')[2] for k in known}
  close = difflib.get_close_matches(name, known, 4, 0.5)
  wanted = difflib.get_close_matches(
      name.rpartition('.')[2], sorted(set(tail.values())), 2, 0.7)
  close += [k for k in known if tail[k] in wanted and k not in close]
  if close:
    return f'Nearest: {", ".join(close[:4])}.'
  return f'Allowed: {", ".join(known[:20]) or "nothing"}.'


class Section:
  """A read-only tree of config values with dot access.

  `section.key` and `section['key']` read one value or go down one section; an
  unknown key raises with the nearest ones. Reading a value is recorded; going
  through a section is not. `**section` and `as_dict()` read all of it.

  Attributes:
    where: dotted path of this section, '' at the root.
  """

  # Names that a config key may not have. `where` and not `path`: configs have
  # keys called path.
  _RESERVED = ('where', 'keys', 'items', 'as_dict', 'unread')

  def __init__(
      self, values: Mapping[str, Any], where: str = '',
      seen: set[str] | None = None):
    seen = set() if seen is None else seen
    children = {}
    for key, value in values.items():
      path = f'{where}.{key}' if where else key
      if key in self._RESERVED or key.startswith('_'):
        raise ValueError(f'{path}: a config key cannot be called {key!r}.')
      if isinstance(value, Mapping):
        children[key] = Section(value, path, seen)
      else:
        children[key] = _leaf(value, path)
    super().__setattr__('_children', children)
    super().__setattr__('_seen', seen)
    super().__setattr__('where', where)

  def __getitem__(self, key: str) -> Any:
    if key not in self._children:
      raise ValueError(
          f'config: there is no key {_join(self.where, key)!r}. '
          f'{nearest(key, self._children)}')
    value = self._children[key]
    if not isinstance(value, Section):
      self._seen.add(_join(self.where, key))
    return value

  def __getattr__(self, key: str) -> Any:
    if key.startswith('_'):  # copy, pickle and notebooks ask for these
      raise AttributeError(key)
    return self[key]

  def __setattr__(self, key: str, value: Any):
    raise ValueError(
        f'{_join(self.where, key)}: the resolved config is read-only; change '
        'the ConfigDict before it is resolved.')

  __setitem__ = __setattr__

  def __contains__(self, key: str) -> bool:
    return key in self._children

  def __iter__(self) -> Iterator[str]:
    return iter(self._children)

  def __len__(self) -> int:
    return len(self._children)

  def __repr__(self) -> str:
    return f'Section({self.where!r}, {_plain(self)})'

  def __reduce__(self):  # reads in another process are not reported back
    return Section, (_plain(self), self.where)

  def keys(self) -> Iterable[str]:
    """The names of values and sections, sorted as in the config."""
    return self._children.keys()

  def items(self) -> Iterator[tuple[str, Any]]:
    """(name, value or section); reads the values."""
    return ((key, self[key]) for key in self)

  def as_dict(self) -> dict[str, Any]:
    """Everything below as plain dicts; all of it counts as read."""
    return {key: value.as_dict() if isinstance(value, Section) else value
            for key, value in self.items()}

  def unread(self) -> tuple[str, ...]:
    """Dotted paths below this section that nobody has read."""
    return tuple(p for p in _flat(self, self.where) if p not in self._seen)


def _join(where: str, key: str) -> str:
  return f'{where}.{key}' if where else key


def _leaf(value: Any, where: str) -> Any:
  if isinstance(value, (list, tuple)):
    return tuple(_leaf(item, where) for item in value)
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  raise ValueError(
      f'{where}: got a {type(value).__name__}. A config holds numbers, '
      'strings, booleans, None, tuples of these, and named sections (never '
      'dicts inside lists).')


def _plain(tree: Any) -> dict[str, Any]:
  """Nested dicts of a Section, ConfigDict or mapping, recording nothing."""
  if isinstance(tree, Section):
    tree = tree._children
  elif isinstance(tree, config_dict.ConfigDict):
    tree = tree.to_dict()
  return {key: _plain(value) if isinstance(value, (Section, Mapping)) else value
          for key, value in tree.items()}


def _flat(tree: Any, where: str = '') -> dict[str, Any]:
  out = {}
  for key, value in _plain(tree).items():
    path = _join(where, key)
    if isinstance(value, dict):
      out.update(_flat(value, path))
    else:
      out[path] = value
  return out


def changed_but_unread(
    resolved: Section,
    defaults: Any,
    within: Iterable[str] | None = None,
    *,
    libraries: Iterable[str] = (),
    overrides: Iterable[str] = (),
) -> None:
  """Refuses values that somebody set and no code looked at (M22).

  Call it at the end of set-up, when everything has read its section. A stage
  is compared with the family it came from (its `kind`); a key which the
  defaults lack counts as changed. `stages` and `kind` are exempt: `finalise`
  has used them.

  Args:
    resolved: what `resolve.finalise` returned.
    defaults: the base config, before any paper or command line touched it.
    within: top-level keys to look at; None means all. (A stage that is done
      and therefore skipped has read nothing.)
    libraries: top-level keys whose sections are there to be named (rewards): of
      those that nobody names only what `overrides` set is looked at.
    overrides: the keys set on the command line.

  Raises:
    ValueError: lists the keys with their value and the default.
  """
  base, given = _plain(defaults), frozenset(overrides)
  lines = []
  for top in resolved.keys() if within is None else within:
    child = resolved._children[top]
    if not isinstance(child, Section):
      if (top != 'stages' and top not in resolved._seen
          and not (top in base and _same(child, base[top]))):
        lines.append(f'  {top} = {child!r} (default {base.get(top)!r})')
      continue
    family = base.get(child._children.get('kind', top), {})
    known = _flat(family if isinstance(family, dict) else {}, top)
    values = _flat(child, top)
    unread = child.unread()
    for path in unread:
      offered = '.'.join(path.split('.')[:2])
      if path == f'{top}.kind' or top in libraries and path not in given and (
          all(p in unread for p in values if p.startswith(f'{offered}.'))):
        continue
      if path not in known or not _same(values[path], known[path]):
        lines.append(f'  {path} = {values[path]!r} '
                     f'(default {known.get(path, "absent")!r})')
  if lines:
    raise ValueError(
        'config: these keys were changed but nothing in this run reads them. '
        'Misspelt, or switched off by another key?\n' + '\n'.join(lines))


def _same(a: Any, b: Any) -> bool:
  as_tuple = lambda v: (
      tuple(as_tuple(i) for i in v) if isinstance(v, (list, tuple)) else v)
  a, b = as_tuple(a), as_tuple(b)
  return a == b and isinstance(a, bool) == isinstance(b, bool) or (
      a != a and b != b)  # nan


def to_json(config: Any) -> str:
  """Canonical JSON: sorted keys, tuples as lists. Records no reads."""
  return json.dumps(_plain(config), indent=2, sort_keys=True) + '\n'


def from_json(text: str) -> dict[str, Any]:
  """The inverse of `to_json`, as nested dicts; lists come back as tuples."""
  def restore(value):
    if isinstance(value, list):
      return tuple(restore(item) for item in value)
    if isinstance(value, dict):
      return {key: restore(item) for key, item in value.items()}
    return value
  return restore(json.loads(text))


def difference(a: Any, b: Any) -> list[str]:
  """Lines 'key: a -> b' for every value that differs between two configs."""
  a, b = _flat(a), _flat(b)
  show = lambda tree, key: repr(tree[key]) if key in tree else '(absent)'
  return [f'{key}: {show(a, key)} -> {show(b, key)}'
          for key in sorted(a.keys() | b.keys())
          if key not in a or key not in b or not _same(a[key], b[key])]
