"""The benchmarks: equal work, a fair ablation, records, absent peers."""

import json
import pathlib
import sys

from absl import flags
from absl.testing import flagsaver
import jax
import numpy as np
import pytest
import transformers

from experiments.bench import ablation
from experiments.bench import compare
from experiments.bench import engine_mmr1
from experiments.bench import environments
from experiments.bench import machine
from experiments.bench import rounds
from experiments.bench import workloads
from experiments.bench.peers import lines
from mmr1.models import checkpoints
from tests import small

# Like w1 in everything but size.
TINY = workloads.Workload(
    'tiny', width=32, mlp_width=48, depth=1, heads=2, kv_heads=1, image=56,
    text=24, prompts=2, group=3, length=5)


@pytest.fixture(autouse=True, scope='module')
def parsed_flags():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('workload')
  workloads.build(TINY, path)
  return path


# Workloads.


@pytest.mark.parametrize('name, millions', [
    ('w1', 1.2), ('w2', 1.2), ('w3', 4.1), ('w4', 24)])
def test_sizes_of_models(name, millions, tmp_path):
  (tmp_path / 'config.json').write_text(
      json.dumps(workloads.config(workloads.named(name))))
  _, params = checkpoints.describe(tmp_path, param_dtype='float32')
  count = sum(np.prod(x.shape) for x in jax.tree.leaves(params))
  assert abs(count / 1e6 / millions - 1) < 0.06


def test_image_tokens():
  assert [workloads.named(name).image_tokens
          for name in ('w1', 'w2', 'w3', 'w4')] == [64, 1024, 0, 256]


def test_prompts_have_the_lengths_that_are_said(folder):
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder / 'model')
  rows = [json.loads(line) for line in open(folder / 'data.jsonl')]
  assert len(rows) == TINY.prompts
  assert len({row['problem'] for row in rows}) == len(rows)
  for row in rows:
    text = tokenizer.apply_chat_template(
        [{'role': 'user', 'content': [
            {'type': 'image'}, {'type': 'text', 'text': row['problem']}]}],
        tokenize=False, add_generation_prompt=True)
    # 24 of text, and one placeholder for the 2 x 2 cells of 28 pixels.
    assert len(tokenizer(text)['input_ids']) == 24 + 1
    assert (folder / row['images'][0]).exists()


def test_ragged_lengths_have_the_mean_that_is_said():
  w = workloads.named('w5')
  lengths = np.minimum(
      np.random.default_rng(0).geometric(w.hazard, 100_000), w.length)
  assert abs(lengths.mean() / (w.length / 3) - 1) < 0.02
  # Among 768 equal logits the bias makes eos as likely.
  odds = np.exp(w.eos_bias(768)) / 767
  assert abs(odds / (1 + odds) / w.hazard - 1) < 1e-6


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="'w9': allowed are .*'w1'"):
    workloads.named('w9')
  with pytest.raises(ValueError, match="'vllm': allowed are .*'tunix'"):
    rounds.present(['mmr1', 'vllm'])


# The ablation.


def test_without_groups_loss_and_gradient_are_the_same():
  batch = small.prompts()
  block = ablation.block(batch, group=3, length=5, words=60)
  params = small.params()
  grouped, metrics = small.gradient(params, (block,))
  other = ablation.repeated(block)
  assert other.mask.shape == (12, 1, 5)
  repeated, again = small.gradient(params, (other,))
  largest = max(np.abs(x).max() for x in jax.tree.leaves(grouped))
  small.close(grouped, repeated, 1e-5 * largest)
  assert abs(metrics['loss'] - again['loss']) < 1e-5 * abs(metrics['loss'])


def test_repeat_keeps_rows_with_their_prompts():
  batch = small.prompts()
  block = ablation.repeated(ablation.block(batch, group=3, length=5, words=60))
  np.testing.assert_array_equal(
      block.prompts.uid, np.repeat(np.asarray(batch.uid), 3))
  first = ablation.block(batch, group=3, length=5, words=60)
  np.testing.assert_array_equal(
      block.completions.tokens[4, 0], first.completions.tokens[1, 1])


@pytest.fixture(scope='module')
def engines(folder, tmp_path_factory):
  made = [engine_mmr1.Engine(
      folder, str(tmp_path_factory.mktemp('run')), repeated=repeated)
          for repeated in (False, True)]
  yield made
  for engine in made:
    engine.ctx.close()


@pytest.fixture(scope='module')
def steps(engines):
  """(first reply, state before, state after, rollout) of both engines."""
  result = []
  for engine in engines:
    before = jax.device_get(engine.state.params)
    rollout = jax.device_get(engine.rollout())
    block = jax.device_get(engine.assemble(engine.rollout())[0])
    reply = engine.step()
    result.append(
        (reply, before, jax.device_get(engine.state.params), rollout, block))
  return result


@pytest.mark.slow
def test_engines_without_groups_sample_and_learn_the_same(steps):
  (_, before, grouped, one, a), (_, _, repeated, other, b) = steps
  np.testing.assert_array_equal(
      one.completions.tokens.reshape(6, 1, 5), other.completions.tokens)
  np.testing.assert_allclose(
      a.advantage.reshape(6, 1, 1), b.advantage, atol=1e-6)
  assert np.ptp(a.advantage) > 0.1
  np.testing.assert_allclose(a.ref.reshape(6, 1, 5), b.ref, atol=1e-5)
  moved = max(jax.tree.leaves(jax.tree.map(
      lambda x, y: np.abs(x - y).max(), before, grouped)))
  assert moved > 1e-5
  # AdamW's first update is the sign of the gradient: only where that is about
  # 0 may the two differ.
  far = [np.mean(np.abs(x - y) > 1e-5) for x, y in zip(
      jax.tree.leaves(grouped), jax.tree.leaves(repeated))]
  assert max(far) < 0.02


def test_reply_of_a_step(steps):
  for reply, *_ in steps:
    assert reply['tokens'] == reply['raw'] == 2 * 3 * 5  # no row ends
    assert reply['prompt_tokens'] == 28
    assert set(reply['parts']) == {'sample', 'reference', 'update'}
    assert 0.9 < sum(reply['parts'].values()) / reply['seconds'] <= 1.001
    assert reply['compile_count'] > 0 and reply['cpu_seconds'] > 0


# Turns, ratios, records.


ENGINE = '''
import sys
sys.path.insert(0, {folder!r})
import lines
channel, n = lines.Lines(), 0
while (request := channel.read())['do'] != 'close':
  print('noise')
  n += 1
  open({log!r}, 'a').write({name!r})
  if n == {fails}:
    raise RuntimeError('out of luck')
  channel.write(seconds={seconds} * n, tokens=8, raw=8, prompt_tokens=4,
                parts=dict(sample=1.0, update=2.0))
channel.close()
'''


@pytest.fixture
def scripts(tmp_path, monkeypatch):
  """Engines that take n, 2n, 3n... 'seconds' and write down their turns."""
  monkeypatch.setattr(rounds.workloads, 'build', lambda w, folder: None)
  log = tmp_path / 'turns'

  def use(**engines):
    peers = str(pathlib.Path(lines.__file__).parent)
    for name, kw in engines.items():
      (tmp_path / name).write_text(ENGINE.format(
          folder=peers, log=str(log), name=name[0],
          **{'fails': 0, **kw}))
    monkeypatch.setattr(
        rounds, 'command',
        lambda engine, folder: [sys.executable, str(tmp_path / engine)])
    return {name: rounds.Lane(name, TINY) for name in engines}
  use.log = log
  return use


def test_engines_take_turns(scripts):
  lanes = scripts(mmr1=dict(seconds=1), trl=dict(seconds=3))
  with flagsaver.flagsaver(rounds=3, warm=2):
    found = rounds.measure(lanes, 'step')
  assert scripts.log.read_text() == 'mm' + 'tt' + 'mtmtmt'
  assert rounds.seconds(found['trl']) == [9, 12, 15]
  ratio = rounds.ratios(found)['trl']
  assert ratio['rounds'] == [3, 3, 3] and ratio['median'] == 3
  assert rounds.ratios(found, 'update')['trl']['min'] == 1
  assert found['mmr1']['peak_bytes'] > 1 << 20
  (_, _, *row), absent = rounds.rows('tiny', found, ['tunix'])[1:]
  assert '3.00 / 3.00' in row and absent[1:3] == ('tunix', 'not measured')


def test_an_engine_that_fails_says_why(scripts):
  lanes = scripts(mmr1=dict(seconds=1, fails=2))
  with pytest.raises(RuntimeError, match='out of luck'):
    rounds.measure(lanes, 'step')


def test_different_work_is_refused(scripts):
  lanes = scripts(mmr1=dict(seconds=1), trl=dict(seconds=1))
  reply = dict(prompt_tokens=4, tokens=8)
  found = {'mmr1': dict(rounds=[reply]),
           'trl': dict(rounds=[{**reply, 'tokens': 7}])}
  with pytest.raises(RuntimeError, match='different work'):
    rounds._check_equal_work(lanes, found)


def test_record(tmp_path):
  with flagsaver.flagsaver(out=str(tmp_path / 'x' / 'step.json')):
    rounds.record('step', {'w1': {'ratios': {}}}, ['mmr1'], {'trl': 'absent'})
  entry = json.loads((tmp_path / 'x' / 'step.json').read_text())
  assert entry['command'].startswith('python -m experiments.bench.step')
  assert entry['versions']['mmr1']['jax'] == jax.__version__
  assert set(machine.describe()) == set(entry['machine'])
  assert entry['machine']['cores'] > 0 and entry['workloads'] == {
      'w1': {'ratios': {}}}
  assert entry['not_measured'] == {'trl': 'absent'}


def test_a_run_that_stops_keeps_the_workloads_before(scripts, tmp_path):
  good = scripts(mmr1=dict(seconds=1))
  path = tmp_path / 'step.json'

  def lanes(workload, engines):
    return good if workload == 'w1' else scripts(mmr1=dict(seconds=1, fails=1))
  with flagsaver.flagsaver(
      rounds=2, warm=1, out=str(path), engines=['mmr1'],
      workloads=['w1', 'w2']), pytest.raises(RuntimeError, match='luck'):
    compare.run('step', 'title', (), 'step', lanes)
  assert list(json.loads(path.read_text())['workloads']) == ['w1']


# Peers.


def test_an_absent_peer_is_named_with_its_command(tmp_path, capsys):
  with flagsaver.flagsaver(peers_folder=str(tmp_path)):
    able, absent = rounds.present(['mmr1', 'trl'])
  assert able == ['mmr1']
  assert 'not measured: there is no environment' in absent['trl']
  assert ('python -m experiments.bench.install_peers --peers=trl'
          in absent['trl'])
  assert absent['trl'] in capsys.readouterr().err


def test_another_version_is_not_the_peer(tmp_path, monkeypatch):
  # The interpreter that runs this is no environment of Tunix 0.1.7.
  monkeypatch.setattr(environments, 'python', lambda folder: sys.executable)
  monkeypatch.setattr(pathlib.Path, 'exists', lambda self: True)
  monkeypatch.setattr(environments, 'python',
                      lambda folder: pathlib.Path(sys.executable))
  monkeypatch.setitem(environments.PINS, 'tunix', ('numpy==0.0.1',))
  assert 'numpy is ' in environments.missing('tunix', tmp_path)


def test_tunix_is_not_asked_for_pictures():
  assert rounds.able(rounds.ENGINES, workloads.named('w1')) == [
      'mmr1', 'repeated', 'trl']
  assert 'tunix' in rounds.able(rounds.ENGINES, workloads.named('w3'))


def test_peers_import_nothing_of_the_project():
  """Their environments do not have it."""
  for path in pathlib.Path(lines.__file__).parent.glob('*.py'):
    text = path.read_text()
    assert 'import mmr1' not in text and 'from mmr1' not in text
    assert 'experiments' not in text.replace(
        'experiments.bench.install_peers', '')


def test_clock_counts_nested_parts_once():
  clock = lines.Clock()
  inner = clock.time('inner', lambda: sum(range(200_000)))
  outer = clock.time('outer', lambda: (inner(), inner()))
  outer()
  parts = clock.take()
  assert set(parts) == {'inner', 'outer'} and parts['inner'] > parts['outer']
  assert clock.take() == {}
