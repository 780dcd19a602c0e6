"""Tunix's GRPO learner and sampler behind the benchmarks' requests.

Runs in an environment of its own (`experiments.bench.install_peers`) and
imports nothing of mmr1. The step is `GRPOLearner`'s: its data iterator holds it
between two steps and lets one go per request. The cache is as small as the
workload allows, since its size costs time. Time in the reward function is
taken off. The model is Tunix's Qwen2 with the workload's sizes.
"""

import json
import os
import pathlib
import sys

import lines

_DEVICES = int(sys.argv[2]) if len(sys.argv) > 2 else 1
os.environ['XLA_FLAGS'] = ' '.join([
    os.environ.get('XLA_FLAGS', ''),
    f'--xla_force_host_platform_device_count={_DEVICES}'])

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import transformers
from tunix.models.qwen2 import model as qwen2
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

_NEVER = 1 << 20  # an id that no model here has


def module(config, seed):
  """Tunix's Qwen2 with random weights."""
  head = config['hidden_size'] // config['num_attention_heads']
  return qwen2.Qwen2(
      qwen2.ModelConfig(
          num_layers=config['num_hidden_layers'],
          vocab_size=config['vocab_size'], embed_dim=config['hidden_size'],
          hidden_dim=config['intermediate_size'],
          num_heads=config['num_attention_heads'], head_dim=head,
          num_kv_heads=config['num_key_value_heads'], rope_theta=10_000,
          norm_eps=1e-6, use_tied_embedding=True, dtype=jnp.float32,
          param_dtype=jnp.float32),
      rngs=nnx.Rngs(seed))


class Engine:
  """A GRPOLearner whose data come when a step is asked for."""

  def __init__(self, folder, channel):
    self.channel, self.clock = channel, lines.Clock()
    self.workload = w = json.loads((folder / 'workload.json').read_text())
    model = folder / 'model'
    config = json.loads((model / 'config.json').read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    self.prompts = [
        tokenizer.apply_chat_template(
            [{'role': 'user', 'content': json.loads(line)['problem']}],
            tokenize=False, add_generation_prompt=True)
        for line in open(folder / 'data.jsonl')]
    mesh = jax.make_mesh(
        (_DEVICES, 1), ('fsdp', 'tp'),
        axis_types=(jax.sharding.AxisType.Auto,) * 2)
    roles = rl_cluster.Role
    self.compiled = [0, 0.0]
    jax.monitoring.register_event_duration_secs_listener(self.count)
    with mesh:
      self.cluster = rl_cluster.RLCluster(
          actor=module(config, 0), reference=module(config, 0),
          tokenizer=tokenizer, cluster_config=rl_cluster.ClusterConfig(
              role_to_mesh={role: mesh for role in (
                  roles.ACTOR, roles.REFERENCE, roles.ROLLOUT)},
              training_config=rl_cluster.RLTrainingConfig(
                  actor_optimizer=optax.adamw(1e-4), max_steps=1_000_000,
                  eval_every_n_steps=1_000_000),
              rollout_config=base_rollout.RolloutConfig(
                  max_tokens_to_generate=w['drawn'],
                  max_prompt_length=w['prompt_tokens'], temperature=1.0,
                  top_p=1.0, kv_cache_size=w['prompt_tokens'] + w['drawn'],
                  eos_tokens=[_NEVER])))
    self.put_clocks()
    self.learner = grpo_learner.GRPOLearner(
        rl_cluster=self.cluster, reward_fns=self.reward,
        algo_config=grpo_learner.GRPOConfig(
            num_generations=w['group'], num_iterations=1, beta=0.04))
    self.drawn = {}

  def count(self, event, seconds, **_):
    if event == '/jax/core/compile/backend_compile_duration':
      self.compiled[0] += 1
      self.compiled[1] += seconds

  def put_clocks(self):
    """Puts the clock around the phases of the step."""
    c, clock = self.cluster, self.clock
    generate = clock.time('sample', c.generate)
    c.get_ref_per_token_logps = clock.time(
        'reference', lambda *args, **kwargs: jax.block_until_ready(
            reference(*args, **kwargs)))
    reference = type(c).get_ref_per_token_logps.__get__(c)

    def counted(*args, **kwargs):
      output = generate(*args, **kwargs)
      lengths = [len(x) for x in output.tokens]
      self.drawn = dict(tokens=sum(lengths), raw=max(lengths) * len(lengths))
      return output
    c.generate = counted
    self.reward = clock.time('reward', self.reward)

  def reward(self, prompts, completions, **_):
    """Depends on nothing but the completion."""
    del prompts
    return [sum(map(ord, text)) % 8 / 8 for text in completions]

  def batches(self):
    """Answers requests; yields the prompts when one asks for a step."""
    while (request := self.channel.read())['do'] != 'close':
      if request['do'] == 'generate':
        self.reply(**self.generate(*request['rows'] or (
            self.workload['prompts'], self.workload['group'])))
        continue
      self.clock.take()
      watch = lines.Watch()
      yield {'prompts': np.array(
          self.prompts[:self.workload['prompts']])}
      jax.block_until_ready(nnx.state(self.cluster.actor_trainer.model))
      took, parts = watch.read(), self.clock.take()
      took['seconds'] -= parts.pop('reward', 0)
      parts['update'] = took['seconds'] - sum(parts.values())
      self.reply(parts=parts, **took)

  def generate(self, prompts, group):
    watch = lines.Watch()
    self.cluster.generate(
        [text for text in self.prompts[:prompts] for _ in range(group)])
    return watch.read()

  def reply(self, **more):
    self.channel.write(
        prompt_tokens=self.workload['prompt_tokens'],
        compile_count=self.compiled[0], compile_seconds=self.compiled[1],
        **self.drawn, **more)


def main():
  channel = lines.Lines()
  engine = Engine(pathlib.Path(sys.argv[1]), channel)
  engine.learner.train(engine.batches())
  channel.close()


if __name__ == '__main__':
  main()
