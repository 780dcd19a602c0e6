"""launch_tpu.sh with a gcloud that writes down how it was called."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# States come from a file, a line a question; the last one stays.
GCLOUD = r"""#!/usr/bin/env bash
printf '%q ' "$@" >> "$HOME/calls"; echo >> "$HOME/calls"
for arg; do
  case $arg in
    *'value(state)'*)
      head -1 "$HOME/states"
      if (($(wc -l < "$HOME/states") > 1)); then sed -i 1d "$HOME/states"; fi
      exit 0 ;;
    *networkEndpoints*) printf '%s' "$ADDRESSES"; exit 0 ;;
    ls) for last; do :; done; [[ -e $HOME/bucket/${last#gs://} ]]; exit ;;
    *mmr1.tgz) [[ -f $arg ]] && cp "$arg" "$HOME/sent.tgz" ;;
    --command=*)
      if [[ $arg == *mmr1.log* || $arg == *FINISHED* ]]; then
        bash -c "${arg#--command=}"; exit
      fi ;;
  esac
done
"""
SLEEP = r"""#!/usr/bin/env bash
echo "sleep $*" >> "$HOME/calls"
"""
# Ends with the next line of `ends`: a status, and 'done' where it finishes.
PYTHON = r"""#!/usr/bin/env bash
printf '%s\n' "$@" > "$HOME/arguments"
echo "${MMR1_COORDINATOR:-alone}" >> "$HOME/hosts"
read -r status over < "$HOME/ends"; sed -i 1d "$HOME/ends"
if [[ -n $over ]]; then mkdir -p "$over" && touch "$over/FINISHED"; fi
exit "$status"
"""


@pytest.fixture
def launch(tmp_path):
  """(*command, addresses, states, ends, **environment) -> the finished script;
  home is the TPU."""
  for path, text in (('bin/gcloud', GCLOUD), ('bin/sleep', SLEEP),
                     ('home/mmr1-venv/bin/python', PYTHON)):
    path = tmp_path / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
  home = tmp_path / 'home'
  (home / 'mmr1').mkdir()
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

  def run(*command, addresses='10.0.0.1', states=('READY',), ends=('0',),
          **environment):
    for name, lines in (('states', states), ('ends', ends)):
      (home / name).write_text(''.join(f'{line}\n' for line in lines))
    done = subprocess.run(
        ['./launch_tpu.sh', *command], cwd=checkout, text=True,
        capture_output=True, timeout=60, env={
            **os.environ, 'HOME': str(home), 'TPU': 'my-tpu', 'ZONE': 'z',
            'ADDRESSES': addresses, **environment,
            'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}'})
    calls = home / 'calls'
    done.calls = calls.read_text().splitlines() if calls.exists() else []
    return done
  run.home = home
  return run


def started(done):
  """How often the command was."""
  return sum('mmr1.log' in call and ' ssh ' in call for call in done.calls)


def test_every_argument_arrives_as_it_was_given(launch):
  given = ['-m', 'mmr1.main', "--config.data.mixture=('digits',)",
           '--config.x=a  b $HOME "q" `id` *']
  done = launch('python', *given)
  assert done.returncode == 0, done.stderr
  assert (launch.home / 'arguments').read_text().splitlines() == given
  with tarfile.open(launch.home / 'sent.tgz') as sent:
    assert set(sent.getnames()) == {'.gitignore', 'a b.py', 'launch_tpu.sh'}


def test_the_exit_code_is_that_of_the_command(launch):
  done = launch('python', 'x', ends=('7',))
  assert done.returncode == 7 and started(done) == 1


def test_a_failure_of_the_command_is_not_tried_again(launch):
  """The slice is READY: it was not preempted."""
  done = launch('python', '--workdir=gs://b/run', ends=('7', '0'))
  assert done.returncode == 7 and started(done) == 1


def test_all_hosts_of_a_slice_find_each_other(launch):
  assert launch('python', 'x', addresses='1;2;3;4').returncode == 0
  assert launch('python', 'x').returncode == 0
  assert (launch.home / 'hosts').read_text().split() == ['auto', 'alone']


def test_a_slice_that_is_not_there_is_created(launch):
  done = launch('python', 'x', states=('', 'READY'), TYPE='v6e-64', SPOT='1')
  assert done.returncode == 0, done.stderr
  create, = [call for call in done.calls if ' create ' in call]
  for part in ('my-tpu', '--accelerator-type=v6e-64', '--spot', '--zone=z',
               '--version=v2-alpha-tpuv6e'):
    assert part in create
  assert not any(' delete ' in call for call in done.calls)


@pytest.mark.parametrize('workdir', [
    ['--workdir=gs://b/run'], ['--workdir', 'gs://b/run']])
def test_m16_a_preempted_run_goes_on_to_its_marker(launch, workdir):
  """The slice is taken away in the first run (its exit code says nothing), the
  second saves and leaves with 0 (maintenance), the third finishes although a
  worker dies at the very end."""
  marker = launch.home / 'bucket' / 'b' / 'run'
  done = launch(
      'python', *workdir, TYPE='v5p-128',
      states=('READY', 'PREEMPTED', 'PREEMPTED', 'READY'),
      ends=('255', '0', f'1 {marker}'))
  assert done.returncode == 0, done.stderr
  assert started(done) == 3
  order = [word for call in done.calls for word in call.split()
           if word in ('create', 'delete')]
  assert order == ['delete', 'create']


def test_a_local_workdir_has_its_marker_on_the_first_worker(launch):
  done = launch('python', '--workdir=runs/a b', ends=('0', '0 runs/a b'))
  assert done.returncode == 0 and started(done) == 2


def test_a_workdir_in_the_home_of_the_worker(launch):
  done = launch('python', '--workdir=~/a run',
                ends=('0', f'0 {launch.home}/a run', '0'))
  assert done.returncode == 0 and started(done) == 2


def finished_before(launch):
  marker = launch.home / 'bucket' / 'b' / 'run'
  marker.mkdir(parents=True)
  (marker / 'FINISHED').touch()


@pytest.mark.parametrize('status', [0, 1])
def test_an_old_marker_does_not_hide_a_failure(launch, status):
  finished_before(launch)
  done = launch('python', '--workdir=gs://b/run', ends=(str(status),))
  assert done.returncode == status and started(done) == 1


def test_a_preempted_run_of_a_finished_workdir_goes_on(launch):
  finished_before(launch)
  done = launch('python', '--workdir=gs://b/run', TYPE='v5p-128',
                states=('READY', 'PREEMPTED', 'PREEMPTED', 'READY'),
                ends=('255', '0'))
  assert done.returncode == 0 and started(done) == 2


@pytest.mark.parametrize('state', ['CREATING', 'STARTING', 'RESTARTING'])
@pytest.mark.parametrize('kind', [{}, {'TYPE': 'v5p-128'}])
def test_a_slice_on_its_way_is_waited_for(launch, state, kind):
  done = launch('python', 'x', states=(state, state, 'READY'), **kind)
  assert done.returncode == 0 and started(done) == 1, done.stderr
  assert done.calls.count('sleep 10') == 2
  assert not any(' delete ' in call or ' create ' in call
                 for call in done.calls)


@pytest.mark.parametrize('state, sleeps', [('CREATING', 180), ('UNKNOWN', 0)])
def test_a_slice_that_is_not_gone_is_never_deleted(launch, state, sleeps):
  done = launch('python', 'x', states=(state,), TYPE='v5p-128')
  assert done.returncode == 2 and f'is {state}, which' in done.stderr
  assert done.calls.count('sleep 10') == sleeps
  assert not any(' delete ' in call for call in done.calls)


@pytest.mark.parametrize('given, status', [
    ('--fresh', 2), ('-fresh', 2), ('--fresh=true', 2), ('--fresh=false', 0),
    ('--nofresh', 0)])
def test_what_would_wipe_the_run_at_each_start_is_refused(
    launch, given, status):
  done = launch('python', given, '--workdir=gs://b/run', ends=(
      f'0 {launch.home}/bucket/b/run',))
  assert done.returncode == status and started(done) == (status == 0)
  assert (f'got {given}: ' in done.stderr) == (status == 2)


def test_shellcheck_finds_nothing():
  done = subprocess.run(
      [pathlib.Path(sys.executable).parent / 'shellcheck', 'launch_tpu.sh',
       '.ci/run'], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('state, said', [
    ('', 'is not there'), ('PREEMPTED', 'is PREEMPTED')])
def test_what_it_refuses(launch, state, said):
  done = launch('python', 'x', states=(state,))
  assert done.returncode == 2 and said in done.stderr
