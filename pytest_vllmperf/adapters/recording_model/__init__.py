"""The engine as lm-eval sees it: questions go out, and every answer is recorded.

lm-eval's own API models keep neither finish reason nor tokens nor latency, and one failed request ends
their run; without those records a broken measurement cannot be told from a bad model. Import this package
lazily: it needs lm-eval, which takes seconds to load.
"""

from pytest_vllmperf.adapters.recording_model.answer_client import AnswerClient, Asking, Target
from pytest_vllmperf.adapters.recording_model.model import RecordingModel
from pytest_vllmperf.adapters.recording_model.probes import (
    ask_prompts,
    gives_log_likelihoods,
    listed_models,
    prompt_tokens,
    read_texts,
    send_again,
)

__all__ = [
    "AnswerClient",
    "Asking",
    "RecordingModel",
    "Target",
    "ask_prompts",
    "gives_log_likelihoods",
    "listed_models",
    "prompt_tokens",
    "read_texts",
    "send_again",
]
