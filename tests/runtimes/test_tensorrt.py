"""TensorRT: engines are built for real wherever the package is, with or without a GPU; running them needs one."""

import importlib
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import hwnas
from hwnas.errors import InputError, UnavailableError
from hwnas.ir.blocks import Head, MBConv, Stem
from hwnas.ir.network import build_network
from hwnas.ir.quantized import Quantized
from hwnas.ir.shape import TensorShape
from hwnas.lower.onnx import to_onnx
from hwnas.runtimes import RuntimeConfig, load_runtime
from hwnas.runtimes.nvidia import missing_modules
from hwnas.runtimes.onnx_signed import to_signed
from hwnas.runtimes.tensorrt import (
    ENGINE_FILE,
    HARDWARE_LEVELS,
    PORTABLE,
    TENSORRT,
    TENSORRT_RTX,
    TIMINGS_FILE,
    EngineTarget,
    _attach_timings,
    _set_target,
    timings_path,
)
from tests.runtimes.models import build_model, conv_net, noise, two_input_net

ABSENT = missing_modules([TENSORRT_RTX.module], "pip install 'hwnas[tensorrt-rtx]'")
builds = pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
AMPERE = ["8.6"]


def build(model: onnx.ModelProto, precision: str = "fp32", compute_capabilities: Sequence[str] = AMPERE) -> bytes:
    program = TENSORRT_RTX.build_engine(model.SerializeToString(), precision=precision, target=EngineTarget(compute_capabilities))
    (engine,) = program.files.values()  # never timings, which would ask for a GPU
    assert engine[:4] == b"vtrt" and int.from_bytes(engine[16:20], "little") == len(engine)  # its header states its length
    return engine


def random_network(space_name: str, seed: int = 0) -> onnx.ModelProto:
    space = hwnas.load_space(space_name)
    return to_onnx(space.network(hwnas.Trellis(space).sample(1, seed=seed)[0]), seed=seed)


def biases(model: onnx.ModelProto, dtype: type) -> list[bytes]:
    """Those long enough not to occur by chance; whatever TensorRT does to weights, it keeps these."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [array.astype(dtype).tobytes() for name, array in arrays.items() if name.endswith("bias") and array.size >= 8]


@builds
def test_an_engine_holds_the_weights_in_the_precision_asked_for():
    model = random_network("mobile-cpu")
    full, half = build(model), build(model, "fp16")
    assert sum(bias in full for bias in biases(model, np.float32)) >= 10
    assert sum(bias in half for bias in biases(model, np.float16)) >= 10
    assert not any(bias in full for bias in biases(model, np.float16))
    assert not any(bias in half for bias in biases(model, np.float32))


@builds
def test_an_engine_of_a_large_network_is_half_as_large_in_half_precision():
    model = random_network("spos")
    full, half = (len(build(model, precision)) for precision in ("fp32", "fp16"))
    weights = sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)
    assert full > weights and 0.4 * weights < full - half < 0.6 * weights


@builds
@pytest.mark.parametrize("model", [conv_net(), two_input_net()], ids=["conv_net", "two_input_net"])
@pytest.mark.parametrize("precision", TENSORRT_RTX.precisions)
def test_small_models(model, precision):
    build(model, precision, ())


@builds
@pytest.mark.parametrize("capability", PORTABLE)
def test_every_portable_compute_capability(capability):
    build(random_network("mobile-cpu"), compute_capabilities=[capability])


@builds
@pytest.mark.parametrize("precision", TENSORRT_RTX.precisions)
@pytest.mark.parametrize("space", ["mobile-cpu+int8+fp32", "mobile-cpu+fp16+fp32", "mobile-cpu+bf16+fp32"])
def test_networks_with_bit_widths(space, precision):
    build(random_network(space), precision)


@builds
def test_a_network_of_four_bits():
    blocks = [("stem", Stem(16)), ("body", Quantized(MBConv(24, 3, 3, 2), 4, 4)), ("head", Head(10, 32))]
    build(to_onnx(build_network(TensorShape(3, 32, 32), blocks), seed=0))


@builds
def test_integer_weights_are_in_the_engine_as_integers():
    model = random_network("mobile-cpu+int8")
    integers = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    engine = build(model)
    assert sum(weights.tobytes() in engine for weights in integers if weights.size > 100) > 5


@builds
def test_the_builder_is_never_given_u8():
    """It would take u8 with zero point 0 for s8: half of the range would saturate."""
    import tensorrt_rtx as trt

    warnings = []

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, message):
            warnings.append(message)

    def parse(model):
        network = trt.Builder(Logger()).create_network()
        return trt.OnnxParser(network, logger).parse(model.SerializeToString())

    logger = Logger()
    model = random_network("mobile-cpu+int8+fp32")
    assert not parse(model) and any("UINT8" in one for one in warnings)
    warnings.clear()
    assert parse(to_signed(model)) and not any("UINT8" in one for one in warnings)


@builds
def test_an_operator_that_it_lacks_is_refused_with_its_name():
    node = helper.make_node("Frobnicate", ["x"], ["y"], "frob")
    with pytest.raises(InputError, match=r"tensorrt-rtx cannot compile the model .Frobnicate 'frob'"):
        build(build_model([node], {"x": [1, 4]}, {"y": [1, 4]}, []))


@builds
def test_what_the_builder_refuses_is_said_in_its_words():
    with pytest.raises(InputError, match="SM75"):  # no float32 matrix product there
        build(conv_net(), compute_capabilities=["7.5"])


@pytest.mark.parametrize("content", [b"", b"not a model" * 20, conv_net().SerializeToString()[:200]],
                         ids=["empty", "text", "head"])
@pytest.mark.parametrize("runtime", [TENSORRT, TENSORRT_RTX], ids=lambda runtime: runtime.name)
def test_malformed_models_are_refused(runtime, content):
    for attempt in (runtime.build_engine, lambda model: runtime.compile(model, RuntimeConfig())):
        with pytest.raises(InputError, match="not valid ONNX"):
            attempt(content)


def test_unknown_precisions_are_refused():
    with pytest.raises(InputError, match="choose one of fp32, fp16"):
        build(conv_net(), "int8")


@builds
@pytest.mark.parametrize("capabilities", [["9.9"], ["8.6", "sm_89"], ["current"]])
def test_unknown_compute_capabilities_are_refused(capabilities):
    with pytest.raises(InputError, match=r"among .*8\.6.*but got '(9\.9|sm_89|current)'"):
        build(conv_net(), compute_capabilities=capabilities)


def test_tensorrt_has_no_choice_of_gpu():
    with pytest.raises(InputError, match="use tensorrt-rtx"):
        TENSORRT.build_engine(conv_net().SerializeToString(), target=EngineTarget(AMPERE))


@pytest.mark.parametrize("target", [EngineTarget(version_compatible=True), EngineTarget(hardware_compatible="ampere-plus")])
def test_tensorrt_for_rtx_has_no_compatibility(target):
    with pytest.raises(InputError, match="use tensorrt"):
        TENSORRT_RTX.build_engine(conv_net().SerializeToString(), target=target)


def test_unknown_levels_of_compatibility_are_refused():
    with pytest.raises(InputError, match=r"same-compute-capability or ampere-plus, but got 'turing'"):
        EngineTarget(hardware_compatible="turing")


@builds
def test_compatibility_bears_the_names_of_nvidias_bindings():
    """The two packages are built from one source; only full TensorRT honours the level."""
    trt = importlib.import_module(TENSORRT_RTX.module)
    assert set(HARDWARE_LEVELS.values()) == set(trt.HardwareCompatibilityLevel.__members__) - {"NONE"}
    for level in HARDWARE_LEVELS:
        config = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config()
        _set_target(trt, config, EngineTarget(version_compatible=True, hardware_compatible=level))
        assert config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    assert trt.Runtime(trt.Logger(trt.Logger.ERROR)).engine_host_code_allowed is False


@builds
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("timings", [b"", b"damaged" * 50], ids=["none yet", "damaged"])
def test_timings_that_are_no_good_are_begun_anew(timings):
    trt = importlib.import_module(TENSORRT_RTX.module)
    config = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR)).create_builder_config()
    cache = _attach_timings(trt, config, timings)
    assert bytes(cache.serialize()) == bytes(config.create_timing_cache(b"").serialize())
    assert config.get_timing_cache() is not None and config.get_flag(trt.BuilderFlag.DISABLE_COMPILATION_CACHE)


def test_timings_are_kept_for_one_version_gpu_and_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("HWNAS_CACHE_DIR", str(tmp_path))
    gpu = {"gpu": "L4", "gpu_driver": "580.1", "gpu_compute_capability": "8.9"}
    paths = [timings_path("tensorrt", version, one) for version, one in (
        ("11.4", gpu), ("11.5", gpu), ("11.4", gpu | {"gpu": "L40"}), ("11.4", gpu | {"gpu_driver": "590.1"}))]
    assert len(set(paths)) == 4 and {path.parent for path in paths} == {tmp_path / "tensorrt"}
    assert timings_path("tensorrt", "11.4", dict(reversed(gpu.items()))) == paths[0]


def test_tensorrt_builds_where_it_runs_or_says_what_is_missing():
    found = TENSORRT.availability()
    if found.available:
        assert TENSORRT.build_engine(conv_net().SerializeToString()).files[ENGINE_FILE]
        return
    with pytest.raises(UnavailableError, match="tensorrt cannot build an engine here") as caught:
        TENSORRT.build_engine(conv_net().SerializeToString())
    assert found.reason in str(caught.value)


@pytest.fixture(params=[TENSORRT, TENSORRT_RTX], ids=lambda runtime: runtime.name)
def runtime(request):
    found = request.param.availability()
    if not found.available:
        pytest.skip(f"{request.param.name}: {found.reason}")
    return load_runtime(request.param.name)


def run(runtime, model, config, **inputs):
    return runtime.compile(model.SerializeToString(), config).run(inputs)["logits"]


@pytest.mark.gpu
@pytest.mark.parametrize(("space", "precision", "tolerance"), [
    ("mobile-cpu", "fp32", 1e-4), ("spos", "fp32", 1e-4), ("mobile-cpu", "fp16", 2e-2), ("spos", "fp16", 2e-2),
    ("mobile-cpu+int8+fp32", "fp32", 5e-2), ("mobile-cpu+int8+fp32", "fp16", 5e-2),
])
def test_networks_give_the_numbers_of_onnx_runtime(runtime, space, precision, tolerance):
    model = to_signed(random_network(space))
    images = noise(tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim))
    expected = run(load_runtime("onnxruntime-cpu"), model, RuntimeConfig(), images=images)
    result = run(runtime, model, RuntimeConfig(precision=precision), images=images)
    assert np.abs(result - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.gpu
def test_runs_after_the_first_take_new_inputs(runtime):
    executable = runtime.compile(conv_net().SerializeToString(), RuntimeConfig())
    first, second = noise((2, 3, 16, 16), 1), noise((2, 3, 16, 16), 2)
    results = [executable.run({"images": images})["logits"] for images in (first, second, first)]
    assert np.abs(results[0] - results[1]).max() > 1e-3
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.gpu
@pytest.mark.parametrize("target", [EngineTarget(), EngineTarget(version_compatible=True),
                                    EngineTarget(hardware_compatible="same-compute-capability"),
                                    EngineTarget(hardware_compatible="ampere-plus")], ids=str)
def test_engines_of_tensorrt_run_whatever_they_are_compatible_with(target, tmp_path, monkeypatch):
    if not TENSORRT.availability().available:
        pytest.skip(f"tensorrt: {TENSORRT.availability().reason}")
    monkeypatch.setenv("HWNAS_CACHE_DIR", str(tmp_path))
    model, images = conv_net().SerializeToString(), noise((2, 3, 16, 16), 1)
    expected = load_runtime("onnxruntime-cpu").compile(model, RuntimeConfig()).run({"images": images})["logits"]
    program = TENSORRT.build_engine(model, target=target)
    result = TENSORRT.load(program, RuntimeConfig()).run({"images": images})["logits"]
    assert np.abs(result - expected).max() <= 1e-4 * np.abs(expected).max()
    (kept,) = (tmp_path / "tensorrt").iterdir()
    assert kept.read_bytes() == program.files[TIMINGS_FILE]
    again = TENSORRT.build_engine(model, target=target)
    assert len(again.files[TIMINGS_FILE]) == len(program.files[TIMINGS_FILE])  # nothing had to be measured
