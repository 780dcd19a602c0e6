"""Qwen2.5-VL (https://arxiv.org/abs/2502.13923): the tower
attends in windows, and in whole frames in some of its layers."""

from typing import Any

import jax

from mmr1.models import decoder
from mmr1.models import qwen2_5_vl_config
from mmr1.models import qwen_vl
from mmr1.models import vision_language

# The family's interface, with `build`, `init_params` and `init_cache` below.
Config = qwen2_5_vl_config.Config
init_cache = decoder.init_cache


def init_params(config: Config, rng: jax.Array) -> Any:
  """Random parameters, float32; see `decoder.init_params`."""
  return vision_language.init_params(build(config), rng)


def build(config: Config) -> qwen_vl.Model:
  """The family's module."""
  return qwen_vl.Model(config)
