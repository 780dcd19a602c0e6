"""Does DAPO's higher upper clip keep the policy exploring?

A clip acts only where a rollout is used for several updates: all runs make four
of it, with old log-probs computed before the first. `dapo` has DAPO's 0.28
(2503.14476), `none` practically no upper clip. Look at `entropy` and
`clip_frac/high` in the report.
"""

CONFIG = 'configs/forkme.py'
SEEDS = (0, 1, 2)
METRICS = ('eval/accuracy_sampled', 'eval/accuracy',
           'eval/response_length_sampled')
_SEVERAL = {'rl.minibatches_per_step': 4, 'rl.old': 'recompute'}
RUNS = {name: {**_SEVERAL, 'rl.policy.kwargs.eps_high': high}
        for name, high in (('ppo', 0.2), ('dapo', 0.28), ('none', 10.0))}
