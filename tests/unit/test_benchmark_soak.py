"""The soak: its requests, what it counts, how it judges memory, and its callers against real servers."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from benchmark_import import module

bars = module("bars")
chart = module("soak.chart")
client = module("soak.client")
command = module("soak.command")
http_client = module("http_client")
plan = module("soak.plan")
report = module("report")
requests = module("soak.requests")
results = module("soak.results")
runs = module("results")
table = module("soak.table")
tally = module("soak.tally")

TRIES = 300


def test_requests_are_of_every_wire_and_all_lengths_and_the_same_every_time() -> None:
    drawn = [requests.draw(random.Random(number), 400) for number in range(TRIES)]
    assert drawn == [requests.draw(random.Random(number), 400) for number in range(TRIES)]
    assert {wire.name for wire, _ in drawn} == {wire.name for wire in requests.WIRES}
    texts = [
        json.loads(body)["inputs"] for wire, body in drawn if wire.name == "/embed"
    ]  # the others carry texts as well, but in other shapes
    assert {len(each) == 1 for each in texts} == {True, False}
    assert max(len(each) for each in texts) <= requests.MOST_TEXTS
    words = [len(text.split()) for each in texts for text in each]
    assert min(words) < 10
    assert 300 < max(words) <= 400


@pytest.mark.parametrize("wire", requests.WIRES, ids=lambda wire: wire.name)
def test_a_request_carries_its_texts(wire: Any) -> None:
    body = wire.body(["river stone", "light"], True)
    assert b"river stone" in body
    assert b"light" in body
    assert wire.headers == (requests.JSON_HEADERS if wire.protocol == "http" else ())


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("http/1.1 429 too many requests: b'{}'", "HTTP 429"),
        (f"the call failed: {bytes([64, 11]) + b'grpc-status' + bytes([1]) + b'8' + bytes([0])!r}", "gRPC 8"),
        (f"the call failed: {b'grpc-status' + bytes([2]) + b'14' + bytes([0, 12]) + b'x'!r}", "gRPC 14"),
        ("connection lost: None", None),
        ("", None),
    ],
)
def test_statuses_are_read_out_of_the_clients_errors(text: str, status: str | None) -> None:
    assert tally.status_of(text) == status


def test_refusals_failures_and_silence_are_told_apart() -> None:
    counts = tally.Tally(answered=2, left=1)
    counts.note("/embed", http_client.AnswerError("http/1.1 429 too many requests: b''"))
    counts.note("/embed", http_client.AnswerError("http/1.1 500 internal server error: b'oops'"))
    counts.note("Embed", TimeoutError())
    assert dict(counts.refused) == {"HTTP 429": 1}
    assert dict(counts.failed) == {"HTTP 500": 1}
    assert counts.unanswered == 1
    assert counts.total == 6
    assert counts.errors == [
        "/embed: AnswerError: http/1.1 500 internal server error: b'oops'",
        "Embed: TimeoutError: ",
    ]


def a_result(growth: float = 1.0) -> Any:
    steps = [0.5] * 3 + [1.0] * 3 + [growth] * 3
    return results.SoakResult(
        "soak", "random lengths", 16, 30.0, 1 / 3, [60.0 * minute for minute in range(9)],
        {"server": [100.0 * step for step in steps], "workers": [900.0] * 9}, [90.0], 2, 2,
        {"answered": 5, "refused": 1}, {"HTTP 429": 1}, [], 0, 0, "verified",
    )  # fmt: skip


def test_memory_is_judged_after_warming_up() -> None:
    ((key, metrics),) = a_result(1.2).cells().items()
    assert key == ("soak", "all", 16)
    assert metrics["server_rss_growth"] == pytest.approx(1.2)
    assert metrics["rss_growth"] == pytest.approx(1020 / 1000)
    assert a_result().growth([1.0, 2.0]) is None


def test_the_soaks_bars_are_judged_with_the_others() -> None:
    run = runs.RunResult("2026-01-01T00:00:00+00:00", {}, {}, soak=[a_result(1.2)])
    verdicts = {each.bar.metric: each.met for each in bars.judge(run.cells(), command.BARS)}
    assert verdicts == {"rss_growth": True, "server_rss_growth": False, "unanswered": True, "failed": True}
    assert all(bar.upper for bar in command.BARS)


def test_a_soak_is_shown_as_a_table_and_as_a_picture(tmp_path: Path) -> None:
    section = table.section(a_result(1.2))
    assert [row[0] for row in section.rows] == ["server", "workers", "together"]
    assert section.rows[0][1:] == ["100", "120", "1.200", "120"]
    assert "refused: 1 HTTP 429" in section.notes
    assert "1 workers were killed, 2 of 2 are there in the end" in section.notes
    (path,) = chart.draw([a_result()], tmp_path / "run")
    assert path.name == "run-soak.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert chart.draw([], tmp_path / "run") == []


class Servers:
    """A gRPC and an HTTP server that answer, refuse, or keep silent, in turn."""

    def __init__(self) -> None:
        self.asked = 0

    async def __aenter__(self) -> Self:
        self.http_server = await asyncio.start_server(self._http, "127.0.0.1", 0)
        self.http = f"127.0.0.1:{self.http_server.sockets[0].getsockname()[1]}"
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers((_Everything(self),))
        self.grpc = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.http_server.close()
        await self.server.stop(None)

    def turn(self) -> int:
        self.asked += 1
        return self.asked % 7

    async def _http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(size)
                turn = self.turn()
                if turn == 1:
                    await asyncio.sleep(5.0)
                status = b"429 Too Many Requests" if turn == 2 else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\n{}")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class _Everything(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Any method."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    def service(self, handler_call_details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, _: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        turn = self._servers.turn()
        if turn == 1:
            await asyncio.sleep(5.0)
        if turn == 2:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return b""


async def test_callers_leave_are_refused_and_notice_silence() -> None:
    ours, theirs = multiprocessing.Pipe()
    short = plan.Plan(
        callers=3, burst=4, burst_every=0.4, burst_seconds=0.2, leave=0.4, leave_seconds=0.02, patience=0.5,
        longest=20,
    )  # fmt: skip
    async with Servers() as servers:
        job = client.SoakJob(servers.grpc, servers.http, short, 1, (0.0, 0.0), time.monotonic() + 2.0)
        await client._Soak(job, theirs).run()
    counts, done = None, False
    while ours.poll():
        counts, done = ours.recv()
    assert done
    assert counts is not None
    assert counts.answered > 0
    assert counts.left > 0
    assert set(counts.refused) <= {"HTTP 429", "gRPC 8"}
    assert counts.refused.total() > 0
    assert counts.unanswered > 0
    assert counts.failed.total() == 0
    assert all("TimeoutError" in error for error in counts.errors)
    ours.close()
    theirs.close()


async def test_only_one_asks_while_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = multiprocessing.Pipe()
    calm = plan.Plan(callers=3, leave=0.0, patience=0.2, longest=20)
    async with Servers() as servers:
        begin = time.monotonic()
        job = client.SoakJob(servers.grpc, servers.http, calm, 1, (begin, begin + 0.6), begin + 1.2)
        soak = client._Soak(job, theirs)
        asked: list[tuple[float, int]] = []
        ask = soak._ask

        async def note(open_: Any, wire: Any, body: bytes) -> bool:
            asked.append((time.monotonic() - begin, id(open_)))
            return bool(await ask(open_, wire, body))

        monkeypatch.setattr(soak, "_ask", note)
        await soak.run()
    assert len({caller for moment, caller in asked if moment < 0.6}) == 1
    assert len({caller for moment, caller in asked if moment >= 0.6}) == 3, asked
    ours.close()
    theirs.close()
