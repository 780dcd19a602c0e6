"""Edit distance of two texts."""


def edits(a: str, b: str) -> int:
  """Characters to insert, delete or replace to make b of a (Levenshtein).

  kitten to sitting: k -> s, e -> i, + g: 3. Texts are cut at 2000 characters.
  """
  a, b = a[:2000], b[:2000]
  last = list(range(len(b) + 1))
  for i, x in enumerate(a, start=1):
    row = [i]
    for j, y in enumerate(b, start=1):
      row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
    last = row
  return last[-1]
