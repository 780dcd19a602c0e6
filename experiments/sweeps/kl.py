"""How much does the KL term hold the policy back, and does it help?

Coefficients around the paper's 0.01, none (then there is no reference pass
either), and the same coefficient with the estimator k2.
"""

CONFIG = 'configs/vision_r1.py'
SEEDS = (0, 1, 2)
METRICS = ('eval/accuracy_sampled', 'eval/accuracy',
           'eval/response_length_sampled')
RUNS = {'kl_0.01': {}} | {
    f'kl_{x}': {'rl.kl.coefficient': x} for x in (0.0, 0.001, 0.1)} | {
    'k2': {'rl.kl.estimator': 'k2'}}
