"""TRL's GRPOTrainer and HF generate behind the benchmarks' requests.

Runs in an environment of its own (`experiments.bench.install_peers`) and
imports nothing of mmr1. The step is `GRPOTrainer`'s: a callback holds it
between two steps and lets one go per request. Gradient checkpointing is off,
which is faster. Time in the processor (text to ids, pictures to pixels) and in
the reward function is taken off; the batch is loaded before the step begins.
"""

import json
import pathlib
import sys
import tempfile

import datasets
import lines
import PIL.Image
import torch
import transformers
from transformers.models.qwen2_5_vl import processing_qwen2_5_vl
import trl

_PLACEHOLDERS = ('<|vision_start|>', '<|vision_end|>', '<|vision_pad|>',
                 '<|image_pad|>', '<|video_pad|>')


def reward(completion_ids, **_):
  """Depends on nothing but the tokens."""
  return [sum(ids) % 8 / 8 for ids in completion_ids]


def dataset(folder, image):
  """The prompts as conversations; a picture is a column."""
  rows = [json.loads(line) for line in open(folder / 'data.jsonl')]
  columns = {'prompt': [
      [{'role': 'user', 'content': row['problem']}] for row in rows]}
  if image:
    columns['images'] = [
        [PIL.Image.open(folder / name).convert('RGB')
         for name in row['images']] for row in rows]
  return datasets.Dataset.from_dict(columns)


class Processor(processing_qwen2_5_vl.Qwen2_5_VLProcessor):
  """Without videos, whose processor needs a torchvision that fits torch."""

  def check_argument_for_proper_class(self, name, argument):
    if argument is not None:
      super().check_argument_for_proper_class(name, argument)


class Gate(transformers.TrainerCallback):
  """Lets the trainer run one step for each request."""

  def __init__(self, engine):
    self.engine = engine

  def on_step_begin(self, args, state, control, **kwargs):
    if not self.engine.serve():
      # The trainer has no way to stop before a step.
      self.engine.channel.close()
      sys.exit(0)
    self.engine.clock.take()
    self.engine.watch = lines.Watch()

  def on_step_end(self, args, state, control, **kwargs):
    self.engine.stepped(**self.engine.watch.read())


class Engine:
  """A GRPOTrainer that stands still between requests."""

  def __init__(self, folder, workdir, channel):
    self.channel, self.clock = channel, lines.Clock()
    self.workload = w = json.loads((folder / 'workload.json').read_text())
    model = str(folder / 'model')
    self.tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    self.processor = self.tokenizer if not w['image'] else Processor(
        transformers.AutoImageProcessor.from_pretrained(model),
        self.tokenizer, None, chat_template=self.tokenizer.chat_template)
    rows = w['prompts'] * w['group']
    self.drawn = {}
    self.data = dataset(folder, w['image'])
    self.trainer = trl.GRPOTrainer(
        model=model, reward_funcs=self.reward, train_dataset=self.data,
        processing_class=self.processor, callbacks=[Gate(self)],
        args=trl.GRPOConfig(
            output_dir=workdir, per_device_train_batch_size=rows,
            num_generations=w['group'], max_completion_length=w['drawn'],
            steps_per_generation=1, num_iterations=1, beta=0.04,
            learning_rate=1e-4, max_steps=1_000_000, bf16=False,
            gradient_checkpointing=False, use_cpu=True, report_to='none',
            save_strategy='no', logging_steps=1_000_000, disable_tqdm=True,
            shuffle_dataset=False, generation_kwargs=self.lengths(),
            model_init_kwargs=dict(dtype='float32')))
    self.put_clocks()

  def lengths(self):
    """Rows never end, or at the workload's rate; no placeholder is drawn."""
    eos = self.workload['eos']
    banned = [self.tokenizer.convert_tokens_to_ids(name)
              for name in _PLACEHOLDERS]
    if self.workload['bias'] is None:
      return {'suppress_tokens': [eos, *banned]}
    return {'suppress_tokens': banned,
            'sequence_bias': {(eos,): self.workload['bias']}}

  def reward(self, completion_ids, **_):
    lengths = [len(ids) for ids in completion_ids]
    self.drawn = dict(tokens=sum(lengths), raw=max(lengths) * len(lengths))
    return reward(completion_ids)

  def put_clocks(self):
    """Puts the clock around the phases of the step."""
    t, clock = self.trainer, self.clock
    t._generate_single_turn = clock.time('sample', t._generate_single_turn)
    t._calculate_rewards = clock.time('reward', t._calculate_rewards)
    kind = type(self.processor)
    kind.__call__ = clock.time('data', kind.__call__)
    kind.apply_chat_template = clock.time('data', kind.apply_chat_template)
    score, timed = t._get_per_token_logps_and_entropies, clock.time(
        'reference', t._get_per_token_logps_and_entropies)
    t._get_per_token_logps_and_entropies = lambda *args, **kwargs: (
        score if torch.is_grad_enabled() else timed)(*args, **kwargs)

  def serve(self):
    """Answers requests until one asks for a step; False: the end."""
    while True:
      request = self.channel.read()
      if request['do'] == 'close':
        return False
      if request['do'] == 'step':
        return True
      rows = request['rows'] or (
          self.workload['prompts'], self.workload['group'])
      self.channel.write(**self.generate(*rows))

  def stepped(self, seconds, cpu_seconds):
    parts = self.clock.take()
    seconds -= parts.pop('data', 0) + parts.pop('reward', 0)
    parts['update'] = seconds - sum(parts.values())
    self.channel.write(
        seconds=seconds, cpu_seconds=cpu_seconds, parts=parts,
        prompt_tokens=self.workload['prompt_tokens'], **self.drawn)

  def generate(self, prompts, group):
    """HF generate of the model as it is."""
    model = self.trainer.model
    inputs = self.inputs(prompts)
    length = inputs['input_ids'].shape[1]
    training = model.training
    model.eval()
    watch = lines.Watch()
    with torch.no_grad():
      out = model.generate(
          **inputs, generation_config=self.trainer.generation_config,
          num_return_sequences=group)
    took = watch.read()
    model.train(training)
    out = out[:, length:]
    ended = (out == self.workload['eos']).int().cumsum(1)
    tokens = int((ended == 0).sum() + (ended.max(1)[0] > 0).sum())
    return dict(
        tokens=tokens, raw=out.numel(), prompt_tokens=length, **took)

  def inputs(self, prompts):
    """What `generate` takes of the first prompts."""
    messages = []
    for row in self.data.select(range(prompts)):
      content = [{'type': 'image', 'image': x} for x in row.get('images', [])]
      content.append({'type': 'text', 'text': row['prompt'][0]['content']})
      messages.append([{'role': 'user', 'content': content}])
    return self.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors='pt')


def main():
  channel = lines.Lines()
  folder = pathlib.Path(sys.argv[1])
  with tempfile.TemporaryDirectory() as workdir:
    Engine(folder, workdir, channel).trainer.train()


if __name__ == '__main__':
  main()
