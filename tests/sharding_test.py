"""One, two and eight devices, divided in several ways: the same samples,
gradients, metrics and parameters."""

import concurrent.futures
import functools
import json
import math
import multiprocessing
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from mmr1 import mesh
from mmr1 import sharding
from mmr1 import trees
from mmr1.models import checkpoints
from mmr1.models import lora
from mmr1.models import partition

ONE = dict(data=1)
# (slice, data, fsdp, tensor) of eight devices but for the first two.
MESHES = (ONE, dict(data=2), dict(data=8), dict(data=2, fsdp=4),
          dict(fsdp=2, tensor=4), dict(slice=2, fsdp=2, tensor=2))
GATE = 'language/layers/mlp/gate/kernel'
LR = 1e-2
# Which of them; compiling is most of the time.
RUNS = {'scan': (0, 2, 3, 4), 'unrolled': (0, 1, 4, 5)}


def parts(x):
  """The part of an array that one device has."""
  return x.addressable_shards[0].data.size / x.size


def with_adapters(params):
  """On every kernel of the decoder, no longer what changes nothing."""
  params = lora.inject(params, jax.random.key(0), rank=2, alpha=4.0,
                       targets=('language/layers/.*',))
  return jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(
          x.shape) / 8 if path[-1].key == lora.B else x, params)


def sampled_on(policy, params, prompts, nobody):
  """{what: value} of the sampler."""
  from configs import common
  from mmr1 import compiles
  from mmr1.sampling import keys
  from mmr1.sampling import publish
  from mmr1.sampling import sample
  from tests import small
  sampler = publish.Sampler(policy, sample.Decoding())

  def rollout(batch, step, cap=4, **decoding):
    return small.rollout(
        sampler.publish(params), batch, keys.step_key(0, 1, step),
        policy_=policy, group=2, length=4, max_new_tokens=cap,
        decoding=sample.Decoding(**decoding))[0]

  plain = rollout(prompts, 2)
  # In rows that are refilled, on every device from its own prompts. A call
  # with no prompt at all leaves all programs (M28).
  few = dict(rows=4, cache_chunk=3)
  rollout(nobody, 2, **few)
  counter = compiles.CompileCounter()
  rollout(prompts, 4, cap=2, **few)
  refilled = rollout(prompts, 2, **few)
  counter.close()
  # Weights in other parts than in training, and prompts over the rest.
  section = common.get_base().sampler
  section.tensor = min(4, policy.layout.mesh.size)
  moved = publish.make(section, policy)
  published = moved.publish(params)
  other = moved(published, prompts, keys.step_key(0, 1, 2),
                sample.knobs(max_new_tokens=4), jnp.int32(0), group=2,
                length=4)
  return dict(
      tokens=plain.completions.tokens, logp=plain.logp,
      sampled=parts(plain.logp), refilled=refilled.completions.tokens,
      recompiled=counter.count, moved=other.completions.tokens,
      published=parts(trees.named(published)[GATE]),
      like=other.logp.sharding.is_equivalent_to(plain.logp.sharding, 3))


def run_on(sizes, layers, steps=2):
  """On this mesh: {what: value}, arrays as numpy."""
  from mmr1 import optim
  from mmr1 import training
  from mmr1 import types
  from mmr1.papers import vppo
  from tests import small
  count = math.prod(sizes.values())
  layout = sharding.over(jax.devices()[:count], **sizes)
  policy = small.policy(depth=1, layout=layout, layers=layers, remat='layer')
  params = layout.own(small.params(depth=1))
  prompts = layout.spread(small.prompts(
      [small.MIXED[i % 4] for i in range(8)], uid=range(8)))
  nobody = layout.spread(small.prompts([([], [], [])] * 8))
  block = layout.spread(small.block(prompts, 2, 4))
  sampled = sampled_on(policy, params, prompts, nobody)
  grads, metrics = small.gradient(params, (block,), policy_=policy)
  chunked, _ = small.gradient(params, (block,), policy_=policy, chunks=2)
  adapted = None
  if count == 1 or layout.mesh.shape['tensor'] > 1:
    adapted, _ = small.gradient(
        layout.own(with_adapters(small.params(depth=1))), (block,),
        policy_=policy)
  optimizer = optim.make(small.section(optimizer__lr=LR).optimizer, params, 10)
  state = layout.own(types.TrainState(
      step=jnp.int32(0), params={'policy': params},
      opt={'policy': optimizer.tx.init(params)},
      aux={'guard': optim.init_guard()}))
  update = training.make_update(policy, optimizer, small.plan().terms, chunks=1)
  program = update.lower(state, (block,), small.knobs(), None).compile()
  for _ in range(steps):
    state, more = update(state, (block,), small.knobs(), None)
  weigh = jax.jit(functools.partial(vppo.token_perception, None, key=None))
  seen = {'view/masked': block.old - jnp.abs(block.ref)}
  named = trees.named(state)
  patches = prompts.media['vision'].patches
  return jax.tree.map(
      lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, dict(
          sampled, grads=grads, chunked=chunked, adapted=adapted,
          metrics=metrics, weight=weigh(block=block.replace(extra=seen)),
          updated=more, params=state.params['policy'],
          patches=parts(patches),
          stored={name: parts(x) for name, x in named.items()
                  if x.size > 1 and parts(x) < 1},
          aliased=program.memory_analysis().alias_size_in_bytes))


def _all(layers):
  mesh.cpu_devices(8)
  return {i: run_on(MESHES[i], layers) for i in RUNS[layers]}


def _restored(folder):
  """A state of eight devices, on others: {mesh: (bits are equal, part that the
  first device has of a kernel and of its moments)}."""
  mesh.cpu_devices(8)
  from mmr1 import checkpoint
  from tests import small
  params = small.params(depth=1)
  tree = {'params': {'policy': params}, 'opt': {'policy': jax.tree.map(
      lambda x: x * 2, params)}, 'step': jnp.int32(3)}
  saved = sharding.over(jax.devices(), data=2, fsdp=2, tensor=2).own(tree)
  store = checkpoint.Checkpoints(folder, background=True)
  store.save('s', 3, saved, {})
  found = {}
  for sizes in (ONE, dict(data=2), dict(fsdp=2), dict(fsdp=2, tensor=2),
                dict(data=4, fsdp=2)):
    count = math.prod(sizes.values())
    layout = sharding.over(jax.devices()[:count], **sizes)
    target = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        tree, layout.state(tree))
    got = trees.named(store.restore('s', target).tree)
    same = all(np.array_equal(x, got[name])
               for name, x in trees.named(tree).items())
    found[str(sizes)] = same, *(
        parts(got[f'{part}/policy/{GATE}']) for part in ('params', 'opt'))
  store.close()
  return found


def test_m15_a_checkpoint_of_eight_devices_is_read_by_others(tmp_path):
  spawn = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
    found = pool.submit(_restored, str(tmp_path)).result()
  assert found == {
      "{'data': 1}": (True, 1, 1), "{'data': 2}": (True, 1, 1),
      "{'fsdp': 2}": (True, 1 / 2, 1 / 2),
      "{'fsdp': 2, 'tensor': 2}": (True, 1 / 4, 1 / 4),
      "{'data': 4, 'fsdp': 2}": (True, 1 / 2, 1 / 2)}


@pytest.fixture(scope='module', params=[
    pytest.param('unrolled', marks=pytest.mark.slow), 'scan'])
def found(request):
  spawn = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
    return pool.submit(_all, request.param).result()


def close(a, b):
  for (path, x), (_, y) in zip(*map(jax.tree_util.tree_leaves_with_path,
                                    (a, b))):
    np.testing.assert_allclose(
        x, y, atol=1e-5, rtol=1e-5, err_msg=str(path))


def test_m3_devices_change_nothing(found):
  """Prompts, weights, heads and vocabulary in parts: the same in 1e-5."""
  one = found[0]
  assert len(np.unique(one['tokens'])) > 5
  for other in found.values():
    np.testing.assert_array_equal(other['tokens'], one['tokens'])
    for name in ('logp', 'grads', 'metrics', 'weight'):
      close(other[name], one[name])
  # Statistics of all prompts, not of a device's.
  assert len(np.unique(one['weight'])) > 8


def test_m3_chunks_and_refilled_rows_change_nothing_on_any_mesh(found):
  for one in found.values():
    close(one['chunked'], one['grads'])
    np.testing.assert_array_equal(one['refilled'], one['tokens'])
    assert one['recompiled'] == 0


def test_m3_adapters_on_heads_in_parts(found):
  """Gradients of adapters, whose factors are divided like their kernels."""
  one = found[0]['adapted']
  factors = [x for name, x in trees.named(one).items() if 'lora_' in name]
  assert len(factors) >= 14 and all(np.any(x) for x in factors[::3])
  others = [x['adapted'] for x in list(found.values())[1:] if x['adapted']]
  assert others
  for other in others:
    close(other, one)


def test_decoding_with_weights_in_other_parts_changes_nothing(found):
  for i, one in found.items():
    np.testing.assert_array_equal(one['moved'], one['tokens'])
    assert one['published'] == 1 / min(4, math.prod(MESHES[i].values()))
    assert one['like']  # rollouts lie as the update needs them


def test_m24_updates_are_those_of_one_device(found):
  """Two steps of AdamW; the norm of the gradient is of all its parts."""
  one = found[0]
  assert one['updated']['grad_norm'] > 0
  for other in found.values():
    close(other['updated'], one['updated'])
    # Adam's first steps are lr * sign: a gradient of 0 +- 1e-9 may turn.
    far = [np.mean(np.abs(x - y) > 1e-5) for x, y in zip(
        *map(jax.tree.leaves, (other['params'], one['params'])))]
    assert max(far) < 2e-3


def test_prompts_are_divided(found):
  """Eight prompts over slice x data x fsdp."""
  for i, one in found.items():
    part = (1, 1 / 2, 1 / 8, 1 / 8, 1 / 2, 1 / 4)[i]
    assert one['patches'] == one['sampled'] == part


def test_parameters_and_moments_are_stored_in_parts(found):
  """fsdp x tensor parts of kernels, embeddings and both moments; the state
  that comes out lies as the one that went in, in its buffers."""
  for i, one in found.items():
    stored, part = one['stored'], (1, 1, 1, 1 / 4, 1 / 8, 1 / 4)[i]
    if part == 1:
      assert not stored
      continue
    names = [f'params/policy/{GATE}', f'opt/policy/1/mu/{GATE}',
             f'opt/policy/1/nu/{GATE}', 'params/policy/language/embed']
    assert {stored[name] for name in names} == {part}
    # What is not in parts is small.
    assert one['aliased'] < 3.2 * found[0]['aliased'] * (part + .1)


def test_rows_that_do_not_divide_are_on_fewer_devices():
  devices = [mock.Mock(platform='cpu', id=i) for i in range(8)]
  layout = sharding.over(devices, data=2, fsdp=4)
  assert [layout.shards(n) for n in (16, 8, 12, 6, 3)] == [8, 8, 2, 2, 1]
  # One device divides everything; nothing is changed on the way.
  tree = {'a': np.arange(6).reshape(3, 2), 'b': np.ones(3)}
  spread = sharding.default().spread(tree)
  np.testing.assert_array_equal(spread['a'], tree['a'])


def test_own_has_buffers_of_its_own():
  x = jnp.arange(4.0)
  y = sharding.default().own({'x': x})['x']
  jax.jit(lambda v: v + 1, donate_argnums=0)(y)
  assert x.tolist() == [0, 1, 2, 3] and y.is_deleted()


def test_devices_stay_where_jax_has_started():
  before = len(jax.devices())
  mesh.cpu_devices(before + 1)
  mesh.cpu_devices(0)
  assert len(jax.devices()) == before


def _section(**changes):
  return dict(slice=1, data=None, fsdp=1, tensor=1) | changes


def test_sizes_of_a_mesh():
  assert mesh.sizes(_section(), 8) == dict(
      slice=1, data=8, fsdp=1, tensor=1)
  assert mesh.sizes(_section(fsdp=4), 8)['data'] == 2
  assert mesh.sizes(_section(data=2, fsdp=None, tensor=2), 8)['fsdp'] == 2


@pytest.mark.parametrize('changes, said', [
    (dict(fsdp=3), r'fsdp=3 .*does not make 8 devices.*\[1, 2, 4, 8\]'),
    (dict(data=2, fsdp=2), r'data=2 x fsdp=2 .*does not make 8'),
    (dict(fsdp=None), 'data and fsdp are both None'),
    (dict(tensor=0), 'mesh.tensor: got 0; allowed: at least 1'),
])
def test_m22_a_mesh_that_does_not_divide_is_refused(changes, said):
  with pytest.raises(ValueError, match=said):
    mesh.sizes(_section(**changes), 8)


def test_m22_heads_that_do_not_divide_are_refused():
  """4 heads on 2 of keys: 4 parts have each key head twice, 8 do not fit."""
  layout = sharding.over([mock.Mock(platform='cpu', id=i) for i in range(8)],
                         tensor=8)
  config = mock.Mock(heads=4, kv_heads=2, mlp_width=64)
  with pytest.raises(ValueError, match=r'got 8, .*allowed are \[1, 2, 4\]'):
    sharding.check(layout, config)


def _partition(rules=sharding.RULES, **sizes):
  devices = [mock.Mock(platform='cpu', id=i)
             for i in range(math.prod(sizes.values()))]
  return partition.Partition(
      sharding.over(devices, **sizes).mesh, sharding.TABLE, rules)


def test_every_parameter_has_exactly_one_rule():
  """None: an error; two: an error; one of another rank: an error."""
  some = _partition(fsdp=2)
  with pytest.raises(ValueError, match="0 rules for .*'language/more/kernel'"):
    some.parameter('language/more/kernel', (4, 4))
  twice = _partition((*sharding.RULES, partition.Rule('.*', None)), fsdp=2)
  with pytest.raises(ValueError, match='2 rules for .*\n.*gate.*\n'):
    twice.parameter(GATE, (2, 4, 4))
  with pytest.raises(ValueError, match=r"has 2 axes, but .*\[4\]"):
    some.parameter(GATE, (4,))


def test_tokens_are_divided_between_layers_where_there_are_several():
  """Of completions and prompts; a token that is decoded stays whole."""
  some = _partition(fsdp=2, tensor=2)
  P = jax.P
  lie = lambda *shape: some.spec(('rows', None, 'tokens'), shape)
  assert lie(8, 4, 16, 32) == P(('slice', 'data', 'fsdp'), None, ('tensor',))
  assert lie(8, 4, 1, 32) == lie(8, 4, 15, 32) == P(
      ('slice', 'data', 'fsdp'), None, ())


def test_parts_go_where_they_divide():
  """[3 layers, 6, 8] over fsdp=4: 6 does not divide, so 8 is."""
  some = _partition(fsdp=4, tensor=2)
  P = jax.P
  assert some.parameter(GATE, (3, 8, 8)) == P(None, ('fsdp',), ('tensor',))
  assert some.parameter(GATE, (3, 6, 8)) == P(None, (), ('tensor', 'fsdp'))
  assert some.parameter(GATE, (3, 8, 8), used=True) == P(
      None, (), ('tensor',))
  assert some.parameter('visual/blocks/norm1/weight', (3, 8)) == P()


def _config(family):
  """What transformers assumes, where that is a model; else a published one."""
  shapes = pathlib.Path(sharding.__file__).parent / 'assets' / 'shapes'
  known = {'qwen2_5_vl': 'qwen2_5_vl_7b', 'qwen3_vl': 'qwen3_vl_4b'}
  if family in known:
    return json.loads((shapes / known[family] / 'config.json').read_text())
  hf = transformers.AutoConfig.for_model(family).to_dict()
  if family == 'qwen2_vl':
    hf['vision_config']['hidden_size'] = hf['text_config']['hidden_size']
  if family == 'gemma3':
    hf['vision_config']['vision_use_head'] = False
    hf['mm_tokens_per_image'] = 49  # of 14 x 14 patches
  return hf


@pytest.mark.parametrize('family', checkpoints.FAMILIES)
def test_rules_cover_all_families(family, tmp_path):
  """In the sizes that transformers assumes, with adapters on every kernel: each
  leaf has one rule, and kernels and embeddings are in fsdp x tensor parts."""
  hf = _config(family)
  (tmp_path / 'config.json').write_text(json.dumps(hf, default=str))
  _, params = checkpoints.describe(tmp_path, param_dtype='bfloat16')
  params = jax.eval_shape(lambda tree: lora.inject(
      tree, jax.random.key(0), rank=2, alpha=1.0, targets=('.*/kernel',)),
                          params)
  layout = sharding.Layout(_partition(fsdp=2, tensor=2).mesh)
  where, shapes = (trees.named(x) for x in (layout.parameters(params), params))
  for name, one in where.items():
    whole, part = (math.prod(x) for x in (
        shapes[name].shape, one.shard_shape(shapes[name].shape)))
    if name.rpartition('/')[2] in ('kernel', 'embed', 'head'):
      assert 4 * part == whole, name
