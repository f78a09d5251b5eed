"""Starting: how long until the first token, and how slow the very first request is."""


def test_is_ready_in_time(vllm_start_up, vllm_check):
    """From launch to the first streamed token; cold and warm compile caches are told apart."""
    vllm_check(vllm_start_up, "time_to_ready")


def test_first_request_is_bearable(vllm_start_up, vllm_check):
    """The request that pays for everything not yet warmed up."""
    vllm_check(vllm_start_up, "first_request_ttft")
