"""A run's config: what it sets itself, and how runs differ."""

from collections.abc import Mapping, Sequence
import json
from typing import Any, NamedTuple

from mmr1.reporting import reading

ABSENT = '(absent)'


class Row(NamedTuple):
  """A key and its values, as text."""
  key: str
  values: tuple[str, ...]


def flat(tree: Mapping[str, Any], where: str = '') -> dict[str, Any]:
  """{dotted key: value}."""
  out = {}
  for key, value in tree.items():
    path = f'{where}.{key}' if where else str(key)
    if isinstance(value, Mapping) and value:
      out |= flat(value, path)
    else:
      out[path] = value
  return out


def parent(config: Mapping[str, Any]) -> dict[str, Any] | None:
  """What a run's config was made from, in its form: the base of its scale,
  where every stage is its family. None if that scale has no base here."""
  from configs import common  # what they hold is not needed to read a page
  try:
    base = common.get_base(config.get('scale') or None).to_dict()
  except (ValueError, KeyError, TypeError):
    return None
  made = {key: value for key, value in base.items()
          if not (isinstance(value, dict) and value.get('kind') == key)}
  for name in config.get('stages') or ():
    section = config.get(name)
    kind = section.get('kind') if isinstance(section, Mapping) else None
    if isinstance(base.get(kind), dict):
      made[name] = base[kind]
  return made


def against_parent(run: reading.Run) -> list[Row] | None:
  """(parent's value, the run's) of every key that differs; None without a
  config or a parent."""
  if not run.config:
    return None
  before = parent(run.config)
  if before is None:
    run.notes.append(
        f'config.json: there is no parent of scale {run.config.get("scale")!r} '
        'in this version; the whole config is shown.')
    return None
  return differing([before, run.config])


def differing(configs: Sequence[Mapping[str, Any]]) -> list[Row]:
  """Every key whose value is not the same in all."""
  trees = [{key: shown(value) for key, value in flat(one).items()}
           for one in configs]
  keys = dict.fromkeys(key for tree in trees for key in tree)
  rows = [Row(key, tuple(tree.get(key, ABSENT) for tree in trees))
          for key in sorted(keys)]
  # Of {} beside what has keys, the keys say it.
  above = {key.rpartition('.')[0] for key in keys}
  return [row for row in rows if len(set(row.values)) > 1 and not (
      row.key in above and set(row.values) <= {'{}', ABSENT})]


def shown(value: Any) -> str:
  """A value as JSON: tuples and lists are the same."""
  return json.dumps(value, ensure_ascii=False, default=str)


def whole(config: Mapping[str, Any]) -> str:
  """The config as indented JSON."""
  return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False,
                    default=str)
