"""launch_tpu.sh with a gcloud that writes down how it was called."""

import os
import pathlib
import shutil
import subprocess
import tarfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
GCLOUD = r"""#!/usr/bin/env bash
for arg; do
  case $arg in
    describe) printf '%s' "$ADDRESSES"; exit 0 ;;
    *mmr1.tgz) [[ -f $arg ]] && cp "$arg" "$HOME/sent.tgz" ;;
    --command=*)
      if [[ $arg == *mmr1.log* ]]; then bash -c "${arg#--command=}"; exit; fi ;;
  esac
done
"""
PYTHON = r"""#!/usr/bin/env bash
printf '%s\n' "$@" > "$HOME/arguments"
exit "$STATUS"
"""


@pytest.fixture
def launch(tmp_path):
  """(*command, addresses, status) -> the finished script; home is the TPU."""
  for path, text in (('bin/gcloud', GCLOUD),
                     ('home/mmr1-venv/bin/python', PYTHON)):
    path = tmp_path / path
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.chmod(0o755)
  (tmp_path / 'home' / 'mmr1').mkdir()
  checkout = tmp_path / 'checkout'
  checkout.mkdir()
  shutil.copy(ROOT / 'launch_tpu.sh', checkout)
  (checkout / '.gitignore').write_text('runs/\n')
  (checkout / 'runs').mkdir()
  (checkout / 'runs' / 'big').write_text('x')
  (checkout / 'a b.py').write_text('x')
  (checkout / 'deleted.py').write_text('x')
  for command in (['init', '-q'], ['add', '-A']):
    subprocess.run(['git', *command], cwd=checkout, check=True)
  (checkout / 'deleted.py').unlink()

  def run(*command, addresses='10.0.0.1', status=0):
    return subprocess.run(
        ['./launch_tpu.sh', *command], cwd=checkout, text=True,
        capture_output=True, env={
            **os.environ, 'HOME': str(tmp_path / 'home'), 'TPU': 'my-tpu',
            'ZONE': 'z', 'ADDRESSES': addresses, 'STATUS': str(status),
            'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}'})
  return run


def test_every_argument_arrives_as_it_was_given(launch, tmp_path):
  given = ['-m', 'mmr1.main', "--config.data.mixture=('digits',)",
           '--config.x=a  b $HOME "q" `id` *']
  done = launch('python', *given)
  assert done.returncode == 0, done.stderr
  home = tmp_path / 'home'
  assert (home / 'arguments').read_text().splitlines() == given
  with tarfile.open(home / 'sent.tgz') as sent:
    assert set(sent.getnames()) == {'.gitignore', 'a b.py', 'launch_tpu.sh'}


def test_the_exit_code_is_that_of_the_command(launch):
  assert launch('python', 'x', status=7).returncode == 7


@pytest.mark.parametrize('addresses, said', [
    ('1;2;3;4', '4 workers'), ('', 'is it running')])
def test_what_it_refuses(launch, addresses, said):
  done = launch('python', 'x', addresses=addresses)
  assert done.returncode == 2 and said in done.stderr
