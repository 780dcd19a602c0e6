"""Pre-trains the embedded model `mmr1/assets/tiny` from nothing.

  python -m experiments.pretrain_tiny --out=/tmp/tiny

Every image is one prompt row; the documents about it are its group, so the
image is encoded once for all of them. Writes the folder, and the curve beside
it as `pretrain.json`. Takes about half an hour on two idle cores.
"""

import dataclasses
import functools
import json
import queue
import threading
import time

from absl import app
from absl import flags
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import tiny_corpus
from experiments import tiny_folder
from mmr1 import forward
from mmr1 import types
from mmr1 import update
from mmr1.data import collate
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.data import template
from mmr1.losses import terms
from mmr1.models import checkpoints
from mmr1.models import qwen_vl
from mmr1.sampling import sample

flags.DEFINE_string('out', None, 'Folder to write.', required=True)
flags.DEFINE_integer('seeing', 400, 'Updates of the vision tower, before.')
flags.DEFINE_integer('steps', 500, 'Updates on documents.')
flags.DEFINE_integer('seed', 0, 'Seed of data and initial weights.')
flags.DEFINE_float('lr', 2e-3, 'Peak learning rate.')
flags.DEFINE_integer('devices', 2, 'CPU devices the batch is spread over.')
flags.DEFINE_integer('vocab_size', 768, 'Rows of the embedding.')
FLAGS = flags.FLAGS

# (pages, documents per page, completion length): short and long documents.
SHORT = (28, 6, 72)
LONG = (10, 2, 176)
EYES = 96  # images per update of the first phase
PROMPT_TOKENS = 24
PATCHES = 64


@dataclasses.dataclass(frozen=True)
class Tail:
  """Ids between a question and its reply: end of turn, assistant header."""
  ids: tuple[int, ...]

  @classmethod
  def of(cls, processor: processor_lib.Processor) -> 'Tail':
    text = processor.tokenizer.apply_chat_template(
        [{'role': 'user', 'content': '|'}], tokenize=False,
        add_generation_prompt=True).split('|', 2)[-1]
    text = text[text.index('<|im_end|>'):]
    ids = processor.tokenizer(text, add_special_tokens=False)['input_ids']
    return cls(tuple(ids))


def open_page(example, processor, tail: Tail) -> encode.Encoded:
  """The user turn up to its image, without the end of the turn."""
  bare = dataclasses.replace(example, question='<image>')
  page = encode.encode(bare, processor, template=template.plain)
  cut = len(tail.ids)
  assert tuple(page.tokens[-cut:]) == tail.ids, page.tokens
  return dataclasses.replace(
      page, tokens=page.tokens[:-cut], positions=page.positions[:-cut],
      slot=page.slot[:-cut], next_position=page.next_position - cut)


def document_ids(document, processor, tail: Tail):
  """Ids of question, tail and reply, and the kind of each."""
  asked = processor.tokenizer(
      document.user, add_special_tokens=False)['input_ids']
  reply = encode.encode_completion(document.reply, processor)
  forced = len(asked) + len(tail.ids)
  kinds = [types.KIND_FORCED] * forced + [types.KIND_EXPERT] * len(reply)
  return [*asked, *tail.ids, *map(int, reply)], kinds


def block(seed, first, shape, processor, tail):
  """A block of numpy arrays: N pages, G documents each; and the next page."""
  n, g, length = shape
  tokens = np.full((n, g, length), processor.pad_id, np.int32)
  kinds = np.zeros((n, g, length), np.int8)
  pages, i = [], first
  while len(pages) < n:
    example, documents = tiny_corpus.page(seed, i, 3 * g)
    i += 1
    ids = [document_ids(d, processor, tail) for d in documents]
    low = SHORT[2] if shape == LONG else 0
    ids = [x for x in ids if low < len(x[0]) <= length][:g]
    if len(ids) < g:
      continue
    for k, (row, kind) in enumerate(ids):
      tokens[len(pages), k, :len(row)] = row
      kinds[len(pages), k, :len(row)] = kind
    pages.append(open_page(example, processor, tail))
  prompts = collate.collate(
      pages, prompt_length=PROMPT_TOKENS, patches=PATCHES)
  completions = types.Completions(
      tokens=tokens, kind=kinds, positions=np.asarray(sample.text_positions(
          prompts.next_position, tokens.shape)))
  return types.Block(
      prompts=prompts, completions=completions,
      mask=kinds == types.KIND_EXPERT,
      advantage=np.zeros((n, g, 1), np.float32)), i


def eyes_batch(seed, first, n, processor):
  """Media of n images and ids i32[n, M, 2] of what each cell shows, -1: none.

  A cell shows a digit, a colour and a kind, or nothing ('.').
  """
  word = lambda text: processor.tokenizer(text)['input_ids'][-1]
  pages, shown = [], []
  for i in range(first, first + n):
    example, _ = tiny_corpus.page(seed, i, 0)
    page = encode.encode(dataclasses.replace(example, question='<image>'),
                         processor, template=template.plain)
    columns = example.images[0].size[0] // 16
    words = tiny_corpus.cells(example)
    targets = np.full((PATCHES // 4, 2), -1, np.int32)
    for k, cell in enumerate(page.slot[page.slot >= 0]):
      ids = [word(w) for w in words.get(divmod(k, columns), ('.',))]
      targets[cell] = ids[0], ids[-1]
    pages.append(page)
    shown.append(targets)
  prompts = collate.collate(
      pages, prompt_length=PROMPT_TOKENS + 8, patches=PATCHES)
  return prompts.media[collate.TOWER], np.stack(shown)


def eyes_step(policy, optimizer, params, opt, batch):
  """One update that makes each visual token predict the words it shows.

  A cell's token is read by the output embedding, so that
  what the decoder later finds in its prompt is close to the words themselves.
  """
  media, shown = batch
  mask = shown >= 0

  def loss(params):
    cells = policy.module.apply(
        {'params': params}, media, method=lambda m, x: m.visual(x))
    logp = jax.nn.log_softmax(policy.apply(params, cells, method='head'))
    chosen = jnp.take_along_axis(logp, jnp.where(mask, shown, 0), -1)
    return -jnp.sum(jnp.where(mask, chosen, 0)) / jnp.sum(mask)
  value, grads = jax.value_and_grad(loss)(params)
  updates, opt = optimizer.update(grads, opt, params)
  return optax.apply_updates(params, updates), opt, {'loss': value}


def producer(seed, seeing, processor, tail, out: queue.Queue):
  """Fills the queue; each kind of block draws from its own page numbers."""
  short, long = 0, 1 << 24
  for k in range(seeing):
    out.put(eyes_batch(seed, (1 << 26) + k * EYES, EYES, processor))
  while True:
    a, short = block(seed, short, SHORT, processor, tail)
    b, long = block(seed, long, LONG, processor, tail)
    out.put((a, b))


def train_step(policy, optimizer, params, opt, batch):
  """One update; the learning rate is in the optimiser's hyper-parameters."""
  nll = update.Term(
      'nll', functools.partial(terms.nll, reduction=terms.TOKEN_MEAN))
  knobs = {'temperature': jnp.float32(1.0), 'coef/nll': jnp.float32(1.0)}
  grads, metrics = update.gradient(
      policy, params, lambda p: p, batch, (nll,), knobs)
  updates, opt = optimizer.update(grads, opt, params)
  return optax.apply_updates(params, updates), opt, metrics


def learning_rate(step: int) -> float:
  """Of each phase: a warm-up, then a cosine to a fiftieth of the peak."""
  phase, start = FLAGS.seeing, 0
  if step >= FLAGS.seeing:
    phase, start = FLAGS.steps, FLAGS.seeing
  progress = (step - start) / phase
  warm = min(1.0, (step - start + 1) / 20)
  return FLAGS.lr * warm * (
      0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * progress)))


def scaled(params):
  """Fan-in scaled kernels: N(0, 0.02) is far too small at this width."""
  def one(path, x):
    name = jax.tree_util.keystr(path)
    if 'embed' in name and 'patch' not in name:
      return x * 5.0
    if 'kernel' not in name:
      return x
    residual = any(part in name for part in ("'o'", "'down'", "'proj'"))
    std = x.shape[-2] ** -0.5 * (0.35 if residual else 1.0)
    return x * (std / 0.02)
  return jax.tree_util.tree_map_with_path(one, params)


def spread(batch, mesh):
  """The batch over all devices, along the prompts."""
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  return jax.device_put(batch, rows)


def main(_):
  # One device per core: XLA runs element-wise work of a device on one core.
  jax.config.update('jax_num_cpu_devices', FLAGS.devices)
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ('data',))
  # The roles of the chat template become single tokens.
  texts = ['system user assistant'] * 100
  for i in range(4000):
    for document in tiny_corpus.page(FLAGS.seed, (1 << 25) + i, 4)[1]:
      texts.append(document.user + '\n' + document.reply)
  config = tiny_folder.write(FLAGS.out, texts, FLAGS.vocab_size)
  processor = processor_lib.Processor.open(FLAGS.out)
  tail = Tail.of(processor)
  model = qwen_vl.Config.from_hf(config)
  policy = forward.Policy(
      qwen_vl.build(model), processor.banned, processor.eos_id,
      processor.pad_id)
  params = jax.device_put(
      scaled(qwen_vl.init_params(model, jax.random.key(FLAGS.seed))),
      jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
  size = sum(x.size for x in jax.tree.leaves(params))
  print(f'{size} parameters, {len(processor.tokenizer)} tokens', flush=True)
  optimizer = optax.inject_hyperparams(lambda lr: optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.adamw(lr, b2=0.98, weight_decay=0.01)))(lr=0.0)
  opt = optimizer.init(params)
  eyes_fn, document_fn = (
      jax.jit(functools.partial(fn, policy, optimizer), donate_argnums=(0, 1))
      for fn in (eyes_step, train_step))
  batches = queue.Queue(4)
  threading.Thread(
      target=producer,
      args=(FLAGS.seed, FLAGS.seeing, processor, tail, batches),
      daemon=True).start()
  curve, start = [], time.time()
  total = FLAGS.seeing + FLAGS.steps
  for step in range(total):
    opt.hyperparams['lr'] = jnp.float32(learning_rate(step))
    step_fn = eyes_fn if step < FLAGS.seeing else document_fn
    params, opt, metrics = step_fn(
        params, opt, spread(batches.get(), mesh))
    if step % 20 == 0 or step + 1 == total:
      loss = round(float(metrics['loss']), 4)
      curve.append((step, round(time.time() - start, 1), loss))
      print(*curve[-1], flush=True)
    if step % 100 == 99 or step + 1 == total:
      checkpoints.save(FLAGS.out, policy.module, params, dtype='bfloat16')
  report = dict(
      seed=FLAGS.seed, seeing=FLAGS.seeing, steps=FLAGS.steps, peak_lr=FLAGS.lr,
      seconds=round(time.time() - start), parameters=size,
      jax=jax.__version__, curve=curve)
  (epath.Path(FLAGS.out) / 'pretrain.json').write_text(
      json.dumps(report) + '\n')


if __name__ == '__main__':
  app.run(main)
