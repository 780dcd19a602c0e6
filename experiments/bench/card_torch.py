"""Transformers and torch in the card benchmark: generate, forward + backward.

A process of its own per job, started by `experiments.bench.card` with the job
as JSON. As in TRL the prompt, its image included, is repeated for each of its
completions. Attention is torch's `scaled_dot_product_attention`, which in the
tower transformers calls once per window.
"""

import functools
import json
import sys
import time
from typing import Any

import torch
import transformers

from experiments.bench import card_rows
from experiments.bench import card_shapes

Shape = card_shapes.Shape
_DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def model(shape: Shape) -> Any:
  """With random weights, made on the device."""
  config = transformers.Qwen2_5_VLConfig.from_dict(shape.config())
  with torch.device(_DEVICE):
    made = transformers.AutoModelForImageTextToText.from_config(
        config, attn_implementation='sdpa', dtype=getattr(torch, shape.dtype))
  made.generation_config.eos_token_id = shape.eos
  made.generation_config.pad_token_id = shape.pad
  return made.to(_DEVICE)


def inputs(shape: Shape, work: card_shapes.Work, rows: int,
           drawn: int = 0) -> dict[str, torch.Tensor]:
  """So many rows, each with its image, as the processor makes them; `drawn`
  random tokens come after the prompt."""
  torch.manual_seed(0)
  p = shape.prompt_tokens(work)
  count, first = p - work.text, (work.text - 2) // 2 + 1
  ids = torch.randint(0, shape.words, (rows, p + drawn))
  ids[:, first - 1] = shape.vision_start
  ids[:, first:first + count] = shape.image
  ids[:, first + count] = shape.vision_end
  found = dict(
      input_ids=ids, attention_mask=torch.ones_like(ids),
      mm_token_type_ids=(ids == shape.image).int(),
      pixel_values=torch.randn(
          rows * work.side**2, shape.patch_values).to(
              getattr(torch, shape.dtype)),
      image_grid_thw=torch.tensor([[1, work.side, work.side]] * rows))
  return {name: x.to(_DEVICE) for name, x in found.items()}


def _wait(_: Any = None) -> None:
  if _DEVICE == 'cuda':
    torch.cuda.synchronize()


def _peak() -> int | None:
  return torch.cuda.max_memory_allocated() if _DEVICE == 'cuda' else None


def _attempt(about: dict[str, Any], measure: Any) -> None:
  if _DEVICE == 'cuda':
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
  card_rows.attempt(about, measure)


def decode(shape: Shape) -> None:
  """HF generate: seconds per token of all rows."""
  w, made = shape.decode, model(shape).eval()
  batch = inputs(shape, w, w.prompts * w.group)
  for cache in ('dynamic', 'static'):
    _attempt(dict(part='decode', engine='torch', cache=cache),
             functools.partial(_decode, shape, made, batch, cache))


def _decode(shape, made, batch, cache):
  w = shape.decode
  kind = {} if cache == 'dynamic' else dict(
      cache_implementation='static', disable_compile=True)

  def run(count):
    return made.generate(
        **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        min_new_tokens=count, max_new_tokens=count,
        suppress_tokens=list(shape.banned), **kind)

  prompt = batch['input_ids'].shape[1]
  if run(2).shape[1] != prompt + 2:  # kernels are loaded, too
    raise RuntimeError('rows have ended.')
  # One run each after that: half a minute per cache.
  short, long = (_once(run, count) for count in (w.length // 2, w.length))
  return dict(
      seconds_per_token=(long - short) / (w.length - w.length // 2),
      whole_seconds=long, half_seconds=short, rows=w.prompts * w.group,
      peak_bytes=_peak())


def _once(run, count):
  with torch.inference_mode():
    _wait()
    started = time.perf_counter()
    run(count)
    _wait()
  return time.perf_counter() - started


def update(shape: Shape, settings: list[tuple[int, bool]]) -> None:
  """Forward and backward of the objective, in micro-batches.

  Args:
    shape: its `update` work.
    settings: pairs of the rows of a micro-batch and whether every layer is
      computed again in the backward pass.
  """
  w, made = shape.update, model(shape).train()
  batch = inputs(shape, w, w.prompts * w.group, w.length)
  about = dict(part='update', engine='torch')
  for rows, checkpoint in settings:
    _attempt({**about, 'rows': rows, 'checkpoint': checkpoint},
             functools.partial(_update, shape, made, batch, rows, checkpoint))
    made.zero_grad(set_to_none=True)
  _attempt(dict(part='tower', engine='torch'),
           functools.partial(_tower, made, batch, w.prompts * w.group))


def _update(shape, made, batch, rows, checkpoint):
  w = shape.update
  if checkpoint:
    made.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs=dict(use_reentrant=False))
  else:
    made.gradient_checkpointing_disable()
  total = w.prompts * w.group
  advantage = torch.randn(total, 1, device=_DEVICE)

  def run():
    made.zero_grad(set_to_none=True)
    loss = 0.0
    for start in range(0, total, rows):
      part = _rows(batch, start, start + rows, total)
      logp = _log_probs(made, part, w.length)
      ratio = torch.exp(logp - logp.detach())
      a = advantage[start:start + rows]
      one = torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.2))
      one = one.sum() / (total * w.length)
      one.backward()
      loss += one.detach()
    return loss

  took = card_rows.seconds(run, _wait, reps=1)
  return dict(
      seconds=took, tokens=total * w.length,
      flops=card_shapes.update_flops(shape, repeated=True),
      peak_bytes=_peak())


def _rows(batch, start, stop, total):
  """Some of the rows; patches of all lie one after the other."""
  each = len(batch['pixel_values']) // total
  return {name: x[start * each:stop * each] if name == 'pixel_values' else
          x[start:stop] for name, x in batch.items()}


def _log_probs(made, part, length):
  """f32[rows, T], of the completion's tokens; no other logits are made."""
  logits = made(**part, use_cache=False, logits_to_keep=length + 1).logits
  logits = logits[:, :-1].float()
  chosen = part['input_ids'][:, -length:, None]
  return (logits.gather(-1, chosen)[..., 0] - logits.logsumexp(-1))


def _tower(made, batch, rows):
  """Forward of the tower on the images of one row."""
  part = _rows(batch, 0, 1, rows)

  def run():
    with torch.no_grad():
      made.model.visual(part['pixel_values'], grid_thw=part['image_grid_thw'])
  return dict(seconds=card_rows.seconds(run, _wait, reps=3))


PARTS = {'decode': decode, 'update': update}


def main(argv: list[str]) -> None:
  job = json.loads(argv[1])
  shape, part = card_shapes.SHAPES[job.pop('shape')], job.pop('part')
  if _DEVICE == 'cpu' and shape.dtype == 'bfloat16':
    raise RuntimeError('torch sees no GPU.')
  PARTS[part](shape, **job)


if __name__ == '__main__':
  main(sys.argv)
