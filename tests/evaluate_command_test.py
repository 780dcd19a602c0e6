"""A model on benchmarks' files: the command, and in the loop of a run."""

import io
import json

from PIL import Image
import pytest
from rich import console as rich_console

from configs import common
from configs import forkme
from mmr1 import evaluate
from mmr1 import log
from mmr1 import runner


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """{name: path} of files in published layouts."""
  folder = tmp_path_factory.mktemp('files')
  Image.new('RGB', (56, 28)).save(folder / 'a.png')
  box = dict(image='a.png', solution=[0, 0, 20, 20])
  rows = dict(
      mathverse=[dict(
          sample_index=str(i), problem_version=version, question='x?',
          image='a.png', answer=str(i), question_type='free-form', metadata={})
                 for i in range(2) for version in ('Text Lite', 'Vision Only')],
      mmmu=[*(dict(id=f'v_Art_{i}', question='<image 1> ?', answer='B',
                   options="['p', 'q']", image_1='a.png') for i in range(2)),
            dict(id='v_Art_2', question='?', options="['p", answer='B')],
      inside=[dict(box, problem=f'Where is {i}?') for i in range(3)],
      outside=[dict(box, problem='Where does one sit?')],
      unknown=[dict(a=1)])
  for name, lines in rows.items():
    (folder / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  return {name: str(folder / f'{name}.jsonl') for name in rows}


@pytest.fixture(scope='module')
def ran(shrink, files, tmp_path_factory):
  """(workdir, what was printed, what is wrong) of the command's body."""
  folder = tmp_path_factory.mktemp('command') / 'run'
  console = rich_console.Console(file=io.StringIO(), width=200)
  bad = evaluate.evaluate(
      shrink(forkme.get_config()), [
          ('mathverse', files['mathverse']), ('ai2d', files['unknown']),
          ('mmmu', files['mmmu'])], console=console, workdir=str(folder),
      quiet=True, parser='official', judge='verdict.by_rules', examples=100,
      samples_per_problem=2, at_k=(1, 2))
  return folder, console.file.getvalue(), bad


def test_the_command_shows_what_is_wrong_and_evaluates_the_rest(ran):
  folder, told, bad = ran
  assert len(bad) == 1 and 'not a layout of ai2d' in bad[0]
  assert bad[0] in told
  assert sorted(x.name for x in (folder / 'eval').iterdir()) == [
      'mathverse_0.json', 'mathverse_0.jsonl', 'mmmu_0.json', 'mmmu_0.jsonl']
  for part in ('mathverse, official: 4 problems', 'pass@2', 'maj@1',
               'Text Lite', 'by the judge', 'by chance', '1 skipped',
               'row 2: bad row'):
    assert part in told, part


def test_m19_cards_count_what_gave_the_scores(ran):
  folder, _, _ = ran
  card = json.loads((folder / 'eval' / 'mathverse_0.json').read_text())
  assert card['by'] == {
      'greedy': dict(rule=0, chance=0, judge=4, unjudged=0),
      'sampled': dict(rule=0, chance=0, judge=8, unjudged=0)}
  assert card['judge'] == 'verdict.by_rules' and card['n'] == 4
  assert {value: one['n'] for value, one in card['groups']['version'].items()
          } == {'Text Lite': 2, 'Vision Only': 2}
  assert card['metrics']['eval/text_lite/n'] == 2
  rows = log.read_rows(folder / 'eval' / 'mathverse_0.jsonl')
  assert len(rows) == 4 * 3
  assert rows[0]['id'] == '0' and rows[0]['labels'] == {'version': 'Text Lite'}
  card = json.loads((folder / 'eval' / 'mmmu_0.json').read_text())
  # The random model names no choice; draws have no vote.
  assert card['by']['sampled'] == dict(rule=0, chance=4, judge=0, unjudged=0)
  assert card['metrics']['eval/maj_at_2'] == 0.0
  assert card['broken'] == 1 and 'SyntaxError' in card['broken_rows'][0]


def test_none_left_and_what_is_a_run(files, ran, tiny_folder):
  with pytest.raises(ValueError, match='no benchmark is left'):
    evaluate.evaluate(
        common.get_base(), [('ai2d', files['unknown'])],
        console=rich_console.Console(quiet=True))
  assert evaluate.is_run(str(ran[0])) and not evaluate.is_run(tiny_folder)
  assert not evaluate.is_run('nowhere')


def test_the_default_folder_names_the_model_and_the_parser():
  assert evaluate.default_workdir('a/qwen', parser='official', k=1) == (
      'runs/evaluate_qwen_official')
  assert evaluate.default_workdir('/r/forkme/export/grpo_3', parser='strict'
                                  ) == 'runs/evaluate_forkme_grpo_3_strict'


@pytest.mark.parametrize('given, told', [
    (['--benchmark=mmmu', '--benchmark=ai2d', '--path=x'],
     '2 --benchmark and 1 --path'),
    ([], '--benchmark=<name> and --path=<file> are needed'),
    (['--benchmark=mmmu', '--path=x', '--step=3'], 'got --checkpoint=None'),
    (['--benchmark=mmmu', '--path=x', '--parser=loose'], 'parser'),
])
def test_m22_a_wrong_command_is_a_line(given, told):
  evaluate._FLAGS.unparse_flags()
  with pytest.raises(SystemExit, match=told):
    evaluate.main(['evaluate', *given])


def test_benchmarks_in_and_out_of_domain_every_k_steps(
    shrink, files, tmp_path):
  """As VLM-R1 follows RefCOCO and LISA while RL goes on."""
  c = shrink(forkme.get_config())
  common.benchmark(c, 'refcoco', files['inside'], key='refcoco_val',
                   parser='strict', samples_per_problem=2)
  common.benchmark(c, 'refcoco', files['outside'], key='lisa', examples=1)
  c.grpo.steps, c.grpo.prompts_per_step, c.grpo.eval_every = 2, 2, 1
  c.grpo.samples_per_prompt, c.grpo.max_new_tokens = 2, 8
  results = runner.run(c, str(tmp_path / 'run'), quiet=True,
                       defaults=common.get_base())
  rows = [row for row in log.read_rows(tmp_path / 'run' / 'metrics.jsonl')
          if 'eval/accuracy' in row]
  assert [(row['stage'], row['step']) for row in rows] == [
      ('base', 0), ('grpo', 1), ('grpo', 2)]
  for row in (*rows, results['grpo']):
    assert row['eval/refcoco_val/n'] == 3 and row['eval/lisa/n'] == 1
    assert row['eval/refcoco_val/pass_at_2'] == 0.0
    assert 0 <= row['eval/lisa/accuracy'] < row['eval/lisa/accuracy_high']
  for step in (1, 2):
    card = json.loads(
        (tmp_path / 'run' / 'eval' / f'grpo_{step}_lisa.json').read_text())
    assert card['matcher'].startswith('mmr1.rewards.official.official')
