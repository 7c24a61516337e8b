"""One network, several languages: PyTorch modules for training, ONNX for every runtime."""
