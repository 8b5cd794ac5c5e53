"""TensorRT engines: built from ONNX, proven, kept beside a JSON sidecar, found again. Imports no PyTorch."""
