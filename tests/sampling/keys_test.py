"""Law 6: every random number has an address."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1.sampling import keys

UID = jnp.asarray([7, 3, 12], jnp.int32)
BASE = dict(seed=1, stage=2, step=3, round_=0, view=0)


def noise(*, uid=UID, group=2, position=4, **changes):
  """f32[N, G, 2]."""
  parts = {**BASE, **changes}
  key = keys.step_key(
      parts.pop('seed'), parts.pop('stage'), parts.pop('step'), **parts)
  return np.asarray(drawn(keys.row_keys(key, uid, group), position))


def drawn(row_keys, position):
  """Numbers of all rows for one position."""
  return keys.uniform(row_keys, jnp.full(row_keys.shape, position))


def test_m27_rows_of_a_batch_are_at_positions_of_their_own():
  every = keys.row_keys(keys.step_key(1, 2, 3), UID, 2)
  position = jnp.asarray([[4, 0], [1, 9], [2, 2]])
  mixed = np.asarray(keys.uniform(every, position))
  for (n, g), t in np.ndenumerate(np.asarray(position)):
    np.testing.assert_array_equal(
        mixed[n, g], np.asarray(drawn(every, int(t)))[n, g])


def test_m27_the_same_address_gives_the_same_noise():
  np.testing.assert_array_equal(noise(), noise())


@pytest.mark.parametrize('part', [*BASE, 'position', 'uid'])
def test_m27_every_part_of_the_address_counts(part):
  base = noise()
  if part == 'uid':
    other = noise(uid=UID + 1)
  elif part == 'position':
    other = noise(position=5)
  else:
    other = noise(**{part: BASE[part] + 1})
  assert not np.any(np.isclose(base, other, atol=1e-7))


def test_m27_parts_are_not_added_up():
  """A key of seed + step would repeat step 4's noise under another seed."""
  swapped = [noise(stage=2, step=3), noise(stage=3, step=2),
             noise(round_=1, view=0), noise(round_=0, view=1),
             noise(seed=2, step=2), noise(stage=1, step=4)]
  for i, a in enumerate(swapped):
    for b in swapped[:i]:
      assert not np.any(np.isclose(a, b, atol=1e-7))


def test_m27_no_two_rows_slots_or_positions_share_noise():
  uid = jnp.arange(20)
  flat = np.stack([noise(uid=uid, group=4, position=t) for t in range(3)])
  flat = flat.reshape(-1, 2)
  assert len(np.unique(flat[:, 0])) == len(flat) == 240


def test_m27_a_slot_does_not_depend_on_its_neighbours():
  base = noise()
  np.testing.assert_array_equal(noise(group=5)[:, :2], base)
  order = jnp.asarray([2, 0, 1])
  np.testing.assert_array_equal(noise(uid=UID[order]), base[order])
  np.testing.assert_array_equal(noise(uid=UID[1:2]), base[1:2])


def test_m27_a_prompt_twice_in_a_batch_draws_new_noise():
  base = noise(uid=jnp.asarray([3, 8]), group=4)
  twice = noise(uid=jnp.asarray([3, 8, 3]), group=2)
  # The second group of prompt 3 has its samples 2 and 3.
  np.testing.assert_array_equal(twice[0], base[0, :2])
  np.testing.assert_array_equal(twice[2], base[0, 2:])
  np.testing.assert_array_equal(twice[1], base[1, :2])


def test_step_may_be_traced():
  np.testing.assert_array_equal(
      jax.jit(lambda step: noise_of(step))(3), noise_of(3))


def noise_of(step):
  return drawn(keys.row_keys(keys.step_key(1, 2, step), UID, 2), 4)


def test_numbers_are_uniform_and_independent():
  """Chi-square of 40,000 numbers in 20 bins: with 19 degrees of freedom 43.8
  is exceeded with probability 0.001. Slots of a prompt, neighbouring uids and
  the two numbers do not correlate: |r| < 3.3 / 5000 ** 0.5 = 0.047."""
  key = keys.step_key(0, 1, 0)
  found = np.asarray(drawn(keys.row_keys(key, jnp.arange(5000), 4), 0))
  assert found.min() >= 0 and found.max() < 1
  counts = np.histogram(found, 20, (0, 1))[0]
  assert ((counts - 2000)**2 / 2000).sum() < 43.8
  first = found[..., 0]
  for a, b in ((first[:, 0], first[:, 1]), (first[:-1, 0], first[1:, 0]),
               (first[:, 0], found[:, 0, 1])):
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.047
