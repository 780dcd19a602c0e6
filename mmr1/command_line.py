"""What the commands share: flags of their own, errors and interruptions."""

from collections.abc import Iterable
import re
import sys
from typing import Any, NoReturn

from absl import flags
from absl import logging
from ml_collections import config_dict

ConfigDict = config_dict.ConfigDict
_OVERRIDE = re.compile(r'--?config\.([^=]+)(?:=(.*))?', re.DOTALL)
# What goes wrong with flags, in the libraries that read them.
_REFUSALS = (
    flags.Error, KeyError, AttributeError, OSError, TypeError, ValueError)
_READERS = ('absl', 'ml_collections')


def own_flags(
    own: flags.FlagValues, argv: list[str], about: str,
    needed: dict[str, str]) -> bool:
  """Reads the flags of a command beside this one.

  Args:
    own: its flags, `help` among them.
    argv: its arguments.
    about: what help prints before the flags.
    needed: flags that must be given, and what stands for their values.

  Returns:
    False if help was asked for and given. A wrong argument ends the process.
  """
  rest = parsed_or_exit(own, argv)[1:]
  if own.help:
    print(f'{about}{own.get_help()}')
    return False
  if rest:
    sys.exit(f'mmr1: unknown argument {rest[0]!r}.')
  if not all(own[name].value for name in needed):
    asked = ' and '.join(f'--{name}=<{x}>' for name, x in needed.items())
    sys.exit(f'mmr1: {asked} are needed.')
  logging.set_verbosity(logging.WARNING)  # Orbax tells of every file
  return True


def parsed_or_exit(values: flags.FlagValues, argv: list[str]) -> list[str]:
  """As `parsed`; what is wrong ends the process, in a line."""
  try:
    return parsed(values, argv)
  except ValueError as error:
    if not is_message(error):
      raise
    sys.exit(f'mmr1: {error}')


def parsed(values: flags.FlagValues, argv: list[str]) -> list[str]:
  """Reads flags, and the config if `config` is one of them.

  `--config.<key>=None` is None, and not a text, where the config has a
  placeholder.

  Args:
    values: the flags.
    argv: the arguments, the name of the program first.

  Returns:
    What is no flag, the name of the program first.

  Raises:
    ValueError: what is wrong with an argument, in a sentence. Errors of a
      config file's own code are raised as they are.
  """
  kept, none = _without_none(argv) if 'config' in values else (argv, ())
  try:
    rest = values(kept)
    config = values['config'].value if 'config' in values else None
    if config is not None:
      config.lock()  # a file that cannot be read says so when used
  except _REFUSALS as error:
    if _raised_in(error).partition('.')[0] not in _READERS:
      raise
    raise ValueError(_told(error, values, argv)) from error
  if config is not None:
    _set_none(config, none)
    # The values that were set, as the flag keeps them.
    values['config'].override_values.update(dict.fromkeys(none))
  return rest


def _without_none(argv: Iterable[str]) -> tuple[list[str], list[str]]:
  """The arguments but for overrides with None, and the keys of these. Of two
  values of a key the last is meant."""
  kept, none, todo = [], {}, list(argv)
  while todo:
    arg = todo.pop(0)
    found = _OVERRIDE.fullmatch(arg)
    key, value = found.groups() if found else (None, None)
    none.pop(key, None)
    apart = found is not None and value is None and todo[:1] == ['None']
    if apart or value == 'None':
      none[key] = None
      del todo[:apart]
    else:
      kept.append(arg)
  return kept, [*none]


def _set_none(config: ConfigDict, keys: Iterable[str]) -> None:
  """Sets keys that the config has to None.

  Raises:
    ValueError: one of them is no placeholder, or belongs to a stage, which then
      takes what its family has.
  """
  above = {}
  for key in keys:
    stage, _, rest = key.partition('.')
    section = config.get(stage)
    kind = (section.get('kind', stage) if isinstance(section, ConfigDict)
            else stage)
    own, family = _field(config, key), _field(config, f'{kind}.{rest}')
    if own is None:  # an item of a tuple
      raise ValueError(f'--config.{key}: there is no key {key!r}.')
    for field in (own, family):
      if not isinstance(field, (config_dict.FieldReference, type(None))):
        allowed = ('its keys, one by one' if isinstance(field, ConfigDict)
                   else f'{type(field).__name__}; it is {field!r}')
        raise ValueError(f'--config.{key}: got None; allowed: {allowed}.')
    own.set(None)
    if kind != stage and family is not None:
      above[key] = f'{kind}.{rest}', family
  for key, (other, family) in above.items():
    if family.get() is not None:  # looked at last: it may be among the keys
      raise ValueError(
          f'--config.{key}=None has no effect: what a stage does not set is '
          f'that of its family, here {other}={family.get()!r}. Set '
          f'--config.{other}=None.')


def _field(tree: Any, key: str) -> Any:
  """What a dotted key stands for: a value, a section, or a placeholder itself;
  None where there is no such key."""
  *parents, last = key.split('.')
  for part in parents:
    tree = tree.get(part) if isinstance(tree, ConfigDict) else None
  if not isinstance(tree, ConfigDict):
    return None
  return dict(tree.items(preserve_field_references=True)).get(last)


def _told(
    error: Exception, values: flags.FlagValues, argv: list[str]) -> str:
  """What absl or ml_collections raised of these arguments, in a sentence."""
  said = str(error)
  if isinstance(error, flags.IllegalFlagValueError):
    said = said.strip()
    if 'Traceback' in said:  # of the config file; its last line is the reason
      said = '--config: ' + said.splitlines()[-1].partition(': ')[2]
  elif _raised_in(error).endswith('.config_path'):
    said = _below_a_value(values, argv) or said
  elif isinstance(error, (KeyError, AttributeError)):
    key = re.search(r'\w+', said)[0]
    near = re.search(r'Did you mean "\w+"', said)
    given = [arg for arg in argv if f'.{key}' in arg.partition('=')[0]]
    said = (f'{given[0] if given else "--config"}: there is no key {key!r}.'
            + (f' {near[0]}?' if near else ''))
  return said


def _below_a_value(values: flags.FlagValues, argv: list[str]) -> str | None:
  """A sentence on the first override that goes on where the config has a value
  and no section; None: there is none."""
  files = [arg.partition('=')[2] for arg in argv
           if re.match('--?config=', arg)]
  for arg in argv if files else ():
    found = _OVERRIDE.fullmatch(arg)
    at, above = values['config'].parser.parse(files[-1]), []
    for part in found[1].split('.') if found else ():
      if not isinstance(at, ConfigDict):
        return (f'{arg}: there is no key {found[1]!r}: {".".join(above)!r} is '
                'a value and has no keys.')
      if part not in at:
        break
      at = at[part]
      above.append(part)
  return None


def _raised_in(error: Exception) -> str:
  """The module whose code raised an error."""
  trace = error.__traceback__
  while trace.tb_next:
    trace = trace.tb_next
  return trace.tb_frame.f_globals.get('__name__', '')


def is_message(error: Exception) -> bool:
  """True if mmr1 raised it for the user; others need their traceback."""
  # jax leaves its frames out, and a note that says so.
  return _raised_in(error).partition('.')[0] in ('mmr1', 'configs') and (
      not hasattr(error, '__notes__'))


def interrupted(where: str) -> NoReturn:
  """Ends the process after a second Ctrl-C, or one before there was a run.

  Args:
    where: what the same command goes on from, in words; '': nothing was made.
  """
  print('\nmmr1: stopped at once. '
        + (f'The same command goes on: {where}; what came after it is made '
           'again.' if where else 'Nothing was begun.'), file=sys.stderr)
  sys.exit(130)
