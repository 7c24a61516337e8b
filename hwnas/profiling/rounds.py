"""Rounds of fresh sessions, kept in a journal: how anything of more than one model is measured.

A round takes fresh sessions in random order, so that a drift of the machine falls on all alike and a run that is cut short is
even. What needs fewer sessions than others has them in some of the rounds, each model in others: rounds differ (by how
much, `tools/bench_latency_prediction.py` prints; most on large images), and a fit on the first of them would miss
what is judged over all. Each finished session is a line in a journal, flushed to disk: a kill at any moment loses at most the
session under way, and the same call goes on from there.
"""

import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, TextIO

from hwnas.errors import InputError
from hwnas.files import write_atomic
from hwnas.latency.sessions import combine_sessions
from hwnas.profiling.device import Device, TimeOverError
from hwnas.profiling.environment import SETTINGS_PREFIX, require_same_environment
from hwnas.profiling.preparing import Models, prepare_ahead
from hwnas.profiling.session import SessionSamples, read_session
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes.base import MachineFaultError

Progress = Callable[[int, int, str], None]
Measured = dict[str, list[SessionSamples]]

# A process may have a ratio of its own, too, which all its sessions would share (where its memory lies): many processes average
# it away.
_SESSIONS_PER_PROCESS = 16
_MAX_FAULTS = 3  # of the machine, of as many models in a row: then it is not worth going on
_MAX_DISTURBED = 3  # sessions of one model that do not count; then they do after all


@dataclass(frozen=True)
class RoundsPlan:
    """How much is measured.

    Attributes:
        min_sessions: Fresh sessions of everything.
        max_sessions: Sessions of that whose sessions disagree.
        target_relative_ci: Half-width of a 95 % interval over sessions above which another session is worth it.
        max_minutes: Wall-clock bound; what is there by then is kept.
        max_anchor_change: A session does not count, and another takes its place, in which the anchor took more than so many times
            its usual time, or less than one part in so many. Far off, because ratios survive a change of clock: it takes a
            throttled, swapping or suddenly crowded machine to spoil them.
        timing: How one session is timed. Short: what more samples cannot average away is the scatter between sessions.

    Raises:
        InputError: A value is out of range.
    """

    min_sessions: int = 3
    max_sessions: int = 6
    target_relative_ci: float = 0.03
    max_minutes: float = 30.0
    max_anchor_change: float = 2.0
    timing: TimingPlan = field(default_factory=lambda: TimingPlan(
        sample_ms=1.0, min_pairs=16, max_pairs=96, max_seconds=0.8, warmup_pairs=5, max_warmup_seconds=0.2))

    def __post_init__(self) -> None:
        if not 1 <= self.min_sessions <= self.max_sessions:
            raise InputError("1 <= min_sessions <= max_sessions must hold, but got "
                             f"(min_sessions={self.min_sessions}, max_sessions={self.max_sessions}).")
        for name in ("target_relative_ci", "max_minutes"):
            check_not_negative(name, getattr(self, name))
        if not self.max_anchor_change > 1:
            raise InputError(f"max_anchor_change must be above 1, but is {self.max_anchor_change}.")


def check_not_negative(name: str, value: float) -> None:
    """Refuses what is below 0, and what is not a number.

    Raises:
        InputError: Naming the value.
    """
    if not value >= 0:
        raise InputError(f"{name} must be at least 0, but is {value}.")


def measurement_folder(environment: Mapping[str, Any]) -> Path:
    """`<device>/<runtime>-<precision>-<threads>t`: where measurements of one kind lie together.

    The device is the GPU of a runtime that has one, else the processor's name and identity: a virtual machine calls several
    generations by one name, whose tables would be in each other's way.
    """
    device = environment.get(f"{SETTINGS_PREFIX}gpu") or f"{environment['device']} {environment['device_id']}"
    folder = re.sub(r"[^a-z0-9]+", "-", str(device).lower()).strip("-")
    return Path(folder, f"{environment['runtime']}-{environment['precision']}-{environment['threads']}t")


def measure_rounds(models: Models, measured: Measured, journal: Path, device: Device,
                   plan: RoundsPlan, *, sessions: Mapping[str, tuple[int, int]] | None = None, seed: int = 0,
                   progress: Progress | None = None, preparing: Progress | None = None,
                   refused: dict[str, str] | None = None) -> None:
    """Measures until everything has its sessions or the time is over, a few sessions in each process.

    What was never measured is prepared ahead first, see `hwnas.profiling.preparing`; what there was no time for then, before its
    first session, with some of those that follow.

    A model for which the machine lacks memory has another chance in the next round, when there may be more; then it is refused,
    since the anchor ran. Where a few lack it in a row, it is the machine.

    Args:
        models: What makes the ONNX bytes, by key.
        measured: What was measured before, by key; grows.
        journal: As `open_journal` left it.
        device: Where.
        plan: How much.
        sessions: The least and the most sessions by key, where that is not the plan's.
        seed: Chooses the order.
        progress: Called with (sessions done, sessions planned, key) when a session is on disk.
        preparing: Called with (models done, models in all, key) when one is prepared ahead.
        refused: What the device said of models that it refuses, by key; grows. Without it a refusal ends everything.

    Raises:
        InputError: The device refuses a model, or the journal cannot be written.
        UnavailableError: The device cannot be reached any more, or lacks memory whatever is measured.
    """
    deadline = time.monotonic() + plan.max_minutes * 60
    refusals = {} if refused is None else refused
    lacked: set[str] = set()
    in_a_row = 0
    bounds = dict.fromkeys(models, (plan.min_sessions, plan.max_sessions)) | dict(sessions or {})
    schedule = Schedule.of({key: least for key, (least, _) in bounds.items()})
    with open(journal, "a", encoding="utf-8") as file:
        new = {key: model for key, model in models.items() if key not in refusals and not measured.get(key)}
        ready = set(models) - set(new) | _prepare(new, device, file, deadline, preparing, refused)
        for round_index in range(max((most for _, most in bounds.values()), default=0) + _MAX_DISTURBED):
            usual_ms = _usual_anchor_ms(measured)
            due = [key for key in models if key not in refusals
                   and _is_due(measured.get(key, []), round_index, schedule.planned(key, round_index), bounds[key], plan,
                               usual_ms)]
            random.Random(f"{seed}/{round_index}").shuffle(due)
            done = {key: len(measured.get(key, ())) for key in models}
            due_now = set(due)
            later = sum(max(0, bounds[key][0] - done[key] - (key in due_now)) for key in models if key not in refusals)
            done_before = sum(done.values())
            for index, key in enumerate(due):
                if key not in ready:  # there was no time for it
                    coming = {one: models[one] for one in due[index:index + _SESSIONS_PER_PROCESS] if one not in ready}
                    ready |= {key} | _prepare(coming, device, file, deadline, preparing, refused)
                if time.monotonic() >= deadline:
                    return
                if index % _SESSIONS_PER_PROCESS == 0:
                    device.renew()
                if key in refusals:
                    continue
                start = time.monotonic()
                try:
                    session = device.measure(models[key](), plan.timing, deadline)
                except TimeOverError:
                    return  # whatever would have come of it
                except (InputError, MachineFaultError) as error:
                    if isinstance(error, MachineFaultError) and key not in lacked:
                        lacked.add(key)
                        in_a_row += 1
                        if refused is None or in_a_row >= _MAX_FAULTS:
                            raise
                        continue
                    if refused is None:
                        raise
                    refused[key] = str(error)
                    _append(file, {"key": key, "refused": str(error), "preparing_s": round(time.monotonic() - start, 3)})
                    continue
                in_a_row = 0
                session = replace(session, total_s=round(time.monotonic() - start, 3))
                measured.setdefault(key, []).append(session)
                _append(file, _session_row(key, session))
                if progress is not None:
                    progress(done_before + index + 1, done_before + len(due) + later, key)


def _prepare(models: Models, device: Device, file: TextIO, deadline: float, progress: Progress | None,
             refused: dict[str, str] | None) -> set[str]:
    """Prepares models ahead; returns those that are ready, or refused."""
    known: set[str] = set()
    last = time.monotonic()
    with closing(prepare_ahead(device.runtime, device.config, models, deadline)) as prepared:
        for done, (key, reason) in enumerate(prepared, 1):
            now = time.monotonic()
            row: dict[str, Any] = {"key": key, "preparing_s": round(now - last, 3)}
            last = now
            if reason is not None:
                if refused is None:
                    raise InputError(reason)
                refused[key] = row["refused"] = reason
            _append(file, row)
            known.add(key)
            if progress is not None:
                progress(done, len(models), key)
    return known


def read_preparing_s(journal: Path) -> float:
    """Seconds that no session counts, of all calls: for preparing models ahead, and for models that were refused.

    Args:
        journal: As `open_journal` has read it.
    """
    rows = map(json.loads, journal.read_bytes().split(b"\n")[:-1])
    return sum(float(row.get("preparing_s", 0)) for row in rows)


def open_journal(path: Path, header: Mapping[str, Any], measured: Mapping[str, list[SessionSamples]] | None = None,
                 refused: dict[str, str] | None = None) -> Measured:
    """Reads what an earlier call measured, or starts the journal; a torn last line is cut off.

    Args:
        path: The journal.
        header: What must be the same when it is continued; `environment` is compared as measurements are.
        measured: What a new journal begins with.
        refused: Takes what the device said of models that it refused, by key.

    Returns:
        The sessions, by key.

    Raises:
        InputError: The journal is of something else, or damaged.
    """
    content = path.read_bytes() if path.exists() else b""
    length = content.rfind(b"\n") + 1
    lines = content[:length].split(b"\n")[:-1]
    if not lines:  # none, or killed before the header was on disk
        return _start_journal(path, header, measured or {})
    found: Measured = {}
    try:
        began = json.loads(lines[0])
        for key, value in header.items():
            if key != "environment" and began[key] != value:
                raise InputError(f"The journal {path} must continue as it began, but its {key} is {began[key]!r} and this "
                                 f"call's is {value!r}: delete it, or repeat with --restart.")
        require_same_environment(dict(began["environment"]), header["environment"], f"the journal {path}",
                                 remedy="repeat with --restart to measure again")
        for line in lines[1:]:
            row = json.loads(line)
            if "preparing_s" in row and not 0 <= float(row["preparing_s"]) < math.inf:
                raise ValueError("seconds are negative, or not a number")
            if "refused" in row:
                if refused is not None:
                    refused[str(row["key"])] = str(row["refused"])
            elif "preparing_s" not in row:
                found.setdefault(row["key"], []).append(read_session(row))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"The journal {path} must be as hwnas wrote it, but a line cannot be read ({error}): repeat with "
                         "--restart to measure again.") from None
    if length < len(content):
        os.truncate(path, length)  # the line that was being written when the last call was killed
    return found


def discard(path: Path, schema: str, what: str) -> None:
    """Deletes a file of a schema, whole or torn, and nothing else.

    Args:
        path: The file; nothing happens where there is none.
        schema: Its schema, of any version.
        what: What such a file is, for the error ("latency table").

    Raises:
        InputError: It is something else.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        start = file.read(200)
    if start and schema.rpartition("/")[0].encode() not in start:
        raise InputError(f"Only a {what} is replaced, but {path} is something else: choose another --output.")
    path.unlink()


def _start_journal(path: Path, header: Mapping[str, Any], measured: Mapping[str, list[SessionSamples]]) -> Measured:
    rows = [_session_row(key, session) for key, sessions in measured.items() for session in sessions]
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in (header, *rows)))
    return {key: list(sessions) for key, sessions in measured.items()}


def _session_row(key: str, session: SessionSamples) -> dict[str, Any]:
    return {"key": key, **asdict(session)}


def _append(file: TextIO, row: Mapping[str, Any]) -> None:
    try:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):  # or the line that is left in it would raise this once more, in place of what is said here
            file.close()
        raise InputError(f"The journal {file.name} must be writable, but is not ({error.strerror}): make room, then repeat the "
                         "command; what was measured before is kept.") from None


def without_disturbed(measured: Measured, plan: RoundsPlan, least: Callable[[str], int]) -> Measured:
    """The sessions that count: without those in which the machine was another, wherever enough are left.

    Args:
        measured: All sessions by key.
        plan: Says what is disturbed.
        least: How many a key needs.
    """
    usual_ms = _usual_anchor_ms(measured)
    kept = {key: [session for session in sessions if not _is_disturbed(session, plan, usual_ms)]
            for key, sessions in measured.items()}
    return {key: kept[key] if len(kept[key]) >= least(key) else sessions for key, sessions in measured.items()}


@dataclass(frozen=True)
class Schedule:
    """In which rounds each model has its least sessions.

    Attributes:
        rounds: So many, until all have them.
        least: Of each model, by key.
        offsets: Of each model, by key, from 0 to `rounds` - 1: of models with equally many sessions, one with a higher offset has
            them in earlier rounds.
    """

    rounds: int
    least: Mapping[str, int]
    offsets: Mapping[str, int]

    @staticmethod
    def of(least: Mapping[str, int]) -> "Schedule":
        """Spreads the sessions evenly: over the rounds for each model, and over the models in each round.

        Args:
            least: Sessions by key.
        """
        rounds = max(least.values(), default=0)
        seen: dict[int, int] = {}
        offsets = {}
        for key, count in least.items():
            seen[count] = seen.get(count, -1) + 1
            offsets[key] = rounds - 1 - seen[count] % rounds if rounds else 0
        return Schedule(rounds, dict(least), offsets)

    def planned(self, key: str, round_index: int) -> int:
        """How many sessions of a model there are to be when a round is over."""
        if round_index >= self.rounds:
            return self.least[key]
        return ((round_index + 1) * self.least[key] + self.offsets[key]) // self.rounds


def _is_due(sessions: list[SessionSamples], round_index: int, planned: int, bounds: tuple[int, int], plan: RoundsPlan,
            usual_ms: float) -> bool:
    least, most = bounds
    disturbed = sum(_is_disturbed(session, plan, usual_ms) for session in sessions)
    counted = len(sessions) - min(disturbed, _MAX_DISTURBED)
    if counted < least:
        return counted < planned  # an interrupted round goes on, and what it lacks is made up for
    # One more a round; what is there already was measured before an interruption.
    return len(sessions) <= round_index and counted < most and _relative_ci(sessions) > plan.target_relative_ci


def _usual_anchor_ms(measured: Measured) -> float:
    return median([session.anchor_ms for sessions in measured.values() for session in sessions] or [0.0])


def _is_disturbed(session: SessionSamples, plan: RoundsPlan, usual_ms: float) -> bool:
    return not usual_ms / plan.max_anchor_change <= session.anchor_ms <= usual_ms * plan.max_anchor_change


def _relative_ci(sessions: list[SessionSamples]) -> float:
    combined = combine_sessions(sessions)
    return (combined.ratio_ci[1] - combined.ratio) / combined.ratio
