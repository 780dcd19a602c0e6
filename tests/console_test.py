"""What a person sees of a run: on a terminal, in a pipe, when it is stopped."""

import io
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import time
import types

import pytest
from rich import console as rich_console

from mmr1 import console as console_lib
from mmr1 import context
from mmr1 import guard
from mmr1 import printer
from mmr1 import progress

ESCAPES = re.compile(r'\x1b\[[0-9;?]*[A-Za-z]|\r')
QUICK = ['--config.grpo.steps=12', '--config.grpo.prompts_per_step=2',
         '--config.grpo.samples_per_prompt=2',
         '--config.grpo.max_new_tokens=8',
         '--config.grpo.checkpoint_every=20', '--workdir=run']


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still; `clock.now` moves it."""
  one = types.SimpleNamespace(now=100.0)
  fake = types.SimpleNamespace(monotonic=lambda: one.now)
  monkeypatch.setattr(progress, 'time', fake)
  monkeypatch.setattr(console_lib, 'time', fake)
  monkeypatch.setattr(console_lib, '_EVERY_S', 1e6)  # no thread looks
  return one


def opened(terminal=False, width=80):
  out = rich_console.Console(file=io.StringIO(), width=width,
                             force_terminal=terminal, highlight=False)
  return console_lib.Console(out=out), out.file


def lines(file):
  return file.getvalue().splitlines()


def drawn(one, width=80):
  """The live line as text."""
  out = rich_console.Console(file=io.StringIO(), width=width)
  out.print(one.line())
  return out.file.getvalue().rstrip('\n')


# What is said of the work.


def test_the_pace_is_that_of_steps_after_the_first(clock):
  work = progress.Work('rl', 'rl', '1/2')
  work.steps(10, 0)
  clock.now += 60  # the first step, mostly compiling
  work.row(1, {'reward/mean': 0.25, 'loss': 3.0})
  assert work.pace is None and work.said() == 'reward 0.250'
  for step in (2, 3):
    clock.now += 2
    work.row(step, {'reward/mean': 0.5})
  # 2 s a step, and 7 steps are left.
  assert work.said() == 'reward 0.500, 0:14 left, 2 s a step'
  assert work.ending('greedy 0.9') == (
      'done in 1:04, 10 steps, reward 0.500, greedy 0.9')


@pytest.mark.parametrize('record, said', [
    ({'kept': 7, 'counts': {}}, '7 examples kept'),
    ({'eval': {'eval/ap': 0.5, 'eval/n': 3}}, 'AP 0.500'),
    ({'eval': {'eval/accuracy': 0.5, 'eval/accuracy_low': 0.25,
               'eval/accuracy_high': 0.75, 'eval/accuracy_sampled': 0.125}},
     'greedy 0.500 (0.25-0.75), sampled 0.125'), ({}, '')])
def test_what_a_stage_ends_with(record, said):
  assert progress.ended(record) == said


@pytest.mark.parametrize('seconds, said', [
    (7.9, '0:07'), (754, '12:34'), (3723, '1:02:03')])
def test_times(seconds, said):
  assert progress.clock(seconds) == said


# Compiling.


def test_a_program_is_told_of_once_it_takes_long(clock):
  one, file = opened()
  one.cache = '/cache'
  one.begin('rl', 'rl', '1/1')
  one.compiling('short')
  one._alive(clock.now + 0.5)
  one.compiling(None)
  clock.now += 1
  one.compiling('update')  # is traced
  clock.now += 0.8
  one.compiling(None)
  clock.now += 0.1
  one.compiling('update')  # is compiled: the same work goes on
  clock.now += 0.3
  for _ in range(3):
    one._alive(clock.now)
  clock.now += 10
  one.compiling(None)
  clock.now += 1
  one._alive(clock.now)
  one._alive(clock.now)
  assert lines(file) == [
      '1/1 rl: rl', 'rl: compiling update (first run only; later runs take it '
      'from /cache)', 'compiled update in 11 s']
  one.close()


def test_a_long_phase_gives_signs_of_life(clock):
  one, file = opened()
  one.begin('rl', 'rl')
  one.steps('rl', 40, 0)
  one.doing('rl: sample')
  for _ in range(14):  # 70 s
    clock.now += 5
    one._alive(clock.now)
  assert lines(file)[1:] == ['rl 0/40: sample, 30 s so far',
                             'rl 0/40: sample, 60 s so far']
  one.close()


def test_lines_of_steps_come_at_a_bounded_rate(clock):
  one, file = opened()
  one.begin('rl', 'rl')
  one.steps('rl', 100, 0)
  for step in range(1, 101):
    clock.now += 1
    one.row('rl', step, {'reward/mean': 0.5})
    one.row('rl', step, {'eval/accuracy': 0.5})  # no step
  said = [line for line in lines(file) if line.startswith('rl ')]
  assert [line.split()[1] for line in said] == [
      f'{step}/100' for step in (*range(1, 100, 10), 100)]
  assert '\x1b' not in file.getvalue()
  one.close()


# A terminal.


def test_the_live_line(clock):
  one, file = opened(terminal=True, width=100)
  one.cache = '~/.cache/mmr1/xla'
  one.begin('think', 'rl', '2/4')
  one.steps('think', 40, 0)
  one.compiling('update')
  clock.now += 12
  assert drawn(one) == (
      '2/4 think 0/40  compiling update 12 s (first run only; later runs take it '
      'from \n~/.cache/mmr1/xla)')
  one.compiling(None)
  one.row('think', 1, {'reward/mean': 0.25})
  clock.now += 2
  one.row('think', 2, {'reward/mean': 0.5})
  one.doing('think: update')
  clock.now += 3
  text = drawn(one, 100)
  assert '\n' not in text
  for part in ('2/4 think', '╸', '2/40', 'reward 0.500', '1:16 left',
               '2 s a step', 'update 3 s'):
    assert part in text, part
  assert '\n' not in drawn(one, 60)  # it is cut, not torn
  one.warn('look out')
  one.end('greedy 0.9')
  assert drawn(one) == ''
  text = ESCAPES.sub('', file.getvalue())
  assert 'WARNING: look out' in text
  assert text.rstrip().endswith(
      '2/4 think done in 0:17, 40 steps, reward 0.500, greedy 0.9')
  one.close()


@pytest.mark.parametrize('terminal', [True, False])
def test_logs_do_not_tear_the_live_line(monkeypatch, terminal):
  stream = io.StringIO()
  stream.isatty = lambda: terminal
  monkeypatch.setattr(sys, '__stderr__', stream)
  handler = logging.StreamHandler(stream)
  logging.getLogger().addHandler(handler)
  try:
    one, file = opened(terminal=True)
    one.begin('rl', 'rl')
    logging.getLogger().warning('skipped a record')
    one.end()
    assert handler.stream is stream
    # A file that takes them, as of 2>errors.txt, has them as before.
    there, other = (file, stream) if terminal else (stream, file)
    assert 'skipped a record' in there.getvalue()
    assert 'skipped' not in other.getvalue()
    one.close()
  finally:
    logging.getLogger().removeHandler(handler)


def test_no_color(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm-256color')
  colours = re.compile(r'\x1b\[[0-9;]*3[0-7][0-9;]*m')
  for value, there in ((None, True), ('1', False)):
    monkeypatch.delenv('NO_COLOR', raising=False)
    if value:
      monkeypatch.setenv('NO_COLOR', value)
    one, file = opened(terminal=True)
    one.begin('rl', 'rl')
    one.steps('rl', 4, 0)
    one.row('rl', 1, {'loss': 1.0})
    one.close()
    assert bool(colours.search(file.getvalue())) == there


def test_other_hosts_and_quiet_print_nothing(monkeypatch):
  monkeypatch.setenv('MMR1_HOST', '1')
  other, said = opened()
  monkeypatch.delenv('MMR1_HOST')
  quiet = console_lib.Console(quiet=True, out=rich_console.Console(
      file=io.StringIO()))
  for one in (other, quiet):
    one.begin('rl', 'rl')
    one.steps('rl', 2, 0)
    one.row('rl', 1, {'loss': 1.0})
    one.note('a note')
    one.end('result')
    one.close()
  assert said.getvalue() == quiet.out.file.getvalue() == ''


@pytest.mark.parametrize('terminal', [True, False])
def test_text_stands_as_it_is(terminal):
  stream = io.StringIO()
  stream.isatty = lambda: terminal
  one = console_lib.Console(out=printer.open_out(stream))
  one.note('a:b:c [b]x[/b]')
  one.table([('a:b:c', '[b]x[/b]')], ('q:b:', '[b]r[/b]'), title=':100:')
  said = ESCAPES.sub('', stream.getvalue())
  assert said.startswith('a:b:c [b]x[/b]\n')
  for part in ('a:b:c ', 'q:b:', '[b]x[/b]', '[b]r[/b]', ':100:'):
    assert part in said.partition('\n')[2], part


# Stopping.


def test_ctrl_c_has_its_own_exit_code():
  said = []
  stop = guard.Interrupt(said.append)
  stop._handle(15, None)
  assert (stop.code, said) == (
      0, ['SIGTERM: stopping once this step or evaluation is done and saved.'])
  stop = guard.Interrupt(said.append)
  stop._handle(2, None)
  assert stop.code == 130 and 'Ctrl-C again: at once' in said[-1]


def test_a_signal_in_the_middle_of_a_print_is_heard():
  def reentrant(text):
    raise RuntimeError('reentrant call')
  stop = guard.Interrupt(reentrant)
  stop._handle(2, None)
  assert stop.requested and stop.code == 130


LOOP = '''
import logging, pathlib, sys, time
from mmr1 import console, guard, log
screen = console.Console()
with guard.Interrupt(screen.note) as stop:
  logger = log.Logger('run', tensorboard=False, screen=screen)
  screen.begin('sft', 'sft', '1/2')
  screen.begin('grpo', 'rl', '2/2')
  logger.start('grpo', 1000)
  for step in range(1, 1001):
    screen._stepped = 0.0  # a line of every step
    logger.write('grpo', step, {'reward/mean': 0.5})
    time.sleep(0.02)
    if stop.agreed():
      break
  screen.end()
  logging.warning('saving')
  pathlib.Path('saved').write_text(str(logger.errors))
  sys.exit(stop.code)
'''


@pytest.mark.parametrize('errors', [subprocess.PIPE, subprocess.STDOUT])
@pytest.mark.parametrize('wait', [0, 1])
def test_m16_a_pipe_that_nobody_reads_ends_no_run(tmp_path, errors, wait):
  """The reader goes with Ctrl-C, as `tee` does, or before it, as `head`."""
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  process = subprocess.Popen(
      [sys.executable, '-c', LOOP], cwd=tmp_path, stdout=subprocess.PIPE,
      stderr=errors, text=True, env={**os.environ, 'PYTHONPATH': root})
  for line in process.stdout:
    if line.startswith('grpo 1/1000'):
      break
  process.stdout.close()
  time.sleep(wait)
  process.send_signal(signal.SIGINT)
  said = process.stderr.read() if process.stderr else ''
  assert process.wait(60) == 130, said
  assert (tmp_path / 'saved').read_text() == '0'  # sinks that failed
  assert 'Error' not in said and 'saving' in said or not process.stderr


def test_what_the_same_command_goes_on_from():
  done = {'sft': {}, 'rl': None}
  steps = []
  ctx = types.SimpleNamespace(order=('sft', 'rl'), checkpoints=(
      types.SimpleNamespace(done=done.get, steps=lambda stage: steps)))
  unsaved = context.Context.unsaved
  assert unsaved(ctx) == 'rl begins anew; stages before it are done'
  steps = [10, 20]
  assert unsaved(ctx) == 'rl goes on from step 20, the last that was saved'
  done['rl'] = {}
  assert unsaved(ctx) == 'all stages are done'


def terminal(argv, cwd, root, until):
  """(exit code, what was printed, longest silence) of a command on a terminal,
  which gets a SIGINT once `until` was printed."""
  ours, theirs = pty.openpty()
  process = subprocess.Popen(
      [sys.executable, *argv], cwd=cwd, stdin=theirs, stdout=theirs,
      stderr=theirs, start_new_session=True, env={
          **os.environ, 'TERM': 'xterm', 'COLUMNS': '100', 'PYTHONPATH': root})
  os.close(theirs)
  said, silent, last, pressed = b'', 0.0, time.monotonic(), False
  while True:
    try:
      part = os.read(ours, 65536)
    except OSError:  # how Linux says that the other side has gone
      break
    said, now = said + part, time.monotonic()
    silent, last = max(silent, now - last), now
    if not pressed and until.search(ESCAPES.sub('', said.decode(
        'utf-8', 'replace'))):
      process.send_signal(signal.SIGINT)
      pressed = True
  os.close(ours)
  return process.wait(), said.decode('utf-8', 'replace'), silent


@pytest.fixture(scope='module')
def stopped(flags, tmp_path_factory):
  """A run on a terminal that Ctrl-C ends after its first step."""
  folder = tmp_path_factory.mktemp('stopped')
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  return folder, *terminal(
      ['-m', 'mmr1.main', f'--config={root}/configs/forkme.py', *flags, *QUICK],
      folder, root, re.compile('1/12 reward'))


def test_ctrl_c_on_a_terminal(stopped):
  folder, code, said, silent = stopped
  text = ESCAPES.sub('', said)
  assert code == 130, text[-2000:]
  for part in ('start  loading jax', 'base done in', '1/1 grpo', '━', 'greedy',
               'SIGINT: stopping once this step', 'SIGINT: state saved',
               'The same command goes on'):
    assert part in text, part
  assert 'Traceback' not in text
  assert list((folder / 'run' / 'checkpoints').iterdir())
  assert silent < 20  # seconds, on a busy machine; else one


def test_the_same_command_goes_on_in_a_pipe(stopped, shell, flags):
  folder, *_ = stopped
  result = shell.run('forkme', *flags, *QUICK, cwd=folder)
  assert result.code == 0, result.err
  assert '\x1b' not in result.out + result.err
  assert re.search(r'^grpo [0-9]+/12 goes on$', result.out, re.MULTILINE)
  assert re.search(r'^grpo 12/12 reward ', result.out, re.MULTILINE)
  assert re.search(r'^1/1 grpo done in .*, 12 steps, reward .*, greedy .*, '
                   r'sampled ', result.out, re.MULTILINE)
  for part in ('accuracy on held-out problems', 'training', 'samples',
               'checkpoints  grpo_', 'Next: python -m mmr1.export'):
    assert part in result.out, part
  quiet = shell.run('forkme', *flags, *QUICK, '--quiet', cwd=folder)
  assert (quiet.code, quiet.out, quiet.err) == (0, 'run\n', '')
