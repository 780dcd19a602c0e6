"""Which frames of a clip are used."""

import dataclasses
import functools

import pytest
import torch
from transformers import video_utils

from mmr1 import records
from mmr1.data import clips

CLIPS = functools.partial(clips.Clips, size=8, mean=(0.5,) * 3,
                          std=(0.5,) * 3, resample=3)


@pytest.mark.parametrize('shift', [None, True, False, 2.5])
def test_clips_are_sampled_as_transformers_does(shift):
  for total in (*range(1, 60), 300, 1111):
    for count in (1, 2, 3, 7, 8, 16, 300):
      chosen = CLIPS(count, None, None, shift)
      count = min(count, total)
      if shift is None:
        expected = video_utils.default_sample_indices_fn(
            video_utils.VideoMetadata(total_num_frames=total), count).tolist()
      else:
        begin = total / count / 2 if shift is True else float(shift)
        expected = (torch.arange(begin, total, total / count).int().tolist()
                    if begin < total else [])
      got = clips.sampled(records.Video(tuple(range(total))), chosen)
      assert got.tolist() == expected, (total, count)


def test_clips_by_rate_and_bound():
  """9 seconds; and no rule at all is every frame."""
  clip = records.Video(tuple(range(90)), fps=10.0)
  rate = CLIPS(None, 0.5, None, True)
  assert clips.sampled(clip, rate).tolist() == [11, 33, 56, 78]
  most = dataclasses.replace(rate, most=2)
  assert clips.sampled(clip, most).tolist() == [22, 67]
  every = CLIPS(None, None, None, True)
  assert clips.sampled(clip, every).tolist() == list(range(90))
  with pytest.raises(ValueError, match='0 frames'):
    clips.sampled(records.Video(()), every)
