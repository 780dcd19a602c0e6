"""mmr1: R1-style multimodal reasoning in JAX. `mmr1.run(config, workdir)`."""


def run(config, workdir, **kwargs):
  """Runs a config's stages; see `mmr1.results.run`."""
  # Imported late: reward and data workers import mmr1 and must stay off jax.
  from mmr1 import results
  return results.run(config, workdir, **kwargs)
