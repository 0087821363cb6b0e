"""The decoder for GPUs, on the CPU: what it draws, and ahead, is what the engine samples from its logits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pytest
import torch
import transformers
from generation_engines import Result, encode
from tiny_decoders import BLOCK, SIZES, VOCABULARY, build, specification, table

from headrace.runtimes.base import InstanceSpec, ModelError
from headrace.runtimes.generation.base import Chunk, DeviceSampling, Draw, GenerationSpec, SamplingDecoder
from headrace.runtimes.generation.engine import Engine
from headrace.runtimes.generation.messages import Accepted, Add, Event
from headrace.runtimes.generation.parameters import Sampling
from headrace.runtimes.generation.sampling import Sampler
from headrace.runtimes.torch.decoder import load
from headrace.runtimes.torch.generation import cuda_graphs
from headrace.runtimes.torch.generation.architecture import architecture, read_config
from headrace.runtimes.torch.generation.llama import Llama
from headrace.runtimes.torch.generation.network import Network
from headrace.runtimes.torch.generation.paged_attention import PagedAttention, gather
from headrace.runtimes.torch.generation.paged_cache import PagedCache
from headrace.runtimes.torch.generation.paged_decoder import PagedDecoder
from headrace.runtimes.torch.generation.weights import Checkpoint

CPU = torch.device("cpu")
EOS = 7
SAMPLINGS: Final[tuple[DeviceSampling, ...]] = ("host", "ahead")
GREEDY = Draw(0.0, 0, 1.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("llama"), transformers.LlamaConfig(**SIZES))


@pytest.fixture(scope="module")
def network(folder: Path) -> Network:
    sizes = architecture(read_config(folder))
    assert sizes is not None
    with Checkpoint(folder) as checkpoint, torch.inference_mode():
        return Llama(checkpoint, sizes, 96, torch.float32, CPU)


class Counting(PagedDecoder):
    """Counts the steps that were begun ahead."""

    ahead = 0

    def begin(self, chunks: Sequence[Chunk], draws: Any, follows: Any = None) -> Any:
        self.ahead += follows is not None
        return super().begin(chunks, draws, follows)


class Run:
    """An engine on the network, and what all requests got."""

    def __init__(self, network: Network, spec: GenerationSpec, sampling: DeviceSampling) -> None:
        self.decoder = Counting(network, spec, CPU, gather, sampling)
        self.engine = Engine(self.decoder, Sampler(VOCABULARY, spec.eos_ids), spec)
        self.results: dict[int, Result] = {}

    def add(self, request: int, prompt: Sequence[int], sampling: Sampling) -> None:
        self.results[request] = Result()
        self.take(self.engine.add(Add(request, encode(prompt), sampling)))

    def take(self, events: list[Event]) -> None:
        for event in events:
            assert not isinstance(event, Accepted)
            self.results[event.request].take(event)

    def finish(self) -> dict[int, Result]:
        for _ in range(2000):
            if not self.engine.has_work:
                break
            self.engine.step(self.take)
        stats = self.engine.stats
        assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, stats.total_blocks)
        return self.results


def spec_of(*, slots: int = 4, kv_tokens: int = 384, **others: Any) -> GenerationSpec:
    spec = specification(slots=slots)
    return replace(spec, kv_tokens=kv_tokens, step_tokens=16, prefill_tokens=32, eos_ids=(EOS,), **others)


def prompt_of(chance: random.Random, start: Sequence[int] = ()) -> list[int]:
    return [*start, *chance.choices(range(VOCABULARY), k=chance.randint(1, 20))]


def sampling_of(chance: random.Random) -> Sampling:
    special: list[dict[str, Any]] = [
        {"logprobs": 1},
        {"repetition_penalty": 1.2},
        {"min_tokens": 5},
        {"typical_p": 0.8},
        {"n": 2, "best_of": 2},
        {"n": 2, "best_of": 2, "beam": True},
        {"prompt_logprobs": 0},
    ]
    return Sampling(
        **{
            "max_tokens": chance.randint(1, 30),
            "temperature": chance.choice([0.0, 0.6, 1.0]),
            "top_k": chance.choice([0, 0, 12]),
            "top_p": chance.choice([1.0, 0.9]),
            "min_p": chance.choice([0.0, 0.02]),
            "seed": chance.randrange(100),
            "stop_token_ids": chance.choice([(), (3, 50)]),
            "ignore_eos": chance.random() < 0.3,
            **(chance.choice(special) if chance.random() < 0.2 else {}),
        }
    )


def test_it_is_one_that_samples(network: Network) -> None:
    decoder = PagedDecoder(network, specification(), CPU, gather)
    assert isinstance(decoder, SamplingDecoder)
    assert decoder.sampling == "ahead"


def test_full_batches_are_the_same_alone_and_together(network: Network) -> None:
    chance = random.Random(1)
    asked = [
        (prompt_of(chance), Sampling(max_tokens=40, temperature=t, top_p=p, seed=3))
        for t, p in [(0.0, 1.0), (0.0, 1.0), (0.9, 1.0), (0.8, 0.9)]
    ]
    spec = spec_of()
    together = {}
    for sampling in get_args(DeviceSampling):
        run = Run(network, spec, sampling)
        for request, (prompt, wanted) in enumerate(asked):
            run.add(request, prompt, wanted)
        together[sampling] = run.finish()
        assert (run.decoder.ahead > 10) == (sampling == "ahead")
    assert together["host"] == together["device"] == together["ahead"]
    for request, (prompt, wanted) in enumerate(asked):
        run = Run(network, spec, "ahead")
        run.add(request, prompt, wanted)
        assert run.finish() == {request: together["host"][request]}


@pytest.mark.parametrize("kv_tokens", [384, 88], ids=["room", "few blocks"])
@pytest.mark.parametrize("seed", range(4))
def test_any_schedule_gives_what_the_host_samples(network: Network, seed: int, kv_tokens: int) -> None:
    spec = spec_of(kv_tokens=kv_tokens, prefix_cache=seed != 3)
    found: dict[str, dict[int, Result]] = {}
    for sampling in SAMPLINGS:
        chance = random.Random(seed)
        run = Run(network, spec, sampling)
        beginning = prompt_of(chance)
        for request in range(14):
            start = beginning if chance.random() < 0.5 else ()
            run.add(request, prompt_of(chance, start), sampling_of(chance))
            for _ in range(chance.choice([0, 0, 1, 9])):
                if run.engine.has_work:
                    run.engine.step(run.take)
            if request % 5 == 4:
                run.engine.abort(request)
        found[sampling] = run.finish()
        assert bool(run.decoder.ahead) == (sampling == "ahead")
        if kv_tokens == 88 and sampling == "ahead":
            assert run.engine.stats.preemptions
    for request in set(range(14)) - {4, 9}:
        host, ahead = found["host"][request], found["ahead"][request]
        # of logprobs other batches change the last digits
        assert (ahead.samples, ahead.finishes, ahead.rejected) == (host.samples, host.finishes, None)
        assert ahead.logprobs.keys() == host.logprobs.keys()


def test_a_prefix_is_found_behind_a_row_that_was_dropped(network: Network) -> None:
    spec = spec_of(slots=2)
    prompt = list(range(10, 21))
    whole = Run(network, spec, "host")
    whole.add(0, prompt, Sampling(max_tokens=24, temperature=0, ignore_eos=True))
    whole.finish()
    text = whole.results[0].samples[0]
    stop = next(token for place, token in enumerate(text) if place > 6 and token not in text[:place])
    told = text[: text.index(stop) + 1]
    run = Run(network, spec, "ahead")
    run.add(0, prompt, Sampling(max_tokens=24, temperature=0, ignore_eos=True, stop_token_ids=(stop,)))
    run.finish()
    assert run.results[0].samples[0] == told
    again = [*prompt, *told, 5]
    for each in (run, whole):
        each.add(1, again, Sampling(max_tokens=9, temperature=0, ignore_eos=True))
        each.finish()
    assert run.results[1].started[0].cached_tokens >= BLOCK * ((len(prompt) + len(told) - 1) // BLOCK)
    assert run.results[1].outcome() == whole.results[1].outcome()


def test_a_row_without_numbers_rejects_its_own_request(folder: Path) -> None:
    sizes = architecture(read_config(folder))
    assert sizes is not None
    with Checkpoint(folder) as checkpoint, torch.inference_mode():
        network = Llama(checkpoint, sizes, 96, torch.float32, CPU)

    class Broken:
        """The network, with NaN behind one token."""

        def __getattr__(self, name: str) -> Any:
            return getattr(network, name)

        def __call__(self, tokens: Any, positions: Any, rows: Any, attention: Any) -> torch.Tensor:
            logits = network(tokens, positions, rows, attention)
            logits[tokens[rows] == bad] = torch.nan
            return logits

    spec, bad = spec_of(), -1
    plain = Run(network, spec, "host")
    greedy = Sampling(max_tokens=20, temperature=0, ignore_eos=True)
    for request, prompt in enumerate([[1, 2, 3], [4, 5], [6, 8, 9, 10]]):
        plain.add(request, prompt, greedy)
    plain.finish()
    texts = {request: result.samples[0] for request, result in plain.results.items()}
    bad = next(token for token in texts[1][2:] if token not in [*texts[0], *texts[2], 1, 2, 3, 6, 8, 9, 10])
    run = Run(Broken(), spec, "ahead")
    for request, prompt in enumerate([[1, 2, 3], [4, 5], [6, 8, 9, 10]]):
        run.add(request, prompt, greedy)
    run.finish()
    assert run.decoder.ahead
    rejected = run.results[1].rejected
    assert rejected is not None
    assert "not finite" in rejected.message
    assert {request: run.results[request].samples[0] for request in (0, 2)} == {0: texts[0], 2: texts[2]}


def test_tokens_are_taken_from_the_step_before(network: Network) -> None:
    """Places are those among the drawn tokens, not among the chunks; chunks with logits go to the host."""
    decoder = PagedDecoder(network, specification(), CPU, gather)
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12]]
    chunks = [Chunk(n, prompt, 0, table(n), 1, fresh=True) for n, prompt in enumerate(prompts)]
    first = decoder.begin(chunks, [None, GREEDY, GREEDY])
    behind = [Chunk(n, (0,), len(prompts[n]), table(n), 1, fresh=False) for n in (2, 1)]
    second = decoder.begin(behind, [GREEDY, None], [1, 0])
    outcome, later = first.read(), second.read()
    other = PagedDecoder(network, specification(), CPU, gather)
    logits = other.step(chunks)
    np.testing.assert_array_equal(outcome.logits, logits[:1])
    assert list(outcome.tokens) == logits[1:].argmax(axis=1).tolist()
    assert list(outcome.sound) == [True, True]
    known = [Chunk(n, [outcome.tokens[n - 1]], len(prompts[n]), table(n), 1, fresh=False) for n in (2, 1)]
    logits = other.step(known)
    assert list(later.tokens) == [int(logits[0].argmax())]
    np.testing.assert_allclose(later.logits, logits[1:], rtol=1e-5, atol=1e-5)


class Played(cuda_graphs.Graphs):
    """Graphs whose steps are computed instead of captured, on the same inputs."""

    def __init__(self, network: Network, cache: PagedCache, spec: GenerationSpec) -> None:
        blocks = -(-spec.max_tokens // spec.block_tokens)
        self._cache = cache
        self._sizes = cuda_graphs.sizes(spec.max_sequences)
        self._inputs = cuda_graphs.inputs(self._sizes[-1], blocks, cache, CPU)
        replays = {size: Replay(network, self._inputs, cache, size) for size in self._sizes}
        self._graphs = {size: (replay, replay.logits) for size, replay in replays.items()}  # type: ignore[misc]


class Replay:
    """Computes what a graph would, into a tensor that stays."""

    def __init__(self, network: Network, inputs: cuda_graphs.Inputs, cache: PagedCache, size: int) -> None:
        self._network, self._inputs, self._size = network, inputs, size
        self._attention = PagedAttention(
            cache, inputs.places[:size], inputs.tables[:size], inputs.ends[:size], (), gather
        )
        self.logits = torch.zeros(size, network.vocabulary_size)

    def replay(self) -> None:
        rows = torch.arange(self._size)
        inputs, size = self._inputs, self._size
        self.logits.copy_(self._network(inputs.tokens[:size], inputs.positions[:size], rows, self._attention))


def test_graphs_take_tokens_of_the_step_before(network: Network) -> None:
    spec = spec_of()
    chance = random.Random(8)
    asked = [(prompt_of(chance), Sampling(max_tokens=25, temperature=t, seed=2)) for t in (0.0, 0.7, 1.0)]
    found = []
    for sampling in SAMPLINGS:
        run = Run(network, spec, sampling)
        if sampling == "ahead":
            with torch.inference_mode():
                run.decoder._graphs = Played(network, run.decoder._cache, spec)
        for request, (prompt, wanted) in enumerate(asked):
            run.add(request, prompt, wanted)
        found.append(run.finish())
    assert found[0] == found[1]


def test_the_option_says_who_samples(folder: Path) -> None:
    spec = specification()
    instance = InstanceSpec("tiny", "torch", str(folder), options={"sampling": "gpu"}, generation=spec)
    with pytest.raises(ModelError, match="option 'sampling' must be one of host, device, ahead, not 'gpu'"):
        load(instance)
    decoder = load(replace(instance, options={"sampling": "host"}))
    assert not isinstance(decoder, SamplingDecoder)
