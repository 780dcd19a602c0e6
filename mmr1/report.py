"""The command that makes a run's page: curves, samples, rewards, evaluations.

  python -m mmr1.report --workdir=runs/vision_r1
  python -m mmr1.report --workdir=runs/a,runs/b --out=ablation.html

One HTML file that opens offline. A run writes its own, <workdir>/report.html,
while it goes on and at its end; several runs are compared in one. The runs are
only read and may be going on; what is missing or broken is named on the page.
A comma inside of a folder's name is no end of it.
"""

import sys

from absl import flags
from etils import epath

from mmr1 import command_line
from mmr1.reporting import page

# Of its own: a process may import several commands with flags of one name.
_FLAGS = flags.FlagValues()
flags.DEFINE_string('workdir', None, 'Folder of a run, or of several: a,b,c.',
                    flag_values=_FLAGS)
flags.DEFINE_string('out', None, 'Default: report.html in the workdir, or '
                    'compare.html in the current folder.', flag_values=_FLAGS)
flags.DEFINE_bool('help', False, 'Shows this.', flag_values=_FLAGS)


def main(argv: list[str]) -> None:
  if not command_line.own_flags(_FLAGS, argv, __doc__, {'workdir': 'run'}):
    return
  try:
    path = page.write(_workdirs(_FLAGS.workdir), _FLAGS.out)
  except ValueError as error:
    if not command_line.is_message(error):
      raise
    sys.exit(f'mmr1: {error}')
  except OSError as error:
    sys.exit(f'mmr1: --out: {error}')
  print(f'{path} ({path.stat().length / 1e6:.1f} MB)')


def _workdirs(text: str) -> list[str]:
  """Those that a text names, joined by commas.

  A folder may have commas in its own name, as the default one of a config with
  two arguments does: the longest that there is is meant.
  """
  parts, found = text.split(','), []
  while parts:
    names = {n: ','.join(parts[:n]).strip() for n in range(len(parts), 0, -1)}
    count = next((n for n, name in names.items()
                  if epath.Path(name).expanduser().is_dir()), 1)
    found.append(names[count])
    del parts[:count]
  return found


if __name__ == '__main__':
  main(sys.argv)
