"""Models from and to Hugging Face folders, whatever the family."""

from collections.abc import Callable, Iterator
import contextlib
import json
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp

from mmr1.models import adapter_files
from mmr1.models import decoder_weights
from mmr1.models import gemma
from mmr1.models import gemma_vl
from mmr1.models import internvl
from mmr1.models import internvl_weights
from mmr1.models import llava_onevision
from mmr1.models import partition as partition_lib
from mmr1.models import qwen3_vl_weights
from mmr1.models import qwen_vl
from mmr1.models import qwen_vl_weights
from mmr1.models import scalar_heads
from mmr1.models import tensor_files
from mmr1.models import text_decoder
from mmr1.models import weights

# model_type of config.json: (code of the family, its weight table).
_FAMILIES = {
    'internvl': (internvl, internvl_weights),
    'llava_onevision': (llava_onevision, llava_onevision),
    **{name: (qwen_vl, qwen3_vl_weights if name == 'qwen3_vl' else
              qwen_vl_weights) for name in qwen_vl.FAMILIES},
    **{name: (gemma_vl, gemma_vl) for name in gemma_vl.FAMILIES},
    **{name: (family, decoder_weights) for family in (text_decoder, gemma)
       for name in family.FAMILIES}}
FAMILIES = tuple(sorted(_FAMILIES))
# Those whose config.json says that the head is the embedding whether it is or
# not: it is the default there, and was not looked at when files were made.
_HEAD_IN_FILES = ('internvl',)
_DTYPES = ('float32', 'bfloat16', 'float16')
_REWARD_HEAD = 'reward_head'  # of config.json; transformers keeps such keys


def _family(model_type: str | None, where: Any):
  if model_type not in _FAMILIES:
    raise ValueError(
        f'{where}: model_type {model_type!r} is not supported; supported are '
        f'{list(FAMILIES)}.')
  return _FAMILIES[model_type]


def read_config(path: epath.PathLike, **run: Any) -> Any:
  """The family's Config of the folder `path`, with run-time choices `run`.

  Raises:
    ValueError: no config.json, or of a family that is not supported.
  """
  file = epath.Path(path) / 'config.json'
  if not file.exists():
    raise ValueError(
        f'{file} does not exist: a model is a Hugging Face folder (a local '
        'path or a bucket) with config.json and *.safetensors; download it '
        'first.')
  hf = tensor_files.read_json(file)
  family, names = _family(hf.get('model_type'), file)
  if hf['model_type'] in _HEAD_IN_FILES and _has_head(file.parent, names):
    hf['tie_word_embeddings'] = False
  return family.Config.from_hf(hf, **{
      **run, 'reward_head': _reward_head(file, hf, run)})


def _reward_head(file: epath.Path, hf: dict[str, Any],
                 run: dict[str, Any]) -> scalar_heads.Head:
  """As the folder has it, else as the run asks for."""
  asked, there = run.get('reward_head'), hf.get(_REWARD_HEAD)
  if there is None or 'reward' not in run.get('scalars', ()):
    return asked or scalar_heads.Head()
  there = scalar_heads.Head(**there)
  if asked not in (None, there):
    raise ValueError(
        f'{file}: {_REWARD_HEAD} is {there}, and model.reward_head {asked}: a '
        'head goes on as it was made. Set model.reward_head to that.')
  return there


def _has_head(folder: epath.Path, names: Any) -> bool:
  """Whether weights are there and among them a head of its own."""
  if not tensor_files.exist(folder):
    return False
  return any(names.canonical(name) == names.HEAD
             for name in tensor_files.find(folder))


def load(
    path: epath.PathLike,
    *,
    param_dtype: str = 'float32',
    compute_dtype: str = 'float32',
    layers: str = 'unrolled',
    remat: str = 'none',
    precision: str = 'default',
    query_chunk: int = 1024,
    attention: str = 'auto',
    partition: partition_lib.Partition | None = None,
    scalars: tuple[str, ...] = (),
    reward_head: scalar_heads.Head | None = None,
    place: Callable[[weights.Leaf], Any] = weights.Leaf.read,
) -> tuple[Any, Any]:
  """Loads a model.

  Args:
    path: a Hugging Face folder, local or in a bucket.
    param_dtype: of the parameters: 'float32', 'bfloat16' or 'float16'.
    compute_dtype: of activations.
    layers: 'unrolled' or 'scan'.
    remat: 'none', 'layer' or 'dots', see `layers.fold`.
    precision: of matrix products, 'default', 'high' or 'highest'.
    query_chunk: queries handled at once by XLA's attention; bounds its memory.
    attention: what computes it, see `mmr1.models.attention.choose`.
    partition: how the model lies over devices, or None: one. Kernels of
      attention need to know.
    scalars: heads of one number, 'value' or 'reward', zeros where the folder
      has none.
    reward_head: the form of the latter; None: the folder's, or one layer.
    place: called with each parameter, which is still in its files, to read
      what belongs here and put it on devices: the host then holds no more
      than one of them.

  Returns:
    The linen module and its parameters, host (numpy) arrays or what `place`
    made of them.

  Raises:
    ValueError: an unsupported family or dtype, or tensors that do not fit
      config.json.
  """
  if param_dtype not in _DTYPES:
    raise ValueError(
        f'param_dtype={param_dtype!r}: allowed are {_DTYPES}.')
  config = read_config(
      path, compute_dtype=compute_dtype, layers=layers, remat=remat,
      precision=precision, query_chunk=query_chunk, attention=attention,
      partition=partition, scalars=scalars, reward_head=reward_head)
  family, names = _family(json.loads(config.hf)['model_type'], path)
  params = weights.read(
      path, names.table(config), _shapes(family, config),
      canonical=names.canonical, tied=names.tied(config),
      dtype=jnp.dtype(param_dtype), place=place)
  return family.build(config), params


@contextlib.contextmanager
def opened(path: epath.PathLike, *, param_dtype: str, **run: Any,
           ) -> Iterator[dict[str, weights.Leaf]]:
  """{'a/b/c': parameter} of a folder, each still in its files.

  Args, Raises: as of `load`.
  """
  config = read_config(path, **run)
  family, names = _family(json.loads(config.hf)['model_type'], path)
  with weights.opened(
      path, names.table(config), _shapes(family, config),
      canonical=names.canonical, tied=names.tied(config),
      dtype=jnp.dtype(param_dtype)) as leaves:
    yield leaves


def layers(module: Any) -> dict[str, int]:
  """{'a/b/c': L} of the parameters, 0 of one that is not stacked."""
  _, names = _family(json.loads(module.config.hf).get('model_type'),
                     'the config of this module')
  return {row.path: row.layers for row in names.table(module.config)}


def describe(path: epath.PathLike, *, param_dtype: str,
             **run: Any) -> tuple[Any, Any]:
  """What `load` would return, without reading weights; `run` as there.

  Returns:
    The linen module, and the tree of its parameters as shape structs.
  """
  config = read_config(path, **run)
  family, _ = _family(json.loads(config.hf)['model_type'], path)
  return family.build(config), jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(param_dtype)),
      _structs(family, config))


def older(module: Any) -> tuple[tuple[str, str], ...]:
  """(part of a parameter's path, what it was in earlier versions)."""
  _, names = _family(json.loads(module.config.hf).get('model_type'),
                     'the config of this module')
  return getattr(names, 'OLDER', ())


def save(
    path: epath.PathLike,
    module: Any,
    params: Any,
    *,
    dtype: str = 'float32',
    max_shard_bytes: int = tensor_files.MAX_SHARD_BYTES,
) -> None:
  """Writes weights (the hub's names) and config.json into `path`.

  Args:
    path: the folder, local or in a bucket; made if absent.
    module: as from `load`.
    params: its parameters, stacked; addressable by this process, or
      `weights.Made`.
    dtype: of the tensors in the file.
    max_shard_bytes: larger weights are written as shards and an index.

  Raises:
    ValueError: the tree is not that of the family; nan or inf.
  """
  hf = json.loads(module.config.hf)
  _, names = _family(hf.get('model_type'), 'the config of this module')
  weights.write(path, names.table(module.config), _leaves(params),
                dtype=jnp.dtype(dtype), max_shard_bytes=max_shard_bytes)
  if 'reward' in module.config.scalars:
    hf[_REWARD_HEAD] = module.config.reward_head._asdict()
  hf.setdefault('dtype' if 'torch_dtype' not in hf else 'torch_dtype', dtype)
  for section in (hf, hf.get('text_config'), hf.get('vision_config')):
    for key in ('dtype', 'torch_dtype'):
      if section and key in section:
        section[key] = dtype
  # Last: a folder without it is no model, whatever else is there.
  tensor_files.write_text(
      epath.Path(path) / 'config.json',
      json.dumps(hf, indent=2, sort_keys=True) + '\n')


def save_adapter(
    path: epath.PathLike,
    module: Any,
    params: Any,
    *,
    alpha: float,
    base: str,
    dtype: str = 'float32',
) -> None:
  """Writes the adapters of `params` as a folder of PEFT into `path`.

  Args:
    path: the folder, local or in a bucket; made if absent.
    module: as from `load`.
    params: with adapters, all of one rank; see `mmr1.models.lora`.
    alpha: of their scale, alpha / rank.
    base: where the model below them is, for whoever opens the folder.
    dtype: of the tensors in the file.

  Raises:
    ValueError: nan or inf.
  """
  hf = json.loads(module.config.hf)
  _, names = _family(hf.get('model_type'), 'the config of this module')
  adapter_files.write(
      path, names.table(module.config), _leaves(params),
      in_memory=names.in_memory, alpha=alpha, base=base,
      dtype=jnp.dtype(dtype))


def _structs(family: Any, config: Any) -> Any:
  return jax.eval_shape(
      lambda: family.init_params(config, jax.random.key(0)))


def _shapes(family: Any, config: Any) -> dict[str, tuple[int, ...]]:
  return {path: x.shape
          for path, x in _leaves(_structs(family, config)).items()}


def _leaves(tree: Any) -> dict[str, Any]:
  """{'a/b/c': leaf} of a nested dict."""
  return {
      '/'.join(key.key for key in path): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
