"""SophiaVL-R1's stages on the tests' random model: the judge's column is that of
a greedy decode by hand, and what trust makes of it trains."""

import dataclasses
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mmr1
from mmr1 import context
from mmr1 import guard
from mmr1 import judges
from mmr1 import log
from mmr1 import resolve
from mmr1 import runner
from mmr1 import types
from mmr1.data import collate
from mmr1.data import encode
from mmr1.data import template
from mmr1.models import checkpoints
from mmr1.models import qwen_vl
from mmr1.sampling import sample
from mmr1.stages import rl
from tests import own
from tests import small
from tests.papers import runs

N, G, T, STEPS, REPLY = 2, 4, 8, 2, 4
INSTRUCTION, SUFFIX = 'Score the steps.', '\nScore: '


def small_config(shrink, **flat):
  c = shrink(runs.config('sophiavl_r1'))
  c.traces.size, c.judge.steps, c.judge.rows_per_step = 24, 2, 4
  c.judge.optimizer.update(dict(lr=0.02, warmup_steps=0))
  c.rewards.outcome.fn = 'tests.own:even'  # the model meets no format
  c.rewards.outcome.kwargs = {}
  c.judges.thinking.parse = 'tests.own:summed'
  c.judges.thinking.max_new_tokens = REPLY
  c.evaluate_base = False
  c.sophiavl_r1.update(dict(
      steps=STEPS, prompts_per_step=N, samples_per_prompt=G,
      max_new_tokens=T, samples_every=1))
  c.update_from_flattened_dict(
      {key.replace('__', '.'): value for key, value in flat.items()})
  return c


def opened(c, folder):
  """(context, Trainer) of the rl stage in a folder where a run is."""
  final = resolve.finalise(c)
  _, plans = runner.plan(final)
  ctx = runner.open_run(
      final, str(folder), quiet=True, interrupt=guard.Interrupt())
  return ctx, rl.Trainer(
      ctx, 'sophiavl_r1', ctx.config.sophiavl_r1, plans['sophiavl_r1'])


@pytest.fixture(scope='module')
def folders(tiny_folder, tmp_path_factory):
  """Models of one and two layers whose every word depends on all before."""
  found = []
  for layers in (1, 2):
    folder = tmp_path_factory.mktemp('model') / f'of_{layers}'
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns(
        '*.safetensors'))
    config = json.loads((folder / 'config.json').read_text())
    config['text_config']['num_hidden_layers'] = layers
    (folder / 'config.json').write_text(json.dumps(config))
    sizes = checkpoints.read_config(folder)
    checkpoints.save(folder, qwen_vl.build(sizes), small.drawn(jax.eval_shape(
        lambda sizes=sizes: qwen_vl.init_params(sizes, jax.random.key(0)))))
    found.append(folder)
  return found


@pytest.fixture(scope='module')
def run(shrink, folders, tmp_path_factory):
  """(trainer, its steps, the rollouts): after a whole run of the three stages,
  in its folder, the steps once more."""
  folder = tmp_path_factory.mktemp('sophia') / 'run'
  c = lambda: small_config(shrink, model__path=str(folders[0]))
  mmr1.run(c(), folder, quiet=True)
  ctx, one = opened(c(), folder)
  made, score = [], one.score
  def kept(rollout, looks, k):
    made.append((rollout, score(rollout, looks, k)))
    return made[-1][1]
  one.score = kept
  _, steps = runs.take(one, one.start.state, range(STEPS))
  yield one, steps, made
  ctx.close()


def column(scored, name='thinking'):
  return scored.columns[..., scored.names.index(name)]


def prompts_of(examples, processor, length=64, patches=32):
  ask = functools.partial(template.think_answer, instruction=INSTRUCTION)
  return collate.collate(
      [encode.encode(e, processor, template=ask) for e in examples],
      prompt_length=length, patches=patches, pad_id=processor.pad_id)


def read(policy, params, processor, made):
  """f64[N, G] and the replies: token by token, every logit by a whole pass."""
  prompts = prompts_of([e for e, _ in made.prompted.pairs], processor)
  suffix = processor.tokenizer(SUFFIX)['input_ids']
  said = [[[int(x) for x, kind in zip(*row) if kind
            and x != processor.eos_id] + suffix for row in zip(*group)]
          for group in zip(made.host.tokens, made.host.kind)]
  size = T + len(suffix) + REPLY
  replies = [[[] for _ in range(G)] for _ in range(N)]
  for _ in range(REPLY):
    tokens = np.zeros((N, G, size), np.int32)
    kind = np.zeros((N, G, size), np.int8)
    for n, g in np.ndindex(N, G):
      tokens[n, g, :len(said[n][g])] = said[n][g]
      kind[n, g, :len(said[n][g])] = 1
    logp = runs.distributions(
        one_of(policy), params, prompts, types.Completions(
            tokens=jnp.asarray(tokens), kind=jnp.asarray(kind),
            positions=sample.text_positions(
                jnp.asarray(prompts.next_position), tokens.shape)))
    for n, g in np.ndindex(N, G):
      if replies[n][g][-1:] != [processor.eos_id]:
        # The entry after the last token says what comes next.
        best = int(np.argmax(logp[n, g, len(said[n][g])]))
        said[n][g].append(best)
        replies[n][g].append(best)
  texts = [[encode.decode(x, processor) for x in row] for row in replies]
  return np.array([[own.summed(x) or 0 for x in row] for row in texts]), texts


class one_of:
  """What `runs.distributions` asks of a trainer."""

  def __init__(self, policy):
    self._ctx = type('Ctx', (), {'policy': policy})


def test_the_column_is_that_of_a_greedy_decode_by_hand(run):
  one, _, made = run
  ctx = one._ctx
  params, base = ctx.params('judge'), ctx.base_params()
  assert not runs.same(params, base)
  seen = set()
  for rollout, scored in made:
    assert scored.names == ('outcome', 'thinking')
    wanted, texts = read(ctx.policy, params, ctx.processor, rollout)
    np.testing.assert_array_equal(column(scored), wanted)
    failed = [own.summed(x) is None for row in texts for x in row]
    assert scored.metrics['judge/thinking/failed_frac'] == np.mean(failed)
    seen |= set(wanted.ravel())
    # Another model would have said something else.
    assert (read(ctx.policy, base, ctx.processor, rollout)[0]
            != wanted).any()
  assert len(seen) > 1  # a constant is not a judge


def test_trust_makes_the_rewards_and_the_steps_train(run):
  one, steps, made = run
  for k, (step, (_, scored)) in enumerate(zip(steps, made)):
    rule, think = column(scored, 'outcome'), column(scored)
    weights = []
    for r, t in zip(rule, think):
      right = [x for x, ok in zip(t, r) if ok]
      wrong = [x for x, ok in zip(t, r) if not ok]
      gap = np.mean(right or [0]) - np.mean(wrong or [0])
      gamma = 1 if gap >= 0 or not right else math.exp(gap)
      weights.append(0 if len(set(r)) == 1 else
                     gamma * .3 * math.exp(-k / STEPS))
    total = rule + np.array(weights)[:, None] * think
    assert step.metrics['reward/mean'] == pytest.approx(total.mean())
    assert step.metrics['reward/trust/weight'] == pytest.approx(
        np.mean(weights))
    spread = total.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(
        step.block.advantage[..., 0],
        (total - total.mean(1, keepdims=True)) / (spread + 1e-6), atol=1e-4)
    assert step.metrics['update/skipped'] == 0
    assert step.metrics['reward/thinking/mean'] == pytest.approx(think.mean())
    assert step.metrics['kl'] == pytest.approx(0, abs=1e-4) or k
  assert steps[1].programs == steps[0].programs


def test_m15_nothing_of_a_judge_is_in_checkpoints(run):
  """Its parameters by name are all: what the run logged is made again."""
  one, steps, _ = run
  rows = [row for row in log.read_rows(one._ctx.path / 'metrics.jsonl')
          if row['stage'] == 'sophiavl_r1' and 'loss' in row]
  for row, step in zip(rows, steps, strict=True):
    for name in ('reward/thinking/mean', 'reward/trust/mean', 'loss'):
      assert row[name] == pytest.approx(step.metrics[name], rel=1e-5)
    assert row['time/judge_s'] > 0
  assert 'thinking' not in json.dumps(one.state()['host'])


def test_law1_no_picture_is_there_twice(run, monkeypatch):
  """N prompts, B branches x G responses of each, and what fits no prompt."""
  one, _, made = run
  judge, seen = one.judges._judges['thinking'], []
  rollout, scored = made[0]
  monkeypatch.setattr(judge, '_sampler', type('Sampler', (), dict(
      publish=staticmethod(judge._sampler.publish), __call__=(
          lambda self, *args, sampler=judge._sampler, **kw: (
              seen.append((args, kw)), sampler(*args, **kw))[1])))())
  host, examples = rollout.host, [e for e, _ in rollout.prompted.pairs]
  lengths = (host.kind != 0).sum(-1) - host.done
  twice = [np.concatenate([x, x], 1) for x in (host.tokens, lengths)]
  values, failed = judge(examples, *twice)
  np.testing.assert_array_equal(values[:, :G], column(scored))
  np.testing.assert_array_equal(values[:, G:], column(scored))
  (_, prompts, *_), given = seen[0]
  assert prompts.tokens.shape[0] == prompts.media['vision'].patches.shape[0] == N
  assert given['group'] == 2 * G
  # A prompt that is too long for the judge: 0, and counted; not its neighbour.
  long = examples[1].__class__(uid=1, question='7' * 200)
  values, failed = judge([examples[0], long], host.tokens, lengths)
  np.testing.assert_array_equal(values[0], column(scored)[0])
  assert failed[1].all() and not values[1].any()
  # A token that the judge has no row for.
  tokens = host.tokens.copy()
  tokens[0, 0, 0] = 10**6
  values, failed = judge(examples, tokens, np.maximum(lengths, 1))
  assert failed[0, 0] and values[0, 0] == 0


def test_what_it_reads_by_hand(run):
  judge = run[0].judges._judges['thinking']
  pad, eos = judge._processor.pad_id, judge._processor.eos_id
  suffix = judge._suffix.tolist()
  made, until = judge.given(
      np.array([[[5, 9, 8], [6, 7, 8], [4, 4, 4]]]), np.array([[2, 0, 3]]),
      np.array([[True, True, False]]))
  assert judge.length == T + len(suffix) + REPLY == made.shape[2]
  rest = lambda x: x + [pad] * (judge.length - len(x))
  assert made[0, 0].tolist() == rest([5, 9] + suffix)
  assert made[0, 1].tolist() == rest(suffix)
  assert made[0, 2, 0] == eos
  assert until.tolist() == [[2 + len(suffix), len(suffix), 1]]


# Other models.


def test_a_judge_of_another_architecture(run, folders):
  one, _, made = run
  ctx, (rollout, scored) = one._ctx, made[0]
  asked = dataclasses.replace(
      one.plan.judges['thinking'], params=(str(folders[1]),))
  found = judges.Judges(ctx, {'thinking': asked}, T, one.clock).beside(
      rollout, one.rollouts.scored(rollout))
  policy, params = context.open_model(
      ctx.config.model, str(folders[1]), ctx.processor, ctx.policy.layout)
  assert policy.module.config != ctx.policy.module.config
  wanted, _ = read(policy, params, ctx.processor, rollout)
  np.testing.assert_array_equal(column(found), wanted)
  assert (wanted != column(scored)).any()


def test_m22_what_cannot_judge_is_named(shrink, folders, tmp_path):
  def refusal(**flat):
    c = small_config(shrink, **flat)
    c.stages = c.stages[2:] if 'judges__thinking__params' in flat else c.stages
    with pytest.raises(ValueError) as error:
      opened(c, tmp_path / 'run')
    return str(error.value)
  other = tmp_path / 'other'
  shutil.copytree(folders[1], other)
  path = other / 'tokenizer.json'
  words = json.loads(path.read_text())
  vocab = words['model']['vocab']
  vocab['!'], vocab['#'] = vocab['#'], vocab['!']
  path.write_text(json.dumps(words))
  assert 'is not that of' in refusal(judges__thinking__params=str(other))
  assert 'no stage of this run and no folder' in refusal(
      judges__thinking__params='juge')
  assert 'memory' in refusal(judges__thinking__memory='disk')
  assert 'max_new_tokens' in refusal(judges__thinking__max_new_tokens=0)
  assert 'positions' in refusal(
      judges__thinking__params='base', judges__thinking__max_new_tokens=500)
  assert 'number.unit' in refusal(judges__thinking__parse='number.unti')
  assert 'same column' in refusal(sophiavl_r1__judges=('outcome',))


def test_a_judge_without_any_score_stops_the_run(run, monkeypatch):
  one, _, made = run
  judge = one.judges._judges['thinking']
  monkeypatch.setattr(judge, '_asked', dataclasses.replace(
      judge._asked, parse=lambda reply: None))
  with pytest.raises(ValueError, match='judges.thinking: none of 8 replies'):
    one.judges.beside(*made[0])
