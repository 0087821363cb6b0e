"""What a decoder graph takes and gives, as far as the decoder must know it."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from headrace.runtimes.base import ModelError

IDS: Final = "input_ids"
LENGTHS: Final = "seqlens_k"
TOTAL: Final = "total_sequence_length"
WANTED: Final = "logit_positions"
POSITIONS: Final = "position_ids"
LOGITS: Final = "logits"
_PAST: Final = "past_key_values."
_PRESENT: Final = "present."
_CACHE_TYPES: Final = MappingProxyType({"tensor(float)": "float32", "tensor(float16)": "float16"})


class DecoderGraph:
    """Names and sizes read from a session's inputs and outputs.

    Attributes:
        caches: (input, output) of every KV plane; output ``present.…`` is written where the input is read.
        heads, head_size, dtype: of every plane.
        vocabulary_size: width of the logits, float32 [count, vocabulary].
        has_positions: whether the graph wants the tokens' positions, int64 [batch, sequence], besides.
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        """Read them.

        Raises:
            ModelError: the graph is not one that ``headrace convert`` makes.
        """
        inputs = {value.name: value for value in session.get_inputs()}
        outputs = {value.name: value for value in session.get_outputs()}
        missing = [name for name in (IDS, LENGTHS, TOTAL, WANTED) if name not in inputs]
        if missing or LOGITS not in outputs:
            msg = (
                f"the graph has no {', '.join(missing) or LOGITS}: it is no decoder made by "
                "'headrace convert', which makes one from the model's Hugging Face folder"
            )
            raise ModelError(msg)
        self.caches = [(name, name.replace(_PAST, _PRESENT, 1)) for name in inputs if name.startswith(_PAST)]
        known = {IDS, LENGTHS, TOTAL, WANTED, POSITIONS, *(name for name, _ in self.caches)}
        if (strange := set(inputs) - known) or any(name not in outputs for _, name in self.caches):
            msg = f"the decoder graph has unknown inputs {sorted(strange)} or lacks outputs of its KV cache"
            raise ModelError(msg)
        self.has_positions = POSITIONS in inputs
        shapes = {(*inputs[name].shape[1::2], inputs[name].type) for name, _ in self.caches}
        if len(shapes) != 1:
            msg = f"the layers' KV caches differ in size, which is not served: {sorted(map(str, shapes))}"
            raise ModelError(msg)
        heads, head_size, kind = shapes.pop()
        if kind not in _CACHE_TYPES or not isinstance(heads, int) or not isinstance(head_size, int):
            msg = f"the KV cache is {kind} of {heads} heads of size {head_size}, which is not served"
            raise ModelError(msg)
        self.heads, self.head_size = heads, head_size
        self.dtype: np.dtype[Any] = np.dtype(_CACHE_TYPES[kind])
        width: Any = outputs[LOGITS].shape[-1]
        if outputs[LOGITS].type != "tensor(float)" or not isinstance(width, int):
            msg = f"the graph's logits are {outputs[LOGITS].type} of width {width}, which is not served"
            raise ModelError(msg)
        self.vocabulary_size = width
