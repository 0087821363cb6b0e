"""Prompts to text: the one way to the generation engines for every family."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakValueDictionary

import msgspec
import numpy as np

from headrace.server.errors import TaskNotSupportedError
from headrace.server.tasks.chat_templates import ChatTemplates
from headrace.server.tasks.detokenize import detokenizer
from headrace.server.tasks.generation import GenerationOptions, Timeline
from headrace.server.tasks.generation_checks import check_length, check_options
from headrace.server.tasks.prompts import prompt_ids
from headrace.server.tasks.running import RunningRequests
from headrace.server.tasks.samples import SampleText
from headrace.server.tasks.stop_strings import StopPatterns
from headrace.server.tasks.text_stream import TextStream
from headrace.server.tasks.vocabulary import Vocabulary

if TYPE_CHECKING:
    from headrace.runtimes.generation.parameters import Sampling
    from headrace.server.repository.model import GenerationSettings, Model
    from headrace.server.tasks.prompts import Prompt
    from headrace.server.tasks.tokenization import Tokenizing


class Generating:
    """What all generation requests share: threads, running requests, vocabularies and compiled templates.

    Args:
        tokenizing: threads for tokenising and for rendering chat templates.
        elsewhere: ends the running requests of an id in other processes, and returns how many there were.
        tenant: tells who asks, "" for anybody; cached prefixes are not shared between tenants.
    """

    def __init__(
        self,
        tokenizing: Tokenizing,
        elsewhere: Callable[[str], Awaitable[int]] | None = None,
        tenant: Callable[[], str] = str,
    ) -> None:
        self.tokenizing = tokenizing
        self.running = RunningRequests()
        self._elsewhere = elsewhere
        self._tenant = tenant
        self.templates = ChatTemplates()
        self._vocabularies: WeakKeyDictionary[Model, Vocabulary] = WeakKeyDictionary()
        # large beside their texts: all prompts of a request share them
        self._patterns: WeakValueDictionary[tuple[str, ...], StopPatterns] = WeakValueDictionary()

    def vocabulary(self, model: Model) -> Vocabulary:
        """Return the tokens of ``model``, kept as long as the model.

        Raises:
            TaskNotSupportedError: the model does not generate text.
        """
        known = self._vocabularies.get(model)
        if known is None:
            known = self._vocabularies[model] = Vocabulary(generation_settings(model).tokenizer)
        return known

    async def abort(self, request_id: str) -> int:
        """End the running requests of this id, wherever they run, and return how many there were."""
        others = 0 if self._elsewhere is None else await self._elsewhere(request_id)
        return self.running.abort(request_id) + others

    async def start(
        self,
        model: Model,
        prompt: Prompt,
        options: GenerationOptions,
        *,
        cap: bool = True,
        deadline: float | None = None,
        received: int = 0,
    ) -> TextStream:
        """Check a request, hand it to the model's engine and return its stream of deltas.

        Everything that can be refused is refused before this returns, grammars that do not compile and beams
        that do not fit included. The caller closes the stream, at best by ``async with``.

        Args:
            model: a model that generates.
            prompt: what is to be continued.
            options: how; ``sampling.max_tokens`` may be the model's whole context to mean "all there is".
            cap: give fewer tokens than ``max_tokens`` where the context ends, instead of refusing.
            deadline: when the stream ends with DeadlineExceededError, on the loop's clock; None for never.
            received: ``time.perf_counter_ns`` when the request came, for its timeline; 0 for now.

        Raises:
            TaskNotSupportedError: the model does not generate text.
            InvalidArgumentError: an option is out of range, or the engine refuses the grammar or the beams.
            InputEmptyError: the prompt is empty.
            InputTooLongError: the prompt, or prompt and ``max_tokens`` without ``cap``, exceed the context.
            QueueFullError: as many requests wait as may.
            ModelNotReadyError: the model was given up or is being unloaded.
        """
        timeline = Timeline(received=received or time.perf_counter_ns())
        settings = generation_settings(model)
        check_options(settings, options)
        ids = await prompt_ids(self.tokenizing, settings, prompt)
        timeline.tokenized = time.perf_counter_ns()
        sampling = options.sampling
        room = check_length(settings, ids, sampling.max_tokens, cap=cap)
        if room != sampling.max_tokens:
            sampling = msgspec.structs.replace(
                sampling, max_tokens=room, min_tokens=min(sampling.min_tokens, room)
            )
        if sampling.seed is None and sampling.temperature > 0:
            sampling = msgspec.structs.replace(sampling, seed=secrets.randbits(63))  # callers are told which
        if tenant := self._tenant():
            sampling = msgspec.structs.replace(sampling, cache_salt=tenant + sampling.cache_salt)
        stream = await self._follow(model, ids, options, sampling, timeline)
        if deadline is not None:
            stream.limit(deadline)
        if sampling.checked_by_engine:
            try:
                await stream.accepted()
            except BaseException:
                stream.close()
                raise
        return stream

    async def _follow(
        self,
        model: Model,
        ids: tuple[int, ...],
        options: GenerationOptions,
        sampling: Sampling,
        timeline: Timeline,
    ) -> TextStream:
        """Submit the request and return its stream."""
        vocabulary = self.vocabulary(model)
        generator = model.generator
        if generator is None:  # set together with the settings
            raise _not_a_generator(model)
        ticket = generator.submit(np.array(ids, np.int32), sampling)
        try:
            await ticket.admitted()
            patterns = self._stop_patterns(options.stop)
            samples = [
                SampleText(
                    index,
                    options,
                    vocabulary,
                    detokenizer(vocabulary, ids, skip_special_tokens=options.skip_special_tokens),
                    patterns,
                )
                for index in range(sampling.n)
            ]
        except BaseException:
            ticket.close()
            raise
        return TextStream(
            ticket, sampling, options.request_id, ids, samples, vocabulary, self.running,
            generator.statistics, timeline,
        )  # fmt: skip

    def _stop_patterns(self, stops: tuple[str, ...]) -> StopPatterns | None:
        """Return the automaton of ``stops``, the one that a running request has if there is one."""
        if not stops:
            return None
        known = self._patterns.get(stops)
        if known is None:
            known = self._patterns[stops] = StopPatterns(stops)
        return known


def generation_settings(model: Model) -> GenerationSettings:
    """Return the settings of a model that generates text.

    Raises:
        TaskNotSupportedError: the model does something else.
    """
    if model.generation is None:
        raise _not_a_generator(model)
    return model.generation


def _not_a_generator(model: Model) -> TaskNotSupportedError:
    return TaskNotSupportedError(
        f"model '{model.name}' is not a text generation model, its task is {model.task.value}",
        model=model.name,
        task=model.task.value,
    )
