"""Rows that the processes of the card benchmark print, one JSON per line."""

from collections.abc import Callable
import json
import statistics
import time
import traceback
from typing import Any


def attempt(about: dict[str, Any], measure: Callable[[], dict]) -> dict:
  """Prints `about` with what `measure` found, or with why it failed.

  Returns:
    The row. An exception is one too, with `error`: what comes next still runs.
  """
  started = time.perf_counter()
  try:
    found = measure()
  except Exception as error:  # pylint: disable=broad-except
    # Messages of XLA may be pages; their beginning says what it was.
    found = dict(error=f'{type(error).__name__}: {str(error)[:600]}',
                 traceback=traceback.format_exc()[-2500:])
  took = round(time.perf_counter() - started, 2)
  row = {**about, **found, 'took': took}
  print(json.dumps(row), flush=True)
  return row


def seconds(run: Callable[[], Any], wait: Callable[[Any], Any], *, reps: int,
            calls: int = 1) -> float:
  """Median seconds of a call, after one that does not count.

  Args:
    run: what is measured; what it gives is dropped before the next call.
    wait: blocks until the result of a call is there, and all before it.
    reps: measurements.
    calls: queued one after the other in each, so that starting them does not
      count where they are short.
  """
  wait(run())
  times = []
  for _ in range(reps):
    started = time.perf_counter()
    for _ in range(calls - 1):
      run()
    wait(run())
    times.append((time.perf_counter() - started) / calls)
  return statistics.median(times)
