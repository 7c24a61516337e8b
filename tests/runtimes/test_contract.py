"""The contract of `hwnas.runtimes.base`, held against every runtime; a new runtime is tested by being in RUNTIMES.

A case takes the fixture that says what it needs: `converter` asks questions and prepares models, which needs no GPU whatever
the runtime; `runtime` and `executable` execute, so that those of GPUs are marked `gpu` (`make gpu`).
"""

import gc
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from hwnas.errors import InputError, UnavailableError
from hwnas.runtimes import RUNTIMES, RuntimeConfig, load_runtime
from hwnas.runtimes.onnx_model import ONNX_FILE
from tests.runtimes.models import build_model, conv_net, int8_net, noise, two_input_net
from tests.runtimes.shipping import receive, ship

CPU = [name for name in sorted(RUNTIMES) if name.endswith("-cpu")]
GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in sorted(RUNTIMES) if name not in CPU]


@pytest.fixture(params=sorted(RUNTIMES))
def converter(request):
    """A runtime of which nothing is executed here."""
    found = RUNTIMES[request.param].can_prepare()
    if not found.available:
        pytest.skip(f"{request.param}: {found.reason}")
    return RUNTIMES[request.param]


@pytest.fixture(params=[*CPU, *GPU])
def runtime(request):
    """A runtime that executes here."""
    found = RUNTIMES[request.param].availability()
    if not found.available:
        pytest.skip(f"{request.param}: {found.reason}")
    return load_runtime(request.param)


@pytest.fixture
def executable(runtime):
    compiled = runtime.compile(conv_net().SerializeToString(), RuntimeConfig())
    yield compiled
    compiled.close()


IMAGES = noise((2, 3, 16, 16))
DEVICES = Path(__file__).parents[2] / "docs" / "devices.md"


def reference(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name for output in model.graph.output]
    return dict(zip(names, ReferenceEvaluator(model).run(names, inputs), strict=True))


@pytest.mark.parametrize("name", CPU)
def test_every_runtime_of_processors_is_here(name):
    """What follows skips those that are not; the package's extra `test` has them all."""
    found = RUNTIMES[name].availability()
    assert found.available, found.reason


def test_an_available_runtime_has_a_version_and_no_reason(runtime):
    found = runtime.availability()
    assert found.version and found.reason is None
    load, prepare = runtime.can_load(), runtime.can_prepare()
    assert load.available and prepare.available and load.reason is prepare.reason is None
    assert found.version == (load.version if prepare.version is None else f"{load.version} ({prepare.version})")


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_is_available_or_says_what_would_change_that(name):
    runtime = RUNTIMES[name]
    assert runtime.name == name and "fp32" in runtime.precisions
    found = runtime.availability()
    if found.available:
        assert load_runtime(name) is runtime
        return
    assert found.version is None and found.reason in (runtime.can_load().reason, runtime.can_prepare().reason)
    with pytest.raises(UnavailableError) as caught:
        load_runtime(name)
    assert str(caught.value).startswith(name) and found.reason in str(caught.value)


def test_numbers_are_those_of_the_onnx_reference(executable):
    result = executable.run({"images": IMAGES})["logits"]
    np.testing.assert_allclose(result, reference(conv_net(), {"images": IMAGES})["logits"], atol=1e-4, rtol=1e-4)


def test_tensors_are_described_as_in_the_model(executable):
    (images,), (logits,) = executable.inputs, executable.outputs
    assert (images.name, images.shape, images.dtype) == ("images", (2, 3, 16, 16), np.float32)
    assert (logits.name, logits.shape, logits.dtype) == ("logits", (2, 5), np.float32)
    result = executable.run({"images": IMAGES})["logits"]
    assert (result.shape, result.dtype) == (logits.shape, logits.dtype)


def test_compiling_is_preparing_and_loading(runtime, executable):
    model = conv_net().SerializeToString()
    program = runtime.prepare(model, RuntimeConfig())
    assert all(isinstance(content, bytes) for content in program.files.values())
    assert (program.inputs, program.outputs) == (executable.inputs, executable.outputs)
    loaded = runtime.load(program, RuntimeConfig())
    np.testing.assert_array_equal(loaded.run({"images": IMAGES})["logits"], executable.run({"images": IMAGES})["logits"])
    assert (loaded.inputs, loaded.outputs) == (executable.inputs, executable.outputs)
    loaded.close()


def test_a_program_is_loaded_as_often_as_wanted(runtime):
    program = runtime.prepare(conv_net().SerializeToString(), RuntimeConfig())
    files = dict(program.files)
    first = runtime.load(program, RuntimeConfig())
    expected = first.run({"images": IMAGES})["logits"]
    first.close()
    second = runtime.load(program, RuntimeConfig())
    np.testing.assert_array_equal(second.run({"images": IMAGES})["logits"], expected)
    second.close()
    assert program.files == files


def test_a_program_can_be_taken_apart_and_put_together(converter, tmp_path):
    program = converter.prepare(two_input_net().SerializeToString(), RuntimeConfig())
    assert program.files and all(isinstance(content, bytes) for content in program.files.values())
    ship(program, tmp_path)
    assert receive(tmp_path) == program


def test_a_program_that_was_put_together_runs(runtime, tmp_path):
    ship(runtime.prepare(two_input_net().SerializeToString(), RuntimeConfig()), tmp_path)
    arrived = receive(tmp_path)
    inputs = {"gate": np.array(3.0, np.float32), "images": noise((1, 4, 6, 6))}
    executable = runtime.load(arrived, RuntimeConfig())
    results = executable.run(inputs)
    executable.close()
    for name, expected in reference(two_input_net(), inputs).items():
        np.testing.assert_allclose(results[name], expected, atol=1e-5, err_msg=name)


def test_a_model_is_prepared_for_devices_that_are_elsewhere(converter):
    """On a machine that may lack the runtime or its GPU."""
    expected = reference(conv_net(), {"images": IMAGES})["logits"]
    for precision in converter.precisions:
        program = converter.prepare(conv_net().SerializeToString(), RuntimeConfig(precision=precision))
        assert [(tensor.name, tensor.shape) for tensor in program.inputs] == [("images", (2, 3, 16, 16))]
        assert [(tensor.name, tensor.shape) for tensor in program.outputs] == [("logits", (2, 5))]
        if ONNX_FILE in program.files:
            model = onnx.load_from_string(program.files[ONNX_FILE])
            onnx.checker.check_model(model, full_check=True)
            np.testing.assert_allclose(reference(model, {"images": IMAGES})["logits"], expected, atol=5e-2)


def test_loading_leaves_no_files_behind(runtime, tmp_path, monkeypatch):
    program = runtime.prepare(conv_net().SerializeToString(), RuntimeConfig())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    executable = runtime.load(program, RuntimeConfig())
    assert list(tmp_path.iterdir()) == []
    result = executable.run({"images": IMAGES})["logits"]
    np.testing.assert_allclose(result, reference(conv_net(), {"images": IMAGES})["logits"], atol=1e-4, rtol=1e-4)
    executable.close()


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[:len(content) // 2],
    "text": lambda content: b"not a model" * 20,
    "noise": lambda content: np.random.default_rng(0).bytes(len(content)),
}
# ExecuTorch checks how long a program is, but not all that it points to: on noise, its library ends the process.
DEADLY = {("executorch-cpu", "noise")}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_program_is_refused(runtime, damage):
    if (runtime.name, damage) in DEADLY:
        pytest.skip(f"{runtime.name} does not survive it")
    program = runtime.prepare(conv_net().SerializeToString(), RuntimeConfig())
    for name, content in program.files.items():
        files = {**program.files, name: DAMAGES[damage](content)}
        with pytest.raises(InputError):
            runtime.load(replace(program, files=files), RuntimeConfig())


def test_several_inputs_and_outputs_are_told_apart_by_name(runtime):
    inputs = {"gate": np.array(3.0, np.float32), "images": noise((1, 4, 6, 6))}
    executable = runtime.compile(two_input_net().SerializeToString(), RuntimeConfig())
    assert [tensor.name for tensor in executable.outputs] == ["total", "product"]
    bound = executable.bind(inputs)
    bound()
    for results in (executable.run(inputs), bound.read_outputs()):
        for name, expected in reference(two_input_net(), inputs).items():
            np.testing.assert_allclose(results[name], expected, atol=1e-5, err_msg=name)


def test_bind_and_run_agree(executable):
    bound = executable.bind({"images": IMAGES})
    bound()
    np.testing.assert_array_equal(bound.read_outputs()["logits"], executable.run({"images": IMAGES})["logits"])


def test_bound_buffers_are_copies_that_live_as_long_as_needed(executable):
    images = IMAGES.copy()
    expected = executable.run({"images": images})["logits"]
    first, second = executable.bind({"images": images}), executable.bind({"images": images + 1})
    images[:] = 99
    del images
    gc.collect()
    clutter = [np.full((2, 3, 16, 16), 7, np.float32) for _ in range(50)]  # lands in any memory freed too early
    for _ in range(3):
        second()
        first()
    np.testing.assert_array_equal(first.read_outputs()["logits"], expected)
    assert np.abs(second.read_outputs()["logits"] - expected).max() > 1e-3
    assert len(clutter) == 50


def test_results_belong_to_the_caller(executable):
    bound = executable.bind({"images": IMAGES})
    bound()
    mine = [bound.read_outputs()["logits"], executable.run({"images": IMAGES})["logits"]]
    before = mine[0].copy()
    for result in mine:
        result[:] = 0
    bound()
    np.testing.assert_array_equal(bound.read_outputs()["logits"], before)
    np.testing.assert_array_equal(executable.run({"images": IMAGES})["logits"], before)


def test_two_executables_are_independent(runtime):
    models = [conv_net(seed) for seed in (1, 2)]
    one, two = (runtime.compile(model.SerializeToString(), RuntimeConfig()) for model in models)
    bound = two.bind({"images": IMAGES})
    one.run({"images": IMAGES + 1})
    one.close()
    one.close()  # twice is allowed
    bound()
    expected = reference(models[1], {"images": IMAGES})["logits"]
    np.testing.assert_allclose(bound.read_outputs()["logits"], expected, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(two.run({"images": IMAGES})["logits"], expected, atol=1e-4, rtol=1e-4)


def test_inputs_that_are_not_contiguous_are_read_correctly(executable):
    turned = IMAGES.transpose(0, 1, 3, 2)
    expected = executable.run({"images": turned.copy()})["logits"]
    np.testing.assert_array_equal(executable.run({"images": turned})["logits"], expected)


def test_nan_does_not_crash(executable):
    images = IMAGES.copy()
    images[0] = np.nan
    result = executable.run({"images": images})["logits"]
    expected = reference(conv_net(), {"images": IMAGES})["logits"]
    np.testing.assert_allclose(result[1], expected[1], atol=1e-4, rtol=1e-4)  # the other image is untouched


@pytest.mark.parametrize("name", RUNTIMES)
def test_settings_are_plain_and_record_the_threads(name):
    one, two = (RUNTIMES[name].settings(RuntimeConfig(threads=threads)) for threads in (1, 2))
    assert all(isinstance(value, str | int | float | bool) for value in one.values())
    assert one == RUNTIMES[name].settings(RuntimeConfig(threads=1))
    changed = [key for key in one if one[key] != two[key]]
    assert changed and all((one[key], two[key]) == (1, 2) for key in changed)


@pytest.mark.parametrize("runtime", CPU, indirect=True)  # processor time says nothing about an accelerator
def test_one_thread_uses_one_core(runtime):
    model = conv_net(width=64, side=64, depth=4)
    executable = runtime.compile(model.SerializeToString(), RuntimeConfig(threads=1))
    bound = executable.bind({"images": noise((2, 3, 64, 64))})
    bound()
    before, began = _thread_seconds(), time.process_time()
    while time.process_time() < began + 0.5:
        bound()
    *others, busiest = sorted(seconds - before.get(thread, 0.0) for thread, seconds in _thread_seconds().items())
    assert sum(others) <= 0.2 * busiest  # a second working thread would have as much, however busy the machine is


def _thread_seconds() -> dict[int, float]:
    """Processor time of each thread of this process."""
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process().threads()}


@pytest.mark.parametrize("precision", ["fp33", "", "FP32"])
def test_unknown_precisions_are_refused(converter, precision):
    """By each half, before it looks for a GPU."""
    model, config = conv_net().SerializeToString(), RuntimeConfig(precision=precision)
    program = converter.prepare(model, RuntimeConfig())
    for attempt in (lambda: converter.prepare(model, config), lambda: converter.load(program, config),
                    lambda: converter.compile(model, config), lambda: converter.settings(config)):
        with pytest.raises(InputError, match=r"choose one of .*fp32"):
            attempt()


def test_every_precision_runs_or_says_that_this_machine_cannot(runtime):
    expected = reference(conv_net(), {"images": IMAGES})["logits"]
    for precision in runtime.precisions:
        try:
            executable = runtime.compile(conv_net().SerializeToString(), RuntimeConfig(precision=precision))
        except UnavailableError as error:
            assert precision in str(error)
            continue
        error = np.abs(executable.run({"images": IMAGES})["logits"] - expected).max()
        if precision == "fp32":
            assert error < 1e-4
        else:  # an error as small as fp32's would mean that the runtime took no notice
            assert 1e-4 < error < 5e-2


INTEGERS, FLOATS, REFUSED = "integer kernels", "in floating point", "refused"
INT8 = {"executorch-cpu": INTEGERS, "litert-cpu": INTEGERS, "mnn-cpu": REFUSED, "ncnn-cpu": REFUSED, "onnxruntime-cpu": INTEGERS,
        "openvino-cpu": INTEGERS, "torch-cpu": FLOATS,
        "onnxruntime-cuda": FLOATS, "tensorrt": INTEGERS, "tensorrt-rtx": INTEGERS, "torch-cuda": FLOATS}


@pytest.mark.parametrize("runtime", [name for name in CPU if INT8[name] != REFUSED], indirect=True)
def test_int8_gives_onnxruntimes_numbers_within_one_step(runtime):
    """Whole steps of the last quantiser, few of them another than ONNX Runtime's: a value near the middle of two.

    In floating point (`INT8`), weights are int8's and each quantiser rounds: the numbers are those of int8, the speed is not.
    """
    model, step = int8_net()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    executable = runtime.compile(model.SerializeToString(), RuntimeConfig())
    steps = executable.run({"images": IMAGES})["features"] / step
    executable.close()
    assert len(np.unique(np.rint(steps))) > 200
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    # ONNX's own reference implementation knows quantisers of later operator sets only.
    for expected in (session.run(None, {"images": IMAGES})[0], reference(int8_net(21)[0], {"images": IMAGES})["features"]):
        distance = np.abs(np.rint(steps) - np.rint(expected / step))
        assert distance.max() <= 1 and distance.mean() < 0.05  # 0.7 where the inner quantisers are left out


@pytest.mark.parametrize("runtime", [name for name in CPU if INT8[name] == REFUSED], indirect=True)
def test_int8_is_refused_where_it_does_not_run(runtime):
    with pytest.raises(InputError, match=runtime.name):
        runtime.compile(int8_net()[0].SerializeToString(), RuntimeConfig())


def test_the_documentation_says_how_each_runtime_runs_int8():
    documented = {}
    for line in filter(re.compile(r"\|").match, DEVICES.read_text().splitlines()):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        documented |= dict.fromkeys(set(re.findall(r"`([\w-]+)`", cells[0])) & set(RUNTIMES), cells[-1])
    assert documented == INT8


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model" * 20, conv_net().SerializeToString()[:200], conv_net().SerializeToString()[:-40]],
    ids=["empty", "text", "head", "truncated"],
)
def test_malformed_models_are_refused(converter, content):
    for attempt in (converter.prepare, converter.compile):
        with pytest.raises(InputError, match="not valid ONNX"):
            attempt(content, RuntimeConfig())


def test_an_operator_that_no_runtime_knows_is_refused_with_its_name(runtime):
    node = helper.make_node("Frobnicate", ["x"], ["y"])
    model = build_model([node], {"x": [1, 4]}, {"y": [1, 4]}, [])
    with pytest.raises(InputError, match="Frobnicate"):
        runtime.compile(model.SerializeToString(), RuntimeConfig())


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"image": IMAGES},
        {"images": IMAGES, "more": IMAGES},
        {"images": IMAGES[:1]},
        {"images": IMAGES[..., :-1]},
        {"images": IMAGES.astype(np.float64)},
        {"images": IMAGES.astype(">f4")},
        {"images": IMAGES.tolist()},
    ],
    ids=["none", "name", "extra", "batch", "side", "dtype", "byte order", "list"],
)
def test_wrong_inputs_are_refused(executable, inputs):
    for method in (executable.run, executable.bind):
        with pytest.raises(InputError, match="images"):
            method(inputs)


@pytest.mark.parametrize("threads", [0, -1, 1.0, "2", True, None])
def test_threads_must_be_a_positive_whole_number(threads):
    with pytest.raises(InputError, match="threads"):
        RuntimeConfig(threads=threads)


def test_an_unknown_runtime_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="onnxruntime-cpu") as caught:
        load_runtime("onnxruntime")
    assert caught.value.exit_code == 2


LISTING = """
import sys
from hwnas.errors import UnavailableError
from hwnas.runtimes import RUNTIMES, load_runtime
for name, runtime in RUNTIMES.items():
    found = runtime.availability()
    try:
        load_runtime(name)
    except UnavailableError as error:
        assert error.exit_code == 5 and str(error).startswith(name) and found.reason in str(error)
        assert not found.available and found.version is None
        print(name, "|", found.reason)
"""

ONLY_THE_BASE = """
import sys

class OnlyTheBase:
    def find_spec(self, name, path=None, target=None):
        base = {"hwnas", "numpy", "onnx", "google", "ml_dtypes", "typing_extensions"}
        if name.partition(".")[0] not in base | sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, OnlyTheBase())
"""


def list_unusable(program: str) -> dict[str, str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return dict(line.split(" | ") for line in done.stdout.splitlines())


def test_without_its_package_a_runtime_names_the_command_that_installs_it():
    reasons = list_unusable(ONLY_THE_BASE + LISTING)
    assert sorted(reasons) == sorted(RUNTIMES)
    for reason in reasons.values():
        assert "not installed" in reason and "pip install" in reason


def test_a_package_that_does_not_import_is_a_reason_and_not_a_crash(tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libmissing.so: cannot open shared object file')")
    (tmp_path / "openvino.py").write_text("import a_module_that_is_not_there")
    reasons = list_unusable(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{textwrap.dedent(LISTING)}")
    assert "does not import" in reasons["onnxruntime-cpu"] and "libmissing.so" in reasons["onnxruntime-cpu"]
    assert "a_module_that_is_not_there" in reasons["openvino-cpu"]
