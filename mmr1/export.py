"""The command that takes a trained model out of a run, to serve it elsewhere.

  python -m mmr1.export --workdir=runs/vision_r1 --out=exported

`transformers` opens the folder it writes: weights, config.json, generation
config, tokenizer, chat template and the settings of the image processor.
Adapters (`lora` in the config) are merged into the weights; with --adapter they
alone are written, as a folder of PEFT. It runs on the host and only reads the
run, which may be going on.
"""

import sys

from absl import flags
import jax

from mmr1 import command_line
from mmr1 import release

# Of its own: a process may import several commands with flags of one name.
_FLAGS = flags.FlagValues()
for _name, _help in (
    ('workdir', 'Folder of the run.'),
    ('out', 'Folder to write: new or empty.'),
    ('stage', 'Default: the last finished stage that trains.'),
    ('step', "A step, or 'best'. Default: what the stage ended with, or the "
             'last checkpoint of a stage that has not ended.'),
    ('model', 'Where the base model is now, if it was moved.'),
    ('base', 'With --adapter: the exported stage that the adapters were added '
             'to, where that is not the base model.')):
  flags.DEFINE_string(_name, None, _help, flag_values=_FLAGS)
flags.DEFINE_enum('dtype', None, ['bfloat16', 'float32'],
                  "Of the weights. Default: the run's model.param_dtype; with "
                  '--adapter float32.',
                  flag_values=_FLAGS)
flags.DEFINE_bool('adapter', False, 'Writes the adapters alone, for PEFT.',
                  flag_values=_FLAGS)
flags.DEFINE_bool('help', False, 'Shows this.', flag_values=_FLAGS)


def main(argv: list[str]) -> None:
  if not command_line.own_flags(_FLAGS, argv, __doc__, {
      'workdir': 'run', 'out': 'folder'}):
    return
  if _FLAGS.base and not _FLAGS.adapter:
    sys.exit('mmr1: --base has no effect without --adapter.')
  jax.config.update('jax_platforms', 'cpu')  # leaves accelerators alone
  try:
    kw = dict(stage=_FLAGS.stage, step=_FLAGS.step, dtype=_FLAGS.dtype,
              model=_FLAGS.model)
    print(release.export_adapter(
        _FLAGS.workdir, _FLAGS.out, base=_FLAGS.base, **kw) if _FLAGS.adapter
          else release.export(_FLAGS.workdir, _FLAGS.out, **kw))
  except ValueError as error:
    if not command_line.is_message(error):
      raise
    sys.exit(f'mmr1: {error}')


if __name__ == '__main__':
  main(sys.argv)
