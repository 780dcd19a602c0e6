"""mmr1 behind the benchmarks' requests: an rl stage's own step.

A process of its own, started by `experiments.bench.rounds`. The group is an
axis, or with --repeated it is not: N * G prompts with a group of one each, as
other code bases have it, from the same random numbers and with the group's
advantages.
"""

import dataclasses
import json
import pathlib
import tempfile

from absl import app
from absl import flags
import jax
import numpy as np

from configs import common
from experiments.bench.peers import lines
from mmr1 import advantages
from mmr1 import forward
from mmr1 import guard
from mmr1 import objective as objective_lib
from mmr1 import resolve
from mmr1 import runner
from mmr1.sampling import read
from mmr1.sampling import sample as sample_lib
from mmr1.stages import rl
from mmr1 import training
from mmr1 import update

FLAGS = flags.FLAGS
_STAGE = 'grpo'
_HERE = 'experiments.bench.engine_mmr1'  # not '__main__'


def define_flags() -> None:
  flags.DEFINE_string('folder', None, 'As `workloads.build` makes it.')
  flags.DEFINE_bool('repeated', False, 'Repeat the prompts, G = 1.')
  flags.DEFINE_integer('cpu_devices', 2, 'Devices that the CPU is made into.')


@dataclasses.dataclass(frozen=True)
class Policy(forward.Policy):
  """The policy with `bias` added to the logit of eos; lengths follow it."""
  bias: float = 0.0

  def logits(self, params, hidden, temperature):
    logits = super().logits(params, hidden, temperature)
    return logits + self.bias * (
        np.arange(logits.shape[-1]) == self.eos_id)


def tokens(sample, knobs):
  """A reward that depends on nothing but the tokens."""
  del knobs
  return float(sum(sample.tokens) % 8) / 8


tokens.range = (0.0, 1.0)


def regrouped(rewards, tokens=None, *, group):
  """`advantages.grpo` of groups that lie as rows [N * G, 1, K]."""
  del tokens
  n, _, k = rewards.shape
  grouped = advantages.grpo(rewards.reshape(n // group, group, k))
  return np.asarray(grouped).reshape(n, 1, -1)


def _set_objective(rl_section) -> None:
  rl_section.kl.coefficient = 0.04
  rl_section.policy.kwargs = dict(eps_low=0.2, eps_high=0.2)


def objective(length: int) -> tuple[tuple[update.Term, ...], dict]:
  """Terms and traced knobs of the benchmarks' objective at T = length."""
  c = common.get_base()
  c.stages, c.rl.max_new_tokens = ('rl',), length
  _set_objective(c.rl)
  made = objective_lib.build(resolve.finalise(c).rl)
  return made.terms, training.traced({**made.knobs, 'temperature': 1.0})


def configure(folder: pathlib.Path, *, repeated: bool, rows: tuple[int, int],
              cpu_devices: int) -> resolve.Section:
  """The config of a user who trains this model on this file with GRPO.

  Args:
    folder: as `workloads.build` makes it.
    repeated: N * G prompts with groups of one.
    rows: N, G.
    cpu_devices: see configs/common.py.
  """
  w = json.loads((folder / 'workload.json').read_text())
  n, g = rows
  c = common.get_base()
  c.name, c.stages = 'bench', (_STAGE,)
  c.cpu_devices, c.cache_dir, c.tensorboard = cpu_devices, '', False
  # As at the papers' scales; peers keep no entropies either.
  c.sampler.update(dict(entropy=False, **dict(w['sampler'])))
  c.model.path = str(folder / 'model')
  c.data.path = c.data.eval_path = str(folder / 'data.jsonl')
  c.data.prompt_tokens = w['prompt_tokens']
  c.data.patches = max(w['patches'], 1)
  c.rewards.tokens = dict(
      fn=f'{_HERE}:tokens', weight=1.0, in_pool=False, limit_s=5.0,
      kwargs=dict())
  c.rl.rewards = ('tokens',)
  _set_objective(c.rl)
  if repeated or g == 1:
    c.rl.advantage = dict(
        fn=f'{_HERE}:regrouped', kwargs=dict(group=g))
  c[_STAGE] = common.overlay(
      c.rl, **{key: tuple(x) if isinstance(x, list) else x
               for key, x in w['update']}, steps=1000, max_new_tokens=w['length'],
      prompts_per_step=n * g if repeated else n,
      samples_per_prompt=1 if repeated else g)
  return resolve.finalise(c)


class Engine:
  """An rl stage whose phases are called one by one."""

  def __init__(self, folder: pathlib.Path, workdir: str, *, repeated: bool,
               rows: tuple[int, int] | None = None, cpu_devices: int = 0):
    self.workload = json.loads((folder / 'workload.json').read_text())
    n, g = rows or (self.workload['prompts'], self.workload['group'])
    config = configure(
        folder, repeated=repeated, rows=(n, g), cpu_devices=cpu_devices)
    runner.set_up_jax(config)
    _, plans = runner.plan(config)
    self._interrupt = guard.Interrupt()
    self.ctx = runner.open_run(
        config, workdir, interrupt=self._interrupt, quiet=True)
    self.ctx.policy = self._policy(self.ctx.policy)
    plan = dataclasses.replace(
        plans[_STAGE], sampling=sample_lib.knobs(
            temperature=1.0, max_new_tokens=self.workload['drawn']))
    self.trainer = rl.Trainer(self.ctx, _STAGE, config[_STAGE], plan)
    self.state = self.trainer.start.state
    taken, _ = self.trainer.rollouts.take()
    pairs = taken.pairs[:n]
    self.taken = taken._replace(
        pairs=[x for x in pairs for _ in range(g)] if repeated else pairs)
    self.steps = 0

  def _policy(self, policy: forward.Policy) -> forward.Policy:
    """Rows never end, or at the workload's rate."""
    fields = {f.name: getattr(policy, f.name)
              for f in dataclasses.fields(policy)}
    if self.workload['bias'] is None:
      fields['banned'] = (*policy.banned, policy.eos_id)
      return forward.Policy(**fields)
    return Policy(**fields, bias=self.workload['bias'])

  def prompts(self):
    """`types.Prompts` of a step, on the devices."""
    return self.ctx.policy.layout.spread(self.trainer.rollouts.shape.collate(
        [encoded for _, encoded in self.taken.pairs]))

  def knobs(self) -> dict:
    """The objective's traced numbers."""
    plan = self.trainer.plan
    return training.traced(
        {**plan.objective.knobs, 'temperature': plan.temperature})

  def update_function(self):
    """A new jitted update of `ctx.policy`, see `training.make_update`."""
    return training.make_update(
        self.ctx.policy, self.trainer.start.optimizer,
        self.trainer.plan.objective.terms, chunks=1)

  def rollout(self):
    """One rollout, on the device."""
    return jax.block_until_ready(self.trainer.rollouts.sample(
        self.state, self.prompts(), self.steps))

  def assemble(self, rollout):
    """What the update reads, and the knobs; the reference pass is in it."""
    k, trainer = self.steps, self.trainer
    made = trainer.rollouts.made(k, k, self.taken, rollout.prompts, rollout)
    looks = trainer.look(self.state, made)
    scored = trainer.score(made, looks, k)
    knobs = trainer.knobs(scored, k)
    filled = trainer.judge(made, looks, scored, knobs, k)
    knobs = training.traced(knobs)
    block = trainer.assemble(filled, knobs, self.state)
    return jax.block_until_ready(block), knobs, made.host

  def step(self) -> dict:
    """A GRPO step: what `lines.Watch` reads, parts, tokens, raw."""
    watch = lines.Watch()
    rollout = self.rollout()
    sampled = watch.read()['seconds']
    block, knobs, host = self.assemble(rollout)
    assembled = watch.read()['seconds']
    self.state, _ = self.trainer.learner.update(
        self.state, (block,), knobs, self.steps)
    jax.block_until_ready(self.state)
    took = watch.read()
    self.steps += 1
    return self._reply(host, took, parts=dict(
        sample=sampled, reference=assembled - sampled,
        update=took['seconds'] - assembled))

  def generate(self) -> dict:
    """Generation alone: what `lines.Watch` reads, tokens, raw."""
    watch = lines.Watch()
    rollout = self.rollout()
    took = watch.read()
    self.steps += 1
    return self._reply(read.to_host(rollout), took)

  def _reply(self, host, took, **more) -> dict:
    """`tokens` were sampled, `raw` is what the longest row makes of them."""
    lengths = host.lengths
    return dict(
        tokens=int(lengths.sum()), raw=int(lengths.size * lengths.max()),
        prompt_tokens=self.workload['prompt_tokens'],
        compile_count=self.ctx.compiles.count,
        compile_seconds=self.ctx.compiles.seconds, **took, **more)


def main(argv):
  del argv
  channel = lines.Lines()
  with tempfile.TemporaryDirectory() as workdir:
    engine = None
    while (request := channel.read())['do'] != 'close':
      if engine is None:
        rows = request['rows']
        engine = Engine(
            pathlib.Path(FLAGS.folder), workdir, repeated=FLAGS.repeated,
            rows=tuple(rows) if rows else None,
            cpu_devices=FLAGS.cpu_devices)
      channel.write(**getattr(engine, request['do'])())
    if engine is not None:
      engine.ctx.close()
  channel.close()


if __name__ == '__main__':
  define_flags()
  app.run(main)
