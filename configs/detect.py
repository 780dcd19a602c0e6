"""Defaults of stages of kind `detect`: a detector, see `mmr1.stages.detect`."""

from ml_collections import config_dict

ConfigDict = config_dict.ConfigDict
placeholder = config_dict.placeholder


def _detector() -> ConfigDict:
  """Sizes of the detector."""
  return ConfigDict(dict(
      size=32, patch=4,  # side of a picture and of a patch, in pixels
      width=64, heads=4,
      encoder=2, decoder=2,  # layers
      queries=18,  # patches that become boxes
      classes=3,
      dtype='float32', precision='default',
  ))


def _detect(optimizer: ConfigDict) -> ConfigDict:
  return ConfigDict(dict(
      kind='detect',
      start='previous',  # as in `flow`
      world='detection',  # a section of tasks
      steps=300,
      rows_per_step=32,  # pictures
      boxes=4,  # of a picture at most
      # Weights in the matcher's cost and in the losses, and of agreement
      # between instances and names of classes.
      cost=dict(label=2.0, l1=5.0, giou=2.0),
      loss=dict(label=1.0, l1=5.0, giou=2.0),
      alignment=1.0,
      # A term of each decoder layer: (cost, scores, reference scores, real,
      # *, ...) -> loss, metrics; None: none. `after`: steps without it.
      queries=dict(fn=placeholder(str), kwargs=dict(), after=0),
      # The reference is the model itself as it was after every so many steps.
      reference_every=100,
      evaluation=dict(examples=128, seed=1234),
      optimizer=optimizer,
      # As in `rl`; the best is that of eval/ap.
      max_bad_updates=5,
      log_every=1,
      samples_every=100,
      record_every=0,
      checkpoint_every=50,
      keep_checkpoints=2,
      eval_every=0,
      restore_best=False,
  ))


def add(c: ConfigDict, optimizer: ConfigDict) -> None:
  """Puts the defaults into a base config."""
  c.detector = _detector()
  c.detect = _detect(optimizer)
  c.tasks.detection = ConfigDict(dict(
      fn='detection.detection', canvas=32, objects=(1, 4), sides=(6, 14),
      by='colour'))
