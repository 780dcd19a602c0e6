"""The page as a whole: its parts have ids of their own, its runs names."""

import collections
import re

import pytest

from mmr1 import report
from mmr1.reporting import page
from mmr1.reporting import reading


@pytest.fixture
def make(tmp_path):
  """A folder below tmp_path with what a run leaves first, and an evaluation."""
  def write(name):
    path = tmp_path / name
    (path / 'eval').mkdir(parents=True)
    (path / 'metrics.jsonl').write_text(
        '{"stage": "grpo", "step": 1, "time": 1.0, "loss": 0.5}\n')
    (path / 'eval' / 'grpo_1.jsonl').write_text(
        '{"uid": 1, "gold": "3", "decoding": "greedy", "text": "3"}\n')
    return path
  return write


def test_ids_are_unique_and_links_lead_to_sections(make):
  html = page.build([reading.read(make('run'))])
  ids = collections.Counter(re.findall(r'<[^>]*\sid="([^"]*)"', html))
  assert not [name for name, count in ids.items() if count > 1]
  links = re.findall(r'<a [^>]*href="#([^"]*)"', html)
  assert len(links) > 4
  assert {*links} <= {*re.findall(r'<section id="([^"]*)"', html)}


@pytest.mark.parametrize('given, names', [
    (['a,b'], ['a,b']),  # the default workdir of two arguments
    (['c', 'a,b', 'a'], ['c', 'a,b', 'a']),
    (['a', 'c'], ['a', 'c']),
])
def test_a_comma_in_a_name_is_no_second_run(make, tmp_path, monkeypatch, capsys,
                                            given, names):
  for name in ('a,b', 'a', 'c'):
    make(name)
  monkeypatch.chdir(tmp_path)
  seen = []
  monkeypatch.setattr(page, 'build', lambda runs: seen.extend(runs) or '')
  report.main(['report', f'--workdir={",".join(given)}', '--out=page.html'])
  assert [run.name for run in seen] == names


def test_what_is_no_folder_is_named(make, tmp_path, monkeypatch):
  make('a')
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit, match='--workdir: b is no folder'):
    report.main(['report', '--workdir=a, b,c'])


def test_a_run_has_the_name_of_its_folder_wherever_one_stands(
    make, monkeypatch):
  monkeypatch.chdir(make('mine'))
  (run,) = runs = [reading.read('.')]
  page._name(runs)
  assert run.name == 'mine'
  assert '<title>mine - mmr1 report' in page.build(runs)


def test_runs_of_one_name_are_told_apart_by_as_many_folders_as_it_needs(
    make, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('a/x/r', 'b/x/r', 'b/y/r', 'other'):
    make(name)
  runs = [reading.read(name) for name in ('a/x/r', 'b/x/r', 'b/y/r', 'other')]
  page._name(runs)
  assert [run.name for run in runs] == ['a/x/r', 'b/x/r', 'y/r', 'other']
  twice = [reading.read('other'), reading.read('other')]
  page._name(twice)  # there is nothing that tells them apart
  assert [run.name for run in twice] == ['other', 'other']
