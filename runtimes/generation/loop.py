"""The loop of a generation worker: takes requests in between steps and sends what comes out of them.

One thread does everything but compiling grammars. While something runs the socket is only looked at; when
nothing does the decoder gets ready for what is to come, and then the loop sleeps in ``poll`` until the server
writes or a grammar is ready.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable

import msgspec

from headrace.runtimes.frames import FrameReader
from headrace.runtimes.generation.base import Decoder, GenerationSpec
from headrace.runtimes.generation.compilation import Compilation
from headrace.runtimes.generation.engine import Engine
from headrace.runtimes.generation.messages import (
    Abort,
    Accepted,
    Add,
    Event,
    GenerationRequest,
    Outputs,
    Rejected,
)
from headrace.runtimes.generation.parameters import Grammar
from headrace.runtimes.generation.sampling import Sampler
from headrace.runtimes.generation.structured import CompiledGrammar, GrammarCompiler
from headrace.runtimes.wire import frame


def serve(reader: FrameReader, data: socket.socket, decoder: Decoder, spec: GenerationSpec) -> None:
    """Run a loaded decoder until the server closes ``data``, from which ``reader`` reads."""
    compiler = GrammarCompiler(spec.tokenizer, decoder.vocabulary_size, spec.eos_ids)
    engine = Engine(decoder, Sampler(decoder.vocabulary_size, spec.eos_ids), spec)
    wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        Loop(reader, data, engine, compiler.compile if spec.tokenizer else None, wake).run()
    finally:
        compiler.close()
        decoder.close()


class Loop:
    """One engine and its socket."""

    def __init__(
        self,
        reader: FrameReader,
        data: socket.socket,
        engine: Engine,
        compile_grammar: Callable[[Grammar], CompiledGrammar] | None,
        wake: int,
    ) -> None:
        """``wake`` is an eventfd; grammars are refused without ``compile_grammar``."""
        self._reader = reader
        self._data = data
        self._engine = engine
        self._wake = wake
        self._messages: msgspec.msgpack.Decoder[GenerationRequest] = msgspec.msgpack.Decoder(
            GenerationRequest
        )
        self._compilation = (
            None
            if compile_grammar is None
            else Compilation(compile_grammar, lambda: os.eventfd_write(wake, 1))
        )
        self._poll = select.poll()
        self._poll.register(data.fileno(), select.POLLIN)
        self._poll.register(wake, select.POLLIN)

    def run(self) -> None:
        """Serve until the server closes the socket."""
        while True:
            self._take_in()
            if self._reader.closed:
                return
            if self._engine.has_work:
                self._engine.step(self._emit, self._take_in)
            else:
                self._sleep()

    def _sleep(self) -> None:
        while not self._poll.poll(0) and self._engine.prepare():
            pass
        self._poll.poll()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _take_in(self) -> None:
        """Take all that has come: an abort frees its slot before the next part of a step."""
        events: list[Event] = []
        freed = False
        while (message := self._reader.take(self._messages)) is not None:
            if isinstance(message, Abort) and message.sample >= 0:
                freed |= self._engine.end(message.request, message.sample)
            elif isinstance(message, Abort):
                freed |= self._engine.abort(message.request)
                if self._compilation is not None:
                    self._compilation.drop(message.request)
            else:
                events += self._add(message)
        events += self._take_compiled()
        # with nothing left to run no step would tell that there is room again
        if events or (freed and not self._engine.has_work):
            self._emit(events)

    def _add(self, message: Add) -> list[Event]:
        if message.sampling.grammar is None:
            return self._begin(message)
        if self._compilation is None:
            text = "this model has no tokenizer.json, without which its output cannot follow a grammar"
            return [Rejected(message.request, "invalid", text)]
        if (refusal := self._engine.refusal(message)) is not None:
            return [Rejected(message.request, "invalid", refusal)]
        self._compilation.submit(message)
        return []

    def _begin(self, message: Add, grammar: CompiledGrammar | None = None) -> list[Event]:
        refusal = self._engine.add(message, grammar)
        if refusal or not message.sampling.checked_by_engine:
            return refusal
        return [Accepted(message.request)]

    def _take_compiled(self) -> list[Event]:
        if self._compilation is None:
            return []
        events: list[Event] = []
        for message, grammar in self._compilation.ready():
            if isinstance(grammar, Rejected):
                events.append(grammar)
                continue
            events += self._begin(message, grammar)
        return events

    def _emit(self, events: list[Event]) -> None:
        # the server always reads, so this waits for no more than its event loop
        self._data.sendall(frame(Outputs(tuple(events), self._engine.stats)))
