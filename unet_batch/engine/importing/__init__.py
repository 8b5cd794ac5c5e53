"""ONNX graphs of other programs: understood, composed into graphs of ours, and proven to compute the same."""
