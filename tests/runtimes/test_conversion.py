"""The cache of converted models, with real programs as converters: one that copies, and ones that misbehave."""

import os
import sys
from pathlib import Path

import pytest

from hwnas.errors import InputError, UnavailableError
from hwnas.runtimes import conversion
from hwnas.runtimes.conversion import Converter, cache_folder

COPY = "open('product', 'wb').write(open('model.onnx', 'rb').read()); open('../../../runs', 'a').write('x')"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HWNAS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "some-cpu"


def converter(program: str = COPY, *, version: str = "1", timeout_s: float = 30.0) -> Converter:
    return Converter("some-cpu", version, (sys.executable, "-c"), (program,), ("product",), timeout_s)


def runs(cache: Path) -> int:
    return len((cache.parent / "runs").read_text())


def test_a_model_is_converted_once_and_only_its_products_are_kept(cache):
    first, second = (converter().convert(b"a model") for _ in range(2))
    assert first == second and runs(cache) == 1
    assert [path.name for path in first.iterdir()] == ["product"] and list(cache.iterdir()) == [first]
    assert (first / "product").read_bytes() == b"a model"


def test_another_model_version_or_option_is_another_entry(cache):
    made = [converter().convert(b"a"), converter().convert(b"b"), converter(version="2").convert(b"a"),
            converter(COPY + " # option").convert(b"a")]
    assert len(set(made)) == 4 == runs(cache)


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
    entries = []
    for age, model in enumerate(models[:2]):
        entries.append(converter().convert(model))
        os.utime(entries[-1], (age, age))
    converter().convert(models[0])  # used again, so the other is now the oldest
    entries.append(converter().convert(models[2]))
    assert [entry.exists() for entry in entries] == [True, False, True]
    huge = converter().convert(b"d" * 5000)  # what was just asked for stays
    assert list(cache.iterdir()) == [huge]


def test_a_cache_that_cannot_be_written_names_the_variable(cache):
    cache.parent.write_text("not a folder")
    with pytest.raises(InputError, match="HWNAS_CACHE_DIR"):
        converter().convert(b"a model")


def test_the_cache_lies_in_the_users_folder_by_default(monkeypatch):
    for value in (None, ""):
        monkeypatch.delenv("HWNAS_CACHE_DIR") if value is None else monkeypatch.setenv("HWNAS_CACHE_DIR", value)
        assert cache_folder() == Path.home() / ".cache" / "hwnas"
