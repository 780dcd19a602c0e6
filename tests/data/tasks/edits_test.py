"""The world of edits: pictures, instructions and targets agree."""

import numpy as np
import pytest

from mmr1.data.tasks import edits
from mmr1.rewards import pictures


def many(n=400, split='train', **kwargs):
  return [edits.edits(3, split, i, **kwargs) for i in range(n)]


def pixels(image):
  return np.asarray(image, np.float32) / 127.5 - 1


def test_an_item_is_its_address():
  assert edits.edits(1, 'eval', 7, uid_offset=5).uid == 12
  one, two = edits.edits(1, 'train', 4), edits.edits(1, 'train', 4)
  assert one.meta == two.meta and one.question == two.question
  assert edits.edits(2, 'train', 4).meta != one.meta


def test_the_target_is_what_the_instruction_says():
  seen = set()
  for e in many():
    scene, form = e.meta['scene'], e.meta['form']
    operation, colour, place = e.meta['condition']
    assert operation == 1 + edits.FORMS.index(form)
    after = dict(scene)
    if form == 'recolour':
      after['colour'] = [*edits.COLOURS][colour - 5]
      assert e.question.endswith(f'{after["colour"]}.')
    if form == 'move':
      after['place'] = edits.PLACES[place - 11]
    if form == 'enlarge':
      assert not scene['large']
      after['large'] = True
    assert (colour > 0, place > 0) == (form == 'recolour', form == 'move')
    want = edits.draw(None if form == 'remove' else after)
    np.testing.assert_array_equal(e.meta['target'], want)
    np.testing.assert_array_equal(e.images[0], edits.draw(scene))
    assert (want != np.asarray(e.images[0])).any()
    assert max(e.meta['condition']) < edits.VOCABULARY
    seen.add(form)
  assert seen == set(edits.FORMS)


def test_splits_share_no_pair_of_picture_and_instruction():
  asked = lambda split: {
      (str(sorted(e.meta['scene'].items())), e.meta['condition'])
      for e in many(1500, split)}
  train, held_out = asked('train'), asked('eval')
  assert len(train) > 500 and not train & held_out


def test_noise_follows_another_instruction():
  clean, noisy = many(), many(noise=0.4)
  agree = np.mean([np.array_equal(a.meta['target'], b.meta['target'])
                   for a, b in zip(clean, noisy)])
  # The other instruction is sometimes the same one.
  assert 0.6 < agree < 0.8
  assert [a.meta['condition'] for a in clean] == [
      b.meta['condition'] for b in noisy]


def test_scale_repeats_pixels():
  e = edits.edits(0, 'train', 0, scale=2)
  small = np.asarray(edits.edits(0, 'train', 0).meta['target'])
  assert e.meta['target'].size == (32, 32)
  np.testing.assert_array_equal(np.asarray(e.meta['target'])[::2, 1::2], small)


@pytest.mark.parametrize('kwargs, match', [
    (dict(noise=1.5), 'noise=1.5'), (dict(scale=0), 'scale=0'),
    (dict(form=('fly',)), "'fly'")])
def test_wrong_arguments_are_named(kwargs, match):
  with pytest.raises(ValueError, match=match):
    edits.edits(0, 'train', 0, **kwargs)


# The score.


def test_the_score_of_targets_sources_and_mixtures():
  for e in many(40):
    source, target = pixels(e.images[0]), pixels(e.meta['target'])
    grey = np.full_like(target, -0.01)
    score = pictures.edited(np.stack([target, 0.1 * target, source, grey]), e)
    # Brightness is not judged; doing nothing earns nothing.
    np.testing.assert_allclose(score[:3], [1, 1, 0])
    assert 0 <= score[3] <= 1


def test_the_score_by_hand():
  """Half of the changed pixels and three quarters of the others: 3 / 8."""
  e = next(e for e in many() if e.meta['form'] == 'remove'
           and e.meta['scene']['large'] and e.meta['scene']['kind'] == 'square')
  image = pixels(e.meta['target']).copy()
  changed = (np.asarray(e.images[0]) != np.asarray(e.meta['target'])).any(-1)
  wrong = np.zeros((16, 16), bool)
  wrong[tuple(np.argwhere(changed)[:8].T)] = True  # of 16
  wrong[tuple(np.argwhere(~changed)[:60].T)] = True  # of 240
  image[wrong] = 1.0
  assert pictures.edited(image[None], e)[0] == pytest.approx(3 / 8)


def test_pictures_of_another_size_are_refused():
  with pytest.raises(ValueError, match='are .16, 16, 3.'):
    pictures.edited(np.zeros((1, 8, 8, 3)), many(1)[0])
