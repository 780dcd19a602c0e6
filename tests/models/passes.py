"""Both passes of a model as programs, and what compares them with torch."""

import functools

import jax
from jax.extend import core as extend_core
import jax.numpy as jnp
import numpy as np
import torch

from mmr1.models import decoder

torch.set_num_threads(1)  # the tensors are tiny


def leaves(tree):
  """{'a/b/c': numpy array} of a nested dict."""
  return {'/'.join(k.key for k in path): np.asarray(x)
          for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def randomise(model, seed):
  """Random weights of a torch model, in place.

  Large enough that attention is far from uniform and every bias and norm
  matters: at the usual 0.02 many mistakes would stay below the tolerance.
  """
  torch.manual_seed(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn_like(parameter)
      if parameter.ndim > 1:
        fan_in = parameter[0].numel()
        parameter.copy_(noise * (0.5 if 'embed' in name else fan_in**-0.5))
      else:
        norm = 'norm' in name or 'ln_q' in name
        parameter.copy_(0.2 * noise + (norm and not name.endswith('bias')))
  return model.eval()


def logits_of(module, params, batch, tokens, positions, mask):
  """f32[N, G, T + 1, V]: of the first completion token, and on."""
  variables = {'params': params}
  prefix = module.apply(variables, batch, method='prompt_pass')
  hidden = module.apply(variables, prefix, batch.mask, tokens, positions,
                        mask, method='completion_pass')
  last = jnp.broadcast_to(
      prefix.last[:, None, None], (*tokens.shape[:2], 1, hidden.shape[-1]))
  return module.apply(
      variables, jnp.concatenate([last, hidden], 2), method='head')


forward = jax.jit(logits_of, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def gradient(module, params, batch, completions, weight):
  """((loss, logits), gradient) of the linear loss `weight`."""
  def loss(params):
    logits = logits_of(module, params, batch, *completions)
    return jnp.sum(logits * weight), logits
  return jax.value_and_grad(loss, has_aux=True)(params)


def real(completions):
  """Where logits count, bool[N, G, T + 1]: those of the prompt, too."""
  return np.pad(np.asarray(completions[2]), ((0, 0), (0, 0), (1, 0)),
                constant_values=True)


def weight_of(completions, vocab):
  """A random linear loss over real tokens, f32[N, G, T + 1, V]."""
  keep = real(completions)
  noise = np.random.default_rng(5).normal(size=(*keep.shape, vocab))
  return jnp.asarray(noise * keep[..., None], jnp.float32)


def check_gradients(names, config, model, got, zero=()):
  """Every leaf of `got` within 1e-3, relative, of the torch model's `.grad`.

  Leaves in `zero` have no gradient: a bias of keys that do not turn adds the
  same to every score of a query.

  Returns:
    The largest relative difference.
  """
  grads = {names.canonical(name): parameter.grad.numpy()
           for name, parameter in model.named_parameters()}
  got, worst = leaves(got), 0.0
  table = names.table(config)
  for line in table:
    expected = [_in_tree(line, grads[name]) for name in line.names]
    expected = np.stack(expected) if line.layers else expected[0]
    scale = np.linalg.norm(expected)
    if line.path in zero:
      assert max(scale, np.linalg.norm(got[line.path])) < 1e-3, line.path
      continue
    assert scale > 1e-3, line.path
    error = np.linalg.norm(got[line.path] - expected) / scale
    assert error < 1e-3, (line.path, error)
    worst = max(worst, error)
  assert set(got) == {line.path for line in table}
  return worst


def check_equal(got, expected):
  """Two trees of parameters, to the bit."""
  got, expected = leaves(got), leaves(expected)
  assert set(got) == set(expected)
  for path, x in expected.items():
    np.testing.assert_array_equal(got[path], x, err_msg=path)


def _in_tree(line, tensor):
  """A tensor of torch's in the layout of our parameters."""
  rows = tensor.reshape(len(tensor), -1)
  result = np.empty(rows.T.shape if line.kernel else tensor.shape, np.float32)
  line.fill(result, [slice(0, size) for size in result.shape], 0, tensor)
  return result


def check_bfloat16(got, expected, completions):
  """bfloat16 logits differ from float32, but not by much.

  Returns:
    The mean and the largest difference, relative to the largest logit.
  """
  assert got.dtype == np.float32
  error = np.abs(got - expected)[real(completions)]
  scale = np.abs(expected).max()
  assert 1e-4 < error.mean() < 2e-2 * scale
  return error.mean() / scale, error.max() / scale


@functools.partial(jax.jit, static_argnums=(0, 3))
def greedy(module, params, batch, steps):
  """Tokens i32[N, steps], the arg max each time, one row per prompt."""
  variables = {'params': params}
  n = batch.tokens.shape[0]
  prefix = module.apply(variables, batch, method='prompt_pass')
  cache = decoder.init_cache(module.config, n, 1, steps, jnp.float32)

  def pick(hidden):
    return jnp.argmax(module.apply(variables, hidden, method='head'), -1)

  def step(t, state):
    cache, tokens, current = state
    tokens = tokens.at[:, t].set(current[:, 0])
    positions = (batch.next_position[:, None, None] + t) * jnp.ones(
        (1, 1, 3), jnp.int32)
    hidden, cache = module.apply(
        variables, prefix, batch.mask, cache, current, positions, t,
        method='decode')
    return cache, tokens, pick(hidden).astype(jnp.int32)

  state = cache, jnp.zeros((n, steps), jnp.int32), (
      pick(prefix.last)[:, None].astype(jnp.int32))
  return jax.lax.fori_loop(0, steps, step, state)[1]


def shapes_in(jaxpr):
  """Shapes of every value of a jaxpr, nested ones included."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield variable.aval.shape
    for inner in extend_core.jaxprs_in_params(equation.params):
      yield from shapes_in(inner)


def precisions_in(jaxpr):
  """Those of every product of a jaxpr, loops and branches included."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      yield equation.params['precision']
    for inner in extend_core.jaxprs_in_params(equation.params):
      yield from precisions_in(inner)
