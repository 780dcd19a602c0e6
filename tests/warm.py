"""Imported once by the process that runs of the command are forked from.

Loads what a run loads, and must not start jax: a child could not use it.
"""

import pathlib

from configs import common  # pylint: disable=unused-import
from mmr1 import main  # pylint: disable=unused-import
from mmr1 import runner  # pylint: disable=unused-import
from mmr1.data import processor
from mmr1.papers import vision_r1_bridge  # pylint: disable=unused-import
from mmr1.stages import rl  # pylint: disable=unused-import
from mmr1.stages import sft  # pylint: disable=unused-import

processor.Processor.open(str(
    pathlib.Path(__file__).parent.parent / 'mmr1' / 'assets' / 'tiny'))
