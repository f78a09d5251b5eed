"""What the prefix cache served, against what the plan of a workload explains."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_vllmperf.domain.workload import Workload

__all__ = ["PrefixCacheUse"]

_TEMPLATE_TOKENS = 256
"""A chat template opens every prompt alike: this much of each is explained by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCacheUse:
    """Growth of the server's prefix-cache counters over one run, in prompt tokens; None where not published.

    Args:
        workload: What was run.
        requests: How many requests were sent.
        hits: Prompt tokens found in the cache.
        queries: Prompt tokens looked up in it.
        preemptions: Requests that had to start over, and then find their own tokens in the cache.
        block: Tokens in one block of the cache; None where the server does not tell.
    """

    workload: Workload
    requests: int
    hits: float | None
    queries: float | None
    preemptions: float | None
    block: int | None

    @property
    def hit_rate(self) -> float | None:
        """Hits / queries; None when nothing was looked up, as with the cache switched off."""
        return self.hits / self.queries if self.hits is not None and self.queries else None

    @property
    def missing(self) -> str:
        """Why there is no hit rate."""
        published = self.hits is not None and self.queries is not None
        return "prefix caching is off: nothing was looked up" if published else "the server does not publish it"

    def planned_hits(self, *, block: int | None = None) -> int | None:
        """Prompt tokens the plan lets the cache serve, in whole blocks; None where nobody can say."""
        return self.workload.prompts.reusable_tokens(
            requests=self.requests,
            input_tokens=self.workload.input_tokens,
            output_tokens=self.workload.output_tokens,
            block=block or self.block or 1,
        )

    @property
    def accident(self) -> str | None:
        """Why the hits make the run INVALID; None where the plan, or a chat template, explains them all."""
        planned = self.planned_hits(block=1)
        if planned is None or self.hits is None or self.preemptions:
            return None
        explained = planned + (_TEMPLATE_TOKENS * self.requests if self.workload.api == "chat" else 0)
        if self.hits <= explained:
            return None
        return (
            f"the prefix cache served {self.hits:.0f} prompt tokens and the plan explains {explained}: another "
            "client is using this engine, or these prompts were sent before; the latencies say nothing"
        )

    def facts(self) -> dict[str, object]:
        """Counts and plan, JSON-ready."""
        planned = self.planned_hits()
        rate = planned / self.queries if planned is not None and self.queries else None
        return {
            "prefix_cache_hits": self.hits,
            "prefix_cache_queries": self.queries,
            "prefix_cache_block_tokens": self.block,
            "planned_prefix_cache_hits": planned,
            "planned_prefix_cache_hit_rate": None if rate is None else round(rate, 6),
        }
