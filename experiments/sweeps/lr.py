"""Which learning rate, the question before any other?

A difference between two methods at one learning rate may be a difference of
learning rates: a mechanism that scales gradients is first compared with this.
"""

CONFIG = 'configs/forkme.py'
SEEDS = (0, 1, 2)
RUNS = {f'lr_{x:g}': {'rl.optimizer.lr': x} for x in (1e-4, 3e-5, 3e-4, 1e-3)}
