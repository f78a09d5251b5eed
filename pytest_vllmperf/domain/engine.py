"""Engines: what to launch (EngineConfig) and what is running (EngineHandle)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from pytest_vllmperf.domain.arguments import ArgValue
from pytest_vllmperf.domain.flag_traps import find_trap, is_vllm
from pytest_vllmperf.domain.sleeping import EngineControls, SleepStep
from pytest_vllmperf.errors import EngineConfigError, EngineError

if TYPE_CHECKING:
    from pytest_vllmperf.domain.evidence import Evidence

__all__ = ["REQUIREMENTS", "ArgValue", "Device", "EngineConfig", "EngineHandle", "StartUp", "flags"]

Device = Literal["cpu", "gpu"]

REQUIREMENTS = ("gpu",)
"""What an engine may require of the machine."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_URL = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?/?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LAUNCHING = ("args", "cpu_args", "gpu_args", "env", "cpu_env", "python", "command", "requires")
_RESERVED = {
    "host": "engines listen on loopback only",
    "port": "the port is chosen for each launch",
    "api-key": "a random key is made for each launch and passed by environment",
    "model": "give it as EngineConfig(model=…)",
    "served-model-name": "give it as EngineConfig(served_model_name=…)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One server configuration: launched once in a run, measured, stopped.

    Args:
        name: Short and unique; letters, digits, ``_ . -``. It names the engine in test ids,
            in ``thresholds.toml``, in history and in reports.
        model: A hub id or a path to a model directory.
        args: vLLM flags without the leading dashes. ``True`` gives ``--flag``, ``False`` gives
            ``--no-flag``, ``None`` leaves the flag out, a dict becomes JSON, a list several values.
        cpu_args: Flags added (or replacing those of ``args``) when the machine has no GPU.
        gpu_args: Flags added (or replacing those of ``args``) when it has one. Both are resolved
            at launch, so that collecting tests never has to look for a GPU.
        env: Environment variables added for this engine's processes.
        cpu_env: As ``env``, on a machine without a GPU.
        python: The interpreter whose vLLM is launched, such as ``/envs/vllm-0.14/bin/python``: engines of several
            versions of vLLM fit into one matrix. By default the one that runs pytest.
        command: What to run instead of that interpreter's vLLM; vLLM's flags are appended. Where ``{port}`` is
            part of it, it is another server's own command line: ``{model}``, ``{model_name}``, ``{host}`` and
            ``{port}`` are filled in, and of flags only ``args`` are appended.
        url: Where a server runs already, such as ``http://gpu-7:8000``: nothing is launched, stopped or sampled
            there, it is only asked. Everything about launching must be left out then.
        api_key_env: Name of an environment variable. A launched server reads its random key from it
            (``VLLM_API_KEY`` unless told otherwise); of an attached one it holds the key to send (None sends none).
        health_path: What answers 200 once the server can serve. Ready means: it does, the model is listed under
            ``/v1/models``, and one token was streamed.
        gpus: GPUs one launch occupies (ignored on a machine without GPU).
        requires: What the machine must have, from :data:`REQUIREMENTS`; otherwise skipped.
        served_model_name: Name clients ask for; by default the last part of a path, or the hub id.
        startup_timeout_s: Longest time from launch to the first streamed token.
        startup_stall_timeout_s: Longest time of it without any sign of progress: a line in the log, a growing cache
            of models or compiled code, memory taken, processor time used.
        stall_timeout_s: How long a measured engine may make no token while it is asked for some. vLLM answers
            ``/health`` with 200 while its engine core hangs.
        require_evidence: Whether ``suites/test_optimizations.py`` fails where nothing proves that an optimisation
            asked for is active, instead of only showing it as unknown.
        control: Whether this engine is pinned (its vLLM and flags never change) and serves as a yardstick: the
            nightly trend of every other engine is then that of its ratio to this one in the same run.
        together: Groups of flags, variables or fields that only work together, such as
            ``(("kv-offloading-size", "disable-hybrid-kv-cache-manager"),)``: an attribution switches each group as one.

    Raises:
        EngineConfigError: A name, flag or value that cannot work; raised before any launch.
    """

    name: str
    model: str
    args: Mapping[str, ArgValue] = field(default_factory=dict)
    cpu_args: Mapping[str, ArgValue] = field(default_factory=dict)
    gpu_args: Mapping[str, ArgValue] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    cpu_env: Mapping[str, str] = field(default_factory=dict)
    python: str | None = None
    command: tuple[str, ...] | None = None
    url: str | None = None
    api_key_env: str | None = None
    health_path: str = "/health"
    gpus: int = 1
    requires: tuple[str, ...] = ()
    served_model_name: str | None = None
    startup_timeout_s: float = 900.0
    startup_stall_timeout_s: float = 180.0
    stall_timeout_s: float = 45.0
    require_evidence: bool = False
    control: bool = False
    together: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise EngineConfigError(
                f"engine name {self.name!r}: use letters, digits, '_', '.' and '-', starting with a "
                "letter or digit (it becomes part of test ids and file names)"
            )
        if not self.model or not isinstance(self.model, str):
            raise EngineConfigError(f"engine {self.name!r}: model {self.model!r} must be a hub id or a path")
        for attribute in ("args", "cpu_args", "gpu_args"):
            self._freeze(attribute, self._checked_flags(attribute))
        for attribute in ("env", "cpu_env"):
            self._freeze(attribute, self._checked_env(attribute))
        self._check_command_and_requirements()
        self._check_address()
        if isinstance(self.gpus, bool) or not isinstance(self.gpus, int) or self.gpus < 1:
            raise EngineConfigError(f"engine {self.name!r}: gpus={self.gpus!r} must be a whole number, 1 or more")
        for limit in ("startup_timeout_s", "startup_stall_timeout_s", "stall_timeout_s"):
            value = getattr(self, limit)
            if not isinstance(value, (int, float)) or not value > 0:
                raise EngineConfigError(f"engine {self.name!r}: {limit}={value!r} must be above 0")
        self._check_together()
        if self.serves_vllm:
            self._check_traps()

    @property
    def serves_vllm(self) -> bool:
        """Whether this launches vLLM, as far as one can tell."""
        return self.url is None and is_vllm(self.command)

    @property
    def is_template(self) -> bool:
        """Whether ``command`` is another server's whole command line, with places to fill in."""
        return self.command is not None and any("{port}" in part for part in self.command)

    @property
    def model_name(self) -> str:
        """Name clients use for the model, and the one ``thresholds.toml`` matches."""
        if self.served_model_name:
            return self.served_model_name
        path_like = self.model.startswith(("/", "./", "../", "~"))
        return self.model.rstrip("/").rsplit("/", 1)[-1] if path_like else self.model

    def on(self, device: Device) -> EngineConfig:
        """The configuration as launched on ``device``: device flags merged in, none left open."""
        extra = self.cpu_args if device == "cpu" else self.gpu_args
        env = {**self.env, **self.cpu_env} if device == "cpu" else dict(self.env)
        return replace(self, args={**self.args, **extra}, env=env, cpu_args={}, gpu_args={}, cpu_env={})

    def _freeze(self, attribute: str, value: Mapping[str, object]) -> None:
        object.__setattr__(self, attribute, MappingProxyType(dict(value)))

    def _checked_flags(self, attribute: str) -> dict[str, ArgValue]:
        given: Mapping[str, ArgValue] = getattr(self, attribute)
        where = f"engine {self.name!r}: {attribute}"
        if not isinstance(given, Mapping):
            raise EngineConfigError(f'{where}={given!r} must be a mapping such as {{"max-model-len": 2048}}')
        checked: dict[str, ArgValue] = {}
        for key, value in given.items():
            flag = str(key).replace("_", "-")
            if flag.startswith("-"):
                raise EngineConfigError(
                    f"{where}[{key!r}]: write the flag without leading dashes: {flag.lstrip('-')!r}"
                )
            if flag in _RESERVED:
                raise EngineConfigError(f"{where}[{key!r}] cannot be set here: {_RESERVED[flag]}")
            if flag in checked:
                raise EngineConfigError(f"{where} names {flag!r} twice (with '-' and with '_'); keep one")
            if not isinstance(value, (str, int, float, bool, type(None), list, tuple, dict)):
                raise EngineConfigError(
                    f"{where}[{key!r}]={value!r} must be a string, number, bool, None, list or dict"
                )
            checked[flag] = value
        return checked

    def _checked_env(self, attribute: str) -> dict[str, str]:
        given: Mapping[str, str] = getattr(self, attribute)
        if not isinstance(given, Mapping):
            raise EngineConfigError(
                f'engine {self.name!r}: {attribute}={given!r} must be a mapping such as {{"VLLM_USE_V1": "1"}}'
            )
        for key, value in given.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise EngineConfigError(
                    f"engine {self.name!r}: {attribute}[{key!r}]={value!r}: names and values must be strings"
                )
        return dict(given)

    def _check_together(self) -> None:
        example = 'a list of groups such as [["kv-offloading-size", "disable-hybrid-kv-cache-manager"]]'
        groups = self.together
        if isinstance(groups, str) or any(isinstance(g, str) or not isinstance(g, Iterable) for g in groups):
            raise EngineConfigError(f"engine {self.name!r}: together={groups!r} must be {example}")
        known = {*self.args, *self.cpu_args, *self.gpu_args, *self.env, *self.cpu_env}
        known |= {"model", "served_model_name", "python", "command", "gpus"}
        checked = tuple(tuple(n if n in known else str(n).replace("_", "-") for n in group) for group in groups)
        for name in (name for group in checked for name in group):
            if name not in known:
                raise EngineConfigError(
                    f"engine {self.name!r}: together names {name!r}, which this engine does not set; it sets: "
                    f"{', '.join(sorted(known))}"
                )
        object.__setattr__(self, "together", checked)

    def _check_traps(self) -> None:
        devices: tuple[Device, ...] = ("gpu",) if "gpu" in self.requires else ("gpu", "cpu")
        for device in devices:
            extra = self.cpu_args if device == "cpu" else self.gpu_args
            if trap := find_trap({**self.args, **extra}):
                raise EngineConfigError(f"engine {self.name!r}, as launched on a {device.upper()}: {trap}")

    def _check_address(self) -> None:
        """Whether one thing is launched or asked, and how."""
        if self.python is not None:
            object.__setattr__(self, "python", str(self.python))
            if self.command is not None:
                raise EngineConfigError(
                    f"engine {self.name!r}: python={self.python!r} and command= name two things to launch; keep one"
                )
        if not isinstance(self.health_path, str) or not self.health_path.startswith("/"):
            raise EngineConfigError(
                f"engine {self.name!r}: health_path={self.health_path!r} must be a path such as '/health'"
            )
        if self.api_key_env is not None and not _VARIABLE.fullmatch(str(self.api_key_env)):
            raise EngineConfigError(
                f"engine {self.name!r}: api_key_env must be the name of an environment variable, never a key"
            )
        if self.url is None:
            return
        if not isinstance(self.url, str) or not _URL.fullmatch(self.url):
            raise EngineConfigError(
                f"engine {self.name!r}: url={self.url!r} must be http:// or https://, a host and perhaps a port, "
                "without user, path (/v1 is added) or query; give the key with api_key_env"
            )
        object.__setattr__(self, "url", self.url.rstrip("/"))
        given = [name for name in _LAUNCHING if getattr(self, name)]
        if given:
            raise EngineConfigError(
                f"engine {self.name!r}: a server at url={self.url!r} is asked, not launched: leave out "
                f"{', '.join(given)}"
            )

    def _check_command_and_requirements(self) -> None:
        if isinstance(self.command, str):
            raise EngineConfigError(
                f"engine {self.name!r}: command={self.command!r} must be a list of arguments, as no shell "
                f"is used: {self.command.split()!r}"
            )
        if self.command is not None:
            object.__setattr__(self, "command", tuple(str(part) for part in self.command))
            if not self.command:
                raise EngineConfigError(f"engine {self.name!r}: command=() is empty")
        wanted = (self.requires,) if isinstance(self.requires, str) else tuple(self.requires)
        unknown = [item for item in wanted if item not in REQUIREMENTS]
        if unknown:
            raise EngineConfigError(
                f"engine {self.name!r}: requires={unknown[0]!r} is unknown; allowed: {', '.join(REQUIREMENTS)}"
            )
        object.__setattr__(self, "requires", wanted)


def flags(args: Mapping[str, ArgValue]) -> tuple[str, ...]:
    """Render flags as command-line arguments, in the order given.

    >>> flags({"max-model-len": 2048, "enforce-eager": True, "enable-prefix-caching": False})
    ('--max-model-len', '2048', '--enforce-eager', '--no-enable-prefix-caching')
    """
    rendered: list[str] = []
    for flag, value in args.items():
        if value is None:
            continue
        if value is True:
            rendered.append(f"--{flag}")
        elif value is False:
            rendered.append(f"--no-{flag}")
        elif isinstance(value, dict):
            rendered += [f"--{flag}", json.dumps(value, sort_keys=True)]
        elif isinstance(value, (list, tuple)):
            rendered += [f"--{flag}", *_words(value)]
        else:
            rendered += [f"--{flag}", str(value)]
    return tuple(rendered)


def _words(values: Iterable[object]) -> list[str]:
    return [value if isinstance(value, str) else json.dumps(value) for value in values]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUp:
    """How one launch went.

    Args:
        time_to_ready_ns: Launch until the readiness request had streamed its first token; None of a server that
            ran already.
        first_request_ttft_ns: TTFT of the very first request after start (the readiness request); None likewise.
        cold: True when a compile cache had to be built, False when one was found, None when the
            engine does not compile or nothing told. Cold and warm starts must never be compared.
    """

    time_to_ready_ns: int | None
    first_request_ttft_ns: int | None
    cold: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHandle:
    """One live engine. Valid until the engine is stopped.

    ``config`` is the configuration as launched (see :meth:`EngineConfig.on`), ``command`` the full
    command line (it never holds the key), ``api_key`` a random key for this launch only. Of a server that ran
    already (``config.url``) ``pid``, ``log_path`` and perhaps ``api_key`` are None and ``command`` is empty.
    ``gpu_uuids`` are the GPUs it was given, ``device_baseline_bytes`` what was in use on them before its launch.
    """

    config: EngineConfig
    device: Device
    base_url: str
    model_name: str
    api_key: str | None = field(repr=False)
    pid: int | None
    command: tuple[str, ...]
    log_path: str | None
    version: str | None
    start_up: StartUp
    gpu_uuids: tuple[str, ...] = ()
    device_baseline_bytes: int | None = None
    controls: EngineControls | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The engine's name in the matrix."""
        return self.config.name

    def sleep(self, level: int = 1) -> SleepStep:
        """Put the engine to sleep (``args={"enable-sleep-mode": True}``): its GPU is free for another engine.

        Level 1 keeps the weights in host memory, level 2 keeps nothing and loads them anew.

        Raises:
            EngineError: It cannot sleep, or does already.
        """
        return self._controls().sleep(level)

    def wake(self) -> SleepStep:
        """Wake the engine up; it has streamed a token when this returns.

        Raises:
            EngineError: It does not sleep, or does not come back.
        """
        return self._controls().wake()

    def evidence(self) -> tuple[Evidence, ...]:
        """What proves, right now, which optimisations are active; see ``suites/test_optimizations.py``."""
        return self._controls().evidence()

    def _controls(self) -> EngineControls:
        if self.controls is None:
            raise EngineError(f"engine {self.name!r}: this handle was not given out by a pool and controls nothing")
        return self.controls
