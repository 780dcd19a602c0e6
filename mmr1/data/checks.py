"""What is checked of a checkpoint folder, whatever the family."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

from etils import epath


def file(path: epath.Path) -> None:
  """Refuses a folder without this file."""
  if not path.exists():
    raise ValueError(
        f'{path}: no such file. The path of the model must be a folder in '
        'Hugging Face format with config.json, tokenizer files, a chat '
        'template and, if the model reads images, preprocessor_config.json.')


def read(folder: str, name: str) -> dict[str, Any]:
  """A JSON file of a local folder, {} if there is none.

  Raises:
    ValueError: it is something else; names the file.
  """
  own = epath.Path(folder) / name
  if not own.exists():
    return {}
  try:
    result = json.loads(own.read_text())
  except ValueError as error:  # no UTF-8, no JSON
    raise ValueError(
        f'{own}: not JSON ({error}). Download the file again; a Git LFS '
        'pointer or an interrupted download looks like this.') from error
  if not isinstance(result, dict):
    raise ValueError(f'{own}: a JSON {type(result).__name__}, not an object.')
  return result


def settings(folder: str, kind: str) -> dict[str, Any]:
  """What a folder says of pixels, {} if nothing.

  transformers 5 saves it inside processor_config.json, which goes first, and
  earlier ones in a file of its own.

  Args:
    folder: local, of the checkpoint.
    kind: 'image_processor' or 'video_processor'.
  """
  own = {'image_processor': 'preprocessor_config.json',
         'video_processor': 'video_preprocessor_config.json'}[kind]
  return read(folder, 'processor_config.json').get(kind) or read(folder, own)


def tokens(
    tokenizer: Any, config: Mapping[str, Any], path: str,
    wanted: Mapping[str, tuple[str, str]]) -> dict[str, int]:
  """Ids of special tokens.

  Args:
    tokenizer: of the folder.
    config: its parsed config.json.
    path: what the user called it, for messages.
    wanted: {field: (token, the key that config.json has it under)}.

  Returns:
    {field: id}.

  Raises:
    ValueError: the tokenizer does not know one, or config.json disagrees.
  """
  known, ids = tokenizer.get_vocab(), {}
  for field, (token, key) in wanted.items():
    ids[field] = known.get(token)
    if ids[field] is not None and config.get(key, ids[field]) != ids[field]:
      raise ValueError(
          f'{path}: {token} is {ids[field]} in the tokenizer but {key}='
          f'{config[key]} in config.json; they belong to different models.')
  distinct(ids, path)
  return ids


def distinct(ids: Mapping[str, int | None], path: str) -> None:
  """Refuses special ids that are missing or the same."""
  for field, value in ids.items():
    if value is None:
      raise ValueError(
          f'{path}: the tokenizer has no {field.removesuffix("_id")} token; '
          'check special tokens in tokenizer_config.json.')
  for (a, x), (b, y) in itertools.combinations(ids.items(), 2):
    if x == y:
      raise ValueError(
          f'{path}: {a} and {b} are both {x}; pad, eos and the vision '
          'placeholders must be pairwise distinct. Give the tokenizer a '
          'separate token, for example <|endoftext|> for padding.')
