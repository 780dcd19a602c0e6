"""More prompts or more samples of each, for the same number of completions?

128 completions a step in all runs. Larger groups agree less often
(`group/zero_std_frac`), and what agrees teaches nothing; more prompts differ
more.
"""

CONFIG = 'configs/forkme.py'
SEEDS = (0, 1, 2)
RUNS = {f'{n}x{g}': {'grpo.prompts_per_step': n, 'grpo.samples_per_prompt': g}
        for n, g in ((16, 8), (64, 2), (32, 4), (8, 16))}
