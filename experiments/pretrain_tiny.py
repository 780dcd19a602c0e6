"""Pre-trains the embedded model `mmr1/assets/tiny` from nothing.

  python -m experiments.pretrain_tiny --out=/tmp/tiny --steps=800

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
from mmr1.models import qwen2_5_vl
from mmr1.sampling import sample

flags.DEFINE_string('out', None, 'Folder to write.', required=True)
flags.DEFINE_integer('steps', 800, 'Updates.')
flags.DEFINE_integer('seed', 0, 'Seed of data and initial weights.')
flags.DEFINE_float('lr', 3e-3, 'Peak learning rate.')
flags.DEFINE_integer('devices', 2, 'CPU devices the batch is spread over.')
flags.DEFINE_integer('vocab_size', 768, 'Rows of the embedding.')
FLAGS = flags.FLAGS

# (pages, documents per page, completion length): short and long documents.
SHAPES = ((28, 6, 72), (10, 2, 176))
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
  pages, i, want_long = [], first, shape == SHAPES[1]
  while len(pages) < n:
    example, documents = tiny_corpus.page(seed, i, 3 * g)
    i += 1
    ids = [document_ids(d, processor, tail) for d in documents]
    low = SHAPES[0][2] if want_long else 0
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


def producer(seed, processor, tail, out: queue.Queue):
  """Fills the queue; the long blocks draw from their own page numbers."""
  short, long = 0, 1 << 24
  while True:
    a, short = block(seed, short, SHAPES[0], processor, tail)
    b, long = block(seed, long, SHAPES[1], processor, tail)
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


def learning_rate(progress: float, peak: float) -> float:
  """Warm-up over 3%, then a cosine to a fiftieth of the peak."""
  warm = min(1.0, (progress + 0.001) / 0.03)
  return peak * warm * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * progress)))


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
  model = qwen2_5_vl.Config.from_hf(config)
  policy = forward.Policy(
      qwen2_5_vl.Qwen2_5VL(model), processor.banned, processor.eos_id,
      processor.pad_id)
  params = jax.device_put(
      qwen2_5_vl.init_params(model, jax.random.key(FLAGS.seed)),
      jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
  size = sum(x.size for x in jax.tree.leaves(params))
  print(f'{size} parameters, {len(processor.tokenizer)} tokens', flush=True)
  optimizer = optax.inject_hyperparams(lambda lr: optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.adamw(lr, b2=0.98, weight_decay=0.01)))(lr=0.0)
  opt = optimizer.init(params)
  step_fn = jax.jit(functools.partial(train_step, policy, optimizer),
                    donate_argnums=(0, 1))
  batches = queue.Queue(4)
  threading.Thread(
      target=producer, args=(FLAGS.seed, processor, tail, batches),
      daemon=True).start()
  curve, start = [], time.time()
  for step in range(FLAGS.steps):
    opt.hyperparams['lr'] = jnp.float32(
        learning_rate(step / FLAGS.steps, FLAGS.lr))
    params, opt, metrics = step_fn(
        params, opt, spread(batches.get(), mesh))
    if step % 20 == 0 or step + 1 == FLAGS.steps:
      loss = round(float(metrics['loss']), 4)
      curve.append((step, round(time.time() - start, 1), loss))
      print(*curve[-1], flush=True)
    if step % 100 == 99 or step + 1 == FLAGS.steps:
      checkpoints.save(FLAGS.out, policy.module, params, dtype='bfloat16')
  report = dict(
      seed=FLAGS.seed, steps=FLAGS.steps, peak_lr=FLAGS.lr,
      seconds=round(time.time() - start), parameters=size,
      jax=jax.__version__, curve=curve)
  (epath.Path(FLAGS.out) / 'pretrain.json').write_text(
      json.dumps(report) + '\n')


if __name__ == '__main__':
  app.run(main)
