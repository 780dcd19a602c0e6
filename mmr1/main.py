"""The command: `python -m mmr1.main --config=configs/<paper>.py[:scale]`."""

import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from mmr1 import command_line
from mmr1 import console
from mmr1 import printer
from mmr1 import resolve

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, with an optional argument after a colon.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Default: runs/<config>[_<argument>].')
_FRESH = flags.DEFINE_bool('fresh', False, 'Start over in this workdir.')
_PROFILE = flags.DEFINE_string(
    'profile', None, 'Steps to trace: <stage>:<first>-<last>.')
_QUIET = flags.DEFINE_bool(
    'quiet', False, 'Prints the path of the run at its end, and what is wrong.')
_DRY_RUN = flags.DEFINE_bool(
    'dry_run', False, 'Shows what would be run, scores the right answers, and '
    'trains nothing.')


def main(argv):
  if len(argv) > 1:
    sys.exit(f'mmr1: unknown argument {argv[1]!r}; overrides are '
             '--config.key=value.')
  if _CONFIG.value is None:
    sys.exit('mmr1: --config=configs/<paper>.py is missing.')
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  overrides = config_flags.get_override_values(flags.FLAGS['config'])
  workdir = _WORKDIR.value or resolve.default_workdir(path)
  logging.set_verbosity(logging.WARNING)  # Orbax tells of every file
  screen = console.Console(quiet=_QUIET.value, out=printer.open_out(
      sys.stderr if _QUIET.value else None))
  try:
    screen.begin('start')
    screen.doing('loading jax')  # seconds, in which something is to be seen
    from configs import common
    defaults = common.get_base(_CONFIG.value.scale)
    if _DRY_RUN.value:
      from mmr1 import dry_run
      sys.exit(dry_run.show(
          _CONFIG.value, workdir, screen, overrides=overrides,
          defaults=defaults))
    from mmr1 import runner
    runner.run(
        _CONFIG.value, workdir, fresh=_FRESH.value, overrides=overrides,
        profile=_PROFILE.value, defaults=defaults, screen=screen)
  except KeyboardInterrupt as error:
    screen.close()
    command_line.interrupted(str(error))
  except (ValueError, FloatingPointError) as error:
    if not command_line.is_message(error):
      raise
    screen.close()
    sys.exit(f'mmr1: {error}')
  finally:
    screen.close()
  if _QUIET.value and screen.active:
    print(workdir)


def parse(argv):
  """The flags; what is wrong with them in a line and not as a traceback."""
  return command_line.parsed_or_exit(flags.FLAGS, argv)


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
