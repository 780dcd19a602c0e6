"""Where the peers' virtual environments are, and what is in them."""

import json
import os
import pathlib
import subprocess

from absl import flags

_ROOT = flags.DEFINE_string(
    'peers_folder', '~/.cache/mmr1/peers',
    'Holds one virtual environment per peer.')

# What pip is asked for; the first is the peer itself.
PINS = {
    'trl': ('trl==1.16.0', 'torch==2.13.0', 'transformers==5.24.0',
            'accelerate==1.15.0', 'pillow'),
    'tunix': ('google-tunix==0.1.7',),
}
INSTALL = 'python -m experiments.bench.install_peers --peers={peer}'


def check(peer: str) -> None:
  """Refuses a name that is no peer.

  Raises:
    ValueError: with the names there are.
  """
  if peer not in PINS:
    raise ValueError(f'peer {peer!r}: allowed are {tuple(PINS)}.')


def folder(peer: str) -> pathlib.Path:
  """The environment of `peer`, there or not."""
  return pathlib.Path(os.path.expanduser(_ROOT.value)) / peer


def python(folder: pathlib.Path) -> pathlib.Path:
  """The interpreter of an environment."""
  return folder / 'bin' / 'python'


_VERSIONS = '''
import importlib.metadata, json, sys
found = {'python': sys.version.split()[0]}
for name in sys.argv[1:]:
  try:
    found[name] = importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    found[name] = None
print(json.dumps(found))
'''


def versions(
    interpreter: pathlib.Path | str, *names: str) -> dict[str, str | None]:
  """{package: its version for an interpreter, None: absent}, 'python'."""
  done = subprocess.run(
      [str(interpreter), '-c', _VERSIONS, *names], check=True,
      capture_output=True, text=True)
  return json.loads(done.stdout)


def missing(peer: str, folder: pathlib.Path) -> str | None:
  """Why an environment cannot run `peer`; None: it can."""
  if not python(folder).exists():
    return 'there is no environment'
  pins = dict(pin.split('==') for pin in PINS[peer] if '==' in pin)
  found = versions(python(folder), *pins)
  for name, wanted in pins.items():
    have = found[name]
    # A local version such as 2.13.0+cpu is the same release.
    if have is None or have.split('+')[0] != wanted:
      return f'{name} is {have or "absent"}, needed is {wanted}'
  return None


def message(peer: str) -> str | None:
  """What to tell a user whose peer is not ready; None: it is."""
  where = folder(peer)
  reason = missing(peer, where)
  if reason is None:
    return None
  return (f'{peer}: not measured: {reason} ({where}). Install it with '
          f'{INSTALL.format(peer=peer)}')
