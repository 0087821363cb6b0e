"""Model runtimes: what executes a model inside a worker process.

``base`` is the contract, ``wire`` the messages between server and worker, ``worker`` the process,
``text`` the encoder head around a tensor model, ``onnx`` and ``torch`` the implementations,
``convert`` the builders of the demo repository.
"""
