"""The script that every artefact carries, so that its user needs nothing of hwnas. Its own numpy and ONNX Runtime only."""

RUN_SCRIPT = '''\
"""Runs model.onnx on golden.npz, or on preprocessed float32 images (N, C, H, W): python run.py [images.npy]"""
import sys
from pathlib import Path

import numpy as np
import onnxruntime

here = Path(__file__).resolve().parent
golden = np.load(here / "golden.npz", allow_pickle=False)
images = np.load(sys.argv[1], allow_pickle=False) if len(sys.argv) > 1 else golden["images"]
session = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])
batch = session.get_inputs()[0].shape[0]  # fixed: images go in one batch at a time, the last one filled up
filled = np.concatenate([images, np.repeat(images[-1:], -len(images) % batch, axis=0)]).astype(np.float32)
results = [session.run(None, {"images": filled[i:i + batch]})[0] for i in range(0, len(filled), batch)]
logits = np.concatenate(results)[:len(images)]
print("classes:", *logits.argmax(axis=1))
if len(sys.argv) == 1:
    difference, tolerance = np.abs(logits - golden["logits"]).max(), 1e-4 * max(1.0, np.abs(golden["logits"]).max())
    agrees = difference <= tolerance  # False for NaN too
    print(f"largest difference {difference:.2e}, allowed {tolerance:.2e}:", "agrees" if agrees else "DIFFERS")
    sys.exit(not agrees)
'''
