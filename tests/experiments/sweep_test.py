"""Sweeps: checked as a whole, run beside each other, stopped, gone on with."""

import io
import json
import os
import pathlib
import signal
import threading
import time

from absl.testing import flagsaver
import pytest
from rich import console as rich_console

from experiments import board
from experiments import launch
from experiments import sweep
from experiments import sweep_file
from experiments import sweep_results
from mmr1 import log

ROOT = pathlib.Path(__file__).parent.parent.parent
FOLDER = ROOT / 'experiments' / 'sweeps'


@pytest.fixture
def written(tmp_path):
  """The path of a sweep file with these lines after its docstring."""
  def write(*lines, about='Which?'):
    path = tmp_path / 'mine.py'
    path.write_text('\n'.join((f'"""{about}"""', *lines, '')))
    return str(path)
  return write


@pytest.fixture(autouse=True)
def own_flags():
  """A command's flags are those of a process."""
  saved = flagsaver.save_flag_values(sweep._FLAGS)
  yield
  flagsaver.restore_flag_values(saved, sweep._FLAGS)


CONFIG = f"CONFIG = '{ROOT}/configs/forkme.py'"


# What a file says.


@pytest.mark.parametrize('path', sorted(FOLDER.glob('*.py')),
                         ids=lambda path: path.stem)
def test_every_sweep_of_the_project_plans(path):
  found = sweep_file.read(str(path))
  assert found.question.endswith('?') and len(found.runs) > 1
  planned = sweep_file.plan(found._replace(seeds=(0,)))
  assert [one.run for one in planned] == [*found.runs]
  first = json.loads(planned[0].resolved)
  assert 'accuracy' in found.metrics[0] and first['stages']


def test_ptst_keeps_the_budget_of_a_step():
  """The paper's schedules: L x G is 768 in all runs but `wide`."""
  found = {one.run: json.loads(one.resolved) for one in sweep_file.plan(
      sweep_file.read(str(FOLDER / 'ptst.py'))._replace(seeds=(0,)))}
  shapes = {name: [(c[stage]['max_new_tokens'], c[stage]['samples_per_prompt'])
                   for stage in ('think_short', 'think_long')]
            for name, c in found.items()}
  assert shapes == {
      'ptst': [(48, 16), (96, 8)], 'short': [(48, 16)] * 2,
      'long': [(192, 4)] * 2, 'wide': [(48, 16), (96, 16)]}


def test_ptst_has_the_papers_lengths_at_its_scale(monkeypatch):
  """4K x 16 then 8K x 8; 4K x 16 twice; 16K x 4 twice; 4K x 16, 8K x 16."""
  monkeypatch.setattr('mmr1.stages.sft.datasets.open_expert', lambda *_: None)
  found = {one.run: json.loads(one.resolved) for one in sweep_file.plan(
      sweep_file.read(str(FOLDER / 'ptst.py'), 'qwen2_5_vl_7b')._replace(
          seeds=(0,)))}
  assert {name: [c[stage]['max_new_tokens'] * c[stage]['samples_per_prompt']
                 // 1024 for stage in ('think_short', 'think_long')]
          for name, c in found.items()} == {
              'ptst': [64, 64], 'short': [64, 64], 'long': [64, 64],
              'wide': [64, 128]}
  assert found['long']['think_long']['max_new_tokens'] == 16_384


@pytest.mark.parametrize('lines, words', [
    ([CONFIG, 'RUNS = {"a": {}, "b": {"grpo.stps": 2}}'],
     ["run 'b'", "'grpo.stps'", 'grpo.steps']),
    ([CONFIG, 'RUNS = {"a": {}, "b": {"grop.steps": 2}}'], ['grpo.steps']),
    ([CONFIG, 'RUNS = {"a": {}, "b": {"grpo": 2}}'], ['section', 'grpo.']),
    ([CONFIG, 'RUNS = {"a": {}, "b": {"grpo.steps": "many"}}'],
     ["run 'b'", 'many']),
    ([CONFIG, 'RUNS = {"a": {}, "b": {"grpo.samples_per_prompt": 1}}'],
     ["run 'b'", 'samples_per_prompt=1', 'at least 2']),
    ([CONFIG, 'RUNS = {"a": {}, "b": {"sft.steps": 1}}'],
     ["run 'b'", 'no effect']),
    ([CONFIG, 'RUNS = {"a": {}, "b": {"arg": "tny"}}'], ["run 'b'", 'tiny']),
    ([CONFIG, 'RUNS = {"a": {}, "b": {"grpo.steps": 30}}'],
     ["'b'", "'a'", 'same config']),
    ([CONFIG, 'RUNS = {"a/b": {}}'], ["'a/b'", 'folder']),
    ([CONFIG, 'RUNS = {"a": 3}'], ["'a'", 'dict']),
    ([CONFIG, 'RUNS = {}'], ['at least one run']),
    ([CONFIG, 'RUNS = {"a": {}}', 'SEEDS = ("0",)'], ['SEEDS', 'integers']),
    ([CONFIG, 'RUNS = {"a": {}}', 'SEEDS = (0, 7, 7)'],
     ['SEEDS', '0, 7, 7', 'seed 7 is there twice']),
    ([CONFIG, 'RUNS = {"a": {}}', 'SEED = (1,)'], ['SEED ', 'SEEDS']),
    ([CONFIG], ['RUNS is missing']),
    (["CONFIG = 'no/such.py'", 'RUNS = {"a": {}}'], ['no/such.py']),
])
def test_m22_what_is_wrong_is_said_before_anything_starts(
    written, tmp_path, monkeypatch, lines, words):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as error:
    sweep.main(['sweep', written(*lines), '--work=runs'])
  assert str(error.value).startswith('sweep: ')
  for word in words:
    assert word in str(error.value)
  assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('args, words', [
    ([], ['one sweep']), (['no.py'], ['no.py']),
    (['mine.py', '--runs=b'], ["no run 'b'", 'a']),
    (['mine.py', '--seeds=x'], ['--seeds', 'x']),
    (['mine.py', '--seeds=3,3'], ['--seeds', '3, 3', 'seed 3 is there twice']),
    (['mine.py', '--steps=0'], ['--steps', '0']),
    (['mine.py', '--jobs=0'], ['--jobs', '0']),
    (['mine.py', '--config.no=1'], ["'no'"]), (['mine.py', '--job=1'], ['job'])])
def test_m22_a_wrong_command_is_a_line(
    written, tmp_path, monkeypatch, args, words):
  written(CONFIG, 'RUNS = {"a": {}}')
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as error:
    sweep.main(['sweep', *args])
  for word in words:
    assert word in str(error.value)


def test_the_order_and_what_all_runs_get(written):
  """First seeds first; --steps shortens warm-up too; tuples are written as
  Python does."""
  found = sweep_file.read(written(
      f"CONFIG = '{ROOT}/configs/vision_r1.py'", 'SEEDS = (3, 5)',
      'RUNS = {"a": {}, "b": {"arg": "ci"},',
      '        "c": {"data.weights": (0.5, 0.5), "rl.top_p": 1}}'))
  planned = sweep_file.plan(found, steps=4)
  assert [one.name for one in planned] == [
      f'{run}_seed{seed}' for seed in (3, 5) for run in 'abc']
  assert planned[1].flags[0].endswith('vision_r1.py:ci')
  assert '--config.data.weights=(0.5, 0.5)' in planned[2].flags
  c = json.loads(planned[2].resolved)
  assert c['seed'] == 3 and c['data']['weights'] == [0.5, 0.5]
  assert planned[0].steps == {
      'cold_start': 4, 'think_short': 4, 'think_long': 4}
  assert c['cold_start']['optimizer']['warmup_steps'] == 4
  with_all = sweep_file.plan(found._replace(seeds=(3,), runs={'a': {}}),
                             everywhere=['--config.evaluation.examples=9'])
  assert json.loads(with_all[0].resolved)['evaluation']['examples'] == 9


# The machine.


@pytest.mark.parametrize('cores, memory, jobs, expected', [
    (2, 64, None, 1), (8, 64, None, 4), (8, 9, None, 2), (1, 1, None, 1),
    (8, 64, 2, 2), (2, 64, 3, 3)])
def test_parts_of_a_cpu(cores, memory, jobs, expected):
  parts = launch.slots(
      launch.Machine('cpu', 1, tuple(range(cores)), memory), jobs)
  assert len(parts) == expected
  taken = [core for part in parts for core in part.cores]
  assert len(set(taken)) == len(taken)  # no core twice
  if 1 < expected <= cores:
    size = cores // expected
    assert all(len(part.cores) == size and part.env['OMP_NUM_THREADS']
               == str(size) for part in parts)


def test_parts_of_accelerators():
  gpus = launch.Machine('gpu', 4, (0, 1), 64)
  assert launch.slots(gpus, env={}) == [launch.Slot({})]
  assert [part.env['CUDA_VISIBLE_DEVICES'] for part in launch.slots(
      gpus, 2, env={})] == ['0,1', '2,3']
  assert [part.env['CUDA_VISIBLE_DEVICES'] for part in launch.slots(
      gpus, 2, env={'CUDA_VISIBLE_DEVICES': '4,5,6,7'})] == ['4,5', '6,7']
  one = gpus._replace(devices=1)
  assert {part.env['XLA_PYTHON_CLIENT_MEM_FRACTION'] for part in launch.slots(
      one, 3, env={})} == {'0.300'}
  with pytest.raises(ValueError, match='TPU'):
    launch.slots(gpus._replace(platform='tpu'), 2)


# What it came to.


def finished(folder, name, right, step=3):
  """A workdir of a run whose greedy answers were right or wrong."""
  workdir = folder / name
  for part in ('eval', 'DONE'):
    (workdir / part).mkdir(parents=True)
  n = len(right)
  evals = {'base': {'eval/accuracy': 0.0},
           'grpo': {'eval/accuracy': sum(right) / n}}
  (workdir / 'FINISHED').write_text(json.dumps(evals))
  (workdir / 'DONE' / 'grpo.json').write_text(json.dumps({'step': step}))
  (workdir / 'eval' / f'grpo_{step}.jsonl').write_text(''.join(
      json.dumps({'uid': i, 'decoding': 'greedy', 'correct': bool(x)}) + '\n'
      for i, x in enumerate(right)))
  run, _, seed = name.partition('_seed')
  return sweep_results.Result(run, int(seed), workdir, 'done',
                              sweep_results.evaluations(workdir))


def test_the_table_by_hand(tmp_path):
  """Accuracies .5, .7 (mean .6, deviation .1414) and .9, .7 (.8, .1414).
  Differences .4, 0: mean .2, deviation .2828. On seed 0 only the other was
  right on 4 problems: p = 2 / 2^4 = .125; on seed 1 each alone on one: 1."""
  first = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
  results = [
      finished(tmp_path, 'a_seed0', first),
      finished(tmp_path, 'b_seed0', [1] * 9 + [0]),
      finished(tmp_path, 'a_seed1', [1] * 7 + [0] * 3),
      finished(tmp_path, 'b_seed1', [0] + [1] * 7 + [0] * 2),
      sweep_results.Result('c', 0, tmp_path / 'c', 'failed', {})]
  lines = sweep_results.table(results, ['eval/accuracy', 'base:eval/accuracy'])
  rows = [[cell.strip() for cell in line.split('|')[1:-1]]
          for line in lines.splitlines()]
  assert rows[0] == ['run', 'seeds', 'accuracy', 'base:accuracy',
                     'accuracy - a', 'p by seed']
  assert rows[2] == ['a', '2', '0.600 +- 0.141', '0.000 +- 0.000', '-', '']
  assert rows[3] == ['b', '2', '0.800 +- 0.141', '0.000 +- 0.000',
                     '+0.200 +- 0.283', '0.12, 1']
  assert rows[4] == ['c', '0 of 1', '-', '-', '-', '']
  record = sweep_results.record(results, ['eval/accuracy'], {})
  json.dumps(record)
  assert record['differences']['eval/accuracy']['b'][0] == {
      'seed': 0, 'difference': pytest.approx(.4), 'p': .125}
  assert record['versions']['jax'] and record['versions']['commit']


def test_a_sweep_of_a_config_that_ends_in_refine(tmp_path):
  """Its records are right or wrong round by round; the last one counts: only
  the other was right on 4 problems, p = 2 / 2^4."""
  results = []
  for run, last in (('a', [1, 1, 0, 0, 0, 0]), ('b', [1] * 6)):
    one = finished(tmp_path, f'{run}_seed0', last, step=0)
    file, = (one.workdir / 'eval').iterdir()
    file.write_text(''.join(json.dumps({
        'uid': i, 'correct': [not x, bool(x)], 'turns': []}) + '\n'
                            for i, x in enumerate(last)))
    results.append(one)
  text = sweep_results.table(results, sweep_file.METRICS)
  assert '| +0.667       | 0.12 ' in text, text


def test_other_problems_have_no_p(tmp_path):
  a = finished(tmp_path, 'a_seed0', [1, 0])
  b = finished(tmp_path, 'b_seed0', [1, 0, 1, 1])
  assert sweep_results.paired(a, b, 'eval/accuracy') == (0, .25, None)
  assert sweep_results.paired(a, b, 'eval/reward') is None


def test_progress_of_a_row_that_is_being_written(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  assert board.progress(tmp_path) == board.Progress()
  rows = [{'stage': 'base', 'step': 0, 'eval/accuracy': .25}] + [
      {'stage': 'grpo', 'step': k, 'reward/mean': k / 1000, 'x': 'y' * 500}
      for k in range(300)]  # longer than what is read
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows) + '{"st')
  assert board.progress(tmp_path) == board.Progress('grpo', 299, .299)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows[:2]))
  assert board.progress(tmp_path) == board.Progress('grpo', 0, 0., .25)


def test_an_evaluation_leaves_the_stage_its_reward(tmp_path):
  rows = [{'stage': 'grpo', 'step': 9, 'reward/mean': .5},
          {'stage': 'grpo', 'step': 9, 'eval/accuracy': .75},
          {'stage': 'sft', 'step': 1, 'loss': 1.}]
  def after(count):
    (tmp_path / 'metrics.jsonl').write_text(
        ''.join(json.dumps(row) + '\n' for row in rows[:count]))
    return board.progress(tmp_path)
  assert after(2) == board.Progress('grpo', 9, .5, .75)
  assert after(3) == board.Progress('sft', 1, None, .75)


@pytest.mark.parametrize('terminal', [True, False])
def test_the_board_shows_what_is_no_number(tmp_path, terminal):
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(
      {'stage': 'grpo', 'step': 1, 'reward/mean': 'nan',
       'eval/accuracy': .5}) + '\n')
  out = rich_console.Console(
      file=io.StringIO(), force_terminal=terminal, width=100)
  with board.Board(out) as shown:
    shown.show([board.State('a', tmp_path, {'grpo': 4}, 'running', 61.)])
  text = out.file.getvalue()
  for part in ('grpo 1/4', 'nan', '0.500', '1:01'):
    assert part in text, text


# Whole sweeps, in processes.


def alive(workdir):
  """Whether the process whose number lies there is."""
  try:
    os.kill(int((workdir / 'number').read_text()), 0)
  except ProcessLookupError:
    return False
  return True


@pytest.mark.parametrize('speechless', [True, False])
def test_no_run_outlives_a_failure_here(tmp_path, speechless):
  """What is told of an ended run fails; the board may not speak either."""
  slow, ends = tmp_path / 'slow', tmp_path / 'ends'
  for workdir in (slow, ends):
    workdir.mkdir()
  saves = ('trap "touch saved; exit 0" TERM; echo $$ > number; '
           'while true; do sleep .1; done')
  jobs = [launch.Job(workdir.name, ('bash', '-c', f'cd {workdir}; {command}'),
                     workdir, workdir / 'log')
          for workdir, command in ((slow, saves), (
              ends, 'until [ -s ../slow/number ]; do sleep .1; done'))]
  out = io.StringIO()
  shown = board.Board(rich_console.Console(file=out))
  if speechless:
    def say(text):
      raise OSError('no space left')
    shown.say = say

    def show(states):
      pass
    shown.show = show

  def after(ended):
    raise FileNotFoundError(ended.job.name)
  with pytest.raises(FileNotFoundError, match='ends'):
    launch.run(jobs, [launch.Slot({})] * 2, shown, after)
  assert not alive(slow) and (slow / 'saved').exists()
  if not speechless:
    assert 'stopping: each run saves its state' in out.getvalue()


def test_a_terminal_may_close_where_nohup_says_so():
  old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with launch._signals_interrupt():
      assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
      assert callable(signal.getsignal(signal.SIGTERM))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with launch._signals_interrupt():
      assert callable(signal.getsignal(signal.SIGHUP))
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
  finally:
    signal.signal(signal.SIGHUP, old)


def test_a_sweep_is_stopped_and_goes_on_and_one_run_dies(
    written, flags, tmp_path, monkeypatch, capfd):
  """Ctrl-C after the first step of the first run; then the same command."""
  path = written(
      CONFIG, 'RUNS = {"a": {}, "dies": {"rewards.result.fn":',
      '        "tests.own:infinite"}, "b": {"rl.advantage.kwargs.std":',
      '        "none"}}')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  command = ['sweep', path, '--work=out', *flags, '--config.cpu_devices=1',
             '--config.evaluate_base=False', '--config.grpo.steps=80',
             '--config.grpo.prompts_per_step=4', '--config.grpo.max_new_tokens'
             '=8', '--config.grpo.samples_per_prompt=2',
             '--config.tensorboard=False']
  a = tmp_path / 'out' / 'a_seed0'
  steps = lambda: [row['step'] for row in log.read_rows(a / 'metrics.jsonl')
                   if 'grad_norm' in row]

  def interrupt():
    until = time.monotonic() + 300
    while time.monotonic() < until:
      if (a / 'metrics.jsonl').exists() and steps():
        break
      time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)
  threading.Thread(target=interrupt, daemon=True).start()
  # As where a shell has started it with `&`: it listens all the same.
  old = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    code = sweep.main([*command, '--jobs=1'])
  finally:
    signal.signal(signal.SIGINT, old)
  said = capfd.readouterr().out
  assert code == 130 and 'The same command goes on.' in said, said
  assert 'state saved' in (a.parent / 'logs' / 'a_seed0.log').read_text()
  assert 0 < len(steps()) < 80 and not (a / 'FINISHED').exists()
  before = steps()

  code = sweep.main([*command, '--jobs=2'])
  said = capfd.readouterr().out
  assert code == 1, said
  assert 'dies_seed0 failed (1)' in said and 'declared range' in said
  assert steps() == [*range(1, 81)] and before == steps()[:len(before)]
  record = json.loads((tmp_path / 'out' / 'sweep.json').read_text())
  ended = {one['name']: one for one in record['processes']}
  assert {name: one['state'] for name, one in ended.items()} == {
      'a_seed0': 'done', 'dies_seed0': 'failed', 'b_seed0': 'done'}
  assert ended['a_seed0']['continued']
  assert record['runs']['b'] == {'rl.advantage.kwargs.std': 'none'}
  assert 0 <= record['differences']['eval/accuracy']['b'][0]['p'] <= 1
  report = (tmp_path / 'out' / 'compare.html').read_text()
  assert 'a_seed0' in report and 'b_seed0' in report
  assert f'report  {tmp_path}/out/compare.html' in said or (
      'report  out/compare.html' in said)
  assert '| a ' in said and '| b ' in said
  assert '| b ' in (tmp_path / 'out' / 'summary.md').read_text()

  # What is done is not started again.
  again = sweep.main([*command, '--runs=a,b'])
  record = json.loads((tmp_path / 'out' / 'sweep.json').read_text())
  assert again == 0 and all(
      one['code'] is None and one['state'] == 'done'
      for one in record['processes'])
