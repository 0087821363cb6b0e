"""Headrace as a contender: one of its paths, asked by the load generator."""

from __future__ import annotations

import psutil

from benchmarks.generation.client import Received, StreamClient, StreamJob
from benchmarks.generation.routes import ROUTES
from benchmarks.generation.words import Prompt, Words
from benchmarks.generation.work import Trace, Work
from benchmarks.processes import Server


class ServerPath:
    """A running server on one of :data:`benchmarks.generation.routes.ROUTES`.

    It is never stopped while others are measured: an idle server has to cost nothing.
    """

    def __init__(
        self, name: str, model: str, server: Server, client: StreamClient, words: Words | None = None
    ) -> None:
        """Ask ``model`` of ``server`` by way of ``client``; with ``words``, prompts are written in them."""
        self.name = name
        self.title = ROUTES[name].title
        self._model = model
        self._words = words
        self._asked: list[int] = []
        self._route = ROUTES[name]
        self._server = server
        self._client = client

    def send(self, work: Work, cut: float = 0.0) -> Received:
        """Do ``work``; callers leave after ``cut`` seconds unless that is 0."""
        route = self._route
        prompts = [self._words.write(ids) if self._words else Prompt(ids, "") for ids in work.prompts]
        bodies = tuple(
            route.body(self._model, prompt, new_tokens)
            for prompt, new_tokens in zip(prompts, work.new_tokens, strict=True)
        )
        self._asked = list(work.new_tokens)
        address = self._server.grpc if route.protocol == "grpc" else self._server.http
        target = route.target.format(model=self._model)
        job = StreamJob(route.protocol, address, target, route.headers, bodies, work.callers, work.gaps, cut)
        return self._client.run(job)

    def read(self, received: Received) -> Trace:
        """Read the tokens of every answer; an answer that is not whole is an error."""
        trace = received.trace
        for number, pieces in enumerate(received.pieces):
            try:
                trace.times[number], trace.tokens[number] = self._route.read(pieces, self._asked[number])
            except (ValueError, KeyError) as error:
                trace.errors.append(f"{type(error).__name__}: {error}")
        return trace

    def groups(self) -> dict[str, list[psutil.Process]]:
        """Return the server's processes and the load generator."""
        return {**self._server.groups(), "client": [psutil.Process(self._client.pid)]}

    def pause(self) -> None:
        """Do nothing."""

    def resume(self) -> None:
        """Do nothing."""
