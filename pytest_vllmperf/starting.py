"""A server on its way to ready: one that was just launched, or one that runs somewhere already."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters import startup_log
from pytest_vllmperf.adapters.activity import activity, growing_folders
from pytest_vllmperf.adapters.control_client import ControlClient, NoAnswer, RequestRefused
from pytest_vllmperf.adapters.host_memory import process_tree
from pytest_vllmperf.domain.engine import Device, EngineConfig, EngineHandle, StartUp
from pytest_vllmperf.domain.hints import find_hint
from pytest_vllmperf.errors import EngineError, EngineExited, EngineStartTimeout

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.activity import Activity
    from pytest_vllmperf.adapters.control_client import FirstToken
    from pytest_vllmperf.adapters.engine_process import EngineProcess

__all__ = ["PortLost", "Start", "attach"]

_POLL_S = 0.05
"""From one look to the next; what starts faster than vLLM is looked at ten times in the time it took so far."""
_HEALTH_TIMEOUT_S = 1.0
"""Bounds how late an exit is noticed: a server that accepts and does not answer holds a health check this long."""
_SETTLE_S = 5.0
"""How long a healthy server may refuse (unknown model, 4xx) before that is taken for its last word."""
_TELL_EVERY_S = 2.0
_TELL_AGAIN_S = 15.0
_LOOPBACK = re.compile(r"https?://(127\.|localhost\b|\[::1\])")
_ATTACH_S = 30.0
"""How long a server that runs already may take to answer."""


class PortLost(EngineError):
    """Somebody else serves the port chosen for an engine."""


@dataclass(slots=True, kw_only=True)
class Start:
    """One process on its way to ready.

    Args:
        config: What was launched, as on its device.
        device: The device.
        process: The process.
        port: Where it is to listen.
        api_key: The key it was given.
        started_ns: When it was launched (monotonic).
        tell: Called with short lines about what is going on.
        gpu_uuids: GPUs it was given.
        device_before: What was in use on each of them before; a GPU that does not tell is missing.
        env: Its environment, which says where it keeps its caches.
    """

    config: EngineConfig
    device: Device
    process: EngineProcess
    port: int
    api_key: str
    started_ns: int
    tell: Callable[[str], None]
    gpu_uuids: tuple[str, ...] = ()
    device_before: Mapping[str, int] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    refused_since: float | None = None
    moved: Activity | None = None
    sign: str = "it was launched"
    phase: str = "starting"
    told: tuple[float, str] = (0.0, "starting")

    def until_ready(self) -> EngineHandle:
        """Poll until a token was streamed, watching the process all the while.

        Raises:
            EngineExited: It ended, with whatever code.
            EngineStartTimeout: It was not ready in time.
            PortLost: Somebody else answers at its address.
            EngineError: It answers, and refuses to serve.
        """
        follower = startup_log.LogFollower(self.process.log_path)
        with ControlClient(f"http://127.0.0.1:{self.port}", self.api_key, _HEALTH_TIMEOUT_S) as control:
            while True:
                self._check_process()
                if control.is_healthy(self.config.health_path):
                    self._check_owner()
                    if first := self._first_token(control):
                        return self._handle(control, first)
                self._tell_phase(follower.new_text())
                self._check_progress()
                time.sleep(min(_POLL_S, max(0.005, self._elapsed_s() / 10)))

    def _check_process(self) -> None:
        code = self.process.exit_code()
        if code is not None:
            how = startup_log.describe_exit_code(code)
            what = f"ended with {how} after {self._elapsed_s():.1f} s, before it was ready"
            raise self._failure(EngineExited, what)
        if self._left_s() <= 0:
            limit_s = self.config.startup_timeout_s
            what = f"was not ready after {limit_s:g} s (startup_timeout_s): {self._state()}"
            raise self._failure(EngineStartTimeout, what)

    def _check_progress(self) -> None:
        """An engine that does nothing for long will do nothing: waiting for the whole time limit helps nobody."""
        limit_s, now = self.config.startup_stall_timeout_s, time.monotonic()
        if self.moved is not None and now - self.moved.at_s < limit_s / 8:
            return
        found = activity(
            process_tree(self.process.pid),
            log=self.process.log_path,
            folders=growing_folders(self.config.model, self.env),
            at_s=now,
        )
        sign = "it began" if self.moved is None else found.since(self.moved)
        if sign is not None:
            self.moved, self.sign = found, sign
        elif self.moved is not None and now - self.moved.at_s > limit_s:
            what = f"did nothing for {limit_s:g} s (startup_stall_timeout_s) while {self.phase}: {self._state()}"
            raise self._failure(EngineStartTimeout, what)

    def _state(self) -> str:
        """How far it came, for a message."""
        problem = self.problem or f"it never answered {self.config.health_path}"
        if self.moved is None:
            return problem
        ago_s = time.monotonic() - self.moved.at_s
        if ago_s > self.config.startup_stall_timeout_s / 2:
            return f"{problem}; no line in the log, no file, no memory and no processor time for {ago_s:.0f} s"
        return f"{problem}; it was still making progress ({self.phase}; {self.sign}): allow it more time"

    def _check_owner(self) -> None:
        """Somebody answered: it must be ours, or a stranger's server would be measured."""
        if self.process.listens_on(self.port):
            return
        self._check_process()
        raise PortLost(
            f"engine {self.config.name!r}: port {self.port} is served by someone else: none of the "
            f"processes started with pid {self.process.pid} listens on it"
        )

    def _first_token(self, control: ControlClient) -> FirstToken | None:
        """The readiness request; None when it is to be tried again."""
        name = self.config.model_name
        try:
            control.require_model(name)
            longest_s = min(self._left_s(), self.config.startup_stall_timeout_s)
            return control.first_token(name, timeout_s=max(_HEALTH_TIMEOUT_S, longest_s))
        except NoAnswer as error:
            self.problem = str(error)
            if self._left_s() > 0:
                what = (
                    f"answers {self.config.health_path} and gave no token within {longest_s:g} s "
                    f"(startup_stall_timeout_s): {error}"
                )
                raise self._failure(EngineStartTimeout, what) from error
        except RequestRefused as error:
            self.problem = str(error)
            self.refused_since = self.refused_since or time.monotonic()
            if time.monotonic() - self.refused_since > _SETTLE_S:
                raise self._refusal() from error
        except EngineError as error:
            self.problem = str(error)
        return None

    def _refusal(self) -> EngineError:
        return self._failure(EngineError, f"is healthy and refuses the readiness request: {_advised(self.problem)}")

    def _handle(self, control: ControlClient, first: FirstToken) -> EngineHandle:
        ready_ns = time.monotonic_ns() - self.started_ns
        self.process.take_stock()
        cold = startup_log.compiled_cold(startup_log.read_log(self.process.log_path))
        self.tell(f"{self.config.name}: ready after {ready_ns * 1e-9:.1f} s")
        return EngineHandle(
            config=self.config,
            device=self.device,
            base_url=control.base_url,
            model_name=self.config.model_name,
            api_key=self.api_key,
            pid=self.process.pid,
            command=self.process.command,
            log_path=str(self.process.log_path),
            version=control.version(),
            start_up=StartUp(time_to_ready_ns=ready_ns, first_request_ttft_ns=first.ttft_ns, cold=cold),
            gpu_uuids=self.gpu_uuids,
            device_baseline_bytes=self._baseline_bytes(),
        )

    def _baseline_bytes(self) -> int | None:
        known = bool(self.gpu_uuids) and len(self.device_before) == len(self.gpu_uuids)
        return sum(self.device_before.values()) if known else None

    def _tell_phase(self, text: str) -> None:
        self.phase = startup_log.phase(text) or self.phase
        told_at, told = self.told
        pause_s = _TELL_EVERY_S if self.phase != told else _TELL_AGAIN_S
        if self._elapsed_s() - told_at > pause_s:
            self.told = (self._elapsed_s(), self.phase)
            self.process.take_stock()
            self.tell(f"{self.config.name}: {self.phase} ({self._elapsed_s():.0f} s)")

    def _failure(self, kind: type[EngineError], what: str) -> EngineError:
        headline = f"engine {self.config.name!r} {what}"
        return kind(startup_log.describe_failure(headline, log_path=self.process.log_path, secret=self.api_key))

    def _elapsed_s(self) -> float:
        return (time.monotonic_ns() - self.started_ns) * 1e-9

    def _left_s(self) -> float:
        return self.config.startup_timeout_s - self._elapsed_s()


def attach(config: EngineConfig, *, device: Device, tell: Callable[[str], None]) -> EngineHandle:
    """A handle to the server that runs at ``config.url``, once it has streamed a token.

    On this machine it is taken to run on ``device``, on another one to have a GPU: workloads are sized by that.

    Raises:
        EngineError: Nothing answers there, it serves another model, or it refuses; a missing key is named.
    """
    assert config.url is not None
    key = os.environ.get(config.api_key_env) if config.api_key_env else None
    if config.api_key_env and not key:
        raise EngineError(f"engine {config.name!r}: api_key_env names {config.api_key_env}, which is not set")
    try:
        with ControlClient(config.url, key, _ATTACH_S) as control:
            control.require_healthy(config.health_path)
            control.require_model(config.model_name)
            control.first_token(config.model_name)
            version = control.version()
    except EngineError as error:
        raise EngineError(f"engine {config.name!r}: {_advised(str(error))}") from error
    tell(f"{config.name}: attached to {config.url}")
    return EngineHandle(
        config=config,
        device=device if _LOOPBACK.match(config.url) else "gpu",
        base_url=config.url,
        model_name=config.model_name,
        api_key=key,
        pid=None,
        command=(),
        log_path=None,
        version=version,
        start_up=StartUp(time_to_ready_ns=None, first_request_ttft_ns=None, cold=None),
    )


def _advised(problem: str) -> str:
    hint = find_hint(problem)
    return f"{problem}\n  hint:  {hint}" if hint else problem
