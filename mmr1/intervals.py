"""Intervals of proportions."""

import math


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
  """95% interval of a proportion (Wilson 1927, eq. for the score interval).

  For 8 of 10: centre (.8 + .192) / 1.384 = .717, half width .226.
  """
  p, z2 = correct / n, z * z
  centre = (p + z2 / (2 * n)) / (1 + z2 / n)
  half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
  return max(0.0, centre - half), min(1.0, centre + half)  # of rounding
