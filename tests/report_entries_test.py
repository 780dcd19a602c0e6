"""What a report's browser has of a row."""

from mmr1.reporting import entries

IMAGE = '0123456789abcdef.png'


def test_what_rows_of_other_stages_say():
  made = entries.entry({
      'stage': 's', 'step': 1, 'prompt': 'p', 'images': [IMAGE],
      'captions': ['given'], 'boxes': [[1, 2, 3, 4]], 'size': [8, 8],
      'classes': [1], 'side': 'chosen', 'extra': IMAGE, 'turns': [
          {'role': 'tool', 'text': 't', 'images': [IMAGE], 'call': {'a': 1}}]})
  assert made['boxes'] == [[1, 2, 3, 4]] and made['captions'] == ['given']
  assert made['more'] == {'classes': '[1]', 'side': 'chosen'}
  assert made['images'] == [IMAGE]
  assert made['turns'] == [
      {'role': 'tool', 'text': 't', 'images': [IMAGE], 'call': '{"a": 1}'}]


def test_captions_without_images_are_no_error():
  for images in (None, 'x', [3, 'no.png']):
    made = entries.entry({
        'stage': 's', 'step': 1, 'images': images, 'captions': ['given']})
    assert made['images'] == []
