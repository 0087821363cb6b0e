"""How alike sentences are to one: cosine similarity of their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headrace.server.errors import InputEmptyError
from headrace.server.tasks.embed import EmbedOptions, embed

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.tasks.text_models import Timings
    from headrace.server.tasks.tokenization import Tokenizing


async def similarities(
    tokenizing: Tokenizing, model: Model, source: str, sentences: Sequence[str], options: EmbedOptions
) -> tuple[NDArray[np.float32], list[int], Timings]:
    """Return float32 [sentences] in [-1, 1], the token counts of source and sentences, and the time taken.

    Raises:
        InputEmptyError: there are no sentences.
        HeadraceError: what embedding raises.
    """
    if not sentences:
        raise InputEmptyError("`inputs.sentences` cannot be empty", field="inputs")
    result = await embed(tokenizing, model, [source, *sentences], replace(options, normalize=True))
    vectors = result.vectors
    values = np.clip(vectors[1:] @ vectors[0], -1, 1)  # rounding may exceed 1, where acos has no value
    return values, result.token_counts, result.timings
