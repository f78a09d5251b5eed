"""Quality: the answers, because a fast engine that answers wrongly is broken."""


def test_answers_are_right(vllm_evaluate, vllm_quality_task, vllm_check):
    """Accuracy by lm-eval against the live server, over each declared quality task."""
    vllm_check(vllm_evaluate(vllm_quality_task), "accuracy")
