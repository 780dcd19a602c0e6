"""The command: `python -m mmr1.main --config=configs/<paper>.py[:scale]`."""

import sys

from absl import app
from absl import flags
from ml_collections import config_flags

from mmr1 import resolve
from mmr1 import runner

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, with an optional argument after a colon.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Default: runs/<config>[_<argument>].')
_FRESH = flags.DEFINE_bool('fresh', False, 'Start over in this workdir.')
_QUIET = flags.DEFINE_bool('quiet', False, 'No progress on the console.')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(
        f'unknown argument {argv[1]!r}; overrides are --config.key=value.')
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  if _CONFIG.value is None:
    raise app.UsageError('--config=configs/<paper>.py is missing.')
  overrides = config_flags.get_override_values(flags.FLAGS['config'])
  from configs import common
  try:
    runner.run(
        _CONFIG.value, _WORKDIR.value or resolve.default_workdir(path),
        fresh=_FRESH.value, quiet=_QUIET.value, overrides=overrides,
        defaults=common.get_base(_CONFIG.value.scale))
  except ValueError as error:
    sys.exit(f'mmr1: {error}')


if __name__ == '__main__':
  app.run(main)
