"""Text models as tensor models: ``text`` (BYTES, one element per row) to ``embedding`` or ``scores``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headrace.runtimes.datatypes import unpack_bytes
from headrace.server.errors import InputEmptyError, InvalidTensorError
from headrace.server.repository.model import Task
from headrace.server.scheduling.work import PartOutput, PartResult
from headrace.server.tasks.classify import ClassifyOptions, classify
from headrace.server.tasks.embed import EmbedOptions, embed

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.tasks.batching import Queueing
    from headrace.server.tasks.tensors import InputTensor
    from headrace.server.tasks.tokenization import Tokenizing


async def infer_text(
    tokenizing: Tokenizing, model: Model, tensor: InputTensor, queueing: Queueing
) -> PartResult:
    """Run a text model on the elements of ``tensor``.

    Args:
        tokenizing: where texts become tokens.
        model: a text model.
        tensor: checked ``BYTES`` input; every element is UTF-8 text.
        queueing: how its texts wait for their batches.

    Returns:
        The model's one output, FP32: ``embedding`` (rows, dimensions), scaled as the model is set to; or the
        scores (rows, labels) in the order of the labels.

    Raises:
        InvalidTensorError: an element is not UTF-8.
        InputEmptyError: an element is empty.
        HeadraceError: what embedding or classifying raises.
    """
    texts = element_texts(model, tensor)
    if "" in texts:
        place = f"element {texts.index('')} of input '{tensor.name}' for model '{model.name}'"
        raise InputEmptyError(
            f"{place} is empty, expected text",
            model=model.name,
            tensor=tensor.name,
        )
    if model.task is Task.EMBED:
        rows = (await embed(tokenizing, model, texts, EmbedOptions(queueing=queueing))).vectors
    else:
        found = await classify(tokenizing, model, texts, ClassifyOptions(queueing=queueing))
        rows = np.empty_like(found.scores)
        np.put_along_axis(rows, found.order, found.scores, axis=1)
    return {model.outputs[0].name: PartOutput("FP32", rows.shape, rows.tobytes())}


def element_texts(model: Model, tensor: InputTensor) -> list[str]:
    """Return the elements of a checked ``BYTES`` input.

    Raises:
        InvalidTensorError: an element is not UTF-8.
    """
    texts: list[str] = []
    for index, element in enumerate(unpack_bytes(tensor.data)):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError as error:
            raise InvalidTensorError(
                f"element {index} of input '{tensor.name}' for model '{model.name}' is not UTF-8 text: "
                f"{error.reason} at byte {error.start}",
                model=model.name,
                tensor=tensor.name,
            ) from None
    return texts
