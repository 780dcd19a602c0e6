"""Does Vision-R1's PTST need both of its stages, and in this order?

The rows of the paper's table of schedules, with caps and groups of the config:
length x group of a step is the same in all but `wide`. Stages and steps are
those of the config, so that every run has as many updates.

    ptst   short cap and large group, then long cap and smaller group
    short  the short cap to the end
    long   a cap four times the short one, a group of 4, from the start
    wide   the second stage keeps the large group
"""

CONFIG = 'configs/vision_r1.py'
SEEDS = (0, 1, 2)
METRICS = ('eval/accuracy_sampled', 'eval/accuracy',
           'eval/response_length_sampled', 'eval/truncated_frac_sampled')
_SHAPE = ('max_new_tokens', 'samples_per_prompt', 'chunks_per_minibatch',
          'length_buckets')


def _runs(config):
  short, group = config.think_short, config.think_short.samples_per_prompt
  like_short = {f'think_long.{key}': short[key] for key in _SHAPE
                if short[key] is not None}
  long = {}
  for stage in ('think_short', 'think_long'):
    long[f'{stage}.max_new_tokens'] = short.max_new_tokens * group // 4
    long[f'{stage}.samples_per_prompt'] = 4
    if short.chunks_per_minibatch is not None:
      long[f'{stage}.chunks_per_minibatch'] = 4
  wide = {'think_long.samples_per_prompt': group}
  return {'ptst': {}, 'short': like_short, 'long': long, 'wide': wide}


RUNS = _runs
