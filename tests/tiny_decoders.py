"""Tiny random language models, transformers' own answers for them, and an engine's way with a decoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from headrace.runtimes.base import InstanceSpec
from headrace.runtimes.generation.base import Chunk, Decoder, GenerationSpec
from headrace.runtimes.torch.decoder import load

VOCABULARY = 97
BLOCK = 4
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def build(folder: Path, config: Any, **saving: Any) -> Path:
    """Save a model of ``config`` with random weights; biases and norms are random too."""
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # More threads than cores that are free take many times as long.
    torch.set_num_threads(1)
    torch.manual_seed(3)
    module: Any = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                offset = 1.0 if "norm" in name and not name.endswith("bias") else 0.0
                parameter.copy_(offset + 0.2 * torch.randn(parameter.shape))
    module.save_pretrained(folder, **saving)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    """Change entries of ``config.json``."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def specification(max_tokens: int = 96, slots: int = 4) -> GenerationSpec:
    return GenerationSpec(
        max_tokens=max_tokens, max_sequences=slots, kv_tokens=slots * max_tokens, block_tokens=BLOCK
    )


def decoder(folder: Path, *, max_tokens: int = 96, slots: int = 4, dtype: str = "auto") -> Decoder:
    spec, options = specification(max_tokens, slots), {"dtype": dtype}
    return load(InstanceSpec("tiny", "torch", str(folder), options=options, generation=spec))


class Oracle:
    """transformers' own greedy answers, one sequence at a time."""

    def __init__(self, folder: Path) -> None:
        module: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        self._module = module.eval()

    def generate(self, prompt: Sequence[int], new: int) -> list[int]:
        ids = torch.tensor([prompt])
        output = self._module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0
        )
        tokens: list[int] = output[0, len(prompt) :].tolist()
        assert len(tokens) == new
        return tokens

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        with torch.no_grad():
            result: NDArray[np.float32] = self._module(input_ids=torch.tensor([tokens])).logits[0].numpy()
        return result


class Running:
    """One sequence as an engine has it: tokens so far, how many are computed, its slot and blocks."""

    def __init__(self, slot: int, prompt: Sequence[int], blocks: Sequence[int], cached: int = 0) -> None:
        self.slot = slot
        self.tokens = list(prompt)
        self.prompt = len(prompt)
        self.computed = cached
        self.blocks = list(blocks)
        self.fresh = True

    def chunk(self, most: int) -> Chunk:
        part = self.tokens[self.computed : self.computed + most]
        last = self.computed + len(part) == len(self.tokens)
        chunk = Chunk(self.slot, part, self.computed, self.blocks, int(last), self.fresh)
        self.fresh = False
        self.computed += len(part)
        return chunk

    @property
    def output(self) -> list[int]:
        return self.tokens[self.prompt :]


def step(decoder: Decoder, sequences: Sequence[Running], most: int) -> None:
    """Compute the next chunk of each sequence, and add the most likely token where it reached the end."""
    chunks = [sequence.chunk(most) for sequence in sequences]
    logits = decoder.step(chunks)
    assert logits.shape == (sum(chunk.logits for chunk in chunks), decoder.vocabulary_size)
    assert logits.dtype == np.float32
    rows = iter(logits)
    for sequence, chunk in zip(sequences, chunks, strict=True):
        if chunk.logits:
            sequence.tokens.append(int(next(rows).argmax()))


def table(number: int, max_tokens: int = 96) -> list[int]:
    """Return blocks of a sequence's own, in no order."""
    count = max_tokens // BLOCK
    return [number * count + (7 * place + 3) % count for place in range(count)]


def prompts() -> list[list[int]]:
    generator = np.random.default_rng(5)
    return [generator.integers(0, VOCABULARY, length).tolist() for length in (1, 23, 6, 38)]


def run(decoder: Decoder, prompts: Sequence[Sequence[int]], new: int, most: int = 9) -> list[Running]:
    """Generate greedily for all prompts: they arrive one after another and are prefilled in parts."""
    order = [2, 0, 3, 1]
    sequences = [Running(order[n], prompt, table(n)) for n, prompt in enumerate(prompts)]
    steps = 0
    while any(len(sequence.output) < new for sequence in sequences):
        running = [s for n, s in enumerate(sequences) if n * 2 <= steps and len(s.output) < new]
        # Not in the order of arrival, nor of the slots.
        step(decoder, running[::-1], most)
        steps += 1
    return sequences


def agrees(folder: Path, tried: Decoder, new: int = 24) -> None:
    """Assert that a folder's decoder gives transformers' tokens, however the sequences are computed."""
    oracle = Oracle(folder)
    texts = prompts()
    wanted = [oracle.generate(prompt, new) for prompt in texts]
    sequences = run(tried, texts, new)
    for sequence, output in zip(sequences, wanted, strict=True):
        assert sequence.output == output
        tried.release(sequence.slot)
    reload(tried, sequences[1], wanted[1])
    copied(tried, texts[3], wanted[3])
    tokens = texts[1] + wanted[1]
    blocks = table(2)
    found = tried.step([Chunk(0, tokens, 0, blocks, len(tokens), fresh=True)])
    np.testing.assert_allclose(found, oracle.logits(tokens), rtol=2e-3, atol=2e-3)
    tried.close()


def reload(decoder: Decoder, before: Running, wanted: Sequence[int]) -> None:
    """The prefix that a finished sequence left in its blocks serves another slot."""
    text = before.tokens[: before.prompt]
    whole = (len(text) - 1) // BLOCK * BLOCK
    other = Running((before.slot + 1) % 4, text, before.blocks, cached=whole)
    # What lies in the slot must not matter.
    decoder.step([Chunk(other.slot, [1] * 30, 0, table(3), 0, fresh=True)])
    while len(other.output) < len(wanted):
        step(decoder, [other], 99)
    assert other.output == list(wanted)
    decoder.release(other.slot)


def copied(decoder: Decoder, prompt: Sequence[int], wanted: Sequence[int]) -> None:
    """A copy goes on as its original does, and what either computes later is its own."""
    original = Running(3, prompt, table(0))
    while len(original.output) < 6:
        step(decoder, [original], 99)
    shared = original.computed // BLOCK - 2
    blocks = [*original.blocks[:shared], *table(1)[shared:]]
    decoder.copy(3, 1, original.blocks, blocks, original.computed)
    copy = Running(1, original.tokens, blocks, cached=original.computed)
    copy.prompt, copy.fresh = original.prompt, False
    strayed = Running(3, [*original.tokens[:-1], (original.tokens[-1] + 1) % VOCABULARY], original.blocks)
    strayed.computed, strayed.fresh = original.computed, False
    while len(copy.output) < len(wanted):
        step(decoder, [strayed, copy], 99)
    assert copy.output == list(wanted)
    # The copy's own blocks have what it was given, and what it computed since.
    whole = (len(copy.tokens) - 2) // BLOCK * BLOCK
    again = Running(0, copy.tokens[:-1], copy.blocks, cached=whole)
    step(decoder, [again], 99)
    assert again.tokens[-1] == wanted[-1]
