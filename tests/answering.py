"""A handle of an engine that answers at a URL, for quality tests: it was launched by nobody."""

from pathlib import Path

from pytest_vllmperf.domain.engine import EngineConfig, EngineHandle, StartUp

MODEL = Path(__file__).parents[1] / "suites" / "models" / "tinymath"


def engine(url, model=str(MODEL), name="base"):
    return EngineHandle(
        config=EngineConfig(name=name, model=model),
        device="cpu",
        base_url=url,
        model_name="tinymath",
        api_key="secret",
        pid=1,
        command=(),
        log_path="",
        version=None,
        start_up=StartUp(time_to_ready_ns=1, first_request_ttft_ns=1, cold=None),
    )
