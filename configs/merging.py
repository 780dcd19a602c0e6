"""Defaults of stages of kind `merge`."""

from ml_collections import config_dict

ConfigDict = config_dict.ConfigDict


def stage() -> ConfigDict:
  """The family's section."""
  return ConfigDict(dict(
      kind='merge',
      # What the parents have in common: 'base', a stage or a folder, of a
      # language model alone if it need not be seen with.
      base='base',
      parents=dict(),  # name: 'base', 'previous', a stage or a folder
      # Coefficients of task vectors: a function of mmr1/merging.py.
      rule=dict(fn='closed_form', kwargs=dict()),
      # Regexes of what is fused; all else is that of the parent `rest`, but
      # embeddings, final norm and head that of `embeddings` ('base' too).
      leaves=('language/layers/.*',),
      rest='vision',
      embeddings='vision',
      # Attention of words to images in the parent `of`, on so many prompts of
      # the data; 0: not measured.
      share=dict(of='vision', examples=0, prompts_per_batch=16),
  ))
