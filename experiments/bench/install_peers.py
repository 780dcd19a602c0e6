"""Makes the virtual environments of the peers that the benchmarks run.

  python -m experiments.bench.install_peers [--peers=trl,tunix]

Each peer gets an environment of its own, outside of the project's: nothing
that mmr1 imports changes. Versions are pinned; a peer that is there already in
these versions is left alone. `pip` is configured as usual (environment
variables, pip.conf). On Linux PyPI's torch may bring gigabytes of CUDA:
--extra_index_url=https://download.pytorch.org/whl/cpu asks for the CPU build.
"""

import os
import pathlib
import shutil
import subprocess
import sys

from absl import app
from absl import flags

from experiments.bench import environments

_PEERS = flags.DEFINE_list('peers', list(environments.PINS), 'Which ones.')
_EXTRA = flags.DEFINE_string(
    'extra_index_url', None, "Another index for pip, as for torch's CPU build.")
_FRESH = flags.DEFINE_bool('fresh', False, 'Remove the environment first.')


def install(peer: str, folder: pathlib.Path) -> None:
  """Makes `folder` the environment of `peer`.

  Raises:
    subprocess.CalledProcessError: venv or pip failed; their output says why.
  """
  subprocess.run([sys.executable, '-m', 'venv', str(folder)], check=True)
  extra = ['--extra-index-url', _EXTRA.value] if _EXTRA.value else []
  subprocess.run(
      [str(environments.python(folder)), '-m', 'pip', 'install',
       '--quiet', *extra, *environments.PINS[peer]], check=True,
      env={**os.environ, 'PIP_DISABLE_PIP_VERSION_CHECK': '1'})


def main(argv):
  del argv
  for peer in _PEERS.value:
    environments.check(peer)
    folder = environments.folder(peer)
    if _FRESH.value:
      shutil.rmtree(folder, ignore_errors=True)
    missing = environments.missing(peer, folder)
    if missing is None:
      print(f'{peer}: is there, in {folder}')
      continue
    print(f'{peer}: {missing}; installing into {folder}', flush=True)
    install(peer, folder)
    left = environments.missing(peer, folder)
    if left is not None:
      raise SystemExit(f'{peer}: installed, but {left}.')
    print(f'{peer}: ready')


if __name__ == '__main__':
  app.run(main)
