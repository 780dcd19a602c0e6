"""Programs compiled in processes that are ended before machine code."""

import importlib.util
import os
import textwrap
import time

import pytest

from configs import vision_r1
from mmr1 import resolve
from mmr1.planning import chips
from mmr1.planning import estimate
from mmr1.planning import hlo
from mmr1.planning import traffic
from mmr1.planning import worker

# As XLA writes them: an argument that is updated in place, one that is not, a
# result of its own, temporaries, a constant, and what is on the chip.
BUFFERS = '''BufferAssignment:
allocation 0: size 512, thread-local:
allocation 1: size 4096, parameter 0, shape |f32[1024]| at ShapeIndex {}, maybe-live-out:
 value: <1 p @0> (size=4096,offset=0): f32[1024]
allocation 2: size 2048, parameter 1, shape |bf16[1024]| at ShapeIndex {}:
allocation 3: size 100, maybe-live-out:
allocation 4: size 30, constant:
allocation 5: size 7000, preallocated-temp:
allocation 6: size 9000, color 1, preallocated-temp:
Total bytes: 1 (1B)
'''
PROGRAM = 'HloModule jit_f\n\nENTRY %main () -> f32[] {\n}\n\n'


def test_memory():
  assert worker.memory(BUFFERS) == dict(
      arguments=6144, outputs=4196, aliased=4096, temporaries=7542)


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
  """(code) -> what the other process does instead; `folder` is its own."""
  def be(code):
    monkeypatch.setattr(worker, '_MAIN', textwrap.dedent('''
        import json, os, pathlib, sys, time
        folder = pathlib.Path(sys.argv[1])
        ''') + textwrap.dedent(code))
  return be


def test_a_process_is_ended_once_all_is_decided(stand_in, tmp_path):
  stand_in(f'''
      pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
      (folder / 'traced.json').write_text(json.dumps({{'flops': 5.0}}))
      assert f'--xla_dump_to={{folder}}/dump' in os.environ['XLA_FLAGS']
      dump = folder / 'dump'
      dump.mkdir()
      base = 'module_0000.jit_f.cl_1.after_optimizations'
      (dump / (base + '-buffer-assignment.txt')).write_text({BUFFERS!r})
      last = dump / (base + '_after_buffer_assignment.txt')
      last.write_text('HloModule jit_f\\n\\n%other () -> f32[] {{\\n}}\\n')
      time.sleep(1)
      last.write_text({PROGRAM!r})
      time.sleep(600)
      ''')
  began = time.monotonic()
  made = worker.decide({'a': 1})
  assert time.monotonic() - began < 60
  assert made.flops == 5.0 and made.text == PROGRAM
  assert made.memory['arguments'] == 6144
  with pytest.raises(ProcessLookupError):
    os.kill(int((tmp_path / 'pid').read_text()), 0)


@pytest.mark.parametrize('code, said', [
    ("(folder / 'error.txt').write_text('Used 40G of 31G hbm'); sys.exit(1)",
     'Used 40G of 31G hbm'),
    ("sys.stderr.write('no such library'); sys.exit(3)",
     'ended with 3: no such library')])
def test_what_cannot_be_compiled(stand_in, code, said):
  stand_in(code)
  with pytest.raises(worker.Failed, match=said):
    worker.decide({})


def test_an_error_of_any_length_is_told(stand_in, monkeypatch):
  """XLA's are long, and Python writes them to stderr once more."""
  monkeypatch.setattr(worker, '_LIMIT_S', 20)
  stand_in('''
      (folder / 'error.txt').write_text('Used 40G of 31G hbm')
      sys.stderr.write(200_000 * 'x')
      sys.exit(1)
      ''')
  with pytest.raises(worker.Failed, match='^Used 40G of 31G hbm$'):
    worker.decide({})


def test_an_error_of_the_trace_is_told():
  """The true process: there is no such topology."""
  with pytest.raises(worker.Failed, match='TypeError'):
    worker.decide({'nothing': 0})


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None,
                    reason='libtpu, the compiler for TPUs, is not installed')
def test_what_is_decided_is_what_is_compiled(monkeypatch):
  """The whole compilation of a program says the same of its buffers, and its
  text moves the same. XLA adds what lies idle between temporaries."""
  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
  monkeypatch.setenv('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  job = dict(config=resolve.finalise(vision_r1.get_config()),
             topology=chips.topology('v5e:2x2'), tensor=None,
             stage='think_short', program='decode')
  made = worker.decide(job)
  traced, flops = estimate.traced(**job)
  whole = traced.lower().compile()
  memory = whole.memory_analysis()
  assert made.flops == flops
  assert made.memory['arguments'] == memory.argument_size_in_bytes
  assert made.memory['outputs'] == memory.output_size_in_bytes
  assert made.memory['aliased'] == memory.alias_size_in_bytes > 0
  assert 0 < made.memory['temporaries'] <= memory.temp_size_in_bytes
  # Slices on their way onto the chip are written in another form there.
  moved, other = (traffic.moved(hlo.Module(text), 48)
                  for text in (made.text, whole.as_text()))
  assert moved.collectives == other.collectives != {}
  assert moved.unknown_loops == other.unknown_loops == 1
