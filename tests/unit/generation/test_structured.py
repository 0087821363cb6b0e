"""Grammars with real tokenizers and a model that knows nothing: random logits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from headrace.runtimes.base import InvalidInputError
from headrace.runtimes.generation.parameters import Grammar, GrammarKind, Sampling
from headrace.runtimes.generation.sampling import Sampler
from headrace.runtimes.generation.structured import GrammarCompiler, Matcher

EOS = 1
PADDING = 37
"""Logits beyond the tokenizer's ids, as models have whose vocabulary is rounded up."""

TEXTS = [
    '{"name": "a city", "population": 123456, "tags": ["old", "new"], "area": 12.5e3, "open": true}',
    "The quick brown fox said: it is 10:45, isn't it? {}[]\\n",
    "SELECT name, price FROM items WHERE price >= 42.00 AND name != 'null';",
    "naïve café, Ελληνικά, 東京, 🙂",
]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """A tokenizer as SentencePiece makes them: words begin with U+2581, what is unknown is bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    written = json.loads(tokenizer.to_str())
    # bytes are ordinary tokens, only the trainer has to be told of them as if they were special
    written["added_tokens"] = written["added_tokens"][:2]
    return Tokenizer.from_str(json.dumps(written))


class World:
    """A tokenizer, its compiler and the random model."""

    def __init__(self, tokenizer: Tokenizer, path: Path) -> None:
        tokenizer.save(str(path))
        self.tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size() + PADDING
        self.compiler = GrammarCompiler(str(path), self.size, [EOS], seconds=2.0)
        self.sampler = Sampler(self.size, [EOS])

    def generate(
        self, grammar: Grammar, seed: int, temperature: float = 1.0, *, nudge: str = "", tokens: int = 3000
    ) -> str:
        """Return a whole text; letters of ``nudge`` are likelier, for texts that chance would not end."""
        matcher = self.compiler.compile(grammar).matcher()
        sampling = Sampling(max_tokens=tokens, seed=seed, temperature=temperature)
        state = self.sampler.begin(sampling, [5], 0, matcher)
        random = np.random.default_rng(seed)
        bias = np.zeros(self.size, np.float32)
        bias[[EOS, *(self.tokenizer.encode(letter).ids[0] for letter in nudge)]] = 8 if nudge else 0
        ids: list[int] = []
        while not state.terminated:
            assert len(ids) < tokens, f"no end: {self.text(ids)[:300]}"
            logits = random.standard_normal((1, self.size)).astype(np.float32) * 4 + bias
            ids.append(self.sampler.sample(logits, [state])[0].token)
        assert matcher.error == ""
        assert max(ids, default=0) < self.size - PADDING
        assert EOS not in ids[:-1]
        return self.text(ids)

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def accepts(self, kind: GrammarKind, grammar: str, text: str, *, closed: bool = False) -> bool:
        matcher = self.compiler.compile(Grammar(kind, grammar, closed=closed)).matcher()
        for token in self.tokenizer.encode(text).ids:
            if token not in allowed(matcher, self.size):
                return False
            matcher.accept(token)
        return EOS in allowed(matcher, self.size)


def allowed(matcher: Matcher, size: int) -> list[int]:
    row = np.zeros(size, np.float32)
    matcher.mask(row)
    return np.flatnonzero(row == 0).tolist()


@pytest.fixture(scope="module", params=[byte_level, byte_fallback], ids=["byte-level", "byte-fallback"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(request.param(), tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    yield made
    made.compiler.close()


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Cat(Strict):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(Strict):
    kind: Literal["dog"]
    name: str = Field(min_length=1, max_length=12, pattern="^[A-Z][a-zé]*$")


class Household(Strict):
    """Most of what schemas of real requests are made of."""

    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = Field(min_length=1, max_length=3)
    address: str | None = Field(max_length=20)
    score: float = Field(ge=-2, le=7.5)
    flags: dict[str, bool] = Field(max_length=2)
    rooms: tuple[int, Literal["m²", "ft"]] | None = None
    parent: Household | None = None


@pytest.mark.parametrize("temperature", [0.0, 0.2, 1.0, 30.0])
@pytest.mark.parametrize("compact", [False, True])
def test_any_seed_gives_valid_json(world: World, temperature: float, compact: bool) -> None:
    schema = json.dumps(Household.model_json_schema())
    texts = set()
    for seed in range(8):
        text = world.generate(Grammar("json_schema", schema, compact=compact), seed, temperature)
        Household.model_validate_json(text)
        texts.add(text)
    assert len(texts) > 4


def test_compact_json_has_no_whitespace(world: World) -> None:
    schema = json.dumps(Cat.model_json_schema())
    for seed in range(20):
        text = world.generate(Grammar("json_schema", schema, compact=True), seed)
        assert text == json.dumps(json.loads(text), separators=(",", ":"))
    loose = {world.generate(Grammar("json_schema", schema), seed) for seed in range(20)}
    assert any(re.search(r"\s", text) for text in loose)
    assert not any(re.search(r"\s{17}", text) for text in loose)


def test_whitespace_of_the_callers_choice(world: World) -> None:
    schema = json.dumps(Cat.model_json_schema())
    texts = {
        world.generate(Grammar("json_schema", schema, whitespace=r"\s{2}"), seed, nudge=" \n")
        for seed in range(10)
    }
    assert all(json.loads(text)["kind"] == "cat" for text in texts)
    runs = {run for text in texts for run in re.findall(r"\s+", text)}
    assert runs
    assert {len(run) for run in runs} == {2}
    with pytest.raises(InvalidInputError, match="grammar or schema cannot be used"):
        world.compiler.compile(Grammar("json_object", whitespace="("))
    with pytest.raises(InvalidInputError, match="whitespace pattern"):
        world.compiler.compile(Grammar("json_object", whitespace="[ ]{0,100000}"))


OPEN = {
    "type": "object",
    "properties": {
        "properties": {"$ref": "#/$defs/properties"},
        "free": {"type": "object", "properties": {}, "additionalProperties": True},
        "data": {"const": {"properties": 1}},
        "any": {"type": "object"},
    },
    "$defs": {"properties": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


def test_a_closed_schema_has_no_other_properties(world: World) -> None:
    def accepts(text: str, closed: bool) -> bool:
        return world.accepts("json_schema", json.dumps(OPEN), text, closed=closed)

    for text in ('{"x": 1}', '{"properties": {"x": 1}}'):
        assert accepts(text, closed=False)
        assert not accepts(text, closed=True)
    for text in ('{"properties": {"a": 1}}', '{"free": {"x": 1}}', '{"data": {"properties": 1}}',
                 '{"any": {"x": 1}}'):  # fmt: skip
        assert accepts(text, closed=True)


def test_json_object(world: World) -> None:
    for seed in range(10):
        text = world.generate(Grammar("json_object"), seed, nudge='"}]')
        assert isinstance(json.loads(text), dict)
    assert world.accepts("json_object", "", '{"a": [1, {"b": null}]}')
    assert not world.accepts("json_object", "", "[1]")


def test_true_allows_any_json(world: World) -> None:
    for text in ("1", "[true]", '"x"', "{}"):
        assert world.accepts("json_schema", "true", text)
    assert not world.accepts("json_schema", "true", "x")


@pytest.mark.parametrize(
    "pattern",
    [
        r"\d{3}-\d{4}",
        r"^[a-z]+@[a-z]{2,8}\.(com|org)$",
        r"(yes|no|maybe)( (yes|no))?",
        r"[^\s/]{1,10}/\w{2}\.",
        r"a/b\/c|\"'",
        r"é{1,3}[è-ü]?🙂",
        r"-?(0|[1-9]\d{0,5})(\.\d{1,3})?",
        r"",
    ],
)
def test_expressions_match_the_whole_output(world: World, pattern: str) -> None:
    for seed in range(6):
        text = world.generate(Grammar("regex", pattern), seed)
        assert re.fullmatch(pattern, text, re.ASCII), text


def test_classes_of_expressions_are_ascii(world: World) -> None:
    assert world.accepts("regex", r"\d\w", "4x")
    assert not world.accepts("regex", r"\d", "٤")


def test_choices_that_begin_each_other_are_all_reached(world: World) -> None:
    choices = ["a", "ab", "abc", 'b\n"\\', "é 🙂", "ab c"]
    found = {world.generate(Grammar("choice", json.dumps(choices)), seed) for seed in range(60)}
    assert found == set(choices)


GBNF = r"""
  # sums
  root ::= expr "="   # the end
  expr ::= term ( [-+] term )*
  term ::= number
         | "(" expr ")"
  number ::= [0-9]{1,3} ("." [0-9]+)?
"""


@pytest.mark.parametrize(
    ("grammar", "yes", "no"),
    [
        (GBNF, ["1=", "(1+22)-3.5=", "((0))="], ["1", "1+=", "1234=", "(1="]),
        ('root ::= "ab" | [a-z] [a-z] "c"', ["ab", "abc", "xyc"], ["abd", "a"]),
        ('root ::= word "s"\nword ::= [a-z]+', ["cats", "ss"], ["cat", "s"]),
        (
            r'root ::= [^a-y\]\n] "\x41\u00e9\U0001F642\"\\" .',
            ['zAé🙂"\\\n', '-Aé🙂"\\x'],
            ['aAé🙂"\\x', "]"],
        ),
        (r"root ::= [\]a-c^-]{2}", ["]-", "b^"], ["d]", "\\]"]),
        ('root ::= ("x" | ) "y"? | "z"{2,}', ["", "x", "xy", "y", "zzz"], ["z", "yx"]),
        ('root ::= "(" root ")" | ""', ["", "(())"], ["(", "())"]),
        ('a-b ::= "1" c.d\nc.d ::= "2"\nroot ::= a-b+', ["1212"], ["", "121"]),
        ('start: "a" WORD?\nWORD: /[b-d]{2}/', ["a", "abd"], ["ab", "abe"]),
        ('start: %json {"type": "boolean"}', ["true", "false"], ["1"]),
    ],
)
def test_grammars(world: World, grammar: str, yes: list[str], no: list[str]) -> None:
    assert [text for text in yes if not world.accepts("grammar", grammar, text)] == []
    assert [text for text in no if world.accepts("grammar", grammar, text)] == []


def test_sql_grammar_as_vllm_documents_it(world: World) -> None:
    grammar = """
        root ::= select_statement

        select_statement ::= "SELECT " column " from " table " where " condition

        column ::= "col_1 " | "col_2 "

        table ::= "table_1 " | "table_2 "

        condition ::= column "= " number

        number ::= "1 " | "2 "
    """
    for seed in range(5):
        text = world.generate(Grammar("grammar", grammar), seed)
        assert re.fullmatch(r"SELECT col_[12]  from table_[12]  where col_[12] = [12] ", text)


def test_the_end_comes_alone_and_terminates(world: World) -> None:
    matcher = world.compiler.compile(Grammar("regex", "[0-9]{2,3}")).matcher()
    for token in world.tokenizer.encode("1").ids:
        matcher.accept(token)
    assert EOS not in allowed(matcher, world.size)
    middle = matcher.copy()
    for token in world.tokenizer.encode("2").ids:
        middle.accept(token)
    assert EOS in allowed(middle, world.size)
    assert not middle.terminated
    ended = middle.copy()
    ended.accept(EOS)
    assert ended.terminated
    assert ended.error == ""
    full = middle.copy()
    for token in world.tokenizer.encode("3").ids:
        full.accept(token)
    assert full.terminated
    assert allowed(full, world.size) == [EOS]
    # the copies did not move the ones they were made of
    assert not middle.terminated
    assert EOS not in allowed(matcher, world.size)


def test_logits_may_be_wider_or_narrower_than_the_tokenizer(world: World) -> None:
    matcher = world.compiler.compile(Grammar("regex", "(?s:.)*")).matcher()
    wide = allowed(matcher, world.size + 500)
    assert len(wide) > 256
    assert max(wide) < world.size - PADDING
    assert allowed(matcher, 100) == [token for token in wide if token < 100]


def test_a_token_outside_the_grammar_ends_the_matcher(world: World) -> None:
    matcher = world.compiler.compile(Grammar("regex", "abc")).matcher()
    matcher.accept(world.tokenizer.encode("z").ids[0])
    assert matcher.terminated
    assert matcher.error
    assert allowed(matcher, world.size) in ([], [EOS])


def test_several_ends(world: World, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    world.tokenizer.save(str(path))
    compiler = GrammarCompiler(str(path), world.size, [EOS, 0])
    matcher = compiler.compile(Grammar("choice", '["a"]')).matcher()
    compiler.close()
    for token in world.tokenizer.encode("a").ids:
        matcher.accept(token)
    assert allowed(matcher, world.size) == [0, EOS]
