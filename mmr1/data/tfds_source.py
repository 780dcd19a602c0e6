"""A source over a TensorFlow Dataset, read without TensorFlow."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mmr1 import records
from mmr1.data import rows
from mmr1.data import sources


class TfdsSource:
  """Records of `tfds.data_source`; the dataset must be prepared as
  array_record, which `tfds.data_source` does on first use.

  A class label used as the answer is spelled out with the dataset's own name
  for it. Datasets without a question column take `form.constant_question`.
  """

  def __init__(
      self,
      name: str,
      split: str,
      *,
      form: rows.RowFormat = rows.RowFormat(),
      offset: int = 0,
      data_dir: str | None = None,
      builder_kwargs: dict[str, Any] | None = None,
  ):
    """Opens (and if needed downloads) the dataset.

    Args:
      name: as in `tfds.builder`.
      split: one split, slices such as 'train[:10%]' included.
      form: features and requirements.
      offset: uid of the first record.
      data_dir: where datasets are kept; None: the default of tfds.
      builder_kwargs: passed to the builder.

    Raises:
      ValueError: unknown features.
    """
    self.name = f'tfds:{name}/{split}'
    self.offset = offset
    self._data = tfds.data_source(
        name, split=split, data_dir=data_dir,
        builder_kwargs=builder_kwargs or {})
    features = self._data.dataset_info.features
    self.form = rows.resolve(form, list(features), self.name)
    answer = features[self.form.answer] if self.form.answer else None
    self._labels = (
        tuple(answer.names)
        if isinstance(answer, tfds.features.ClassLabel) else None)

  def __len__(self) -> int:
    return len(self._data)

  def __getitem__(self, i: int) -> sources.Item:
    i = sources.check_index(i, len(self), self.name)
    where = f'{self.name}:{i}'
    try:
      row = {k: _plain(v) for k, v in self._data[i].items()}
    except Exception as error:  # decoders raise anything: named, not hidden
      return records.Broken(
          where=where,
          reason=f'unreadable record: {type(error).__name__}: {error}')
    if self._labels is not None:
      label = row[self.form.answer]  # -1 marks a record without label
      row[self.form.answer] = self._labels[label] if label >= 0 else None
    return rows.to_example(
        row, self.form, folder='', uid=self.offset + i, where=where)


def _plain(value: Any) -> Any:
  """Scalars as Python values, bytes as text where they are text."""
  if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0:
    value = value.item()
  if isinstance(value, bytes):
    try:
      return value.decode('utf-8')
    except UnicodeDecodeError:
      return value
  return value
