"""Gemma 3 and PaliGemma against transformers, from pictures to logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from PIL import Image
import pytest
import torch
import transformers
from transformers.models.gemma3 import processing_gemma3
from transformers.models.paligemma import processing_paligemma

from mmr1 import records
from mmr1.data import collate
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.data import template
from mmr1.models import checkpoints
from mmr1.models import gemma_vl
from mmr1.sampling import sample
from tests import gemma
from tests import measured
from tests.models import passes

T = 5
# PaliGemma 2's decoder has windows of 9 tokens, which its prompts ignore.
KINDS = {
    'gemma3': ('gemma3', {}),
    'paligemma': ('paligemma', {}),
    'paligemma2': ('paligemma', dict(text_config=dict(
        gemma.TEXT, model_type='gemma2', sliding_window=9,
        query_pre_attn_scalar=12)))}
# All that is PaliGemma 2's own is in how its prompts are read.
TRAINED = ('gemma3', 'paligemma')
# (question, sizes of its images): none, one, three, one of extreme aspect.
ROWS = (
    ('hello world', ()),
    ('<image>the quick fox', ((20, 50),)),
    ('<image><image><image>how many? 123', ((40, 40), (9, 31), (70, 33))),
    ('<image>brown', ((1, 200),)))


@functools.cache
def hf_model(kind, tied=True):
  family, changes = KINDS[kind]
  hf = gemma.config(family, tie_word_embeddings=tied, **changes)
  config = transformers.AutoConfig.for_model(
      family, **hf, attn_implementation='eager')
  model = passes.randomise(
      transformers.AutoModelForImageTextToText.from_config(config), len(kind))
  with torch.no_grad():
    for name, x in model.named_parameters():
      if 'embed_tokens' in name or 'lm_head' in name:
        x *= 0.2  # embeddings are scaled up: every layer shall count
      if name.endswith('mm_input_projection_weight'):
        x *= len(x[0])**0.5 * len(x)**-0.5  # it is [inputs, outputs]
  return model


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """{kind: a folder that transformers saved}, with a tokenizer and all."""
  result = {}
  for kind, (family, changes) in KINDS.items():
    result[kind] = tmp_path_factory.mktemp(kind)
    hf_model(kind).save_pretrained(result[kind])
    gemma.write(result[kind], family, tie_word_embeddings=True, **changes)
  return result


@pytest.fixture(scope='module')
def procs(folders):
  return {kind: processor_lib.Processor.open(str(folders[kind]))
          for kind in KINDS}


@pytest.fixture(scope='module')
def models(folders):
  return {kind: checkpoints.load(folders[kind]) for kind in KINDS}


@pytest.fixture(scope='module')
def examples():
  rng = np.random.default_rng(0)
  return [records.Example(uid=i, question=text, images=tuple(
      Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
      for size in sizes)) for i, (text, sizes) in enumerate(ROWS)]


@pytest.fixture(scope='module')
def rows(procs, examples):
  """{kind: encoded examples}."""
  return {kind: [encode.encode(x, proc, template=template.plain)
                 for x in examples] for kind, proc in procs.items()}


def collated(rows, **more):
  """Padded: more tokens and images than the longest row has."""
  longest = max(len(row.tokens) for row in rows) + 3
  batch = collate.collate(rows, **dict(
      dict(prompt_length=longest, patches=4 * 64, pad_id=3), **more))
  return jax.tree.map(jnp.asarray, batch)


@pytest.fixture(scope='module')
def batches(rows):
  return {kind: collated(rows[kind]) for kind in KINDS}


@pytest.fixture(scope='module')
def two():
  """Two completions of every row, ragged: tokens, and mask."""
  shape = (len(ROWS), 2, T)
  tokens = np.random.default_rng(1).integers(0, 300, shape)
  lengths = np.asarray([[T, 2], [T, 4], [T, 3], [T, 1]])
  return (jnp.asarray(tokens, jnp.int32),
          jnp.asarray(np.arange(T) < lengths[..., None]))


def completions(batch, two):
  return (two[0], sample.text_positions(batch.next_position, two[0].shape),
          two[1])


@pytest.fixture(scope='module')
def weight(two):
  return passes.weight_of((two[0], None, two[1]), gemma.VOCAB)


@pytest.fixture(scope='module')
def results(models, batches, two, weight):
  """{kind: ((loss, logits), gradient)} of the kinds in TRAINED, scanned."""
  return {kind: passes.gradient(
      scanned(models[kind][0]), models[kind][1], batches[kind],
      completions(batches[kind], two), weight) for kind in TRAINED}


def scanned(module):
  return gemma_vl.build(dataclasses.replace(
      module.config, layers='scan', remat='layer', query_chunk=30))


@pytest.fixture(scope='module')
def logits(models, batches, two, results):
  """{kind: f32[N, G, T + 1, V]}."""
  return {kind: np.asarray(
      results[kind][0][1] if kind in TRAINED else passes.forward(
          *models[kind], batches[kind], *completions(batches[kind], two)))
          for kind in KINDS}


def hf_inputs(kind, proc, example):
  """What transformers' own processor makes of an example."""
  family, images = KINDS[kind][0], list(example.images) or None
  text = example.question.replace('<image>', '')
  pixels = proc.codec.image_processor
  if family == 'paligemma':
    pixels.image_seq_length = 64
    made = processing_paligemma.PaliGemmaProcessor(pixels, proc.tokenizer)
    if images is None:  # it wants images: the layout of its text by hand
      ids = proc.tokenizer(f'<bos>{text}\n', add_special_tokens=False)
      tokens = torch.tensor([ids['input_ids']])
      return dict(input_ids=tokens, token_type_ids=torch.zeros_like(tokens))
    result = made(text='<image>' * len(images) + text, images=images,
                  return_tensors='pt')
    del result['labels'], result['attention_mask']
    return dict(result)
  made = processing_gemma3.Gemma3Processor(
      pixels, proc.tokenizer, image_seq_length=gemma.CELLS)
  chat = proc.tokenizer.apply_chat_template(
      [dict(role='user', content=[dict(type='image') for _ in images or ()]
            + [dict(type='text', text=text)])],
      tokenize=False, add_generation_prompt=True)
  result = made(text=chat, images=images, add_special_tokens=False,
                return_tensors='pt')
  return {k: result[k] for k in ('input_ids', 'token_type_ids', 'pixel_values')
          if k in result}


def hf_logits(model, inputs, extra=()):
  """f32[1 + len(extra), V], from the prompt's last token on."""
  count = inputs['input_ids'].shape[1]
  tail = torch.tensor([[*map(int, extra)]], dtype=torch.long)
  kind = 0 if model.config.model_type == 'gemma3' else 1  # text, or a suffix
  logits = model(**inputs | dict(
      input_ids=torch.cat([inputs['input_ids'], tail], 1),
      token_type_ids=torch.cat(
          [inputs['token_type_ids'], torch.full_like(tail, kind)], 1)))
  return logits.logits[0, count - 1:]


@pytest.mark.parity
@pytest.mark.parametrize('kind', KINDS)
def test_m4_tokens_and_pixels_equal_transformers(procs, examples, rows, kind):
  proc = procs[kind]
  for example, row in zip(examples, rows[kind]):
    inputs = hf_inputs(kind, proc, example)
    assert row.tokens.tolist() == inputs['input_ids'][0].tolist()
    assert encode.prompt_length(
        example, proc, template=template.plain) == len(row.tokens)
    assert row.next_position == len(row.tokens)
    np.testing.assert_array_equal(row.positions[:, 1], np.arange(
        len(row.tokens)))
    pixels = inputs.get('pixel_values', torch.zeros(0, 3, 32, 32)).numpy()
    # Every patch is the square of the picture that its position says.
    assert len(row.patches) == 64 * len(pixels)
    for patch, (y, x), image in zip(
        row.patches, 4 * row.patch_position, row.patch_segment - 1):
      np.testing.assert_array_equal(
          patch.reshape(3, 4, 4), pixels[image, :, y:y + 4, x:x + 4])
  for what in ('positions', 'pixels'):
    measured.record(KINDS[kind][0], what, 0)


@pytest.mark.parity
@pytest.mark.parametrize('kind', KINDS)
def test_m3_logits_equal_transformers(procs, examples, two, logits, kind):
  """Each row alone and unpadded there; in one left-padded batch here."""
  tokens, mask = map(np.asarray, two)
  for n, example in enumerate(examples):
    inputs = hf_inputs(kind, procs[kind], example)
    for g in range(2):
      length = mask[n, g].sum()
      with torch.no_grad():
        expected = hf_logits(
            hf_model(kind), inputs, tokens[n, g, :length]).numpy()
      assert np.abs(expected).max() > 1
      measured.logits(KINDS[kind][0], min(n, 2),
                      logits[kind][n, g, :length + 1], expected)


@pytest.mark.parity
@pytest.mark.parametrize('kind', TRAINED)
def test_gradients_equal_torch(procs, examples, models, two, weight, results,
                               kind):
  """Those of the encoder of images, too."""
  model = hf_model(kind)
  model.zero_grad()
  tokens, mask = map(np.asarray, two)
  for n, example in enumerate(examples):
    inputs = hf_inputs(kind, procs[kind], example)
    for g in range(2):
      length = mask[n, g].sum()
      out = hf_logits(model, inputs, tokens[n, g, :length])
      torch.sum(
          out * torch.tensor(np.asarray(weight[n, g, :length + 1]))).backward()
  measured.record(kind, 'gradient', passes.check_gradients(
      gemma_vl, models[kind][0].config, model, results[kind][1],
      zero=('visual/encoder/blocks/k/bias',)))


@pytest.mark.parity
@pytest.mark.parametrize('kind', ['gemma3', 'paligemma2'])
def test_m1_greedy_tokens_equal_generate(procs, examples, models, batches,
                                         kind):
  """64 of them, by single steps with a cache on both sides."""
  got = np.asarray(passes.greedy(*models[kind], batches[kind], 64))
  for n, example in enumerate(examples):
    inputs = hf_inputs(kind, procs[kind], example)
    expected = hf_model(kind).generate(
        **inputs, attention_mask=torch.ones_like(inputs['input_ids']),
        max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0,
        eos_token_id=None)
    assert got[n].tolist() == (
        expected[0, inputs['input_ids'].shape[1]:].tolist())
  assert len(set(got.ravel().tolist())) > 3
  measured.record(KINDS[kind][0], 'greedy', got.shape[1])


def test_unrolled_layers_change_nothing(models, batches, two, logits):
  """Gradients of an unrolled decoder are in `text_decoder_test`."""
  got = passes.forward(*models['gemma3'], batches['gemma3'],
                       *completions(batches['gemma3'], two))
  np.testing.assert_allclose(got, logits['gemma3'], atol=1e-4, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize('kind', KINDS)
def test_m20_saved_folder_opens_in_transformers(
    procs, examples, models, tmp_path, kind):
  module, params = models[kind]
  checkpoints.save(tmp_path, module, params)
  model, report = transformers.AutoModelForImageTextToText.from_pretrained(
      tmp_path, output_loading_info=True, attn_implementation='eager')
  assert not report['missing_keys'] and not report['unexpected_keys']
  inputs = hf_inputs(kind, procs[kind], examples[1])
  with torch.no_grad():
    np.testing.assert_array_equal(hf_logits(model.eval(), inputs),
                                  hf_logits(hf_model(kind), inputs))
  passes.check_equal(checkpoints.load(tmp_path)[1], params)
  measured.record(KINDS[kind][0], 'export', 0)


def test_m20_an_untied_head(tmp_path):
  """The top of config.json says it; the text section has its default."""
  hf_model('gemma3', False).save_pretrained(tmp_path)
  module, params = checkpoints.load(tmp_path)
  assert not module.config.tied
  np.testing.assert_array_equal(
      params['language']['head'],
      hf_model('gemma3', False).lm_head.weight.detach().numpy())


def test_m6_no_image_at_all(models, batches, rows, two, weight, logits):
  """Media that is all padding: the encoder's gradient is 0, not NaN."""
  batch = collated([rows['gemma3'][0]] * len(ROWS),
                   prompt_length=batches['gemma3'].tokens.shape[1])
  module, params = models['gemma3']
  (_, got), grads = passes.gradient(
      scanned(module), params, batch, completions(batch, two), weight)
  np.testing.assert_allclose(
      np.asarray(got)[0], logits['gemma3'][0], atol=1e-5, rtol=0)
  for path, x in passes.leaves(grads).items():
    assert np.all(np.isfinite(x)), path
    assert path.startswith('language/') or not x.any(), path


@pytest.mark.parity
@pytest.mark.parametrize('kind', [
    'gemma3', pytest.param('paligemma', marks=pytest.mark.slow)])
def test_bfloat16_is_near_float32(models, batches, two, logits, kind):
  module, params = models[kind]
  module = gemma_vl.build(dataclasses.replace(
      module.config, compute_dtype='bfloat16'))
  params = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
  given = completions(batches[kind], two)
  got = np.asarray(passes.forward(module, params, batches[kind], *given))
  _, most = passes.check_bfloat16(got, logits[kind], given)
  measured.record(kind, 'bf16', most)
