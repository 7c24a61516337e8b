"""The few CUDA calls: each is checked; memory holds what was written; a graph does its work every time that it runs."""

import numpy as np
import pytest

from hwnas.errors import UnavailableError
from hwnas.runtimes.cuda import DeviceArray, Stream, check
from hwnas.runtimes.nvidia import find_module
from tests.runtimes.models import noise
from tests.runtimes.test_nvidia import needs_gpu, needs_no_gpu

pytestmark = pytest.mark.skipif(find_module("cuda.bindings") is None, reason="cuda.bindings is not installed; run: "
                                                                            "pip install cuda-bindings")


@needs_no_gpu
def test_a_call_that_fails_is_told_in_cudas_words():
    with pytest.raises(UnavailableError, match=r"cudaErrorInsufficientDriver \(CUDA driver version is insufficient") as caught:
        Stream()
    assert caught.value.exit_code == 5


def test_a_call_that_works_gives_its_value():
    from cuda.bindings import runtime

    assert check(runtime.cudaRuntimeGetVersion()) >= 12000
    assert check((runtime.cudaError_t.cudaSuccess,)) is None


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("array", [noise((2, 3, 5)), np.array(7.5, np.float32), np.arange(5), np.zeros(1, np.uint8)])
def test_memory_gives_back_what_was_written(array):
    stream = Stream()
    there = DeviceArray(array.shape, array.dtype, stream)
    there.write(array)
    back = there.read()
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype and back is not array


@pytest.mark.gpu
@needs_gpu
def test_a_graph_replays_its_work_on_what_is_there_by_then():
    from cuda.bindings import runtime

    stream = Stream()
    source, target = (DeviceArray((8,), np.dtype(np.float32), stream) for _ in range(2))

    def copy() -> None:
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        check(runtime.cudaMemcpyAsync(target.address, source.address, 32, kind, stream.handle))

    target.write(noise((8,), 0))
    graph = stream.record(copy)
    np.testing.assert_array_equal(target.read(), noise((8,), 0))  # recording runs nothing
    for seed in (1, 2):
        source.write(noise((8,), seed))
        graph.run()
        np.testing.assert_array_equal(target.read(), noise((8,), seed))


@pytest.mark.gpu
@needs_gpu
def test_work_that_fails_leaves_the_stream_usable():
    stream = Stream()

    def fail() -> None:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        stream.record(fail)
    array = DeviceArray((8,), np.dtype(np.float32), stream)
    array.write(noise((8,)))
    np.testing.assert_array_equal(array.read(), noise((8,)))
