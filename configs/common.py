"""Every default of every config. Papers change values; they add no keys.

`get_base(arg)` gives the base for a scale: the embedded tiny model, or a real
checkpoint. A paper's config copies it, names its stages, and sets what the
paper sets. Stage sections are overlays: a value that a stage does not set
comes from its family's section (`sft`, `rl`, `evaluate`, `collect`).
"""

from ml_collections import config_dict

from configs import detect
from configs import environments
from configs import evaluation
from configs import flow
from configs import merging
from configs import preference
from configs import refine
from configs import reward_model
from configs import worlds
from mmr1 import resolve

ConfigDict = config_dict.ConfigDict
placeholder = config_dict.placeholder
overlay = resolve.overlay
environment = environments.environment
benchmark = evaluation.benchmark

# After it the embedded model thinks and answers in tags.
TAGS = 'Think first, then answer, in tags.'

# All but the first need their weights: see `model.path`.
MODELS = ('tiny', 'qwen2_5_vl_3b', 'qwen2_5_vl_7b', 'qwen2_5_vl_32b',
          'qwen2_5_vl_72b', 'qwen3_vl_2b', 'qwen3_vl_4b', 'qwen3_vl_8b',
          'qwen3_vl_32b')


def _model() -> ConfigDict:
  return ConfigDict(dict(
      # Folder of a Hugging Face checkpoint.
      path='mmr1/assets/tiny',
      param_dtype='float32',
      compute_dtype='float32',
      # 'unrolled' runs fastest on CPU; 'scan' compiles fastest when deep.
      layers='unrolled',
      remat='none',  # 'none' | 'layer' | 'dots'
      precision='default',  # matmul precision; 'highest' for parity checks
      attention='auto',  # 'auto' | 'xla' | 'splash' | 'cudnn' | 'triton'
      # How videos are written and counted: 'legacy' is what the released
      # checkpoints saw, 'v5' is transformers 5.
      position_rule='legacy',
      # Tokens whose logits exist at the same time.
      head_chunk=2048,
      **reward_model.heads(),
  ))


def _mesh() -> ConfigDict:
  """Sizes that multiply to the number of devices; None: what is left."""
  return ConfigDict(dict(
      slice=1,  # slices joined by the data-centre network
      data=placeholder(int),  # copies of the parameters
      fsdp=placeholder(int),  # parts of them, gathered layer by layer
      tensor=1,  # parts of heads and MLP, for the same prompts
  ))


def _sampler() -> ConfigDict:
  """Speed and memory of sampling; what is sampled does not depend on it."""
  return ConfigDict(dict(
      # Completions decoded at a time, the others wait; None: all of them.
      rows=placeholder(int),
      # Tokens of the first cache, doubled when full; None: the cap.
      cache_chunk=placeholder(int),
      shrink=False,  # the last completions go on in half, a quarter of the rows
      layers=placeholder(str),  # while decoding; None: as model.layers
      entropy=True,  # with that of every token, for the samples files
      # Parts of heads and MLP while sampling: each device then has so much less
      # of the weights, and more prompts. None: mesh.tensor.
      tensor=placeholder(int),
      # Of weights and activations that sample; None: model.compute_dtype.
      dtype=placeholder(str),
  ))


def _data() -> ConfigDict:
  return ConfigDict(dict(
      # Procedural worlds, sections of `tasks`, and their weights.
      mixture=('digits',),
      weights=(1.0,),
      # All prompts of a step of rl are of one member of the mixture.
      homogeneous=False,
      train_size=1_000_000,
      eval_size=100_000,
      # A user's file (.jsonl, .parquet) or TFDS name ('tfds:<name>/<split>')
      # replaces the worlds. Without eval_path one of every `holdout`
      # records is kept for evaluation.
      path=placeholder(str),
      eval_path=placeholder(str),
      holdout=10,
      image_column='images', video_column='videos', message_column='messages',
      question_column='problem', answer_column='answer',
      completion_column='completion', given_column='given',
      chosen_column='chosen', rejected_column='rejected',
      # Past this fraction of unusable records the run refuses to go on.
      max_broken_frac=0.5,
      worker_count=0,  # processes that decode and encode; 0: in this process
      template='think_answer',
      system=placeholder(str),
      instruction=placeholder(str),
      # Shapes of one prompt row. Longer prompts are dropped and counted.
      prompt_tokens=64, patches=64,
      # Smaller sizes for batches that fit, ascending.
      prompt_buckets=(), patch_buckets=(),
      # None: as the checkpoint's preprocessor.
      min_pixels=placeholder(int), max_pixels=placeholder(int),
      video_fps=placeholder(float), video_max_frames=placeholder(int),
  ))


def _optimizer() -> ConfigDict:
  return ConfigDict(dict(
      lr=1e-4,
      b1=0.9, b2=0.999, eps=1e-8,
      weight_decay=0.0,
      decay_mask='matrices',  # 'matrices' | 'all'
      moment_dtype='float32',
      warmup_steps=0,
      lr_decay='constant',  # 'constant' | 'linear' | 'cosine'
      lr_end=0.0,  # at the last step, as a fraction of lr
      clip_norm=1.0,
      # Regexes of parameter names that do not train, and 'regex:factor'.
      freeze=(),
      lr_multipliers=(),
  ))


def _lora() -> ConfigDict:
  return ConfigDict(dict(
      # Rank of the adapters; 0: none. With them everything else is frozen.
      rank=0,
      alpha=16.0,  # they are scaled by alpha / rank
      # Regexes of names of kernels: every linear layer of the decoder.
      targets=('language/layers/.*',),
      # Regexes of names of other parameters, which train in full.
      train=(),
  ))


def _training() -> dict:
  """Keys that sft and rl share."""
  return dict(
      # 'previous' (the stage before, or the base), 'base', a stage or a path.
      init='previous',
      # What passes on from the previous stage besides parameters: 'optimizer'.
      carry=(),
      # 'train', or the name of a collect stage.
      data='train',
      env=placeholder(str),  # a section of `environments`; None: one turn
      steps=100,
      # Lengths below max_new_tokens that chunks of completions are cut to,
      # ascending: the work of a chunk then follows its longest completion.
      length_buckets=(),
      optimizer=_optimizer(),
      lora=_lora(),
      # Updates in a row that may be non-finite before the run stops.
      max_bad_updates=5,
      log_every=1,
      samples_every=10,
      # Write a step's batch to rollouts/ every k steps (0: never); it can be
      # trained on again by mmr1.replay.
      record_every=0,
      checkpoint_every=10,
      keep_checkpoints=2,
      # Evaluate every k steps (0: only at the end of the stage) and keep the
      # checkpoint with the best accuracy too.
      eval_every=0,
      restore_best=False,
  )


def _sft() -> ConfigDict:
  return ConfigDict(dict(
      kind='sft',
      rows_per_step=32,
      # Longer completions, with what they go on from, are dropped and counted.
      max_new_tokens=128,
      instruction=placeholder(str),  # of its prompts; None: data.instruction
      # As many examples in a row as fit: data.prompt_tokens, data.patches and
      # max_new_tokens are then its length, and an update has more examples.
      pack=False,
      chunks_per_step=1,
      reduce='token_mean',
      **_training(),
  ))


def _sockets() -> dict:
  """Keys of rl that only some papers set."""
  return dict(
      # More terms, sections of `terms`; weights on tokens of the policy term,
      # sections of `weights`; columns made of a look, sections of `probes`, or
      # by another model, sections of `judges`.
      terms=(),
      weights=(),
      probes=(),
      judges=(),
      # Views that rollouts are sampled from, a group for each; (): the images
      # as they are. And looks that nothing reads, to be logged.
      branches=(),
      watch=(),
      # Rollouts of a step at most, until `select` has enough groups.
      rounds=1,
      # So many of a group are traces of the data, or fewer if not required.
      experts=0, experts_required=True,
      # Completions go on from an edited form of themselves, sampled at this
      # temperature; `keep` says which replace what they were. fn None: none do.
      revise=dict(fn=placeholder(str), kwargs=dict(), temperature=1.0,
                  keep=dict(fn=placeholder(str), kwargs=dict())),
      # Completions of earlier steps train again: so many are kept, and so many
      # rows train beside those of the step. fn None: none.
      replay=dict(fn=placeholder(str), kwargs=dict(), capacity=0, rows=0),
      # An average of what trains: ema = decay * ema + (1 - decay) * params,
      # every so many updates; decay None: none.
      ema=dict(decay=placeholder(float), every=1),
  )


def _rl() -> ConfigDict:
  return ConfigDict(dict(
      kind='rl',
      prompts_per_step=16, samples_per_prompt=8,
      max_new_tokens=64,
      temperature=1.0, top_k=0, top_p=1.0,  # of sampling
      # Updates.
      minibatches_per_step=1, epochs_per_step=1,
      chunks_per_minibatch=1,
      # Old log-probs: 'self' | 'recompute' | 'sampler'.
      old='self',
      # Steps that completions may be older than the weights they train, made
      # while rewards are computed. Above 0 needs old='sampler'.
      staleness=0,
      # 'init': the parameters this stage starts from; 'ema'; a stage or a path.
      reference='init',
      # Where it waits between its passes: 'device' or 'host'.
      reference_memory='device',
      # Rows of the samples file, of a step, that have numbers of each token.
      samples_tokens=4,
      # Rewards, sections of `rewards`, by name.
      rewards=('result',),
      combine=dict(fn='combine.weighted_sum', kwargs=dict()),
      advantage=dict(fn='grpo', kwargs=dict()),
      select=dict(fn='keep_all', kwargs=dict()),
      # Three axes: ratio x surrogate x reduce. `kwargs` are the keywords of
      # the function; numbers among them are traced and may be scheduled.
      policy=dict(
          coefficient=1.0,
          ratio='token',  # 'token' | 'sequence' | 'sequence_token'
          sequence='geometric',  # or 'product', for ratios of sequences
          clamp=20.0,  # bound of the log-ratio; inf: none (TRL)
          surrogate='clip',  # of mmr1/losses/surrogate.py
          kwargs=dict(),
          reduce='token_mean',  # of mmr1/losses/reduce.py
          rows='live',
          # Divisor of reduce='constant'; None: max_new_tokens.
          length=placeholder(float),
      ),
      # A coefficient fixed at 0 and moved by no hook removes its term, and
      # without a kl term there is no reference pass.
      kl=dict(coefficient=0.0, estimator='k3', kwargs=dict()),
      # A bonus; reduce None: as the policy's.
      entropy=dict(coefficient=0.0, source='full', reduce=placeholder(str)),
      # Names of sections of `hooks`, in order.
      hooks=(),
      reward_workers=1,
      **_sockets(),
      **_training(),
  ))


def _collect() -> ConfigDict:
  return ConfigDict(dict(
      kind='collect',
      init='previous',
      data='train',
      # Turns examples into records with completions.
      engine='vision_r1_bridge.bridge',  # of mmr1/papers
      size=1024,
      kwargs=dict(),
  ))


def _rewards() -> ConfigDict:
  return ConfigDict(dict(
      result=reward('answer.correct'), format=reward('format.think_answer')))


def split(arg: str | None, options: tuple[str, ...], slug: str,
          ) -> tuple[str | None, frozenset[str]]:
  """(scale, options) of a config's argument, '<scale>,<option>,...'.

  Raises:
    ValueError: more than one scale; an unknown one `get_base` refuses.
  """
  parts = [part for part in (arg or '').split(',') if part]
  scales = [part for part in parts if part not in options]
  if len(scales) > 1:
    raise ValueError(
        f'{slug}:{arg}: give at most one scale of {MODELS}, and any of '
        f'{options}, joined by commas.')
  return (scales or [None])[0], frozenset(parts) & frozenset(options)


def reward(fn: str, weight: float = 1.0, **kwargs) -> ConfigDict:
  """A section of `rewards`: fn of mmr1/rewards, with its `kwargs`."""
  return ConfigDict(dict(
      fn=fn, weight=weight, in_pool=False, limit_s=5.0, kwargs=kwargs))


def view(fn: str, *, params: str = 'policy', when: str = 'rollout',
         gradient: bool = False, divergence: str | None = None,
         **kwargs) -> ConfigDict:
  """A section of `views`: a second look at completions, see `mmr1.looks`.

  Args:
    fn: of mmr1/views.py, what it does to the images; `kwargs` are its own.
    params: whose look: 'policy', 'reference' or 'ema'.
    when: 'rollout' or 'update'; gradient: of an update's look.
    divergence: of mmr1/losses/divergence.py, or None.
  """
  divergence_ = placeholder(str)
  divergence_.set(divergence)
  return ConfigDict(dict(
      fn=fn, params=params, when=when, gradient=gradient,
      divergence=divergence_, kwargs=kwargs))


def probe(fn: str, view: str, *, reads: str = 'logp', **kwargs) -> ConfigDict:
  """A section of `probes`: a column made of what a look says of each token.

  Args:
    fn: of mmr1/rewards, see `mmr1.probing`; `kwargs` are its own.
    view: the look; reads: 'logp' or 'entropy'.
  """
  return ConfigDict(dict(fn=fn, view=view, reads=reads, kwargs=kwargs))


def term(fn: str, coefficient: float, **kwargs) -> ConfigDict:
  """A section of `terms`: fn of mmr1/losses/terms.py, with its `kwargs`."""
  return ConfigDict(dict(fn=fn, coefficient=coefficient, kwargs=kwargs))


def small_digits(c: ConfigDict) -> None:
  """The world of tiny runs about seeing: digits, and text that says nothing.

  The embedded model reads them, and answers in tags when it is told to: no cold
  start is needed. Shapes, which it hardly tells apart, would.
  """
  c.data.mixture, c.data.weights = ('digits',), (1.0,)
  c.tasks.digits.max_digits = 3  # more would not fit the tokens below
  c.data.instruction = TAGS
  c.data.patches, c.evaluation.examples = 32, 256
  c.rl.optimizer.lr = 1e-4
  c.rl.prompts_per_step, c.rl.samples_per_prompt = 12, 8
  c.rl.max_new_tokens = 48


def judge(params: str, *, instruction: str, suffix: str = '\nScore: ',
          max_new_tokens: int = 8, memory: str = 'device',
          parse: str = 'number.unit', kind: str = 'text') -> ConfigDict:
  """A section of `judges`: a model that scores responses, see `mmr1.judges`.

  Args:
    params: 'base', a stage before that trains, or a folder.
    instruction: under which it reads the problem.
    suffix: what it reads after the response, before it writes the score.
    max_new_tokens: of the score.
    memory: where its parameters wait, 'device' or 'host'.
    parse: of mmr1/rewards, its reply to 0 .. 1, or None; kind: see there.
  """
  return ConfigDict(dict(locals()))


def boxed(c: ConfigDict) -> None:
  r"""Answers in \boxed{} after a think block: EasyR1's mathematics.

  The reward pays nothing for an answer outside of a box.
  """
  c.data.instruction = (
      'Reason step by step inside <think> </think> first, then put the final '
      'answer into \\boxed{}.')
  c.rewards.format.fn = 'format.think_boxed'
  c.rewards.result.kwargs = dict(boxed=True)


def cold_start(c: ConfigDict, *, steps: int = 24, size: int = 768,
               max_new_tokens: int = 96, engine='mmr1.data.traces:solved',
               **kwargs) -> tuple[str, str]:
  """Two stages of the tiny runs: traces by the worlds' solver, and sft on them.

  The embedded model does not write the tags of the answer by itself.
  """
  c.traces = overlay(c.collect, engine=engine, size=size, kwargs=kwargs)
  c.cold_start = overlay(
      c.sft, data='traces', steps=steps, max_new_tokens=max_new_tokens,
      optimizer=dict(lr=3e-4, warmup_steps=5, lr_decay='cosine'))
  return 'traces', 'cold_start'


def get_base(arg: str | None = None) -> ConfigDict:
  """The base config at the scale named by `arg`.

  Args:
    arg: None or 'tiny' for the embedded model; else one of MODELS.
  """
  c = ConfigDict()
  c.name, c.scale = '', arg or 'tiny'
  c.seed, c.stages = 0, ()
  c.cache_dir = '~/.cache/mmr1/xla'  # compiled programs, kept between runs
  # Devices that a CPU is divided into, one per core; 0: as jax finds it.
  c.cpu_devices = 2
  # Seconds after which a phase of a step is said to stand still; 0: never.
  c.stall_s = 1800.0
  c.evaluate_base = True
  # The evaluation of the base and after (and during) every training stage.
  c.evaluation = ConfigDict(evaluation.section())
  c.evaluations = ConfigDict()  # name: dict(parser=...); benchmark(c, ...)
  c.tensorboard = True
  c.report = True  # <workdir>/report.html, made again during the run
  c.model, c.mesh = _model(), _mesh()
  c.mesh.fsdp = 1
  c.sampler, c.rewards = _sampler(), _rewards()
  c.data, c.tasks = _data(), worlds.tasks()
  c.hooks = ConfigDict()  # name: dict(fn='linear', kwargs=dict(knob=...))
  c.views = ConfigDict()  # name: view(...)
  c.terms = ConfigDict(reward_model.terms(term))  # name: term(...)
  c.weights = ConfigDict()  # name: dict(fn='high_entropy', kwargs=dict())
  c.probes = ConfigDict()  # name: probe(...)
  c.judges = ConfigDict()  # name: judge(...)
  c.environments = ConfigDict()  # name: environment(...)
  c.sft, c.rl = _sft(), _rl()
  c.preference = preference.section(_training())
  c.reward_model = reward_model.stage(_training())
  c.evaluate = ConfigDict(dict(
      kind='evaluate', init='previous', **evaluation.section()))
  c.collect, c.refine = _collect(), refine.section(evaluation.section())
  c.merge = merging.stage()
  for family in (detect, flow):
    family.add(c, _optimizer())
  arg = arg or 'tiny'
  if arg not in MODELS:
    raise ValueError(
        f'config argument {arg!r} is unknown. {resolve.nearest(arg, MODELS)}')
  if arg != 'tiny':
    _real(c, arg)
  return c


def _real(c: ConfigDict, arg: str) -> None:
  """A real checkpoint: where it is must be said on the command line."""
  c.model.path = f'checkpoints/{arg}'
  c.model.param_dtype, c.model.compute_dtype = 'float32', 'bfloat16'
  c.model.layers, c.model.remat = 'scan', 'layer'
  c.sampler.entropy = False  # only shown; 6% of sampling on the CPU
  c.model.head_chunk, c.sampler.cache_chunk = 1024, 256
  # Caches of long completions are most of what sampling needs.
  c.sampler.rows = 512 if arg.endswith(('_32b', '_72b')) else 2048
  c.mesh.data, c.mesh.fsdp = 1, None
  c.data.path = 'data/train.parquet'
  c.data.prompt_tokens, c.data.patches = 2048, 6400
  c.data.worker_count, c.rl.reward_workers = 8, 8
  c.data.min_pixels, c.data.max_pixels = 262_144, 1_003_520
