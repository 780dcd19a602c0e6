"""The README and docs: every command, override and link in them is one.

Nothing is trained: a command is split as a shell would, its module and flags
are looked up, and where it has a config that is made, overridden, resolved and
planned as the command would.
"""

import ast
import functools
import importlib
import json
import pathlib
import re
import shlex
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags
import pytest

from mmr1 import command_line
from mmr1 import log
from mmr1 import resolve
from mmr1 import runner
from mmr1 import training
from mmr1.reporting import settings
from tests import command as command_lib

ROOT = pathlib.Path(__file__).parent.parent
PAGES = (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')),
         ROOT / 'experiments' / 'README.md')
CODE = (*sorted((ROOT / 'configs').glob('*.py')),
        *sorted((ROOT / 'mmr1').glob('*.py')))
# Modules of others that a command may name.
FOREIGN = ('pip', 'pytest', 'venv', 'tensorboard', 'http.server')
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)


class Command(NamedTuple):
  """`python -m <module> <arguments>`, and the page that has it."""
  page: str
  module: str
  args: tuple[str, ...]


def blocks(path, language):
  """Fenced code of a page."""
  return [body for name, body in FENCE.findall(path.read_text())
          if name == language]


def written(path):
  """Text in which commands may stand, one logical line each."""
  text = path.read_text()
  if path.suffix == '.py':
    lines = (ast.get_docstring(ast.parse(text)) or '').replace(
        '\\\n', ' ').splitlines()
    return [line for line in lines if line.strip().startswith('python')]
  fenced = ''.join(body for _, body in FENCE.findall(text))
  inline = re.findall(r'`([^`]+)`', FENCE.sub('', text), re.S)
  indented = ''.join(re.findall(r'^ {4}python.*\n', text, re.M))
  return [*(fenced + indented).replace('\\\n', ' ').splitlines(),
          *(' '.join(span.split()) for span in inline)]


def commands(paths):
  found = []
  for path in paths:
    for line in written(path):
      for part in re.split(r'&&|\s[|;]\s', line.partition(' #')[0]):
        _, python, rest = part.partition('python -m ')
        if python and rest.strip():
          # [--flag] and <placeholder> are how usage is written.
          module, *args = shlex.split(
              re.sub(r'[\[\]](?=-|\s|$)|\.\.\.', ' ', rest))
          found.append(Command(
              str(path.relative_to(ROOT)), module, tuple(args)))
  return found


COMMANDS = commands((*PAGES, *CODE))
CONFIGURED = sorted({
    command.args: command for command in COMMANDS
    if any(arg.startswith('--config=configs/') for arg in command.args)
    and command.module in ('mmr1.main', 'mmr1.plan', 'mmr1.evaluate')}.values())


def source_of(module):
  """The file of a module of this repository, or None."""
  base = ROOT.joinpath(*module.split('.'))
  for path in (base.with_suffix('.py'), base / '__init__.py'):
    if path.exists():
      return path
  return None


@functools.cache
def words(module):
  """Words in the code of a command that defines flags, and in that of the
  modules it imports from beside it."""
  found, path = set(), source_of(module)
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      found.add(node.value)
    elif isinstance(node, ast.ImportFrom) and node.module and (
        node.module.startswith('experiments')):
      for alias in node.names:
        beside = source_of(f'{node.module}.{alias.name}')
        if beside is not None and 'DEFINE_' in beside.read_text():
          found |= words(f'{node.module}.{alias.name}')
  return found


def test_there_are_commands():
  assert len(COMMANDS) > 80 and len(CONFIGURED) > 50
  assert {'mmr1.main', 'mmr1.plan', 'mmr1.report', 'mmr1.export',
          'mmr1.replay'} <= {command.module for command in COMMANDS}


def test_commands_name_modules_and_flags():
  wrong = []
  for page, module, args in COMMANDS:
    if module in FOREIGN:
      continue
    path = source_of(module)
    if path is None or '__main__' not in path.read_text():
      wrong.append(f'{page}: {module} is no command')
      continue
    for arg in args:
      flag, equals, _ = arg.removeprefix('--').partition('=')
      known = flag.partition('.')[0].removeprefix('no')
      if arg.startswith('--') and not (
          {flag, known, f'--{known}.'} & words(module)
          and (equals or 'bool' in path.read_text())):
        wrong.append(f'{page}: {module} has no flag {arg}')
      if not arg.startswith('--') and not (ROOT / arg).is_file():
        wrong.append(f'{page}: {module}: {arg!r} is neither flag nor file')
  assert not wrong, '\n'.join(wrong)


def configured(args, monkeypatch):
  """(config, keys that were overridden) as `mmr1.main` gets them."""
  mine = [arg for arg in args if arg.startswith('--config')
          and '<' not in arg and arg != '--config.key=value']
  # config_flags reads which overrides there are from here.
  monkeypatch.setattr('sys.argv', ['mmr1.main', *mine])
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file('config', None, flag_values=values)
  command_line.parsed(values, ['mmr1.main', *mine])
  return holder.value, config_flags.get_override_values(values['config'])


@pytest.mark.parametrize(
    'command', CONFIGURED, ids=lambda c: f'{c.page}: {" ".join(c.args)[:60]}')
def test_configs_of_commands_resolve(command, monkeypatch):
  monkeypatch.chdir(ROOT)
  # Files that a reader would name are not here; nor are models.
  for name in ('mmr1.stages.sft.datasets.open_expert',
               'mmr1.rl_checks.datasets.open_expert',
               'mmr1.stages.reward_model.mixtures.open_pairs',
               'mmr1.grades.benchmarks.files'):
    monkeypatch.setattr(name, lambda *_, **__: None)
  config, overrides = configured(command.args, monkeypatch)
  final = resolve.finalise(config, overrides)
  _, plans = runner.plan(final)
  assert tuple(plans) == final.stages
  training.check_overrides(final, overrides)


def test_a_wrong_command_would_be_found(monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(Exception, match='stepz'):
    configured(['--config=configs/forkme.py', '--config.grpo.stepz=1'],
               monkeypatch)
  config, overrides = configured(
      ['--config=configs/vision_r1.py', '--config.rl.steps=1'], monkeypatch)
  with pytest.raises(ValueError, match='no effect'):
    resolve.finalise(config, overrides)


# Links.


def slug(heading):
  """The anchor that GitHub makes of a heading."""
  text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).replace('`', '')
  text = re.sub(r'[^\w\- ]', '', text.strip().lower())
  return text.replace(' ', '-')


def anchors(path):
  text = FENCE.sub('', path.read_text())
  return {slug(h) for h in re.findall(r'^#+ (.*)$', text, re.M)} | {
      *re.findall(r'<a name="([^"]+)"', text)}


def links(path):
  text = FENCE.sub('', path.read_text())
  return [*re.findall(r'\]\(([^)\s]+)\)', text),
          *re.findall(r'(?:src|href)="([^"]+)"', text)]


@pytest.mark.parametrize('path', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path):
  wrong = []
  for link in links(path):
    if re.match(r'https?:|mailto:', link):
      continue
    name, _, anchor = link.partition('#')
    target = (path.parent / name).resolve() if name else path
    if not target.exists() or ROOT not in (target, *target.parents):
      wrong.append(f'{link}: no such file')
    elif anchor and anchor not in anchors(target):
      wrong.append(f'{link}: no such heading')
  assert not wrong, '\n'.join(wrong)


def test_the_index_has_every_page():
  docs = ROOT / 'docs'
  assert {docs / link.partition('#')[0] for link in links(docs / 'README.md')
          } >= {*docs.glob('*.md')} - {docs / 'README.md'}


# Tables.


def rows():
  """Cells of the README's rows of papers."""
  table = (ROOT / 'README.md').read_text().split('## Papers\n\n')[1].split(
      '\n\n')[0]
  header, _, *lines = table.splitlines()
  assert header == ('| paper | config | what is new | function | test | small '
                    'run | faithful |')
  return [[cell.strip() for cell in line.strip('| ').split(' | ')]
          for line in lines]


def linked(cell):
  return [ROOT / target for target in re.findall(r'\]\(([^)#]+)', cell)]


def published():
  """Configs of papers, by name."""
  return {path.stem: path for path in (ROOT / 'configs').glob('*.py')
          if 'def get_config' in path.read_text() and path.stem != 'forkme'}


def test_every_paper_has_one_row():
  configs = [linked(row[1])[0].stem for row in rows()]
  assert sorted(configs) == sorted(published())


@pytest.mark.parametrize(
    'row', rows(), ids=lambda row: re.match(r'[\w-]+', row[0])[0])
def test_four_hops(row):
  """Row, config, function, test: each names the next."""
  name, config, new, functions, tests, small, faithful = row
  config, = linked(config)
  said = config.read_text()
  number = re.search(r'\d{4}\.\d{5}', name)[0]
  assert number in said.split('"""')[1] and new
  # With the defaults of the families, of which it may be one.
  said += ''.join(path.read_text() for path in (ROOT / 'configs').glob('*.py')
                  if path.stem not in published())
  tested = ''.join(path.read_text() for path in linked(tests))
  named = []
  for function, path in re.findall(r'\[`(\w+)`\]\(([^)]+)\)', functions):
    file = ROOT / path
    assert function in {
        node.name for node in ast.parse(file.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert re.search(rf'\b{function}\b', tested), f'no test of {function}'
    if function in said or file.stem in said:
      named.append(function)
  assert named, f'{config.name} names none of {functions}'
  figure, = linked(small)
  assert figure.suffix == '.png' and config.stem in figure.parts
  assert re.match(r'\[(yes|partly: .+)\]\(docs/papers\.md#', faithful)
  page = (ROOT / 'docs' / 'papers.md').read_text()
  part = page.split(f'{number}](')[1].split('\n## ')[0]
  assert '**How faithful:**' in part and config.name in part


def test_figures_of_tables_are_those_of_records():
  from experiments import parity
  families = json.loads(
      (ROOT / 'experiments/results/parity.json').read_text())['families']
  for page, columns in parity.PAGES.items():
    assert parity.table(families, columns) in (ROOT / page).read_text(), page
  readme = (ROOT / 'README.md').read_text()
  for seed in range(3):
    evals = json.loads((ROOT / 'experiments/results/vision_r1' /
                        f'seed{seed}.json').read_text())['evaluations']
    cells = [f'{evals[stage]["eval/accuracy_sampled"]:.3f} '
             f'({evals[stage]["eval/accuracy"]:.3f})'.replace('0.', '.')
             for stage in ('base', 'cold_start', 'think_long')]
    assert f'| seed {seed} | {" | ".join(cells)} |' in readme


# What pages say of keys, messages and metrics.


def inline(path):
  text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.M | re.S)
  return [' '.join(span.split()) for span in re.findall(r'`([^`]+)`', text)]


@functools.cache
def base():
  return importlib.import_module('configs.common').get_base()


def key_is_there(path):
  """Whether the base config has a dotted path; below kwargs and named sections
  it may have anything."""
  section, *parts = base(), *path.split('.')
  if parts[0] in (*resolve.LIBRARIES, 'environments'):
    return True
  for part in parts:
    if part == 'kwargs' or part.startswith('<'):
      return True
    if not hasattr(section, 'keys') or part not in section:
      return False
    section = section[part]
  return True


@pytest.mark.parametrize('path', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_keys_of_pages_are_keys(path):
  wrong = []
  for span in inline(path):
    found = re.fullmatch(
        r'(?:--config\.|c\.)?([a-z]\w*(?:\.[a-z<]\w*>?)+)(?:=.*)?', span)
    if found is None:
      continue
    head, _, rest = found[1].partition('.')
    if head in base() and not rest.endswith(
        ('md', 'py', 'json', 'jsonl', 'html')):
      if not key_is_there(found[1]):
        wrong.append(span)
  assert not wrong, wrong


@functools.cache
def literals():
  """Strings of the code; what f-strings fill in is '<>'."""
  found = set()
  for file in (ROOT / 'mmr1').rglob('*.py'):
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.JoinedStr):
        found.add(''.join(
            part.value if isinstance(part, ast.Constant) else '<>'
            for part in node.values))
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        found.add(node.value)
  return {' '.join(text.split()) for text in found}


METRIC = re.compile(
    r'(reward|group|response_length|eval|update|data|sampler|time|compile|ratio'
    r'|clip_frac|select|replay|env|judge|term|view|pack|revise|knob)'
    r'/[a-z_/<>]+')


def test_metrics_of_pages_are_made():
  made = [re.compile(re.escape(text).replace('<>', '[a-z_<>/]+'))
          for text in literals() if '/' in text and len(text) < 60]
  wrong = [(path.name, span) for path in PAGES for span in {*inline(path)}
           if METRIC.fullmatch(span)
           and not any(text.fullmatch(span) for text in made)]
  assert not wrong, wrong


def test_messages_of_troubleshooting_are_printed():
  """Quoted messages are pieces of strings of the code, but for `<...>`."""
  path = ROOT / 'docs' / 'troubleshooting.md'
  text = path.read_text()
  quoted = [line.removeprefix('mmr1: ') for body in blocks(path, '')
            if '<' in body for line in body.splitlines()]
  tables = re.findall(r'\| message \|.*?\n\n', text, re.S)
  quoted += [cell for table in tables
             for cell in re.findall(r'^\| `([^`]+)` \|', table, re.M)]
  assert len(quoted) > 12
  said, wrong = '\n'.join(literals()), []
  for line in quoted:
    for piece in re.split(r'<[^>]*>', line):
      piece = piece.strip(' .,;:()')
      if len(piece) > 3 and piece not in said:
        wrong.append(piece)
  assert not wrong, wrong


# Code.


def examples(page):
  """{file name: code} of the blocks that say in which file they belong."""
  found = (re.match(r'# (\w+\.py)\n', body)
           for body in blocks(ROOT / 'docs' / page, 'python'))
  return {name[1]: name.string for name in found if name}


@pytest.fixture
def run(shell, flags, tmp_path):
  """(page, config, family, stage) -> rows of training of the page's own
  example; the family or stage is where the sizes of a step are set."""
  def run_(page, config, sizes, stage, *args):
    for name, code in examples(page).items():
      (tmp_path / name).write_text(code)
    result = shell.call(command_lib.own_code, [
        'mmr1.main', f'--config={config}', '--workdir=run', *flags,
        f'--config.{stage}.steps=2', f'--config.{sizes}.prompts_per_step=2',
        f'--config.{sizes}.samples_per_prompt=2', *args], cwd=tmp_path)
    assert result.code == 0, result.err
    return [row for row in log.read_rows(tmp_path / 'run' / 'metrics.jsonl')
            if 'loss' in row]
  return run_


def test_the_reward_of_the_page(run, tmp_path, monkeypatch, capsys):
  rows_ = run('rewards.md', 'my_config.py', 'grpo', 'grpo',
              '--config.rewards.short.kwargs.words=3',
              '--config.grpo.max_new_tokens=8')
  assert len(rows_) == 2
  assert all(0 <= row['reward/short/mean'] <= 1 for row in rows_)
  monkeypatch.syspath_prepend(str(tmp_path))
  exec(examples('rewards.md')['try_it.py'], {})  # as a reader pastes it
  assert capsys.readouterr().out == '1.0\n'


def test_the_environment_of_the_page(run):
  rows_ = run('environments.md', 'nudge_config.py', 'rl', 'talk',
              '--config.talk.max_new_tokens=48',
              '--config.environments.nudge.turn_tokens=4')
  assert len(rows_) == 2
  # A random model never answers; what is too long ends by its cap.
  assert all(row['env/turns'] >= 1 and row['env/errors'] == 0
             for row in rows_)
  assert all(-1 <= row['reward/prompt/mean'] <= 0 for row in rows_)


def test_the_data_of_the_page(run, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  exec(examples('data.md')['make_data.py'], {})
  assert len((tmp_path / 'dots' / 'mine.jsonl').read_text().splitlines()) == 200
  rows_ = run('data.md', ROOT / 'configs' / 'forkme.py', 'grpo', 'grpo',
              '--config.data.path=dots/mine.jsonl',
              '--config.grpo.max_new_tokens=8')
  assert len(rows_) == 2 and rows_[-1]['data/broken'] == 0


def test_every_key_is_on_a_page():
  """But for the arguments of worlds, which are those of their functions."""
  import configs.common
  named = {*re.findall(r'\w+', ' '.join(
      page.read_text() for page in (ROOT / 'docs').glob('*.md')))}
  assert not [key for key in settings.flat(configs.common.get_base().to_dict())
              if not key.startswith('tasks.')
              and key.rpartition('.')[2] not in named]


def snippets():
  for page in PAGES:
    for i, body in enumerate(blocks(page, 'python')):
      if re.search(r'^c\.', body, re.M):
        yield pytest.param(body, id=f'{page.name}-{i}')


@pytest.mark.parametrize('body', [*snippets()])
def test_pieces_of_configs_are_config_code(body):
  """Pieces that set keys of `c` do so on a config of a run."""
  import configs.common
  c = configs.common.get_base()
  exec(body, {'c': c, 'common': configs.common})
