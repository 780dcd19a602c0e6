"""A run's model opens in transformers, and here, as what it was (M20)."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mmr1 import checkpoint
from mmr1 import forward
from mmr1 import release
from mmr1 import trees
from mmr1 import types
from mmr1.data import collate
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.data import template
from mmr1.data.tasks import digits
from mmr1.models import checkpoints
from mmr1.sampling import sample
from tests import command
from tests import small

T = 8
RUN = ['--config.grpo.steps=2', '--config.grpo.prompts_per_step=4',
       '--config.grpo.samples_per_prompt=2', '--config.grpo.max_new_tokens=8',
       '--config.grpo.optimizer.lr=1e-2', '--config.evaluate_base=False',
       # Varies whatever a random model says, so that the steps change it.
       '--config.rewards.result.fn=tests.own:even']
TOKENIZER = ['chat_template.jinja', 'tokenizer.json', 'tokenizer_config.json']
OTHERS = ['config.json', 'generation_config.json', 'preprocessor_config.json',
          'video_preprocessor_config.json']


@pytest.fixture(scope='module')
def run(shell, flags, tmp_path_factory):
  """A finished run of one stage with two steps."""
  folder = tmp_path_factory.mktemp('export') / 'run'
  result = shell.run('forkme', f'--workdir={folder}', *flags, *RUN,
                     cwd=folder.parent)
  assert result.code == 0, result.err
  return folder


@pytest.fixture(scope='module')
def trained(run, tiny_folder):
  """(module, parameters the run ended with)."""
  module, structs = checkpoints.describe(tiny_folder, param_dtype='float32')
  saved = checkpoint.Checkpoints(run, read_only=True).restore(
      'grpo', {'params': {'policy': structs}}, only=('params/policy/.*',))
  assert saved.step == 2
  return module, saved.tree['params']['policy']


@pytest.fixture(scope='module')
def out(run, tmp_path_factory):
  """The run's model in float32."""
  folder = tmp_path_factory.mktemp('export') / 'out'
  told = release.export(str(run), str(folder))
  assert told == f'grpo, step 2, as float32: {folder}'
  return folder


@pytest.fixture
def copy(run, tmp_path):
  """The run's folder, to be changed; (config keys) -> its path."""
  def make(**flat):
    folder = tmp_path / 'copy'
    shutil.copytree(run, folder)
    config = json.loads((folder / 'config.json').read_text())
    for key, value in flat.items():
      section, _, name = key.rpartition('__')
      (config[section] if section else config)[name] = value
    (folder / 'config.json').write_text(json.dumps(config))
    return folder
  return make


def same(a, b):
  a, b = trees.named(a), trees.named(b)
  assert a.keys() == b.keys()
  for name, x in a.items():
    assert x.dtype == b[name].dtype
    np.testing.assert_array_equal(x, b[name], err_msg=name)


@pytest.fixture(scope='module')
def question(out):
  """A picture and its question, T tokens of an answer: both sides' inputs."""
  processor = processor_lib.Processor.open(str(out))
  example = digits.digits(0, 'eval', 3)
  one = encode.encode(example, processor, template=template.think_answer)
  prompts = collate.collate(
      [one], prompt_length=len(one.tokens) + 3, patches=64,
      pad_id=processor.pad_id)
  answer = np.arange(40, 40 + T)
  shape = (1, 1, T)
  completions = types.Completions(
      tokens=answer.reshape(shape).astype(np.int32),
      kind=np.ones(shape, np.int8), positions=sample.text_positions(
          jnp.asarray(prompts.next_position), shape))
  images = transformers.AutoImageProcessor.from_pretrained(
      out, backend='pil')(list(example.images), return_tensors='pt')
  ids = np.concatenate([prompts.tokens[0][prompts.mask[0]], answer[:-1]])
  is_image = (ids == processor.codec.image_id)[None].astype(np.int64)
  return prompts, completions, dict(
      images, input_ids=torch.tensor(ids[None].astype(np.int64)),
      mm_token_type_ids=torch.tensor(is_image))


def difference(module, params, folder, question):
  """max |logits here - logits of transformers|, and their scale."""
  prompts, completions, inputs = question
  policy = forward.Policy(module, (), -1, 0)
  ours = np.asarray(small.logits(
      policy, params, prompts, completions, 1.0), np.float32)[0, 0]
  model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
  with torch.no_grad():
    theirs = model.eval()(**inputs).logits[0, -T:].float().numpy()
  return np.abs(ours - theirs).max(), np.abs(theirs).max()


def test_m20_logits_equal_transformers(trained, out, question, tiny_folder):
  off, scale = difference(*trained, out, question)
  print(f'fp32: {off:.2e} of {scale:.2f}')
  assert off <= 1e-5 < 0.1 < scale
  # What was exported is what was trained, not where it began.
  base = checkpoints.load(tiny_folder)[1]
  assert difference(trained[0], base, out, question)[0] > 1e-3


def test_m20_bfloat16(run, tmp_path, trained, question):
  told = release.export(str(run), str(tmp_path), dtype='bfloat16')
  assert 'as bfloat16' in told
  config = json.loads((tmp_path / 'config.json').read_text())
  assert config['dtype'] == config['text_config']['dtype'] == 'bfloat16'
  module, params = checkpoints.load(
      tmp_path, param_dtype='bfloat16', compute_dtype='bfloat16')
  same(params, trees.cast(trained[1], jnp.bfloat16))
  off, scale = difference(module, params, tmp_path, question)
  print(f'bf16: {off:.2e} of {scale:.2f}')
  assert off <= 2e-2 * scale


def test_m20_everything_beside_the_weights(out, tiny_folder):
  assert sorted(f.name for f in out.iterdir()) == sorted(
      [*TOKENIZER, *OTHERS, 'model.safetensors'])
  ours, base = (transformers.AutoTokenizer.from_pretrained(folder)
                for folder in (out, tiny_folder))
  made = template.think_answer(digits.digits(0, 'eval', 3))
  for more in (True, False):
    rendered = ours.apply_chat_template(
        made, tokenize=False, add_generation_prompt=more)
    assert rendered == base.apply_chat_template(
        made, tokenize=False, add_generation_prompt=more)
    assert '<|image_pad|>' in rendered
  assert ours.encode('<think>7 + 5') == base.encode('<think>7 + 5')
  generation = transformers.GenerationConfig.from_pretrained(out)
  assert ours.eos_token_id in generation.eos_token_id
  assert generation.pad_token_id == ours.pad_token_id != ours.eos_token_id


def test_m20_it_loads_here_bit_for_bit_as_model_path(
    trained, out, shrink, open_run, tmp_path):
  from configs import forkme
  same(checkpoints.load(out)[1], trained[1])
  config = shrink(forkme.get_config())
  config.model.path = str(out)
  ctx, _ = open_run(config, tmp_path / 'next')
  same(jax.tree.map(np.asarray, ctx.base), trained[1])


def test_m20_shards_and_tied_weights(run, trained, out, question, tmp_path):
  folder = tmp_path / 'shards'
  release.export(str(run), str(folder), max_shard_bytes=20_000)
  index = json.loads((folder / 'model.safetensors.index.json').read_text())
  one = len((out / 'model.safetensors').read_bytes())
  assert 0.8 * one < index['metadata']['total_size'] < one
  names = list(index['weight_map'])
  assert sum('embed_tokens' in name for name in names) == 1
  assert not any('lm_head' in name for name in names)
  assert len({*index['weight_map'].values()}) > 5
  assert difference(*trained, folder, question)[0] <= 1e-5
  same(checkpoints.load(folder)[1], trained[1])


@pytest.mark.parametrize('name, call', [
    ('_finite', 30), ('_remove', 2), ('write_text', 1), ('write_text', 2)])
def test_m20_killed_in_the_middle_it_is_no_model(
    run, shell, tmp_path, name, call):
  """Within the tensors, before the renames, before index and config."""
  out = tmp_path / 'out'
  kwargs = dict(workdir=str(run), out=str(out), max_shard_bytes=20_000)
  result = shell.call(command.killed_export, kwargs, name, call, cwd=tmp_path)
  assert result.code == -signal.SIGKILL, result.err
  assert any(out.iterdir())
  with pytest.raises(ValueError, match='config.json does not exist'):
    checkpoints.load(out)
  with pytest.raises((ValueError, OSError)):
    transformers.AutoModelForImageTextToText.from_pretrained(out)
  with pytest.raises(ValueError, match='not empty.*interrupted'):
    release.export(**kwargs)


def test_an_eos_that_the_base_does_not_stop_at_is_added(
    run, tiny_folder, tmp_path):
  base = tmp_path / 'base'
  shutil.copytree(tiny_folder, base)
  (base / 'generation_config.json').write_text('{"eos_token_id": 718}')
  release.export(str(run), str(tmp_path / 'a'), model=str(base))
  made = json.loads((tmp_path / 'a' / 'generation_config.json').read_text())
  assert made == {'eos_token_id': [720, 718], 'pad_token_id': 718}
  (base / 'generation_config.json').unlink()
  (base / 'model.safetensors.index.json').write_text('{}')
  release.export(str(run), str(tmp_path / 'b'), model=str(base))
  made = json.loads((tmp_path / 'b' / 'generation_config.json').read_text())
  assert made == {'eos_token_id': [720], 'pad_token_id': 718}
  assert not (tmp_path / 'b' / 'model.safetensors.index.json').exists()


def test_without_data_and_base_weights(copy, trained, tiny_folder, tmp_path):
  base = tmp_path / 'base'
  shutil.copytree(tiny_folder, base)
  (base / 'model.safetensors').unlink()
  folder = copy(data__path='/gone.jsonl', data__max_pixels=1024)
  told = release.export(str(folder), str(tmp_path / 'out'), model=str(base))
  assert 'data.max_pixels=1024; preprocessor_config.json is the base' in told
  same(checkpoints.load(tmp_path / 'out')[1], trained[1])


def test_m20_a_run_of_an_earlier_version(copy, trained, tmp_path):
  """Its config lacks keys, and its mergers were no modules."""
  folder = copy()
  config = json.loads((folder / 'config.json').read_text())
  for section, key in (('model', 'scalars'), ('data', 'patch_buckets'),
                       ('grpo', 'lora')):
    del config[section][key]
  (folder / 'config.json').write_text(json.dumps(config))
  params = jax.tree.map(lambda x: x, trained[1])
  for name, value in params['visual'].pop('merger').items():
    params['visual'][f'merger_{name}'] = value
  saved = checkpoint.Checkpoints(folder)
  saved.save('grpo', 2, {'params': {'policy': params}}, {})
  saved.close()
  release.export(str(folder), str(tmp_path / 'out'))
  same(checkpoints.load(tmp_path / 'out')[1], trained[1])


class TestWhichCheckpoint:

  @pytest.fixture
  def several(self, copy, trained):
    """grpo with steps 2 (of 9), 3, 4, not finished; 3 is the best."""
    folder = copy(grpo__steps=9)
    (folder / 'DONE' / 'grpo.json').unlink()
    c = checkpoint.Checkpoints(folder, keep=5)
    for step, metric in ((3, 0.9), (4, 0.1)):
      tree = jax.tree.map(lambda x: x + step, trained[1])
      c.save('grpo', step, {'params': {'policy': tree}}, {}, metric=metric)
    return folder

  def exported(self, folder, tmp_path, **kwargs):
    out = tmp_path / f'out{len(list(tmp_path.iterdir()))}'
    told = release.export(str(folder), str(out), **kwargs)
    return told, checkpoints.load(out)[1]['language']['norm']['weight'][0]

  def test_unfinished(self, several, trained, tmp_path):
    began = trained[1]['language']['norm']['weight'][0]
    with pytest.raises(ValueError) as error:
      release.export(str(several), str(tmp_path / 'out'))
    assert '--stage=<name>' in str(error.value)
    assert 'grpo (steps 2, 3, 4)' in str(error.value)
    for step, number in ((None, 4), ('best', 3), (3, 3), ('2', 2)):
      told, value = self.exported(several, tmp_path, stage='grpo', step=step)
      assert told.startswith(
          f'grpo, step {number} of 9 (the stage has not finished)')
      assert value == began + (number if number > 2 else 0)

  def test_finished(self, several, trained, tmp_path):
    """What the stage ended with, which need not be its last step."""
    (several / 'DONE' / 'grpo.json').write_text('{"step": 3}')
    told, value = self.exported(several, tmp_path)
    assert told.startswith('grpo, step 3, as')
    assert value == trained[1]['language']['norm']['weight'][0] + 3

  def test_a_live_run_is_not_touched(self, several, tmp_path):
    """What Orbax is about to rename must stay."""
    half = several / 'checkpoints' / 'grpo_5.orbax-checkpoint-tmp'
    half.mkdir()
    before = sorted(map(str, several.rglob('*')))
    self.exported(several, tmp_path, stage='grpo')
    assert sorted(map(str, several.rglob('*'))) == before

  @pytest.mark.parametrize('kwargs, words', [
      (dict(stage='gprs'), ["--stage: 'gprs'", 'grpo']),
      (dict(stage='bridge'), ["'bridge'", 'trains', 'grpo']),
      (dict(stage='grpo', step=7), ['--step: got 7', '[2, 3, 4]', "'best'"]),
      (dict(stage='grpo', step='last'), ['--step: got last', '[2, 3, 4]']),
      (dict(model='/no/model', stage='grpo'), ["--model: there is no '/no"]),
  ], ids=str)
  def test_m22_errors(self, several, tmp_path, kwargs, words):
    with pytest.raises(ValueError) as error:
      release.export(str(several), str(tmp_path / 'out'), **kwargs)
    for word in words:
      assert word in str(error.value), error.value
    assert not (tmp_path / 'out').exists()


def test_m22_folders_that_are_not_what_they_should_be(
    copy, run, out, tmp_path):
  new = str(tmp_path / 'new')
  for folder, words in (
      (tmp_path / 'nowhere', 'nowhere.config.json does not exist'),
      (out, 'config.json is not that of a run'),
      (copy(model__path='/moved'), "'/moved', which is not there.*--model=")):
    with pytest.raises(ValueError, match=words):
      release.export(str(folder), new)
  with pytest.raises(ValueError, match='--out: .* is not empty'):
    release.export(str(run), str(out))
  shutil.rmtree(tmp_path / 'copy' / 'checkpoints')
  with pytest.raises(ValueError, match='no stage has saved a checkpoint'):
    release.export(str(tmp_path / 'copy'), new, model=str(out))
  assert not os.path.exists(new)


def test_m22_a_base_model_that_does_not_belong(run, tiny_folder, tmp_path):
  base = tmp_path / 'base'
  shutil.copytree(tiny_folder, base)
  config = json.loads((base / 'config.json').read_text())
  config['text_config']['intermediate_size'] = 64
  (base / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r"mlp/.*\[1, .*this run needs"):
    release.export(str(run), str(tmp_path / 'out'), model=str(base))
  (base / 'tokenizer.json').unlink()
  with pytest.raises(ValueError, match='base/tokenizer.json is missing'):
    release.export(str(run), str(tmp_path / 'out'), model=str(base))
  assert not (tmp_path / 'out').exists()


def test_remote_folders(run, out, tiny_folder, remote):
  """The base model is read from, and the export written to, gs://."""
  shutil.copytree(tiny_folder, remote / 'base')
  told = release.export(str(run), 'gs://bucket/out', model='gs://bucket/base')
  assert told.endswith('gs://bucket/out')
  with pytest.raises(ValueError, match='gs://bucket/run/config.json'):
    release.export('gs://bucket/run', 'gs://bucket/new')
  with pytest.raises(ValueError, match='is not empty'):
    release.export(str(run), 'gs://bucket/out', model='gs://bucket/base')
  same(checkpoints.load('gs://bucket/out')[1], checkpoints.load(out)[1])
  for file in out.iterdir():
    assert (remote / 'out' / file.name).read_bytes() == file.read_bytes()
