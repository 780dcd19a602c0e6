"""What the commands share: flags of their own, errors and interruptions."""

import sys
from typing import NoReturn

from absl import flags
from absl import logging


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


def interrupted(where: str) -> NoReturn:
  """Ends the process after a second Ctrl-C, or one before there was a run.

  Args:
    where: what the same command goes on from, in words; '': nothing was made.
  """
  print('\nmmr1: stopped at once. '
        + (f'The same command goes on: {where}; what came after it is made '
           'again.' if where else 'Nothing was begun.'), file=sys.stderr)
  sys.exit(130)
