"""Names of topologies."""

import pytest

from mmr1.planning import chips


def test_topologies():
  v5p = chips.topology('v5p:4x4x4')
  assert (v5p.count, v5p.chip.name, v5p.name) == (64, 'v5p', 'v5p:4x4x4')
  assert chips.topology('gpu:8').name == 'h100:8'
  assert chips.topology('cpu').count == 1
  counts = [t.count for t in chips.slices(('v5e', 'v5p'))]
  assert counts == sorted(counts) and counts[0] == 1


@pytest.mark.parametrize('name, said', [
    ('v5q:2x2', "'v5q' of 'v5q:2x2' is unknown; .*v5p"),
    ('v5p:3x3x3', "slices of v5p are .*'4x4x4'.*as in v5p:"),
    ('v5e', "got 'v5e'; slices of v5e"), ('gpu:x', 'as in gpu:8')])
def test_m22_an_unknown_topology(name, said):
  with pytest.raises(ValueError, match=said):
    chips.topology(name)


@pytest.mark.parametrize('name, said', [
    ('v5x', "got 'v5x'; allowed are .*v5e"), ('h100', "got 'h100'; allowed")])
def test_m22_chips_without_slices(name, said):
  with pytest.raises(ValueError, match=f'chips: {said}'):
    chips.slices(('v5e', name))
