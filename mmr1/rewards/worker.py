"""The process on the other side of `rewards.pool`: one function, call by call.

Started as `python -m mmr1.rewards.worker <fd> <module:function>`. Being a
plain program, and not a child of multiprocessing, it never imports the main
module of the run (and with it jax) and needs no `if __name__` guard there.
"""

import importlib
import pickle
import signal
import sys
import traceback
from multiprocessing import connection


def main() -> None:
  """Loads the function, says so, then answers calls until the pipe closes."""
  pipe = connection.Connection(int(sys.argv[1]))
  try:
    module, _, name = sys.argv[2].partition(':')
    fn = getattr(importlib.import_module(module), name)
  except Exception:  # reported to the caller, who raises it
    pipe.send(('error', traceback.format_exc()))
    return
  pipe.send(('ok', None))
  while True:
    try:
      limit_s, data = pipe.recv(), pipe.recv_bytes()
    except (EOFError, ConnectionResetError):
      return
    # If the parent is gone nobody kills us: the kernel does, even inside C.
    signal.setitimer(signal.ITIMER_REAL, limit_s + 1.0)
    try:
      args, kwargs = pickle.loads(data)
      reply = pickle.dumps(('ok', fn(*args, **kwargs)))
    except Exception:  # reported to the caller, who raises it
      reply = pickle.dumps(('error', traceback.format_exc()))
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    pipe.send_bytes(reply)


if __name__ == '__main__':
  main()
