"""Every ablation that a config's docstring names is a command that runs."""

import pytest

from tests.papers import runs

# How many there are of each.
COUNTS = dict(papo=6, vppo=6, vogue=6, luffy=4, grpo_care=6,
              recap=7, ares=4, sophiavl_r1=6, basereward=10, metis_specs=5,
              critic_v=7, frank=7, chain_of_focus=2)
CASES = [(slug, given) for slug in COUNTS for given in runs.ablations(slug)]
CASES += [(f'recap:{arg}', ()) for arg in (
    'setting1', 'reasoning', 'boxes', 'boxes,setting1')]
CASES += [(f'metis_specs:{arg}', ()) for arg in ('sft', 'ipo', 'simpo')]
# Said in words.
CASES += [
    ('vogue:code', ('--config.rl.advantage.kwargs.alpha_visual=0.0',
                    '--config.rl.advantage.kwargs.alpha_entropy=0.0')),
    ('vogue:code', ('--config.rl.advantage.kwargs.noisy_frac=0.5',
                    '--config.rl.hooks=()')),
    ('grpo_care', ('--config.rl.kl.coefficient=0.04',
                   '--config.rl.reference=ema'))]


@pytest.mark.parametrize('name, given', CASES, ids=[
    ' '.join((name, *given)) for name, given in CASES])
def test_m22_a_command_opens_a_run_and_reads_all_that_it_sets(
    name, given, shrink, tmp_path):
  slug, _, arg = name.partition(':')
  final, _ = runs.commanded(slug, given, arg, shrink)
  runs.opened(final, tmp_path / 'run', given)
  for key, flag in zip(runs.keys(given), given):
    head, *rest = key.split('.')
    kinds = {final[name].kind: name for name in final.stages}
    value = final[kinds.get(head, head)]
    for part in rest:
      value = value[part]
    assert str(value).replace(' ', '') == flag.partition('=')[2]


def test_all_are_found():
  assert {slug: len(runs.ablations(slug)) for slug in COUNTS} == COUNTS
