"""Options of a model (``config.pbtxt`` parameters) as ONNX Runtime session options.

The names are those of Triton's ONNX Runtime backend, so that existing model folders keep their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import onnxruntime as ort

from headrace.runtimes.base import InstanceSpec, ModelError

THREADS: Final = "intra_op_thread_count"
GRAPH_LEVEL: Final = "optimization.graph.level"
LEVEL_OFF: Final = "2"
LEVEL_BASIC: Final = "-1"
_GRAPH_LEVELS: Final = MappingProxyType(
    {
        LEVEL_BASIC: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "0": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "1": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        LEVEL_OFF: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }
)
_EXECUTION_MODES: Final = MappingProxyType(
    {"0": ort.ExecutionMode.ORT_SEQUENTIAL, "1": ort.ExecutionMode.ORT_PARALLEL}
)
_SWITCHES: Final = MappingProxyType(
    {
        "enable_mem_arena": "enable_cpu_mem_arena",
        "enable_mem_pattern": "enable_mem_pattern",
        "enable_mem_reuse": "enable_mem_reuse",
    }
)
_SPINNING: Final = ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning")
LONE_SPINNING: Final = MappingProxyType(
    {"session.intra_op.allow_spinning": "1", "session.intra_op.spin_duration_us": "3000"}
)
"""For batches that run alone: the threads still spin when a lone caller's next request comes."""

SHORT_SPINNING: Final = MappingProxyType(
    {"session.intra_op.allow_spinning": "1", "session.intra_op.spin_duration_us": "500"}
)
"""For runs of many threads that have the machine to themselves. A run is hundreds of small operators: waking
a thread for each costs up to a quarter of the speed on idle cores. So threads spin, but shortly, for on
busy cores they would take the time of those that they wait for. The next run begins before they are done with
that, which is worth 2 to 5 % to one stream of SmolLM2."""

STILL_BETWEEN_RUNS: Final = MappingProxyType({"session.force_spinning_stop": "1"})
"""Besides, where runs take turns with those of another session."""

CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
_ERRORS_ONLY: Final = 3

Provider = str | tuple[str, dict[str, str]]


def session_options(options: Mapping[str, str]) -> ort.SessionOptions:
    """Build the session options.

    Read from ``options``: ``intra_op_thread_count`` and ``inter_op_thread_count`` (0, the default, lets ONNX
    Runtime choose), ``execution_mode`` (0 sequential, 1 parallel), ``optimization.graph.level`` (-1 basic,
    0 all, 1 extended, 2 off; all by default), ``enable_mem_arena``, ``enable_mem_pattern``,
    ``enable_mem_reuse`` (0 or 1), and every name that begins with ``session.`` as a session configuration
    entry. Other names are not ours.

    Idle threads do not spin unless ``session.intra_op.allow_spinning`` is 1: they would take the cores of the
    other instances of the machine.

    Raises:
        ModelError: a value is not one of those.
    """
    built = ort.SessionOptions()
    built.log_severity_level = _ERRORS_ONLY
    built.intra_op_num_threads = _count(options, THREADS)
    built.inter_op_num_threads = _count(options, "inter_op_thread_count")
    built.execution_mode = _choice(options, "execution_mode", _EXECUTION_MODES, "0")
    built.graph_optimization_level = _choice(options, GRAPH_LEVEL, _GRAPH_LEVELS, "0")
    for name, attribute in _SWITCHES.items():
        if name in options:
            setattr(built, attribute, _choice(options, name, {"0": False, "1": True}, "1"))
    entries = dict.fromkeys(_SPINNING, "0")
    entries.update((name, value) for name, value in options.items() if name.startswith("session."))
    for name, value in entries.items():
        built.add_session_config_entry(name, value)
    return built


def optimises(options: Mapping[str, str]) -> bool:
    """Whether ONNX Runtime may rewrite the graph."""
    return options.get(GRAPH_LEVEL, "").strip() != LEVEL_OFF


def providers(instance: InstanceSpec) -> list[Provider]:
    """Return the execution providers of an instance, best first.

    ``execution_providers`` (a comma-separated list) names them; by default CUDA for a CUDA device if this
    build of ONNX Runtime has it, and the CPU after it for what CUDA cannot run.

    Raises:
        ModelError: a named provider, or the one that the device needs, is not in this build.
    """
    available: list[str] = ort.get_available_providers()
    kind, _, number = instance.device.partition(":")
    listed = [
        name.strip() for name in instance.options.get("execution_providers", "").split(",") if name.strip()
    ]
    names = listed or ([_CUDA, CPU] if kind == "cuda" else [CPU])
    for name in names:
        if name not in available:
            why = f" (device {instance.device} needs it; install onnxruntime-gpu)" if not listed else ""
            msg = f"execution provider '{name}' is not available{why}; available are {', '.join(available)}"
            raise ModelError(msg)
    return [(name, {"device_id": number or "0"}) if name == _CUDA else name for name in names]


def check_providers(wanted: Sequence[Provider], started: Sequence[str]) -> None:
    """Raise unless every wanted provider has started: ONNX Runtime only warns when one cannot.

    Raises:
        ModelError: a provider is missing, say because a library that it needs is not installed.
    """
    for provider in wanted:
        name = provider if isinstance(provider, str) else provider[0]
        if name not in started:
            msg = f"execution provider '{name}' did not start (a driver or library is missing); see the log"
            raise ModelError(msg)


def _count(options: Mapping[str, str], name: str) -> int:
    """Read a whole number of at least 0, which is the default."""
    text = options.get(name, "0").strip()
    if not text.isdecimal():
        msg = f"option '{name}' must be a whole number of at least 0, not '{text}'"
        raise ModelError(msg)
    return int(text)


def _choice(options: Mapping[str, str], name: str, choices: Mapping[str, Any], default: str) -> Any:
    """Read one of a few values."""
    text = options.get(name, default).strip()
    if text not in choices:
        msg = f"option '{name}' must be one of {', '.join(choices)}, not '{text}'"
        raise ModelError(msg)
    return choices[text]
