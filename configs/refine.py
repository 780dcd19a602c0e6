"""Defaults of stages of kind `refine`."""

from ml_collections import config_dict

placeholder = config_dict.placeholder


def section(evaluation: dict) -> config_dict.ConfigDict:
  """The family's section; `evaluation`: what every evaluation has."""
  return config_dict.ConfigDict(dict(
      kind='refine',
      init='previous',  # the model that answers
      # The model that speaks in between: 'self', 'base', a stage or a path.
      critic='self',
      fixed='',  # words in place of a critic, whatever the answer is
      rounds=2,
      history='replace',  # or 'accumulate', of critiques in the prompt
      # (example, answer) -> what the critic is asked, under no instruction.
      ask=dict(fn=placeholder(str), kwargs=dict()),
      critic_tokens=128,
      # (question, critique) -> the next question; critique -> nothing is wrong.
      rewrite=dict(fn=placeholder(str), kwargs=dict()),
      satisfied=dict(fn=placeholder(str), kwargs=dict()),
      # (critique, example, answer) -> {name: number} | None, to be logged.
      score=dict(fn=placeholder(str), kwargs=dict()),
      **{key: value for key, value in evaluation.items()
         if key not in ('temperature', 'top_k', 'top_p', 'seed', 'also',
                        'benchmark', 'benchmark_path', 'judge',
                        'samples_per_problem', 'at_k', 'summary')},
  ))
