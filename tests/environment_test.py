"""What the environment says of other hosts, and what hosts tell each other."""

import pytest

from mmr1 import hosts

NAMES = (hosts.COORDINATOR, hosts.COUNT, hosts.INDEX, 'SLURM_JOB_ID',
         'SLURM_NTASKS', 'SLURM_PROCID', 'OMPI_COMM_WORLD_SIZE',
         'OMPI_COMM_WORLD_RANK')


@pytest.fixture
def begun(monkeypatch):
  """(**environment) -> arguments that jax was started with, or None."""
  def start(**given):
    for name in NAMES:
      monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
      monkeypatch.setenv(name, value)
    seen = []
    monkeypatch.setattr(
        hosts.jax.distributed, 'initialize',
        lambda *args, **kw: seen.append(args))
    hosts.start()
    return seen[0] if seen else None
  return start


def test_alone(begun):
  assert begun() is None
  assert begun(MMR1_COORDINATOR='a:1', MMR1_HOSTS='1', MMR1_HOST='0') is None
  # One task is no cluster, nor is half of its variables.
  assert begun(SLURM_JOB_ID='7', SLURM_NTASKS='1', SLURM_PROCID='0') is None
  assert begun(SLURM_JOB_ID='7', SLURM_NTASKS='4') is None


def test_of_several(begun):
  assert begun(MMR1_COORDINATOR='a:1', MMR1_HOSTS='3', MMR1_HOST='2') == (
      'a:1', 3, 2)
  for given in (
      dict(MMR1_COORDINATOR='auto'),
      dict(SLURM_JOB_ID='7', SLURM_NTASKS='4', SLURM_PROCID='3'),
      dict(OMPI_COMM_WORLD_SIZE='2', OMPI_COMM_WORLD_RANK='0')):
    assert begun(**given) == ()  # jax finds the others


@pytest.mark.parametrize('given, message', [
    (dict(MMR1_COORDINATOR='a:1'),
     r'MMR1_COORDINATOR=a:1 needs MMR1_HOSTS.*got \[None, None\]'),
    (dict(MMR1_COORDINATOR='a:1', MMR1_HOSTS='two', MMR1_HOST='0'),
     r"got \['two', '0'\]"),
    (dict(MMR1_COORDINATOR='a:1', MMR1_HOSTS='2', MMR1_HOST='2'),
     'MMR1_HOST=2; allowed: <address>:<port>, and 0 <= host < hosts'),
    (dict(MMR1_COORDINATOR='a', MMR1_HOSTS='2', MMR1_HOST='0'),
     'MMR1_COORDINATOR=a, .*<address>:<port>')])
def test_an_environment_that_is_not_complete(begun, given, message):
  with pytest.raises(ValueError, match=message):
    begun(**given)


def test_errors_of_one_host_are_those_of_all(monkeypatch):
  """As two hosts would have them: the second could not read its file."""
  def broken():
    raise OSError('disk on fire')
  assert hosts.share(3) == [3]
  with pytest.raises(OSError, match='disk on fire'):
    hosts.attempt(broken, None)  # alone nothing is held back
  monkeypatch.setattr(hosts, 'count', lambda: 2)
  value, error = hosts.attempt(broken, ())
  assert value == () and error == 'OSError: disk on fire'
  monkeypatch.setattr(hosts, 'gather', lambda own: [(1, None), own])
  with pytest.raises(ValueError, match='host 1 of 2: OSError: disk on fire'):
    hosts.share(value, error)
  assert hosts.share(5) == [1, 5]
  with pytest.raises(TypeError):  # a mistake of ours is no message
    hosts.attempt(lambda: None + 1, ())


def test_a_host_that_has_gone(monkeypatch):
  gone = RuntimeError('Gloo AllReduce failed: Connection reset by peer\nat x')
  assert hosts.lost(gone) is None  # there are no others
  monkeypatch.setattr(hosts, 'count', lambda: 2)
  said = str(hosts.lost(gone))
  assert 'host 0 of 2: another host has gone' in said
  assert 'Connection reset by peer' in said and 'at x' not in said
  assert 'same command' in said
  assert hosts.lost(RuntimeError('RESOURCE_EXHAUSTED: out of memory')) is None


def test_configs_that_differ(monkeypatch):
  hosts.same('a', 'the config', str.__add__)
  monkeypatch.setattr(hosts, 'gather', lambda own: [own, 'b'])
  with pytest.raises(ValueError, match='the config of host 1 is not that of '
                     'host 0:\nab\nStart all'):
    hosts.same('a', 'the config', str.__add__)
