"""The command that makes a run's page: curves, samples, rewards, evaluations.

  python -m mmr1.report --workdir=runs/vision_r1
  python -m mmr1.report --workdir=runs/a,runs/b --out=ablation.html

One HTML file that opens offline. A run writes its own, <workdir>/report.html,
while it goes on and at its end; several runs are compared in one. The runs are
only read and may be going on; what is missing or broken is named on the page.
"""

import sys

from absl import flags

from mmr1 import command_line
from mmr1.reporting import page

# Of its own: a process may import several commands with flags of one name.
_FLAGS = flags.FlagValues()
flags.DEFINE_list('workdir', None, 'Folder of a run, or of several: a,b,c.',
                  flag_values=_FLAGS)
flags.DEFINE_string('out', None, 'Default: report.html in the workdir, or '
                    'compare.html in the current folder.', flag_values=_FLAGS)
flags.DEFINE_bool('help', False, 'Shows this.', flag_values=_FLAGS)


def main(argv: list[str]) -> None:
  if not command_line.own_flags(_FLAGS, argv, __doc__, {'workdir': 'run'}):
    return
  try:
    path = page.write(_FLAGS.workdir, _FLAGS.out)
  except ValueError as error:
    if not command_line.is_message(error):
      raise
    sys.exit(f'mmr1: {error}')
  except OSError as error:
    sys.exit(f'mmr1: --out: {error}')
  print(f'{path} ({path.stat().length / 1e6:.1f} MB)')


if __name__ == '__main__':
  main(sys.argv)
