"""From the parameters of Text Generation Inference to what the generate task takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.runtimes.generation.parameters import Sampling
from headrace.server.codecs.openai_options import MIN_TEMPERATURE
from headrace.server.codecs.tgi_grammar import grammar
from headrace.server.codecs.tgi_limits import samples
from headrace.server.tasks.generation import GenerationOptions

if TYPE_CHECKING:
    from headrace.server.codecs.tgi import Parameters


def generate_options(
    given: Parameters, max_total_tokens: int, request_id: str, *, stream: bool
) -> GenerationOptions:
    """Build the options of one sample; ``given`` was checked.

    A model's own sampling defaults do not count in this family: what a request does not say is neutral, and
    greedy unless it samples.

    Args:
        given: the request's parameters.
        max_total_tokens: the model's whole context, which no request for more can fill.
        request_id: by which the request can be aborted; "" for none.
        stream: every token is told as it comes.

    Raises:
        InvalidJsonError, InvalidArgumentError: the grammar is none of TGI's.
    """
    told = stream or describes(given) or best_of(given) > 1
    wanted = given.max_new_tokens
    sampling = Sampling(
        max_tokens=max_total_tokens if wanted is None else min(wanted, max_total_tokens),
        temperature=_temperature(given),
        top_k=given.top_k or 0,
        top_p=1.0 if given.top_p is None else given.top_p,
        typical_p=1.0 if given.typical_p is None else given.typical_p,
        repetition_penalty=1.0 if given.repetition_penalty is None else given.repetition_penalty,
        frequency_penalty=given.frequency_penalty or 0.0,
        seed=given.seed,
        logprobs=(given.top_n_tokens or 0) if told else None,
        prompt_logprobs=0 if given.decoder_input_details else None,
        watermark=bool(given.watermark),
        grammar=grammar(given.grammar),
        adapter=given.adapter_id or "",
    )
    return GenerationOptions(
        sampling,
        stop=tuple(given.stop or ()),
        include_stop=True,
        details=told,
        token_texts=told,
        request_id=request_id,
    )


def describes(given: Parameters) -> bool:
    """Tell whether the answer has ``details``: those of the prompt cannot be told without."""
    return bool(given.details or given.decoder_input_details)


def best_of(given: Parameters) -> int:
    """Return how many samples are drawn."""
    return given.best_of or 1


def _temperature(given: Parameters) -> float:
    """Return the temperature, 0 where nothing but the most likely token may be taken."""
    if best_of(given) == 1 and not samples(given):
        return 0.0
    return 1.0 if given.temperature is None else max(given.temperature, MIN_TEMPERATURE)
