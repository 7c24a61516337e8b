"""The environment of a measurement: what must match before two measurements are compared, and what is good to know.

Nothing in it identifies a person or a host.
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hwnas.errors import InputError
from hwnas.runtimes.base import Runtime, RuntimeConfig

# Measurements are comparable when all of these match, and every key that starts with SETTINGS_PREFIX besides.
CHECKED_KEYS = (
    "device",
    "device_id",  # virtual machines often name their processor no better than "AMD EPYC"
    "device_flags",
    "architecture",
    "runtime",
    "runtime_version",
    "threads",
    "affinity",  # cores of one processor may differ
    "precision",
    "batch_size",
    "anchor",
)
SETTINGS_PREFIX = "setting."

# Instruction sets that inference kernels are chosen by; a hypervisor may hide some of a processor's own.
_KERNEL_FLAGS = ("fma", "f16c", "avx", "avx2", "asimd", "asimdhp", "asimddp", "fphp", "i8mm", "bf16", "sme", "sme2")
_KERNEL_FLAG_PREFIXES = ("avx512", "avx_vnni", "avx10", "amx_", "sve")

_CPUINFO, _BOARD = "/proc/cpuinfo", "/proc/device-tree/model"

# What /proc/cpuinfo calls the parts of a processor's identity: on x86, then on ARM.
_ID_FIELDS = (("cpu family", "model", "stepping"), ("CPU implementer", "CPU part", "CPU variant"))


@dataclass(frozen=True)
class Processor:
    """A processor as the operating system presents it.

    Args:
        name: The model name, or "unknown".
        identity: Family, model and stepping (on ARM: implementer, part and variant), for each kind of core.
        flags: The sorted instruction sets that matter to inference.
    """

    name: str
    identity: str
    flags: tuple[str, ...]


def environment_fingerprint(runtime: Runtime, config: RuntimeConfig, *, batch_size: int, anchor: str) -> dict[str, Any]:
    """Describes this machine, this process and this way of running, as a flat JSON-able dict. Needs the standard library only.

    Args:
        runtime: The runtime that is measured.
        config: How it runs.
        batch_size: Images an inference.
        anchor: The anchor network's hash.

    Raises:
        InputError: The runtime lacks the precision.
    """
    processor = read_processor()
    checked = {
        "device": processor.name,
        "device_id": processor.identity,
        "device_flags": " ".join(processor.flags),
        "architecture": platform.machine(),
        "runtime": runtime.name,
        "runtime_version": runtime.can_load().version,
        "threads": config.threads,
        "affinity": _affinity(),
        "precision": config.precision,
        "batch_size": batch_size,
        "anchor": anchor,
    }
    settings = {SETTINGS_PREFIX + key: value for key, value in sorted(runtime.settings(config).items())}
    informative = {
        "logical_cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python_version": platform.python_version(),
        "measured_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return checked | settings | informative


def compare_environments(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The checked keys whose values differ, each with both values; a missing key counts as None."""
    settings = sorted(key for key in {*a, *b} if key.startswith(SETTINGS_PREFIX))
    return [(key, a.get(key), b.get(key)) for key in (*CHECKED_KEYS, *settings) if a.get(key) != b.get(key)]


def require_same_environment(a: Mapping[str, Any], b: Mapping[str, Any], what: str,
                             remedy: str = "measure it again here with `hwnas profile`") -> None:
    """Refuses to mix measurements of unlike environments.

    Args:
        a: The environment of `what`.
        b: The environment here and now.
        what: What was measured in `a`, for the message ("the latency table t.json").
        remedy: What a user may do, for the message.

    Raises:
        InputError: Names every key that differs, with both values.
    """
    differences = compare_environments(a, b)
    if differences:
        listed = "; ".join(f"{key} is {there!r} there and {here!r} here" for key, there, here in differences)
        raise InputError(
            f"Measurements of unlike environments cannot be mixed, but for {what} {listed}: {remedy}, "
            "or use the device, runtime and options that it was measured with."
        )


def read_processor() -> Processor:
    """This machine's processor; from Linux itself where that suffices, which takes no time, else from py-cpuinfo."""
    processor = parse_cpuinfo(_read_text(_CPUINFO))
    board = _read_text(_BOARD).strip("\0\n ")  # the name of a small computer says which processor it has
    if processor.name == "unknown" and board:
        processor = replace(processor, name=board)
    if processor.name != "unknown":
        return processor
    try:
        import cpuinfo  # takes a second or more to ask
    except ModuleNotFoundError:  # a device with an agent has no more than the runtime
        return replace(processor, name=platform.processor() or "unknown")
    info = cpuinfo.get_cpu_info()
    identity = "/".join(str(info[key]) for key in ("family", "model", "stepping") if key in info)
    return Processor(
        name=info.get("brand_raw") or "unknown",
        identity=processor.identity or identity,
        flags=processor.flags or _kernel_flags(info.get("flags", [])),
    )


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def parse_cpuinfo(text: str) -> Processor:
    """Reads the text of Linux's /proc/cpuinfo; the name is "unknown" where it has none, as on most ARM systems."""
    cores = [dict(_fields(block)) for block in text.strip().split("\n\n") if block]
    identities = {
        "/".join(core[key] for key in keys) for core in cores for keys in _ID_FIELDS if all(key in core for key in keys)
    }
    first = cores[0] if cores else {}
    return Processor(
        name=first.get("model name", "unknown"),
        identity=" ".join(sorted(identities)),
        flags=_kernel_flags((first.get("flags") or first.get("Features") or "").split()),
    )


def _fields(block: str) -> list[tuple[str, str]]:
    lines = (line.partition(":") for line in block.splitlines())
    return [(key.strip(), value.strip()) for key, _, value in lines]


def _kernel_flags(flags: list[str]) -> tuple[str, ...]:
    return tuple(sorted({f for f in flags if f in _KERNEL_FLAGS or f.startswith(_KERNEL_FLAG_PREFIXES)}))


def _affinity() -> str | None:
    """The processors that this process may use ("2,3"); None where the system does not say."""
    return ",".join(map(str, sorted(os.sched_getaffinity(0)))) if hasattr(os, "sched_getaffinity") else None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not every system has these
        return None
