"""Atomic writes and hashes: nothing half-written is ever left looking finished."""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hwnas.errors import InputError

_LOCK_ATTEMPTS = 100


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Writes a whole file or nothing: temporary file in the same folder, fsync, rename.

    Args:
        path: The file to write; missing parent folders are made.
        content: Bytes, or text that is stored as UTF-8.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files private; results are meant to be shared
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


@contextmanager
def locked(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Keeps other processes from a file while they ask for it in the same way; the system releases it if this one is killed.

    Args:
        path: The file; beside it lies `<path>.lock` meanwhile.
        what: What the file is, for the error ("latency table").

    Raises:
        InputError: Another process has it, or the folder cannot be written.
    """
    lock = Path(f"{os.fspath(path)}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(lock)
    except BlockingIOError:
        raise InputError(f"The {what} {path} is in the hands of one process at a time, but process {_owner(lock)} is at work on "
                         "it: wait for it, or choose another file.") from None
    except OSError as error:
        raise InputError(f"The folder of the {what} {path} must be writable, but is not ({error.strerror}): choose "
                         "another --output.") from None
    try:
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        lock.unlink(missing_ok=True)  # before it is released: who waits for this file finds out that it is gone
        os.close(descriptor)


def _owner(lock: Path) -> str:
    try:
        return lock.read_text() or "another"
    except OSError:  # it has just finished
        return "another"


def _open_locked(lock: Path) -> int:
    """Opens and locks a file.

    Raises:
        BlockingIOError: Another process has locked it.
    """
    for _ in range(_LOCK_ATTEMPTS):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.exists() and os.path.samestat(os.stat(lock), os.fstat(descriptor)):
                os.ftruncate(descriptor, 0)
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner removed it between the two calls
    raise BlockingIOError


def write_json(path: str | os.PathLike[str], document: Any) -> Path:
    """Writes one JSON document atomically; NaN and infinity are refused, since other readers cannot parse them."""
    return write_atomic(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Reads one JSON document.

    Args:
        path: The file.
        what: What the file should be, for the error ("latency table").

    Raises:
        InputError: The file is missing, unreadable or not JSON (a truncated one, for example).
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The {what} {path} cannot be read ({error.strerror}): check the path.") from None
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, absurd numbers, absurd nesting
        raise InputError(f"The {what} {path} is not valid JSON ({error}): it is truncated or was edited; make it "
                         "again.") from None


def read_yaml(path: str | os.PathLike[str], what: str) -> Any:
    """Reads one YAML document, safely.

    Args:
        path: The file.
        what: What the file should be, for the error ("configuration").

    Raises:
        InputError: The file is missing, unreadable or not YAML.
    """
    import yaml  # a device that measures a kit lacks it

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The {what} {path} cannot be read ({error.strerror}): check the path.") from None
    except Exception as error:  # of malformed scalars, PyYAML lets ValueError, KeyError and others through
        raise InputError(f"The {what} {path} is not valid YAML ({' '.join(str(error).split())}): correct it.") from None


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_difference(found: Any, wanted: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key at which two JSON documents differ, `config.population` for a nested one, with both values.

    Args:
        found: What is there.
        wanted: What should be.
        key: Where in the documents this is.
    """
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for name in dict.fromkeys([*wanted, *found]):
            difference = first_difference(found.get(name), wanted.get(name), f"{key}.{name}" if key else str(name))
            if difference is not None:
                return difference
        return None
    return None if found == wanted else (key, found, wanted)


def content_sha256(document: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON document but for its own `content_sha256` key, whatever the order of its keys: shows an edit."""
    content = {key: value for key, value in document.items() if key != "content_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
