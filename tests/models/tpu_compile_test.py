"""What a TPU would run, compiled ahead of time where `libtpu` is installed.

    pip install 'jax[tpu]' && python -m pytest tests/models/tpu_compile_test.py
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.models import tpu_programs as made

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason='libtpu, the compiler for TPUs, is not installed: it comes with '
    "pip install 'jax[tpu]'.")


@pytest.fixture(scope='module')
def programs():
  """{name: what is in it}. In a process of its own: this one's jax stays."""
  environment = {
      **os.environ, 'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1',
      'XLA_FLAGS': ''}  # those of the tests are for programs that run here
  run = subprocess.run(
      [sys.executable, '-m', 'tests.models.tpu_programs'], env=environment,
      capture_output=True, text=True, cwd=ROOT)
  assert run.returncode == 0, run.stderr[-4000:]
  return json.loads(run.stdout.splitlines()[-1])


def test_passes_over_sequences_are_the_kernel(programs):
  """Forward and, in the update, both gradients; a decode step has none."""
  assert programs['prefill']['kernels'] == ['splash_mha_fwd']
  assert programs['update']['kernels'] == [
      'splash_mha_dkv', 'splash_mha_dq', 'splash_mha_fwd']
  assert programs['decode']['kernels'] == []


def test_the_prompts_keys_are_never_repeated(programs):
  """Not for the G completions: whatever has the prompt's tokens and the
  channels of keys is as large as its queries, for a device's own prompts."""
  channels = {made.HEAD // 2, made.HEAD, made.KV_HEADS * made.HEAD}
  largest = made.N // made.DEVICES * made.HEADS * made.HEAD
  for name, program in programs.items():
    seen = 0
    for shape in program['shapes']:
      if made.P in shape and channels & set(shape):
        seen += 1
        size = 1
        for axis in shape:
          size *= axis
        assert size <= largest * made.P and made.G not in shape, (name, shape)
    assert seen, name


def test_scores_never_leave_the_chip(programs):
  """No array of queries by keys, in whatever order."""
  queries, keys = (made.P, made.G * made.T, made.T), (
      made.P, made.P + made.G * made.T)
  for name in ('prefill', 'update'):
    for shape in programs[name]['shapes']:
      pairs = [(q, k) for q in queries for k in keys
               if q in shape and k in shape and (q != k or shape.count(q) > 1)]
      assert not pairs, (name, shape)
