"""The scripts that artefacts carry, so that their users need nothing of hwnas: numpy and the format's own runtime only.

All of them are one frame, which reads images, fills up the last batch and compares with the golden outputs, around the few lines
that load the model and define `run(batch)` for one runtime.
"""

_FRAME = '''\
"""Runs {files} on golden.npz, or on {images} (N, C, H, W): python run.py [images.npy]"""
import sys
from pathlib import Path

import numpy as np
{load}
golden = np.load(here / "golden.npz", allow_pickle=False)
images = np.load(sys.argv[1], allow_pickle=False) if len(sys.argv) > 1 else golden["images"]
batch = {batch}
filled = np.concatenate([images, np.repeat(images[-1:], -len(images) % batch, axis=0)]).astype(np.float32)
logits = np.concatenate([run(filled[i:i + batch]) for i in range(0, len(filled), batch)])[:len(images)]
print("classes:", *logits.argmax(axis=1))
if len(sys.argv) == 1:
    difference, tolerance = np.abs(logits - golden["logits"]).max(), {relative:g} * max({floor:g}, np.abs(golden["logits"]).max())
    agrees = difference <= tolerance  # False for NaN too
    print(f"largest difference {{difference:.2e}}, allowed {{tolerance:.2e}}:", "agrees" if agrees else "DIFFERS")
    sys.exit(not agrees)
'''

ONNX = '''\
import onnxruntime

here = Path(__file__).resolve().parent
session = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])


def run(batch):
    return session.run(None, {"images": batch})[0]

'''

OPENVINO = '''\
import openvino

here = Path(__file__).resolve().parent
precision = {"INFERENCE_PRECISION_HINT": "@precision@"}  # left alone, OpenVINO computes in bf16 where it can
model = openvino.Core().compile_model(here / "model.xml", "CPU", precision)


def run(batch):
    return model({"images": batch})["logits"]

'''

NCNN = '''\
import ncnn

here = Path(__file__).resolve().parent
net = ncnn.Net()
for option in ("fp16_storage", "fp16_packed", "fp16_arithmetic", "bf16_storage", "bf16_packed"):
    setattr(net.opt, f"use_{option}", option.startswith("@precision@"))
net.load_param(str(here / "model.param"))
net.load_model(str(here / "model.bin"))


def run(batch):
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(batch, batch_index=0).clone())
    return np.array(extractor.extract("out0")[1].numpy(batch_index=0)).reshape(len(batch), -1)

'''

MNN = '''\
from MNN import expr, nn

here = Path(__file__).resolve().parent
model = nn.load_module_from_file(str(here / "model.mnn"), ["images"], ["logits"])


def run(batch):
    images = expr.placeholder(list(batch.shape), expr.NCHW)
    images.write(np.ascontiguousarray(batch))
    return np.array(model.onForward([images])[0].read())

'''

EXECUTORCH = '''\
import torch  # before the runtime, which needs its libraries
from executorch.extension.pybindings import _C  # executorch.runtime would do, but imports the compiler: many seconds

here = Path(__file__).resolve().parent
model = _C._load_for_executorch(str(here / "model.pte"))


def run(batch):
    return model.forward([torch.from_numpy(batch.copy())])[0].numpy().copy()

'''

LITERT = '''\
from ai_edge_litert.interpreter import Interpreter

here = Path(__file__).resolve().parent
model = Interpreter(str(here / "model.tflite"))
model.allocate_tensors()
(source,), (target,) = model.get_input_details(), model.get_output_details()


def run(batch):
    model.set_tensor(source["index"], np.ascontiguousarray(batch.transpose(0, 2, 3, 1)))  # LiteRT is channels-last
    model.invoke()
    return model.get_tensor(target["index"])

'''

TENSORRT = '''\
import @module@ as trt
from cuda.bindings import runtime as cuda

here = Path(__file__).resolve().parent
runtime = trt.Runtime(trt.Logger())
runtime.engine_host_code_allowed = @host_code@  # an engine for later versions, too, brings its runtime
engine = runtime.deserialize_cuda_engine((here / "model.engine").read_bytes())
assert engine, "an engine needs an NVIDIA GPU that it was built for, and its driver"
context = engine.create_execution_context()
arrays = {name: np.empty(tuple(engine.get_tensor_shape(name)), np.float32) for name in ("images", "logits")}
memory = {name: cuda.cudaMalloc(array.nbytes)[1] for name, array in arrays.items()}
for name, address in memory.items():
    context.set_tensor_address(name, address)


def copy(target, source, name, kind):
    (status,) = cuda.cudaMemcpy(target, source, arrays[name].nbytes, cuda.cudaMemcpyKind[f"cudaMemcpy{kind}"])
    assert int(status) == 0, status


def run(batch):
    copy(memory["images"], np.ascontiguousarray(batch).ctypes.data, "images", "HostToDevice")
    assert context.execute_async_v3(0)
    copy(arrays["logits"].ctypes.data, memory["logits"], "logits", "DeviceToHost")
    return arrays["logits"].copy()

'''


def run_script(load: str, *, files: str, batch: int | None, raw_images: bool, relative: float, floor: float) -> str:
    """The script of one artefact.

    Args:
        load: What loads the model and defines `run`.
        files: The model's files, for the help.
        batch: Images in a batch; None where any number goes.
        raw_images: The model takes pixel values, not preprocessed images.
        relative: The tolerance, as a share of the output's largest value.
        floor: What counts as that value in smaller outputs.
    """
    images = "images of pixel values 0 to 255" if raw_images else "preprocessed float32 images"
    return _FRAME.format(load=load, files=files, images=images, relative=relative, floor=floor,
                         batch="len(images)" if batch is None else f"{batch}  # images go in one batch at a time")
