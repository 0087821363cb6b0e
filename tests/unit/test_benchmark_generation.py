"""The generation benchmarks: workloads, arithmetic on traces, streamed answers, contenders as processes."""

from __future__ import annotations

import asyncio
import json
import math
import random
import struct
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from benchmark_import import module
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
PEER_SECONDS = 60

all_bars = module("bars")
bars = module("generation.bars")
charts = module("generation.charts")
client = module("generation.client")
contenders = module("generation.contenders")
events = module("generation.events")
figures = module("generation.figures")
forms = module("generation.peers.forms")
overload = module("generation.overload")
process = module("generation.peers.process")
registry = module("generation.peers.registry")
report = module("report")
results = module("generation.results")
routes = module("generation.routes")
runner = module("generation.runner")
runs = module("results")
scenarios = module("generation.scenarios")
shape = module("generation.peers.shape")
table = module("generation.table")
work = module("generation.work")
typed = module("generation.typed")
words = module("generation.words")
workload = module("generation.workload")

SMOLLM2 = {
    "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152,
}  # fmt: skip


def some_work(new_tokens: list[int], callers: int | None = None, gaps: list[float] | None = None) -> Any:
    return work.Work([[1, 2]] * len(new_tokens), new_tokens, callers or len(new_tokens), gaps or [])


def some_trace(times: list[list[float]], sent: list[float] | None = None) -> Any:
    return work.Trace(100.0, sent or [100.0] * len(times), times, [[] for _ in times], [])


def test_prompts_are_the_same_every_time_and_no_two_begin_alike() -> None:
    first = workload.uniform(32, 128, 64, workload.source("a", 1))
    assert first == workload.uniform(32, 128, 64, workload.source("a", 1))
    assert first != workload.uniform(32, 128, 64, workload.source("a", 2))
    assert len({tuple(prompt[:8]) for prompt in first.prompts}) == 32
    assert first.uniform
    assert all(100 <= token < 49_000 for prompt in first.prompts for token in prompt)


@given(st.integers(0, 50), st.integers(0, 300), st.integers(1, 40), st.integers(0, 99))
def test_spread_covers_its_range_evenly_in_every_stretch(
    low: int, width: int, blocks: int, seed: int
) -> None:
    values = workload.spread(low, low + width, 8 * blocks, random.Random(seed))
    assert len(values) == 8 * blocks
    assert low <= min(values) <= max(values) <= low + width
    middle = low + width / 2
    for start in range(0, len(values), 8):
        assert abs(sum(values[start : start + 8]) / 8 - middle) <= width / 16 + 1


def test_mixed_requests_are_staggered_and_as_long_as_the_static_batch_on_average() -> None:
    scenario = next(each for each in scenarios.SCENARIOS if each.kind == "mixed")
    mixed = workload.mixed(scenario, 16, workload.source("m"), 0.2)
    assert mixed.callers == len(mixed.gaps) == 16
    assert mixed.gaps == sorted(mixed.gaps)
    assert mixed.gaps[0] == 0.0 < mixed.gaps[1]
    assert not mixed.uniform
    lengths = [len(prompt) for prompt in mixed.prompts]
    assert sum(lengths) / len(lengths) == pytest.approx(sum(scenario.prompt_range) / 2, abs=1)
    assert sum(mixed.new_tokens) / len(lengths) == pytest.approx(sum(scenario.output_range) / 2, abs=1)
    assert max(lengths) + max(mixed.new_tokens) <= workload.longest(scenario)


def test_a_prefix_is_shared_and_its_suffix_is_not() -> None:
    draw = workload.source("p")
    shared = workload.prompt(draw, 1000)
    (cold,), (warm,) = (workload.prefixed(shared, 8, draw).prompts for _ in range(2))
    assert cold[:1000] == warm[:1000] == shared
    assert cold[1000:] != warm[1000:]


async def test_callers_ask_one_request_at_a_time_until_none_is_left() -> None:
    busy: set[int] = set()
    most = 0

    async def ask(number: int, trace: Any) -> None:
        nonlocal most
        busy.add(number)
        most = max(most, len(busy))
        await asyncio.sleep(0.001)
        busy.remove(number)
        if number == 3:
            raise ValueError("no room")
        trace.times[number].append(time.monotonic())

    trace = await work.drive(some_work([1] * 10, callers=4), ask)
    assert most == 4
    assert trace.errors == ["ValueError: no room"]
    assert [len(times) for times in trace.times] == [1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    assert trace.sent == sorted(trace.sent)


def test_rates_of_a_batch() -> None:
    # Two sequences: first tokens after 1 s and 2 s, then one each a second until 5 s after the beginning.
    trace = some_trace([[101.0, 102.0, 103.0, 104.0, 105.0], [102.0, 103.0, 104.0, 105.0]])
    found = figures.figures(some_work([5, 5]), trace)
    assert found.tokens == 9
    assert found.missing == 1
    assert found.rate == pytest.approx(9 / 5)
    assert found.decode_rate == pytest.approx(6 / 3)
    assert found.ttft_ms == pytest.approx(1500.0)
    assert found.itl_p50_ms == found.itl_p99_ms == pytest.approx(1000.0)


def test_time_to_first_token_counts_from_when_a_request_was_sent() -> None:
    found = figures.figures(some_work([1, 1]), some_trace([[101.0], [103.0]], sent=[100.5, 102.5]))
    assert found.ttft_ms == pytest.approx(500.0)


def test_one_slow_step_of_a_hundred_is_the_99th_percentile_no_more() -> None:
    times = [100.0 + index for index in range(200)]
    times[150:] = [moment + 5.0 for moment in times[150:]]
    found = figures.figures(some_work([200]), some_trace([times]))
    assert found.itl_p50_ms == found.itl_p99_ms == pytest.approx(1000.0)


def test_staggered_work_is_rated_while_everybody_has_something_to_do() -> None:
    # Two callers, the second begins at 2 s; the last of four requests is sent at 8 s.
    trace = some_trace(
        [[101.0, 103.0], [104.0, 106.0], [107.0, 109.0], [108.0, 112.0]], sent=[100.0, 102.0, 104.0, 108.0]
    )
    found = figures.figures(some_work([2] * 4, callers=2, gaps=[0.0, 2.0]), trace)
    # 103, 104, 106, 107, 108 lie in (102, 108].
    assert found.rate == pytest.approx(5 / 6)
    assert math.isnan(found.decode_rate)


def test_a_sequence_without_tokens_has_no_decode_rate() -> None:
    found = figures.figures(some_work([2, 2]), some_trace([[101.0, 102.0], []]))
    assert math.isnan(found.decode_rate)
    assert found.missing == 2


def test_agreement_ends_at_the_first_difference() -> None:
    ours, theirs = some_trace([[], []]), some_trace([[], []])
    ours.tokens, theirs.tokens = [[1, 2, 3, 4], [5, 6]], [[1, 2, 9, 4], [5, 6]]
    assert figures.agreement(ours, theirs) == pytest.approx(4 / 6)
    theirs.tokens[1] = []
    assert figures.agreement(ours, theirs) is None


def cut(data: bytes, places: list[int]) -> list[tuple[float, bytes]]:
    """Cut data at places; piece k arrives at k."""
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [(float(k), data[a:b]) for k, (a, b) in enumerate(pairwise(edges))]


@given(st.lists(st.binary(max_size=20), max_size=5), st.lists(st.integers(0, 200), max_size=8))
def test_grpc_messages_survive_any_cut(messages: list[bytes], places: list[int]) -> None:
    data = b"".join(struct.pack(">BI", 0, len(message)) + message for message in messages)
    found = list(events.grpc_messages(cut(data, places)))
    assert [message for _, message in found] == messages
    assert [moment for moment, _ in found] == sorted(moment for moment, _ in found)


def test_half_a_grpc_message_is_an_error() -> None:
    with pytest.raises(ValueError, match="not complete"):
        list(events.grpc_messages([(0.0, struct.pack(">BI", 0, 4) + b"abc")]))


def sse(*contents: str, chunk: int = 7) -> bytes:
    """An HTTP answer of events, in chunks that do not care where events end."""
    text = "".join(f"data: {content}\n\n" for content in contents).encode()
    chunks = [text[start : start + chunk] for start in range(0, len(text), chunk)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*chunks, b""))
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body


@given(st.integers(1, 60), st.lists(st.integers(0, 400), max_size=8))
def test_events_survive_any_chunks_and_any_cut(chunk: int, places: list[int]) -> None:
    found = list(events.sse_events(cut(sse("one", '{"a": "é"}', "[DONE]", chunk=chunk), places)))
    assert [content for _, content in found] == [b"one", '{"a": "é"}'.encode()]


def completion(text: str, usage: int | None = None) -> str:
    choices = [{"index": 0, "text": text}] if usage is None else []
    return json.dumps({"choices": choices, "usage": None if usage is None else {"completion_tokens": usage}})


def test_completion_tokens_have_the_times_of_their_events() -> None:
    pieces = [(0.0, sse(completion("a"))[:-5])]
    for moment, content in ((1.0, completion("b")), (2.0, completion("c")), (2.5, completion("", 3))):
        part = f"data: {content}\n\n".encode()
        pieces.append((moment, b"%x\r\n%s\r\n" % (len(part), part)))
    assert events.completion_times(pieces) == [0.0, 1.0, 2.0]


def test_tokens_that_events_do_not_tell_apart_are_spread() -> None:
    assert events.spread([1.0, 2.0, 3.0], 5) == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert events.spread([1.0, 2.0, 3.0], 2) == [1.0, 3.0]
    assert events.spread([1.0], 3) == [1.0, 1.0, 1.0]
    assert events.spread([], 3) == []


@pytest.mark.parametrize(
    ("contents", "problem"),
    [(['{"error": {"message": "no"}}'], "has an error"), ([completion("a")], "no usage")],
)
def test_answers_that_are_not_whole_are_errors(contents: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        events.completion_times([(0.0, sse(*contents))])


def test_typed_requests_are_read_back_as_tokens() -> None:
    route = routes.ROUTES["grpc"]
    request = typed.generation_pb2.GenerateStreamRequest.FromString(
        route.body("m", words.Prompt([5, 6], ""), 3)
    )
    assert (request.model, list(request.token_ids.ids)) == ("m", [5, 6])
    assert (request.parameters.max_tokens, request.parameters.temperature) == (3, 0.0)
    assert request.parameters.HasField("temperature")
    assert request.parameters.ignore_eos
    pieces = []
    for moment, ids in ((1.0, []), (2.0, [7]), (3.0, [8, 9])):
        delta = typed.generation_pb2.TextDelta(token_ids=ids)
        message = typed.generation_pb2.GenerateStreamResponse(delta=delta).SerializeToString()
        pieces.append((moment, struct.pack(">BI", 0, len(message)) + message))
    assert route.read(pieces, 3) == ([2.0, 3.0, 3.0], [7, 8, 9])


VOCABULARY = {"Ġriver": 7, "Ġstone": 9, "Ġa": 4, "river": 5, "Ġ12": 6, "<|im_end|>": 2}


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Words of a vocabulary of which two are whole words with a space before them."""
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": VOCABULARY}}))
    return words.Words(tmp_path / "tokenizer.json")


def test_words_are_the_same_tokens_as_text_and_as_ids(written: Any) -> None:
    assert written.write([0, 1, 3]) == ([7, 9, 9], " river stone stone")
    assert len(written.write(range(128)).ids) == len(written.write(range(128)).text.split()) == 128


def test_a_vocabulary_without_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 1}}}))
    with pytest.raises(ValueError, match="no words"):
        words.Words(tmp_path / "tokenizer.json")


def test_an_endless_model_is_the_same_without_the_tokens_that_end_a_text(tmp_path: Path) -> None:
    model = tmp_path / "repository" / "m"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text("name")
    (model / "1" / "model.onnx").write_bytes(b"graph")
    (model / "1" / "config.json").write_text('{"eos_token_id": 2, "hidden_size": 4}')
    (model / "1" / "generation_config.json").write_text('{"eos_token_id": [2], "bos_token_id": 1}')
    (model / "1" / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "bos_token": "x"}')
    copy = words.endless(model, tmp_path / "endless") / "m"
    assert (copy / "config.pbtxt").read_text() == "name"
    assert (copy / "1" / "model.onnx").read_bytes() == b"graph"
    assert json.loads((copy / "1" / "config.json").read_text()) == {"hidden_size": 4}
    assert json.loads((copy / "1" / "generation_config.json").read_text()) == {"bos_token_id": 1}
    assert json.loads((copy / "1" / "tokenizer_config.json").read_text()) == {"bos_token": "x"}
    assert "eos_token_id" in (model / "1" / "config.json").read_text()


def chunked(*contents: dict[str, Any]) -> list[tuple[float, bytes]]:
    """An SSE answer whose events came at 1.0, 2.0, …"""
    pieces = [(0.5, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")]
    for number, content in enumerate(contents):
        event = b"data: " + json.dumps(content).encode() + b"\n\n"
        pieces.append((number + 1.0, b"%x\r\n%s\r\n" % (len(event), event)))
    return pieces


def test_every_path_has_a_route_that_asks_for_the_same() -> None:
    prompt = words.Prompt([7, 9], " river stone")
    assert set(routes.ROUTES) == set(scenarios.EVERY_PATH)
    for name, route in routes.ROUTES.items():
        body = route.body("m", prompt, 64)
        assert b" river stone" in body or b"\x07\x09" in body or b"[7, 9]" in body, name
        assert b"64" in body or b"\x40" in body, name
        assert route.target.format(model="m").startswith("/")


@pytest.mark.parametrize("name", ["tgi", "compat"])
def test_tgi_events_are_tokens(name: str) -> None:
    read = routes.ROUTES[name].read
    first = {"token": {"id": 5, "text": "a"}, "generated_text": None}
    last = {"token": {"id": 6, "text": ""}, "generated_text": "a"}
    assert read(chunked(first, last), 2) == ([1.0, 2.0], [5, 6])
    with pytest.raises(ValueError, match="no generated text"):
        read(chunked(first), 2)
    with pytest.raises(ValueError, match="has an error"):
        read(chunked(first, {"error": "gone", "error_type": "generation"}), 2)


def test_pieces_of_tritons_text_stand_for_the_tokens_that_were_asked_for() -> None:
    read = routes.ROUTES["triton-rest"].read
    assert read(chunked({"text_output": "a"}, {"text_output": "bc"}), 3) == ([1.0, 1.0, 2.0], [])
    with pytest.raises(ValueError, match="has an error"):
        read(chunked({"text_output": "a"}, {"error": "gone"}), 3)
    with pytest.raises(ValueError, match="no text"):
        read(chunked(), 3)


def test_modelstreaminfer_ends_with_a_final_response() -> None:
    stream = module("generation.triton_stream")
    request = stream.kserve.ModelInferRequest.FromString(
        stream.triton_body("m", words.Prompt([7], " river"), 3)
    )
    assert [entry.name for entry in request.inputs] == ["text_input", "sampling_parameters", "stream"]
    assert request.raw_input_contents[0] == struct.pack("<I", 6) + b" river"

    def answers(*finals: bool, error: str = "") -> list[tuple[float, bytes]]:
        pieces = []
        for number, final in enumerate(finals):
            response = stream.kserve.ModelStreamInferResponse(error_message=error)
            response.infer_response.parameters["triton_final_response"].bool_param = final
            message = response.SerializeToString()
            pieces.append((number + 1.0, struct.pack(">BI", 0, len(message)) + message))
        return pieces

    read = routes.ROUTES["triton-grpc"].read
    assert read(answers(False, True), 2) == ([1.0, 2.0], [])
    with pytest.raises(ValueError, match="no final response"):
        read(answers(False, False), 2)
    with pytest.raises(ValueError, match="has an error: gone"):
        read(answers(True, error="gone"), 2)


def test_an_answer_in_one_piece_has_all_its_tokens_at_the_end() -> None:
    answer = typed.generation_pb2.GenerateResponse()
    answer.samples.add(token_ids=[7, 8])
    message = answer.SerializeToString()
    framed = struct.pack(">BI", 0, len(message)) + message
    read = routes.ROUTES["unary"].read
    assert read([(1.0, framed[:7]), (2.0, framed[7:])], 2) == ([2.0, 2.0], [7, 8])
    with pytest.raises(ValueError, match="2 answers"):
        read([(1.0, framed + framed)], 2)


def stream_job(protocol: str, address: str, target: str, *bodies: bytes, cut_after: float = 0.0) -> Any:
    return client.StreamJob(protocol, address, target, (), bodies, len(bodies), [], cut_after)


async def test_streamed_calls_hand_every_message_on() -> None:
    async def answer(body: bytes, context: Any) -> Any:
        for part in range(3):
            await asyncio.sleep(0.01)
            yield body + bytes([part])
        if body == b"bad":
            await context.abort(grpc.StatusCode.INTERNAL, "broken")
        if body == b"endless":
            await asyncio.sleep(PEER_SECONDS)

    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("probe.Probe", {"Ask": handler}),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        received = await client._do(stream_job("grpc", address, "/probe.Probe/Ask", b"a", b"bad"))
        messages = [[message for _, message in events.grpc_messages(pieces)] for pieces in received.pieces]
        assert messages == [[b"a\0", b"a\1", b"a\2"], [b"bad\0", b"bad\1", b"bad\2"]]
        assert len({moment for moment, _ in received.pieces[0]}) == 3
        assert len(received.trace.errors) == 1
        assert "broken" in received.trace.errors[0]
        left = await client._do(stream_job("grpc", address, "/probe.Probe/Ask", b"endless", cut_after=0.3))
        assert left.trace.errors == []
        assert len(left.pieces[0]) == 3
    finally:
        await server.stop(0)


async def test_streamed_http_answers_end_with_their_last_chunk() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            if body == b"bad":
                writer.write(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nfull")
                break
            data = sse(completion(body.decode()), completion("", 1), "[DONE]")
            for start in range(0, len(data), 11):
                writer.write(data[start : start + 11])
                await asyncio.sleep(0)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    async with server:
        # One caller with two requests: the connection is used again.
        job = client.StreamJob("http", address, "/v1/completions", (), (b"a", b"b"), 1, [])
        received = await client._do(job)
        assert received.trace.errors == []
        assert [len(events.completion_times(pieces)) for pieces in received.pieces] == [1, 1]
        refused = await client._do(stream_job("http", address, "/v1/completions", b"bad"))
        assert "429 Too Many Requests" in refused.trace.errors[0]


def reading(rate: float, **changes: Any) -> Any:
    values = {
        "rate": rate, "decode_rate": 2 * rate, "ttft_ms": 1000 / rate, "itl_p50_ms": 1.0, "itl_p99_ms": 1.5,
        "cpu": {"server": 2.0, "envoy": 1.0}, "other_cores": 0.0, "load": 1.0,
    }  # fmt: skip
    return results.Reading(**{**values, **changes})


def a_result() -> Any:
    cells = {
        ("grpc", 8): [reading(90.0), reading(100.0), reading(math.nan, failed=1, errors=["gone"])],
        ("onnxruntime-genai", 8): [reading(100.0), reading(100.0), reading(100.0)],
        ("floor", 8): [reading(200.0, cpu={}), reading(200.0, cpu={}), reading(200.0, cpu={})],
    }
    for number in range(3):
        results.relate({name: rounds[number] for (name, _), rounds in cells.items()})
    points = [results.GenerationPoint(*key, rounds) for key, rounds in cells.items()]
    return results.GenerationResult(
        "generation-batch", "tokens", "batch", 2, "3 rounds", points, {"grpc": "typed"}, {"vllm": "no venv"}
    )


def test_ratios_are_taken_within_a_round_and_ignore_what_failed() -> None:
    medians = a_result().points[0].medians()
    assert medians["rate"] == 95.0
    assert medians["of onnxruntime-genai"] == pytest.approx(0.95)
    assert medians["decode_of floor"] == pytest.approx(0.475)
    assert medians["ttft_of onnxruntime-genai"] == pytest.approx((100 / 90 + 1) / 2)
    assert medians["server_cores"] == pytest.approx(0.2)
    assert medians["itl_spread"] == pytest.approx(1.5)
    assert medians["prefix_speedup"] is None
    assert a_result().points[0].failed == 1


def test_a_known_prefix_is_compared_with_a_new_one() -> None:
    metrics = reading(10.0, ttft_ms=50.0, cold_ttft_ms=300.0).metrics()
    assert metrics["prefix_speedup"] == pytest.approx(6.0)


def test_every_bar_names_a_point_that_is_measured_and_a_metric_that_exists() -> None:
    known = {
        (scenario.name, name, streams): scenario
        for scenario in scenarios.SCENARIOS
        for name in scenario.contenders
        for streams in scenario.streams
    }
    plain = {*reading(1.0).metrics(), "free_of_all", "next_of_before", "memory_growth"}
    for bar in bars.BARS:
        scenario = known[bar.scenario, bar.route, bar.clients]
        kind, _, other = bar.metric.partition(" ")
        assert bar.metric in plain or (
            kind in {"of", "decode_of", "ttft_of"} and other in scenario.contenders
        )
        assert bars.describe(bar.metric) != bar.metric
    assert len({(bar.scenario, bar.route, bar.clients, bar.metric, bar.limit) for bar in bars.BARS}) == len(
        bars.BARS
    )


def test_every_contender_is_known() -> None:
    names = {name for scenario in scenarios.SCENARIOS for name in scenario.contenders}
    assert names == {*registry.PEERS, *scenarios.EVERY_PATH}
    folder = ROOT / "benchmarks" / "generation" / "peers"
    for peer in registry.PEERS.values():
        assert len((folder / f"{peer.module}.py").read_text().splitlines()) <= 120


def test_quick_scenarios_keep_their_kind_and_ask_for_little() -> None:
    for scenario in scenarios.SCENARIOS:
        short = runner.shortened(scenario)
        assert (short.name, short.kind, short.contenders) == (
            scenario.name,
            scenario.kind,
            scenario.contenders,
        )
        assert workload.longest(short) <= workload.longest(scenario)


def a_run() -> Any:
    machine = {
        "cpu": "a processor", "cores": 2, "memory_gib": 4.0, "system": "Linux", "python": "3.11",
        "packages": {"numpy": "2"}, "revision": "abc", "modified": False,
    }  # fmt: skip
    options = {"rounds": 3, "seconds": 6.0}
    return runs.RunResult("2026-01-01T00:00:00+00:00", machine, options, generation=[a_result()])


def test_bars_of_generation_are_judged_with_the_others(tmp_path: Path) -> None:
    run = a_run()
    verdicts = {
        (each.bar.metric, each.bar.limit): each
        for each in all_bars.judge(run.cells(), bars.BARS)
        if (each.bar.route, each.bar.clients) == ("grpc", 8)
    }
    assert verdicts["of onnxruntime-genai", 0.95].met is True
    assert verdicts["server_cores", 0.15].met is False
    assert verdicts["of vllm", 1.0].met is None
    assert run.failed == 1
    text = report.markdown(run, list(verdicts.values()), [])
    assert (
        "| generation-batch, grpc, 8 streams | tokens/s ÷ onnxruntime-genai | ≥ 0.95 | 0.95 | met |" in text
    )
    assert "vllm was skipped: no venv" in text
    assert "grpc, 8 streams: gone" in text
    report.write_json(run, tmp_path / "run.json")
    document = json.loads((tmp_path / "run.json").read_text())
    rounds = document["generation"][0]["points"][0]["rounds"]
    assert [each["rate"] for each in rounds] == [90.0, 100.0, None]


def test_tables_leave_out_what_nobody_measured() -> None:
    section = table.section(a_result())
    assert "TTFT new" not in section.head
    assert all(len(row) == len(section.head) for row in section.rows)
    (row,) = (row for row in section.rows if row[0] == "grpc")
    assert row[section.head.index("÷ genai")] == "0.95"


def test_charts_are_drawn_for_rates_only(tmp_path: Path) -> None:
    (path,) = charts.draw([a_result()], tmp_path / "run")
    assert path.read_bytes().startswith(b"\x89PNG")
    other = a_result()
    other.kind = "prefix"
    assert charts.draw([other], tmp_path / "other") == []


def test_the_shape_of_smollm2_has_135_million_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    found = shape.Shape.read(str(tmp_path))
    assert found.weight_bytes == 4 * 134_515_008
    assert found.kv_bytes == 2 * 30 * 192 * 4
    assert found.operations(1, 1, 0.0) == 2 * 134_515_008
    assert found.operations(10, 0, 5.0) == 20 * found.body + 4 * 10 * 30 * 576 * 5


def test_samples_of_a_family_are_summed() -> None:
    text = '# HELP a_b text\na_b{model="x"} 3\na_b{model="y"} 4.0\na_b_total 9\na 1\n'
    assert overload.sample_sum(text, "a_b") == 7.0
    assert overload.sample_sum(text, "a") == 1.0
    with pytest.raises(RuntimeError, match="no metric c"):
        overload.sample_sum(text, "c")


def peer(tmp_path: Path, module: str = "floor") -> Any:
    setup = work.Setup(str(tmp_path), 1, 2, 16, {})
    return process.PeerProcess(module, Path(sys.executable), module, setup, tmp_path / f"{module}.log")


def test_a_contender_is_a_process_that_does_work_and_can_be_paused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    with peer(tmp_path) as floor:
        (child,) = floor.groups()["peer"]
        floor.pause()
        while child.status() != "stopped":  # a signal takes its time
            time.sleep(0.01)
        floor.resume()
        trace = floor.run(workload.uniform(2, 8, 3, workload.source("floor")))
        assert [len(times) for times in trace.times] == [3, 3]
        assert trace.times[0] == trace.times[1] == sorted(trace.times[0])
        assert trace.times[0][0] > trace.begin
        with pytest.raises(RuntimeError, match="equal lengths"):
            floor.run(some_work([1, 2]))
    assert not child.is_running()


def test_a_peer_that_dies_is_left_out_of_the_other_rounds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    with peer(tmp_path) as floor:
        (child,) = floor.groups()["peer"]
        child.kill()
        with pytest.raises(RuntimeError, match="floor ended") as raised:
            floor.run(workload.uniform(1, 4, 2, workload.source("floor")))
        started = contenders.Started(running={"floor": floor})
        runner.GenerationRun._drop(floor, started, f"failed: {raised.value}")
        assert started.running == {}
        assert started.skipped["floor"].startswith("it failed: floor ended")


def test_without_the_model_nothing_is_started(tmp_path: Path) -> None:
    options = contenders.Options(tmp_path, tmp_path, 1, tmp_path)
    scenario = next(each for each in scenarios.SCENARIOS if each.name == "generation-int4")
    run = runner.GenerationRun(scenario, scenario.contenders, [1], options, lambda _: None)
    result = run.run()
    assert list(result.skipped) == ["grpc"]
    assert "no model 'smollm2-int4'" in result.skipped["grpc"]
    assert result.points == []
    assert table.section(result).rows == []
    assert charts.draw([result], tmp_path / "run") == []


def test_contenders_that_do_not_load_say_why(tmp_path: Path) -> None:
    with pytest.raises(forms.UnavailableError, match=r"config\.json"):
        peer(tmp_path)
    with pytest.raises(forms.UnavailableError, match="No module named"):
        peer(tmp_path, "nobody")


def test_what_is_missing_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(forms.UnavailableError, match="make demo"):
        forms.locate("onnx", tmp_path, "smollm2", tmp_path)
    with pytest.raises(forms.UnavailableError, match="--create"):
        forms.interpreter("vllm", tmp_path)
    assert forms.interpreter("", tmp_path) == Path(sys.executable)
