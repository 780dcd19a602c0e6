"""Stage sections as overlays on family sections; see `mmr1.resolve`."""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import config_dict

from mmr1 import sections

ConfigDict = config_dict.ConfigDict


def overlay(family: ConfigDict, /, **changes: Any) -> ConfigDict:
  """A section of typed placeholders over `family`, with `changes` set.

  Every scalar of the family becomes a placeholder of its type, so that the
  command line can set it later with the right type; floats may be given as
  ints. A dict among the changes goes down into the family's section. A key the
  family lacks is allowed only where names are free: a new named section (its
  value is a dict), and anything inside such a section, inside a section that
  is empty in the family, inside one called `kwargs`, and beside an `fn`.

  A stage that names another `fn` than its family does not inherit the
  arguments of the family's function: they are in the section's `kwargs` if it
  has one, else they are all its other keys.

  Args:
    family: a family's section; must carry `kind`, which is copied.
    **changes: values, or dicts of values.

  Raises:
    ValueError: a key or type that the family does not have.
  """
  if not family.get('kind'):
    raise ValueError(
        'overlay: the family section has no `kind` (such as "rl" or "sft"), '
        'which says over which section of the config it is merged.')
  section = _placeholders(family)
  _set(section, family, changes, family.kind)
  section.kind = family.kind
  return section


def _placeholders(family: ConfigDict) -> ConfigDict:
  section = ConfigDict()
  for key in family:
    kind = family.get_type(key)
    if issubclass(kind, ConfigDict):
      section[key] = _placeholders(family[key])
    elif kind is type(None):
      raise ValueError(
          f'{key}: a bare None has no type and could never be overridden. '
          'Write ml_collections.config_dict.placeholder(type).')
    else:
      section[key] = config_dict.placeholder(kind)
  return section


def _set(section, family, changes, where):
  free = (not family.keys() or 'fn' in family
          or where.rpartition('.')[2] == 'kwargs')
  for key, value in changes.items():
    here = f'{where}.{key}'
    nested = isinstance(value, (Mapping, ConfigDict))
    if key not in section:
      if not nested and not free:
        raise ValueError(
            f'{here}: no such key. {sections.nearest(key, section.keys())}')
      section[key] = ConfigDict(dict(value)) if nested else value
    elif isinstance(section[key], ConfigDict) != nested:
      raise ValueError(
          f'{here}: got {value!r}; it is a '
          f'{"single value" if nested else "section: give a dict"}.')
    elif nested:
      _set(section[key], family[key], value, here)
    else:
      try:
        section[key] = value
      except TypeError as error:
        raise ValueError(
            f'{here}: got {value!r} of type {type(value).__name__}, but it is '
            f'a {section.get_type(key).__name__}.') from error


def finalise(
    config: ConfigDict,
    overrides: Iterable[str] = (),
    direct: Iterable[str] = (),
) -> sections.Section:
  """The resolved config: every stage merged over its family.

  Keeps the plain keys and sections and one section for each name in
  `config.stages`. Families and unused stages are left out: their values live
  in the stages that took them. (A family in `direct` stays.)

  Args:
    config: with `stages`, a tuple of names, each the name of a section whose
      `kind` is the name of its family's section.
    overrides: the keys set on the command line ('rl.lr'); one which reaches no
      stage of this run is an error, since it would have no effect.
    direct: families that the run also reads itself.

  Raises:
    ValueError: an unknown stage or kind, a type that does not fit, a list with
      dicts, an override without effect.
  """
  raw = config.to_dict()
  stages = raw['stages']
  families = {k for k, v in raw.items()
              if isinstance(v, dict) and v.get('kind') == k}
  overlays = {k for k, v in raw.items()
              if isinstance(v, dict) and 'kind' in v} - families
  if len(set(stages)) != len(stages):
    raise ValueError(f'stages: a name occurs twice in {stages}. Give the '
                     'second one a section of its own.')
  for name in stages:
    if name not in families | overlays:
      raise ValueError(
          f'stages: there is no stage section {name!r} in this config. '
          f'{sections.nearest(name, overlays | families)}')
    if raw[name]['kind'] not in families:
      raise ValueError(
          f'{name}.kind: got {raw[name]["kind"]!r}. '
          f'{sections.nearest(str(raw[name]["kind"]), families)}')
  kept = families & {*direct}
  merged = {name: _merge(raw[raw[name]['kind']], raw[name], name)
            for name in stages}
  for path in overrides:
    _check_reaches(path, raw, merged, families - kept, overlays)
  final = {k: v for k, v in raw.items()
           if k in kept or k not in families | overlays} | merged
  return sections.Section(final)


def _check_reaches(path, raw, merged, families, overlays):
  """Refuses a command-line override that no stage of this run would see."""
  head, *rest = path.split('.')
  if isinstance(_at(raw, (head, *rest)), dict):
    raise ValueError(
        f'--config.{path} is a section and cannot be replaced as a whole; set '
        f'its keys, as in --config.{path}.<key>=<value>, or edit the config '
        'file.')
  stages = tuple(merged)
  if head in overlays and head not in stages:
    raise ValueError(
        f'--config.{path} has no effect: {head!r} is not among the stages of '
        f'this run, {stages}.')
  if head not in families or head in stages:
    return
  takers = [s for s in stages if raw[s]['kind'] == head]
  for stage in takers:
    own = _at(raw[stage], rest)
    # Of another function's arguments nothing is left in the merged section.
    if isinstance(own, dict) or own is None and (
        rest[-1] in (_at(merged[stage], rest[:-1]) or ())):
      return
  names = ', '.join(takers)
  why = (f'{names} set their own: override those' if takers and own is not None
         else f'{names} name another function, with arguments of its own'
         if takers
         else f'no stage of this run is of kind {head!r}')
  raise ValueError(f'--config.{path} has no effect: {why}.')


def _at(tree, keys):
  for key in keys:
    tree = tree.get(key) if isinstance(tree, dict) else None
  return tree


def _merge(family: dict, over: dict, where: str) -> dict:
  if over.get('fn') not in (None, family.get('fn')):
    family = ({**family, 'kwargs': {}} if 'kwargs' in family
              else {'fn': family.get('fn')})
    over = _without_none(over)
  merged = dict(family)
  for key, value in over.items():
    here, base = f'{where}.{key}', family.get(key)
    if isinstance(value, dict):
      if base is not None and not isinstance(base, dict):
        raise ValueError(f'{here}: got a section; the family has {base!r}.')
      merged[key] = _merge(base or {}, value, here)
    elif value is not None or key not in family:
      merged[key] = _typed(value, base, here)
  return merged


def _without_none(tree: dict) -> dict:
  return {k: _without_none(v) if isinstance(v, dict) else v
          for k, v in tree.items() if v is not None}


def _typed(value, base, where):
  if isinstance(base, float) and type(value) is int:
    return float(value)
  if base is not None and value is not None and type(value) is not type(base):
    raise ValueError(
        f'{where}: got {value!r} of type {type(value).__name__}, but its '
        f'family has {base!r} of type {type(base).__name__}.')
  return value
