"""Token generation: continuous batching over a decoder, one loop ``schedule → step → postprocess``.

The engine runs in the worker process of its model. ``sequence``, ``blocks`` and ``scheduler`` know nothing of
any framework; decoders live in ``headrace.runtimes.onnx`` and ``headrace.runtimes.torch``.
"""
