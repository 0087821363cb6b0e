"""The ONNX decoder against transformers: the same logits however tokens are cut, batched, cached, moved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_decoders import agree, expected, load, table, text, whole
from tiny_llama import LONGEST, VOCABULARY, write_tiny_llama

from headrace.runtimes.base import InstanceSpec, ModelError
from headrace.runtimes.generation.base import Chunk, Decoder, GenerationSpec
from headrace.runtimes.generation.groups import groups
from headrace.runtimes.registry import decoder_loader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama as a Hugging Face folder."""
    made = tmp_path_factory.mktemp("tiny") / "hf"
    write_tiny_llama(made)
    return made


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    """The same model as the graph that the decoder runs."""
    from headrace.runtimes.convert.causal_export import export

    target = folder.parent / "onnx"
    export(folder, target, say=lambda _: None)
    return target


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    """The model in transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where forms of the graph are kept."""
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(params=["alike", "mixed"])
def decoder(request: pytest.FixtureRequest, exported: Path, weights: Path) -> Iterator[Decoder]:
    """A decoder of its own for each test: one that decodes apart from prompts, and one that does not."""
    made = load(exported, weights, mixed_runs=request.param == "mixed")
    assert made.together == request.param
    yield made
    made.close()


def test_greedy_tokens_of_a_ragged_batch_are_those_of_transformers(decoder: Decoder, reference: Any) -> None:
    """Prompts of different lengths decode together, token for token as each does alone."""
    texts = [text(length, length) for length in (1, 3, 9, 17)]
    logits = decoder.step([whole(slot, tokens) for slot, tokens in enumerate(texts)])
    for _ in range(20):
        for tokens, row in zip(texts, logits, strict=True):
            agree(row[None], expected(reference, tokens)[-1:])
            tokens.append(int(row.argmax()))
        logits = decoder.step(
            [
                Chunk(slot, tokens[-1:], len(tokens) - 1, table(slot), 1, fresh=False)
                for slot, tokens in enumerate(texts)
            ]
        )


def test_all_positions_give_logits_when_asked(decoder: Decoder, reference: Any) -> None:
    """Prompt logprobs and guessed tokens need more than the last position."""
    tokens = text(13)
    agree(decoder.step([whole(0, tokens, 13)]), expected(reference, tokens))
    more = text(4, 1)
    found = decoder.step([Chunk(0, more, 13, table(0), 3, fresh=False)])
    agree(found, expected(reference, tokens + more)[-3:])


@pytest.mark.parametrize("cuts", [(5, 8), (1, 12), (4, 4, 5), (12, 1)])
def test_chunks_give_what_the_whole_prompt_gives(
    decoder: Decoder, reference: Any, cuts: tuple[int, ...]
) -> None:
    """However a prompt is cut, while another sequence, in a row behind, begins and decodes."""
    tokens, other = text(sum(cuts)), text(6, 9)
    start = 0
    for cut in cuts:
        last = start + cut == len(tokens)
        chunk = Chunk(0, tokens[start : start + cut], start, table(0), int(last), fresh=start == 0)
        beside = whole(1, other) if start == 0 else Chunk(1, [7], len(other), table(1), 1, fresh=False)
        logits = decoder.step([chunk, beside])
        other += [7] * (start > 0)
        start += cut
        assert len(logits) == 1 + last
        agree(logits[-1:], expected(reference, other)[-1:])
    agree(logits[:1], expected(reference, tokens)[-1:])


def test_logits_come_in_the_order_of_the_chunks(decoder: Decoder, reference: Any) -> None:
    """Single tokens and longer chunks may be mixed, and some ask for nothing."""
    texts = [text(length, length) for length in (5, 7, 6, 9)]
    decoder.step([whole(slot, tokens, 0) for slot, tokens in enumerate(texts)])
    new = [[11], [12, 13, 14], [15], [16, 17]]
    wanted = [1, 2, 0, 1]
    found = decoder.step(
        [
            Chunk(slot, new[slot], len(texts[slot]), table(slot), wanted[slot], fresh=False)
            for slot in (3, 0, 1, 2)
        ]
    )
    parts = [expected(reference, texts[slot] + new[slot])[-wanted[slot] :] for slot in (3, 0, 1)]
    agree(found, np.concatenate(parts))


def test_sequences_of_like_length_begin_in_one_run(decoder: Decoder, reference: Any) -> None:
    """Shorter ones are padded, which changes neither their logits nor what follows."""
    texts = [text(length, length) for length in (17, 7, 18, 18)]
    wanted = [1, 2, 0, 3]
    chunks = [whole(slot, tokens, wanted[slot]) for slot, tokens in enumerate(texts)]
    assert groups(chunks, "alike") == [[0, 2, 3], [1]]
    found = decoder.step(chunks)
    parts = [expected(reference, texts[slot])[-wanted[slot] :] for slot in (0, 1, 3)]
    agree(found, np.concatenate(parts))
    found = decoder.step(
        [Chunk(slot, [9], len(tokens), table(slot), 1, fresh=False) for slot, tokens in enumerate(texts)]
    )
    agree(found, np.stack([expected(reference, [*tokens, 9])[-1] for tokens in texts]))
    # rows that are no neighbours: one that runs lies between those that are free
    decoder.release(0)
    decoder.release(2)
    found = decoder.step([whole(4, texts[2]), whole(5, texts[3])])
    agree(found, np.stack([expected(reference, tokens)[-1] for tokens in texts[2:]]))


def test_a_prefix_in_the_pool_stands_for_its_tokens(decoder: Decoder, reference: Any) -> None:
    """Blocks that an ended sequence left give the logits that computing them again would give."""
    tokens = text(14)
    decoder.step([whole(0, tokens)])
    decoder.release(0)
    decoder.step([whole(1, text(20, 3))])
    blocks = [*table(0)[:3], *table(2)[3:]]
    found = decoder.step([Chunk(2, tokens[12:], 12, blocks, 2, fresh=True)])
    agree(found, expected(reference, tokens)[-2:])


def test_decoded_tokens_complete_blocks_as_well(decoder: Decoder, reference: Any) -> None:
    """The blocks of an answer are there for the next question."""
    tokens = text(6)
    decoder.step([whole(0, tokens)])
    for token in (20, 21, 22):
        decoder.step([Chunk(0, [token], len(tokens), table(0), 0, fresh=False)])
        tokens.append(token)
    decoder.release(0)
    found = decoder.step([Chunk(5, [30], 8, table(0), 1, fresh=True)])
    agree(found, expected(reference, [*tokens[:8], 30])[-1:])


def test_a_copy_goes_on_by_itself(decoder: Decoder, reference: Any) -> None:
    """Two samples of one prompt share what is equal and part from there."""
    tokens = text(10)
    decoder.step([whole(0, tokens)])
    shared = [*table(0)[:2], *table(1)[2:]]
    decoder.copy(0, 1, table(0), shared, 10)
    ends = ([40, 41, 42], [50, 51, 52])
    for step in range(3):
        found = decoder.step(
            [
                Chunk(slot, [ends[slot][step]], 10 + step, (table(0), shared)[slot], 1, fresh=False)
                for slot in (0, 1)
            ]
        )
    for slot in (0, 1):
        agree(found[slot : slot + 1], expected(reference, tokens + ends[slot])[-1:])
    decoder.release(0)
    decoder.release(1)
    found = decoder.step([Chunk(2, [60], 12, shared, 1, fresh=True)])
    agree(found, expected(reference, [*tokens, 50, 51, 60])[-1:])


def test_sequences_may_end_in_any_order(decoder: Decoder, reference: Any) -> None:
    """Rows move together as others end; a freed slot begins anew, and prompts arrive in between."""
    generator = random.Random(5)
    running: dict[int, list[int]] = {}
    for step in range(60):
        chunks = []
        for slot, tokens in running.items():
            tokens.append(generator.randrange(3, VOCABULARY))
            chunks.append(Chunk(slot, tokens[-1:], len(tokens) - 1, table(slot), 1, fresh=False))
        free = [slot for slot in range(6) if slot not in running]
        if free and generator.random() < 0.6:
            slot = generator.choice(free)
            running[slot] = text(generator.randint(1, 20), step)
            chunks.append(whole(slot, running[slot]))
        if not chunks:
            continue
        logits = decoder.step(chunks)
        assert len(logits) == len(chunks)
        for chunk, row in zip(chunks, logits, strict=True):
            agree(row[None], expected(reference, running[chunk.slot])[-1:])
        for slot in [
            slot for slot, tokens in running.items() if len(tokens) > 40 or generator.random() < 0.1
        ]:
            decoder.release(slot)
            del running[slot]


def test_a_sequence_may_fill_its_row(exported: Path, reference: Any) -> None:
    """The last position that ``max_tokens`` allows is computed like any other."""
    decoder = load(exported, max_sequences=1, kv_tokens=LONGEST, prefix_cache=False)
    tokens = text(LONGEST)
    decoder.step([whole(0, tokens[:-1], 0)])
    found = decoder.step([Chunk(0, tokens[-1:], LONGEST - 1, table(0), 1, fresh=False)])
    agree(found, expected(reference, tokens)[-1:])


def test_it_says_what_it_is(decoder: Decoder) -> None:
    """The engine asks for the vocabulary, the server for the platform."""
    assert decoder.vocabulary_size == VOCABULARY
    assert decoder.platform == "onnxruntime_onnx"


def test_another_graph_is_refused_with_the_way_to_make_one(tmp_path: Path) -> None:
    """A model of tensors is no decoder."""
    from headrace.runtimes.convert.arithmetic import addsub_graph, save

    save(tmp_path / "model.onnx", addsub_graph(batched=True))
    with pytest.raises(ModelError, match=r"no input_ids, .* 'headrace convert'"):
        load(tmp_path)


def test_a_gpu_is_refused(exported: Path) -> None:
    """The device is named, and what serves it."""
    generation = GenerationSpec(max_tokens=8, max_sequences=1, kv_tokens=8)
    instance = InstanceSpec("tiny", "onnx", str(exported), device="cuda:0", generation=generation)
    with pytest.raises(ModelError, match=r"not on cuda:0; use backend torch"):
        decoder_loader("onnx")(instance)


def test_smollm2_answers(demo_repository: Path) -> None:
    """The demo model, as a user meets it."""
    from tokenizers import Tokenizer

    folder = demo_repository / "smollm2" / "1"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    decoder = load(folder, max_tokens=256, max_sequences=1, kv_tokens=256, block_tokens=16)
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    tokens = tokenizer.encode(question).ids
    count = len(tokens)
    logits = decoder.step([whole(0, tokens)])
    for _ in range(12):
        tokens.append(int(logits[0].argmax()))
        logits = decoder.step([Chunk(0, tokens[-1:], len(tokens) - 1, table(0), 1, fresh=False)])
    assert "Paris" in tokenizer.decode(tokens[count:])
