"""The cache of converted models, with real programs as converters: one that copies, and ones that misbehave."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from hwnas.errors import InputError, UnavailableError
from hwnas.runtimes import conversion
from hwnas.runtimes.conversion import Converter, cache_folder
from tests.profiling.processes import eventually

ROOT = Path(__file__).parents[2]

COPY = "open('product', 'wb').write(open('model.onnx', 'rb').read()); open('../../../runs', 'a').write('x')"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HWNAS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "some-cpu"


def converter(program: str = COPY, *, version: str = "1", timeout_s: float = 30.0) -> Converter:
    return Converter("some-cpu", version, (sys.executable, "-c"), (program,), ("product",), timeout_s)


def kept(cache: Path) -> set[bytes]:
    return {(entry / "product").read_bytes() for entry in cache.iterdir()}


def entry_of(cache: Path, model: bytes) -> Path:
    return next(entry for entry in cache.iterdir() if (entry / "product").read_bytes() == model)


def runs(cache: Path) -> int:
    return len((cache.parent / "runs").read_text())


def test_a_model_is_converted_once_and_only_its_products_are_kept(cache):
    first, second = (converter().convert(b"a model") for _ in range(2))
    assert first == second == {"product": b"a model"} and runs(cache) == 1
    (entry,) = cache.iterdir()
    assert sorted(path.name for path in entry.iterdir()) == ["SHA256SUMS", "product"]
    assert subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=entry, check=False).returncode == 0


@pytest.mark.parametrize("name", ["product", "SHA256SUMS"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1]),
                                    lambda path: path.write_bytes(b"\xff" + path.read_bytes()[1:])],
                         ids=["missing", "truncated", "changed"])
def test_an_entry_that_was_damaged_is_made_again(cache, name, damage):
    converter().convert(b"a model")
    (entry,) = cache.iterdir()
    damage(entry / name)
    assert converter().convert(b"a model") == {"product": b"a model"} and runs(cache) == 2
    assert converter().convert(b"a model") == {"product": b"a model"} and runs(cache) == 2
    assert list(cache.iterdir()) == [entry]


def test_another_model_version_or_option_is_another_entry(cache):
    made = [converter().convert(b"a"), converter().convert(b"b"), converter(version="2").convert(b"a"),
            converter(COPY + " # option").convert(b"a")]
    assert [files["product"] for files in made] == [b"a", b"b", b"a", b"a"]
    assert len(list(cache.iterdir())) == 4 == runs(cache)


@pytest.mark.parametrize("program, reason", [
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV"),
    ("open('product', 'w'); print('noise'); print('\\33[31mThis Op Not Supported: Frob'); raise SystemExit(3)",
     "exited with 3: This Op Not Supported: Frob"),
    ("print('Converted Failed!')", "failed: Converted Failed!"),
    ("pass", "no product"),
])
def test_a_converter_that_fails_is_an_input_error_with_its_reason_and_leaves_nothing(cache, program, reason):
    with pytest.raises(InputError, match="some-cpu cannot run the model") as caught:
        converter(program).convert(b"a model")
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_converter_that_is_killed_is_a_matter_of_memory(cache):
    with pytest.raises(UnavailableError, match=r"some-cpu was killed \(SIGKILL\).* memory"):
        converter("import os; os.kill(os.getpid(), 9)").convert(b"a model")
    assert list(cache.iterdir()) == []


ON_A_SMALL_DISK = """
from hwnas.errors import InputError, UnavailableError
from tests.runtimes.test_conversion import converter
for program in ("open('product', 'wb').write(bytes(1 << 22))", "raise SystemExit(1)"):
    try:
        converter(program).convert(b"a model")
    except (InputError, UnavailableError) as error:
        print(type(error).__name__, error)
print(converter().convert(b"a model"))
"""


def test_a_full_disk_is_no_models_fault(cache):
    """On a disk of a megabyte, which only this test's processes see."""
    cache.parent.mkdir()
    mount = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    mounted = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, cache.parent]
    if subprocess.run([*mounted, "true"], capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    done = subprocess.run([*mounted, sys.executable, "-c", ON_A_SMALL_DISK], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and lines[2] == "{'product': b'a model'}"
    for line in lines[:2]:
        assert line.startswith("UnavailableError") and "(No space left on device): free some space" in line


def test_a_converter_that_hangs_is_ended(cache):
    hang = "import os, time; open('../../../pid', 'w').write(str(os.getpid())); open('product', 'w'); time.sleep(600)"
    with pytest.raises(InputError, match=r"some-cpu .* did not finish within 0\.5 s"):
        converter(hang, timeout_s=0.5).convert(b"a model")
    assert list(cache.iterdir()) == []
    pid = cache.parent / "pid"
    if pid.exists():  # it may have been ended before it came so far
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)


def test_a_converter_that_does_not_start_is_a_matter_of_the_installation():
    with pytest.raises(UnavailableError, match="reinstall"):
        Converter("some-cpu", "1", ("/there/is/no/program",), (), ("product",)).convert(b"a model")


def test_what_was_not_used_for_longest_goes_when_the_cache_is_full(cache, monkeypatch):
    monkeypatch.setattr(conversion, "MAX_CACHE_BYTES", 2500)
    models = [letter * 1000 for letter in (b"a", b"b", b"c")]
    for age, model in enumerate(models[:2]):
        converter().convert(model)
        os.utime(entry_of(cache, model), (age, age))
    converter().convert(models[0])  # used again, so the other is now the oldest
    converter().convert(models[2])
    assert kept(cache) == {models[0], models[2]}
    huge = b"d" * 5000
    converter().convert(huge)  # what was just asked for stays
    assert kept(cache) == {huge}


def test_a_cache_takes_no_more_than_its_share_of_a_disk(cache, monkeypatch):
    """The disk, counted as it would be without the cache, has room for 25,000 bytes, of which a tenth are two models."""
    models = [letter * 1000 for letter in (b"a", b"b", b"c")]

    def free(path):
        used = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
        return SimpleNamespace(free=25_000 - used)

    monkeypatch.setattr(conversion.shutil, "disk_usage", free)
    for age, model in enumerate(models):
        converter().convert(model)
        os.utime(entry_of(cache, model), (age, age))
    assert kept(cache) == {models[1], models[2]}


def test_what_a_killed_converter_left_is_removed_after_an_hour_and_no_earlier(cache, monkeypatch):
    monkeypatch.setattr(conversion, "MAX_CACHE_BYTES", 1)
    cache.mkdir(parents=True)
    for name, age_s in ((".old", 3700), (".new", 60)):
        (cache / name / "work").mkdir(parents=True)
        os.utime(cache / name, (time.time() - age_s,) * 2)
    converter().convert(b"a model")
    assert not (cache / ".old").exists() and (cache / ".new").exists()


def test_a_folder_at_work_stays_however_old_its_clock_says_it_is(cache):
    """Until whoever works in it is killed."""
    wait = ("import os, time\nwith open('here', 'w') as here: here.write(str(os.getppid()))\n"
            "while not os.path.exists('go'): time.sleep(0.01)\n")
    program = (f"from tests.runtimes.test_conversion import COPY, converter\n"
               f"print(converter({wait!r} + COPY).convert(b'a model'))\n")
    with ExitStack() as stack:
        children = [stack.enter_context(subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE,
                                                         text=True, start_new_session=True)) for _ in range(2)]
        for child in children:
            stack.callback(_kill_group, child.pid)
        assert eventually(lambda: len([here for here in cache.glob(".*/*/here") if here.read_text()]) == 2, 60)
        works = {int(here.read_text()): here.parent for here in cache.glob(".*/*/here")}
        going_on, killed = (works[child.pid] for child in children)
        for folder in works.values():
            os.utime(folder.parent, (0, 0))
        converter(version="2").convert(b"another model")
        assert going_on.exists() and killed.exists()
        _kill_group(children[1].pid)
        children[1].wait()
        converter(version="3").convert(b"another model")
        assert going_on.exists() and not killed.exists()
        (going_on / "go").touch()
        assert children[0].stdout.read() == "{'product': b'a model'}\n"


def _kill_group(pid):
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def test_a_cache_that_cannot_be_written_names_the_variable(cache):
    cache.parent.write_text("not a folder")
    with pytest.raises(UnavailableError, match="HWNAS_CACHE_DIR"):
        converter().convert(b"a model")


def test_the_cache_lies_in_the_users_folder_by_default(monkeypatch):
    for value in (None, ""):
        monkeypatch.delenv("HWNAS_CACHE_DIR") if value is None else monkeypatch.setenv("HWNAS_CACHE_DIR", value)
        assert cache_folder() == Path.home() / ".cache" / "hwnas"
