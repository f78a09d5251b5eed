"""lm-eval behind a few functions: load a task, score given answers (the oracle), score a model.

Importing lm-eval takes about two seconds, indexing its 14 000 task names about twenty: both happen inside
functions, the second only for a name that cannot be found otherwise.
"""

from pytest_vllmperf.adapters.lm_eval_runner.loading import LoadedTask, Rows, load_task
from pytest_vllmperf.adapters.lm_eval_runner.scoring import (
    null_answers,
    right_answers,
    score,
    score_texts,
    worked_texts,
)

__all__ = ["LoadedTask", "Rows", "load_task", "null_answers", "right_answers", "score", "score_texts", "worked_texts"]
