"""Tiny folders of Gemma's families: a SentencePiece model and what is beside.

Images are 32 x 32 pixels: 8 x 8 patches, in Gemma 3 4 x 4 cells.
"""

import functools
import io
import json

import sentencepiece

SIZE, PATCH, CELLS, VOCAB = 32, 4, 16, 512
PAD, EOS, BOS, END = 0, 1, 2, 6
SPECIAL = ('<mask>', '<start_of_turn>', '<end_of_turn>', '\n', '\n\n')
IMAGES = ('<start_of_image>', '<end_of_image>', '<image_soft_token>',
          '<image>')
# As in Gemma's releases: bos is the template's, the assistant is 'model'.
TURN = (
    "{{{{ bos_token }}}}{{% for message in messages %}}"
    "{{{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else "
    "message['role']) + '\n' }}}}{}{{{{ '<end_of_turn>\n' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '<start_of_turn>model\n' }}}}"
    "{{% endif %}}")
CHAT = TURN.format("{{ message['content'] | trim }}")
IMAGE_CHAT = TURN.format(
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<start_of_image>' }}{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}")
VISION = dict(
    hidden_size=24, intermediate_size=36, num_hidden_layers=2,
    num_attention_heads=2, image_size=SIZE, patch_size=PATCH,
    vision_use_head=False, model_type='siglip_vision_model')
TEXT = dict(
    vocab_size=VOCAB, hidden_size=40, intermediate_size=44,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=512)
SLIDING = dict(
    TEXT, sliding_window=6, query_pre_attn_scalar=9, rope_parameters=dict(
        full_attention=dict(rope_type='linear', rope_theta=1e5, factor=4.0),
        sliding_attention=dict(rope_type='default', rope_theta=1e3)),
    layer_types=['sliding_attention', 'full_attention'])
PREPROCESSORS = {
    'gemma3': dict(image_processor_type='Gemma3ImageProcessor',
                   do_pan_and_scan=None, do_convert_rgb=None, resample=2),
    'paligemma': dict(image_processor_type='SiglipImageProcessor',
                      image_seq_length=64, do_convert_rgb=None, resample=3)}


@functools.cache
def pieces():
  """A SentencePiece model with Gemma's settings, in bytes."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(
          [f'hello world, the quick brown fox {i}' for i in range(50)]),
      model_writer=model, vocab_size=300, model_type='bpe',
      hard_vocab_limit=False, byte_fallback=True, split_digits=True,
      add_dummy_prefix=False, remove_extra_whitespaces=False,
      normalization_rule_name='identity', minloglevel=2,
      pad_id=PAD, eos_id=EOS, bos_id=BOS, unk_id=3, pad_piece='<pad>',
      eos_piece='<eos>', bos_piece='<bos>', user_defined_symbols=[*SPECIAL])
  return model.getvalue()


def size():
  """Tokens of the SentencePiece model; those of images come after them."""
  return sentencepiece.SentencePieceProcessor(
      model_proto=pieces()).vocab_size()


def ids():
  """{token: id} of the tokens of images."""
  return {token: size() + i for i, token in enumerate(IMAGES)}


def config(family, **changes):
  """A config.json, but for `model_type`."""
  common = dict(vision_config=VISION)
  if family == 'paligemma':
    return common | dict(
        text_config=dict(TEXT, model_type='gemma', num_key_value_heads=1),
        projection_dim=TEXT['hidden_size'], image_token_index=ids()['<image>'],
        hidden_size=TEXT['hidden_size']) | changes
  return common | dict(
      text_config=dict(SLIDING, model_type='gemma3_text'),
      mm_tokens_per_image=CELLS, boi_token_index=ids()['<start_of_image>'],
      eoi_token_index=ids()['<end_of_image>'],
      image_token_index=ids()['<image_soft_token>']) | changes


def write(folder, family, **changes):
  """A folder without weights, as the hub has them but for tokenizer.json."""
  (folder / 'tokenizer.model').write_bytes(pieces())
  added = {str(i): dict(content=token, special=True, normalized=False,
                        lstrip=False, rstrip=False, single_word=False)
           for token, i in ids().items()}
  special = {str(5 + i): dict(added[str(size())], content=token)
             for i, token in enumerate(SPECIAL[1:3])}
  write_json(folder / 'tokenizer_config.json', dict(
      tokenizer_class='GemmaTokenizer', bos_token='<bos>', eos_token='<eos>',
      pad_token='<pad>', unk_token='<unk>', added_tokens_decoder={
          **special, **added},
      extra_special_tokens=dict(
          boi_token='<start_of_image>', eoi_token='<end_of_image>',
          image_token='<image_soft_token>') if family == 'gemma3' else dict(
              image_token='<image>')))
  write_json(folder / 'config.json',
             dict(config(family, **changes), model_type=family))
  write_json(folder / 'preprocessor_config.json', dict(
      PREPROCESSORS[family], size=dict(height=SIZE, width=SIZE),
      image_mean=[0.5] * 3, image_std=[0.5] * 3))
  if family == 'gemma3':
    (folder / 'chat_template.jinja').write_text(IMAGE_CHAT)
  return folder


def write_json(path, value):
  path.write_text(json.dumps(value))
