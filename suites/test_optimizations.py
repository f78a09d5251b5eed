"""Optimisations: what a configuration asks for is active, with proof; a flag that was accepted proves nothing."""

from pytest_vllmperf import unmet


def test_what_was_asked_for_is_active(vllm_engine, vllm_evidence):
    """Fails with the line of the log that refutes it; unknown fails only with EngineConfig(require_evidence=True)."""
    missing = unmet(vllm_evidence, require=vllm_engine.config.require_evidence)
    assert not missing, "\n".join(missing)
