"""The command: `python -m mmr1.main --config=configs/<paper>.py[:scale]`."""

import re
import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from mmr1 import resolve
from mmr1 import runner

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, with an optional argument after a colon.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Default: runs/<config>[_<argument>].')
_FRESH = flags.DEFINE_bool('fresh', False, 'Start over in this workdir.')
_PROFILE = flags.DEFINE_string(
    'profile', None, 'Steps to trace: <stage>:<first>-<last>.')
_QUIET = flags.DEFINE_bool('quiet', False, 'No progress on the console.')


def main(argv):
  if len(argv) > 1:
    sys.exit(f'mmr1: unknown argument {argv[1]!r}; overrides are '
             '--config.key=value.')
  if _CONFIG.value is None:
    sys.exit('mmr1: --config=configs/<paper>.py is missing.')
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  overrides = config_flags.get_override_values(flags.FLAGS['config'])
  from configs import common
  logging.set_verbosity(logging.WARNING)  # Orbax tells of every file
  try:
    runner.run(
        _CONFIG.value, _WORKDIR.value or resolve.default_workdir(path),
        fresh=_FRESH.value, quiet=_QUIET.value, overrides=overrides,
        profile=_PROFILE.value,
        defaults=common.get_base(_CONFIG.value.scale))
  except (ValueError, FloatingPointError) as error:
    if not is_message(error):
      raise
    sys.exit(f'mmr1: {error}')


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
  try:
    rest = own(argv)[1:]
  except flags.Error as error:
    sys.exit(f'mmr1: {error}')
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


def is_message(error: Exception) -> bool:
  """True if mmr1 raised it for the user; others need their traceback."""
  trace = error.__traceback__
  while trace.tb_next:
    trace = trace.tb_next
  owner = trace.tb_frame.f_globals.get('__name__', '').partition('.')[0]
  # jax leaves its frames out, and a note that says so.
  return owner in ('mmr1', 'configs') and not hasattr(error, '__notes__')


# What goes wrong with flags.
REFUSALS = (flags.Error, KeyError, AttributeError, OSError, TypeError)


def parse(argv):
  """The flags; what is wrong with them in a line and not as a traceback."""
  try:
    rest = flags.FLAGS(argv)
    if _CONFIG.value is not None:
      _CONFIG.value.lock()  # a file that cannot be read says so when used
    return rest
  except REFUSALS as error:
    sys.exit(f'mmr1: {told(error, argv)}')


def told(error: Exception, argv: list[str]) -> str:
  """One of `REFUSALS`, raised by reading these arguments, in a sentence."""
  said = str(error)
  if isinstance(error, flags.IllegalFlagValueError):
    said = said.strip()
    if 'Traceback' in said:  # of the config file; its last line is the reason
      said = '--config: ' + said.splitlines()[-1].partition(': ')[2]
  elif isinstance(error, (KeyError, AttributeError)):
    key = re.search(r'\w+', said)[0]
    near = re.search(r'Did you mean "\w+"', said)
    given = [arg for arg in argv if f'.{key}' in arg.partition('=')[0]]
    said = (f'{given[0] if given else "--config"}: there is no key {key!r}.'
            + (f' {near[0]}?' if near else ''))
  return said


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
