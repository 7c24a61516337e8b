"""ONNX models in a runtime's own format, each converted once.

A profile compiles the same model afresh in every session, and a converter is a process of its own: it may crash, hang or
print what it likes. So it runs in a scratch folder under a time limit, and what it leaves moves into a cache in one step, with
its checksums: what was damaged since is made again. Who made a scratch folder holds a lock in it, by which it is known whether
anybody is still at work there.

The cache is a folder per runtime in `~/.cache/hwnas`, or in the folder that the environment variable `HWNAS_CACHE_DIR` names.
An entry belongs to one model, one converter version and one set of options. Whatever was not used for longest goes once the
runtime's entries exceed 6 GB, which a profile of networks for 224x224 images stays below, or a tenth of what would be free on the
disk without them; deleting all of it at any time costs only the conversions.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwnas.errors import InputError, UnavailableError
from hwnas.runtimes.base import Runtime
from hwnas.runtimes.onnx_model import OnnxModel

CACHE_VARIABLE = "HWNAS_CACHE_DIR"
MAX_CACHE_BYTES = 6 * 10**9  # for each runtime
MAX_DISK_SHARE = 0.1  # of what would be free without a runtime's entries

_CHECKSUMS = "SHA256SUMS"
_LOCK = "lock"
_ABANDONED_S = 3600.0  # the age of a scratch folder that nobody has locked, nor is about to
_LEAST_FREE_BYTES = 1 << 26  # with less on the disk, a converter's failure says nothing about the model
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
_COMPLAINT = re.compile(r"fail|error|invalid|not support", re.IGNORECASE)


@dataclass(frozen=True)
class Converter:
    """A program that turns the `model.onnx` of its working folder into files there.

    Args:
        runtime: The runtime's name.
        version: The program's version.
        program: How it is started.
        arguments: What it is told, apart from its own location.
        products: The files that it leaves and that are kept.
        timeout_s: Longer than any sound conversion takes.
    """

    runtime: str
    version: str
    program: tuple[str, ...]
    arguments: tuple[str, ...]
    products: tuple[str, ...]
    timeout_s: float = 120.0

    def convert(self, model: bytes) -> dict[str, bytes]:
        """Returns the products for a model, by name, converted now or at an earlier time.

        Raises:
            InputError: The converter refuses the model, crashes or exceeds its time.
            UnavailableError: The converter does not start or is killed, or the cache cannot be written.
        """
        identity = repr((self.version, self.arguments, self.products)).encode()
        cache = cache_folder() / self.runtime
        entry = cache / hashlib.sha256(identity + hashlib.sha256(model).digest()).hexdigest()
        try:
            products = self._recall(entry)
            if products is None:
                products = self._add(model, entry)
                _drop_oldest(cache)
        except OSError as error:
            raise UnavailableError(f"Converted models are kept in {cache}, but that cannot be written ({error.strerror}): free "
                                   f"some space there, or set {CACHE_VARIABLE} to another folder.") from None
        return products

    def _recall(self, entry: Path) -> dict[str, bytes] | None:
        """What an entry holds, if there is one; a damaged one is deleted."""
        try:
            products = {product: (entry / product).read_bytes() for product in self.products}
            intact = (entry / _CHECKSUMS).read_bytes() == _checksums(products)
        except OSError:
            intact = False
        if not intact:
            shutil.rmtree(entry, ignore_errors=True)
            return None
        with suppress(OSError):  # a cache that others keep may be read-only
            os.utime(entry)  # used now
        return products

    def _add(self, model: bytes, entry: Path) -> dict[str, bytes]:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".") as scratch, _held(Path(scratch)):
            folder, finished = Path(scratch, "work"), Path(scratch, "finished")
            folder.mkdir()
            finished.mkdir()
            (folder / "model.onnx").write_bytes(model)
            try:
                self._run(folder)
            except Exception as error:
                if shutil.disk_usage(folder).free < _LEAST_FREE_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                raise
            products = {product: (folder / product).read_bytes() for product in self.products}
            for name, content in (*products.items(), (_CHECKSUMS, _checksums(products))):
                _write_synced(finished / name, content)
            try:
                finished.rename(entry)
            except OSError:
                if not entry.is_dir():  # otherwise another process was quicker
                    raise
            return products

    def _run(self, folder: Path) -> None:
        try:
            done = subprocess.run([*self.program, *self.arguments], cwd=folder, timeout=self.timeout_s, check=False,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except OSError as error:
            raise UnavailableError(f"{self.runtime} is not usable here: its converter {self.program[0]} does not start "
                                   f"({error.strerror}); reinstall it.") from None
        except subprocess.TimeoutExpired:
            raise refusal(self.runtime, f"its converter did not finish within {self.timeout_s:g} s") from None
        if done.returncode == -signal.SIGKILL:
            raise UnavailableError(f"The converter of {self.runtime} was killed (SIGKILL), most likely because memory was short: "
                                   "free some and repeat the command.")
        missing = [product for product in self.products if not (folder / product).is_file()]
        if done.returncode or missing:
            complaint = _complaint(done.stdout.decode(errors="replace")) or f"without a word, and no {self.products[0]}"
            raise refusal(self.runtime, f"its converter {_ending(done.returncode)}: {complaint}")


class ConvertingRuntime(Runtime):
    """A runtime that prepares models with a `Converter`: worth doing ahead, on all processors, and only once."""


def refusal(runtime: str, reason: str) -> InputError:
    """The error to raise when a converter, or the runtime after it, does not take a model that was read as ONNX."""
    return InputError(f"{runtime} cannot run the model ({reason}): choose another runtime, or check the model with "
                      "onnx.checker.")


def require_float32(runtime: str, model: OnnxModel) -> None:
    """Refuses tensors of other types at a model's ends, which converters are free to change.

    Raises:
        InputError: With the tensor's name.
    """
    for tensor in (*model.inputs, *model.outputs):
        if tensor.dtype != np.float32:
            raise InputError(f"{runtime} takes and gives float32, but {tensor.name!r} is {tensor.dtype}: export it as float32.")


def cache_folder() -> Path:
    """Where converted models are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/hwnas").expanduser()


def _checksums(products: Mapping[str, bytes]) -> bytes:
    """As the program `sha256sum` writes and checks them."""
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in products.items()).encode()


def _write_synced(path: Path, content: bytes) -> None:
    """Has a file's bytes on the disk before a name says that it is finished."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _held(scratch: Path) -> Iterator[None]:
    """Locks a scratch folder until this process is done with it, or is no more."""
    with open(scratch / _LOCK, "wb") as file:
        with suppress(OSError):  # where a disk has no locks, nothing is taken for abandoned
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_abandoned(scratch: Path) -> bool:
    """Whether nobody is at work in a scratch folder. Its age alone would not do: clocks jump."""
    if time.time_ns() - scratch.stat().st_mtime_ns <= _ABANDONED_S * 1e9:
        return False  # maybe about to be locked
    try:
        with open(scratch / _LOCK, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:  # it is locked, or another user's
        return False
    return True


def _drop_oldest(cache: Path) -> None:
    """Keeps the entries that were used last, as many as fit; the newest stays, whatever its size.

    Scratch folders of converters at work are no entries.
    """
    entries = []
    for entry in cache.iterdir():
        with suppress(FileNotFoundError):  # another process dropped it
            used_ns = entry.stat().st_mtime_ns
            if not entry.name.startswith("."):
                entries.append((used_ns, sum(file.stat().st_size for file in entry.glob("*")), entry))
            elif _is_abandoned(entry):
                shutil.rmtree(entry, ignore_errors=True)
    kept = sum(size for _, size, _ in entries)
    max_bytes = min(MAX_CACHE_BYTES, MAX_DISK_SHARE * (kept + shutil.disk_usage(cache).free))
    total = 0
    for index, (_, size, entry) in enumerate(sorted(entries, reverse=True)):
        total += size
        if index and total > max_bytes:
            shutil.rmtree(entry, ignore_errors=True)


def _complaint(output: str) -> str:
    """What a converter says went wrong, as one short line: the first that sounds like it, since much else is printed."""
    lines = (_COLOURS.sub("", line) for line in output.splitlines())
    text = " ".join(next((line for line in lines if _COMPLAINT.search(line)), "").split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def _ending(code: int) -> str:
    if code == 0:
        return "failed"
    return f"exited with {code}" if code > 0 else f"crashed with {signal.Signals(-code).name}"
