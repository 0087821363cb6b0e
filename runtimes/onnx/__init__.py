"""ONNX Runtime: models from ``.onnx`` files, on the CPU or a CUDA device."""
