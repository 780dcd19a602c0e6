"""A folder as Gemma's are: tokenizer.model, a token for the end of a turn."""

import functools
import json
import types

import numpy as np
import pytest
import sentencepiece

from mmr1 import records
from mmr1.data import datasets
from mmr1.data import encode
from mmr1.data import pipeline
from mmr1.data import processor as processor_lib
from mmr1.data import template
from tests import gemma

PAD, EOS, BOS, END = gemma.PAD, gemma.EOS, gemma.BOS, gemma.END

@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(gemma.pieces())
  (tmp_path / 'config.json').write_text(
      json.dumps(dict(model_type='gemma3_text', vocab_size=400)))
  (tmp_path / 'chat_template.jinja').write_text(gemma.CHAT)
  return tmp_path


@pytest.fixture
def proc(folder):
  return processor_lib.Processor.open(str(folder))


def test_opens_with_tokenizer_model_alone(proc):
  assert (proc.pad_id, proc.eos_id) == (PAD, END)
  assert proc.tokenizer.eos_token_id == EOS  # which ends documents
  theirs = sentencepiece.SentencePieceProcessor(model_proto=gemma.pieces())
  text = 'the  quick fox\n12 caf\u00e9'  # two spaces, bytes, digits
  assert proc.tokenizer(text, add_special_tokens=False)['input_ids'] == (
      theirs.encode(text))


def test_a_prompt_has_one_bos(proc):
  got = encode.encode(records.Example(uid=0, question='hello world'), proc,
                      template=template.plain).tokens
  written = '<start_of_turn>user\nhello world<end_of_turn>\n'
  expected = proc.tokenizer(written + '<start_of_turn>model\n',
                            add_special_tokens=False)['input_ids']
  assert got.tolist() == [BOS, *expected] and expected.count(BOS) == 0


def test_m26_a_template_that_refuses_messages_breaks_a_record_only(folder):
  """Gemma's first two know no system turn, and want turns to alternate."""
  file = folder / 'chat_template.jinja'
  file.write_text(
      "{% if messages[0]['role'] == 'system' %}"
      "{{ raise_exception('System role not supported') }}{% endif %}"
      + file.read_text())
  proc = processor_lib.Processor.open(str(folder))
  shape = pipeline.Shape(processor=proc, template=functools.partial(
      template.think_answer, system='be good'), prompt_length=9, patches=0)
  broken = shape.encode(records.Example(uid=0, question='x'), 3)
  assert broken.where == 'source:3'
  assert "roles ['system', 'user']: System role not" in broken.reason


def test_a_completion_ends_with_the_turn(proc):
  ids = encode.encode_completion('hello fox', proc)
  assert ids[-1] == END and np.sum(ids == END) == 1
  np.testing.assert_array_equal(
      encode.encode_completion('hello fox<end_of_turn>', proc), ids)
  # To the tokenizer the end of a turn is no special token; to us it is.
  assert 'end_of_turn' in proc.tokenizer.decode(
      ids, skip_special_tokens=True)
  assert encode.decode([*ids, PAD], proc) == 'hello fox'


@pytest.mark.parametrize('after, eos', [
    ('<eos>', EOS), (' <eos>\n', EOS), ('\n\n', EOS), ('', EOS),
    ('<end_of_turn>', END)])
def test_the_chat_template_says_what_ends_a_turn(folder, after, eos):
  """A token of its own; otherwise the tokenizer's eos."""
  (folder / 'chat_template.jinja').write_text(
      "{% for message in messages %}{{ message['content'] + " + repr(after)
      + " }}{% endfor %}")
  assert processor_lib.Processor.open(str(folder)).eos_id == eos


def test_a_token_the_model_has_no_row_for_is_refused(folder):
  """Gemma 3 1B's tokenizer is that of the models that read images."""
  added = {str(gemma.size()): dict(
      content='<image_soft_token>', special=True, normalized=False,
      lstrip=False, rstrip=False, single_word=False)}
  (folder / 'tokenizer_config.json').write_text(json.dumps(dict(
      tokenizer_class='GemmaTokenizer', bos_token='<bos>', eos_token='<eos>',
      pad_token='<pad>', unk_token='<unk>', added_tokens_decoder=added)))
  (folder / 'config.json').write_text(
      json.dumps(dict(model_type='gemma3_text', vocab_size=gemma.size())))
  proc = processor_lib.Processor.open(str(folder))
  assert len(proc.tokenizer) == proc.vocab_size + 1
  with pytest.raises(ValueError, match='chat holds .*<image_soft_token>'):
    encode.encode(records.Example(uid=0, question='a <image_soft_token>'),
                  proc, template=template.plain)
  with pytest.raises(ValueError, match='completion holds .*<image_soft_token'):
    encode.encode_completion('<image_soft_token>', proc)


def test_neither_form_of_the_tokenizer(folder):
  """transformers would make one of five tokens."""
  (folder / 'tokenizer.model').unlink()
  model = types.SimpleNamespace(path=str(folder), position_rule='legacy')
  data = types.SimpleNamespace(min_pixels=None, max_pixels=None,
                               video_fps=None, video_max_frames=None)
  with pytest.raises(ValueError, match='tokenizer.json.*tokenizer.model'):
    datasets.open_processor(model, data)
