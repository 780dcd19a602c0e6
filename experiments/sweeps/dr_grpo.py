"""Which half of Dr. GRPO matters: no division by the spread, or by the length?

GRPO divides a group's advantages by their standard deviation and averages over
tokens; Dr. GRPO (2503.20783) does neither: a completion's tokens are summed and
divided by a constant, the cap. `seq_mean` is the average of the first GRPO
paper, a mean over each completion and then over completions.
"""

CONFIG = 'configs/forkme.py'
SEEDS = (0, 1, 2)
METRICS = ('eval/accuracy_sampled', 'eval/accuracy',
           'eval/response_length_sampled')
_NO_STD = {'rl.advantage.kwargs.std': 'none'}
_CONSTANT = {'rl.policy.reduce': 'constant'}
RUNS = {
    'grpo': {},
    'no_std': _NO_STD,
    'constant': _CONSTANT,
    'dr_grpo': {**_NO_STD, **_CONSTANT},
    'seq_mean': {'rl.policy.reduce': 'seq_mean'},
}
