"""What is asked of cuDNN, lowered for CUDA without a GPU.

Its numbers need a GPU; that they are ours is read off the mask it is given.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1.models import attention
from mmr1.models import cudnn
from mmr1.models import sight
from tests.models import attending

N, T = 2, 64


def arrays(g=1, p=0, t=T, d=64, dtype=jnp.bfloat16):
  """(query, keys and values of the rows and of the prompt before them)."""
  shapes = [(N, g, t, 4, d), *[(N, g, 2, t, d)] * 2, *[(N, 2, p, d)] * 2]
  query, *rest = (jnp.ones(shape, dtype) for shape in shapes)
  return query, rest


def asked(query, rest, sights):
  """(what the calls of the lowered gradient are named, their first config)."""
  def loss(query, rest):
    return jnp.sum(attention.attend(
        query, attending.sources(rest, sights), scale=0.25,
        precision='default', chunk=99, backend='cudnn'))
  text = jax.jit(jax.grad(loss, (0, 1))).trace(query, rest).lower(
      lowering_platforms=('cuda',)).as_text()
  config = re.search(r'backend_config = "(\{.*?\})"', text).group(1)
  config = json.loads(config.replace('\\22', '"'))
  return re.findall(r'@(__cudnn\w*\$\w+)', text), (
      config['cudnn_fmha_backend_config'])


@pytest.fixture(autouse=True)
def version(monkeypatch):
  """jax asks for cuDNN's version before it lowers."""
  from jax._src.cudnn import fused_attention_stablehlo
  monkeypatch.setattr(
      fused_attention_stablehlo, 'check_cudnn_version', lambda: 91000)


real = jnp.ones((N, 1, T), bool)


def test_prompts_are_causal_with_a_bias_for_what_is_hidden():
  names, config = asked(*arrays(), (sight.Sight(keys=real, causal=True), None))
  assert names == ['__cudnn$fmhaScaleBiasSoftmax',
                   '__cudnn$fmhaScaleBiasSoftmaxBackward']
  assert (config['mask_type'], config['fmha_scale']) == ('CAUSAL', 0.25)


def test_tiles_see_everything_and_need_no_bias():
  names, config = asked(*arrays(t=66), (sight.Sight(), None))
  assert names == ['__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmaxBackward']
  assert config['mask_type'] == 'NO_MASK'


def test_the_mask_is_the_sight(monkeypatch):
  """A completion alone with its prompt; a prompt of Gemma 3, whose blocks see
  ahead, so that cuDNN must not skip what is ahead."""
  given = []
  monkeypatch.setattr(jax.nn, 'dot_product_attention', lambda q, *_, **kw: (
      given.append(kw), q)[1])
  own = sight.Sight(keys=real, causal=True, window=5, sliding=True)
  prompt = sight.Sight(keys=jnp.arange(30)[None, None] >= 9)
  query, rest = arrays(p=30)
  cudnn.attend(query, attending.sources(rest, (own, prompt)), scale=1.0,
               cap=None)
  i, j = np.indices((T, T + 30))
  expected = np.where(j < T, (j <= i) & (i - j < 5), j - T >= 9)
  np.testing.assert_array_equal(
      given[0]['mask'], np.broadcast_to(expected, (N, 1, T, T + 30)))
  assert not given[0]['is_causal']
  query, rest = arrays()
  blocks = jnp.asarray(np.arange(T)[None] // 10 * np.ones((N, 1), int))
  cudnn.attend(query, attending.sources(
      rest, (own.replace(blocks=blocks, blocks_slide=True), None)), scale=1.0,
               cap=None)
  assert np.asarray(given[1]['mask'])[0, 0, 11, 14]
  assert not given[1]['is_causal']


@pytest.mark.parametrize('made, message', [
    (dict(g=3, p=30), '3 completions that share a prompt'),
    (dict(dtype=jnp.float32), 'float32: it reads bfloat16 and float16'),
    (dict(d=256), 'heads of width 256'),
    (dict(t=65), '65 queries and 65 keys: both must be even'),
])
def test_what_cudnn_cannot_do_is_an_error(made, message):
  query, rest = arrays(**made)
  own = sight.Sight(keys=jnp.ones((1, 1, query.shape[2]), bool), causal=True)
  with pytest.raises(ValueError, match=message):
    attention.attend(
        query, attending.sources(rest, (own, sight.Sight())),
        precision='default', chunk=99, backend='cudnn')
