"""Compiles programs for a TPU that is not there and prints what is in them.

    python -m tests.models.tpu_programs

One JSON object {program: {kernels, shapes, seconds, temporaries}}. Needs
`libtpu`; runs in a process of its own, as a TPU's compiler can be loaded once.
"""

import json
import re
import time

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from mmr1 import forward
from mmr1 import sharding
from mmr1 import types
from mmr1 import update
from mmr1.models import decoder
from mmr1.models import qwen_vl

TOPOLOGY = 'v5p:2x2x1'
DEVICES = 4
# No other size is a multiple of 3 or 1024.
N, G, P, T, S = 8, 3, 1024, 384, 256
HEADS, KV_HEADS, WIDTH, HEAD, VOCAB = 4, 2, 512, 128, 640


def small(layout):
  """A Qwen2.5-VL of two layers with the heads of a real one."""
  config = qwen_vl.Config.from_hf(dict(
      model_type='qwen2_5_vl', vocab_size=VOCAB, hidden_size=WIDTH,
      intermediate_size=1536, num_hidden_layers=2, num_attention_heads=HEADS,
      num_key_value_heads=KV_HEADS, rms_norm_eps=1e-6, rope_theta=1e4,
      rope_scaling=dict(type='mrope', mrope_section=[16, 24, 24]),
      max_position_embeddings=4096, tie_word_embeddings=True,
      image_token_id=600, video_token_id=601, vision_start_token_id=602,
      vision_end_token_id=603, vision_config=dict(
          depth=2, hidden_size=320, intermediate_size=448, num_heads=4,
          patch_size=14, window_size=112, fullatt_block_indexes=[1],
          out_hidden_size=WIDTH, tokens_per_second=2)),
      compute_dtype='bfloat16', layers='scan', remat='layer',
      attention='splash', partition=layout.partition)
  return forward.Policy(qwen_vl.build(config), (), 1, 0, 256, layout)


class Shapes:
  """Arguments of programs: only shapes, and where they live."""

  def __init__(self, mesh):
    self._mesh = mesh

  def _placed(self, shape, dtype, *axes):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(
        self._mesh, jax.P(*axes)))

  def rows(self, *shape, dtype=jnp.int32):
    return self._placed(shape, dtype, self._mesh.axis_names)

  def everywhere(self, tree):
    return jax.tree.map(lambda x: self._placed(x.shape, x.dtype), tree)

  def prefix(self, tree):
    layers = lambda x: self._placed(
        x.shape, x.dtype, None, self._mesh.axis_names)
    return types.Prefix(
        keys=layers(tree.keys), values=layers(tree.values),
        last=self.rows(*tree.last.shape, dtype=tree.last.dtype))

  def prompts(self, images):
    media = types.Media(
        patches=self.rows(N, S, 3 * 2 * 14**2, dtype=jnp.float32),
        position=self.rows(N, S, 2), segment=self.rows(N, S),
        slot=self.rows(N, P))
    return types.Prompts(
        tokens=self.rows(N, P), mask=self.rows(N, P, dtype=bool),
        positions=self.rows(N, P, 3), next_position=self.rows(N),
        uid=self.rows(N), media={'vision': media} if images else {})

  def block(self):
    return types.Block(
        prompts=self.prompts(False), completions=types.Completions(
            tokens=self.rows(N, G, T), kind=self.rows(N, G, T, dtype=jnp.int8),
            positions=self.rows(N, G, T, 3)),
        mask=self.rows(N, G, T, dtype=bool),
        advantage=self.rows(N, G, 1, dtype=jnp.float32))


def update_of(policy):
  """The gradient of a plain policy-gradient objective."""
  def fn(scores, block, knobs):
    del knobs
    lost = jnp.where(block.mask, -scores.logp * block.advantage, 0.0)
    return jnp.sum(lost), jnp.sum(block.mask.astype(jnp.float32))

  def run(params, block):
    knobs = {'temperature': jnp.float32(1.0), 'coef/policy': jnp.float32(1.0)}
    return update.gradient(policy, params, lambda p: p, (block,),
                           (update.Term('policy', fn),), knobs)
  return run


def decode_of(policy):
  """One token of every row, against 128 in the cache."""
  def run(params, prefix, mask, tokens, positions):
    cache = decoder.init_cache(
        policy.module.config, N, G, T, jnp.bfloat16)
    return policy.apply(params, prefix, mask, cache, tokens, positions,
                        jnp.int32(128), method='decode')
  return run


def compiled(run, *arguments):
  """What `run` became."""
  start = time.perf_counter()
  program = jax.jit(run).lower(*arguments).compile()
  text = program.as_text()
  return dict(
      seconds=time.perf_counter() - start,
      kernels=sorted(set(re.findall(r'splash_mha_[a-z]+', text))),
      shapes=sorted({tuple(map(int, shape.split(','))) for shape in re.findall(
          r'(?:bf16|f32)\[([\d,]+)\]', text)}),
      temporaries=program.memory_analysis().temp_size_in_bytes)


def main():
  devices = topologies.get_topology_desc(
      platform='tpu', topology_name=TOPOLOGY).devices
  layout = sharding.over(devices, data=DEVICES)
  shapes, policy = Shapes(layout.mesh), small(layout)
  params = shapes.everywhere(jax.eval_shape(
      lambda: qwen_vl.init_params(policy.module.config, jax.random.key(0))))
  prompts = shapes.prompts(True)
  prefix = shapes.prefix(jax.eval_shape(policy.prompt_pass, params, prompts))
  programs = {
      'prefill': (policy.prompt_pass, params, prompts),
      'decode': (decode_of(policy), params, prefix, prompts.mask,
                 shapes.rows(N, G), shapes.rows(N, G, 3)),
      'update': (update_of(policy), params, shapes.block())}
  out = {name: compiled(*program) for name, program in programs.items()}
  print(json.dumps(out))


if __name__ == '__main__':
  main()
