"""Everything this package raises on purpose.

::

    VllmPerfError
    ├── ConfigError                 the user's input is wrong; nothing was launched
    │   ├── EngineConfigError       an EngineConfig (or the engine matrix) is wrong
    │   ├── WorkloadError           a Workload is wrong
    │   ├── UnitError               a quantity such as "600 ms" cannot be read
    │   ├── UnknownMetric           a metric name is not in the catalogue
    │   ├── ThresholdFileError      thresholds.toml is wrong (lists every problem)
    │   ├── LimitTie                two limits claim the same value equally
    │   ├── TaskError               a quality task is unknown or its data unreadable
    │   │   └── TaskUnavailable     it is right, but its data or log-likelihoods cannot be had here
    │   └── TwinError               a shape twin cannot be made from this configuration
    ├── EngineError                 a launched engine misbehaved
    │   ├── EngineUnavailable       this machine cannot run the engine (no GPU, …)
    │   ├── EngineExited            the engine process ended although nobody asked
    │   └── EngineStartTimeout      the engine was not ready in time
    ├── MeasurementError            a measurement could not be made at all
    │   └── LoadProcessError        the load process broke
    └── HistoryError                the stored history cannot be read or written

A missed limit is not an error: it is a :class:`~pytest_vllmperf.domain.thresholds.Verdict`.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "EngineConfigError",
    "EngineError",
    "EngineExited",
    "EngineStartTimeout",
    "EngineUnavailable",
    "HistoryError",
    "LimitTie",
    "LoadProcessError",
    "MeasurementError",
    "TaskError",
    "TaskUnavailable",
    "ThresholdFileError",
    "TwinError",
    "UnitError",
    "UnknownMetric",
    "VllmPerfError",
    "WorkloadError",
]


class VllmPerfError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(VllmPerfError):
    """The user's input is wrong. Always raised before any engine starts."""


class EngineConfigError(ConfigError):
    """An engine configuration, or the matrix of engines, is wrong."""


class WorkloadError(ConfigError):
    """A workload asks for something impossible, or its name is unknown."""


class UnitError(ConfigError):
    """A quantity cannot be read, or its unit does not fit its metric."""


class UnknownMetric(ConfigError):
    """A metric name is not in the catalogue."""


class ThresholdFileError(ConfigError):
    """A thresholds file is wrong.

    ``problems`` holds one complete sentence for each mistake (file, dotted path, offending
    value, what is allowed); the message shows all of them, so that one run finds every mistake.
    """

    def __init__(self, path: str, problems: Iterable[str]) -> None:
        self.path = path
        self.problems = tuple(problems)
        count = len(self.problems)
        noun = "problem" if count == 1 else "problems"
        super().__init__("\n".join([f"{path}: {count} {noun}", *(f"  - {p}" for p in self.problems)]))


class LimitTie(ConfigError):
    """Two limit tables match one value equally well; neither may silently win."""


class TaskError(ConfigError):
    """A quality task is unknown, or its data cannot be read."""


class TaskUnavailable(TaskError):
    """A quality task is right, but its data, or the log-likelihoods it needs, cannot be had here."""


class TwinError(ConfigError):
    """A shape twin cannot be made: the model is unknown, or its configuration is none of a text model."""


class EngineError(VllmPerfError):
    """A launched engine misbehaved. The message carries the cause found in its log."""


class EngineUnavailable(EngineError):
    """This machine cannot run the engine: the tests are skipped, or fail where a GPU is required."""


class EngineExited(EngineError):
    """The engine process ended although nobody asked it to (whatever its exit code)."""


class EngineStartTimeout(EngineError):
    """The engine was still not ready when its start-up time limit ran out."""


class MeasurementError(VllmPerfError):
    """A measurement could not be made at all; there is nothing to judge."""


class LoadProcessError(MeasurementError):
    """The load process died or answered with something unreadable."""


class HistoryError(VllmPerfError):
    """The stored history cannot be read or written."""
