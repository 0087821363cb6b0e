"""Grammars that are wrong, too large or made to do harm: refused, and the compiler goes on."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from headrace.runtimes.base import InvalidInputError
from headrace.runtimes.generation.gbnf import to_lark
from headrace.runtimes.generation.grammars import MAX_BYTES, check_regex
from headrace.runtimes.generation.parameters import Grammar, GrammarKind
from headrace.runtimes.generation.structured import GrammarCompiler

SIZE = 400


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(['{"name": "value", "list": [1, 22, true, null]}'], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def compiler(tokenizer: Path) -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(str(tokenizer), SIZE, [0], seconds=1.5)
    yield made
    made.close()


def works(compiler: GrammarCompiler, grammar: Grammar, steps: int = 10) -> None:
    """Follow a grammar at random; whatever happens, it must not raise."""
    matcher = compiler.compile(grammar).matcher()
    random = np.random.default_rng(0)
    for _ in range(steps):
        row = np.zeros(SIZE, np.float32)
        matcher.mask(row)
        allowed = np.flatnonzero(row == 0)
        if matcher.terminated or not allowed.size:
            return
        matcher.accept(int(random.choice(allowed)))


def chain(length: int) -> str:
    """A schema whose references go ``length`` deep."""
    definitions: dict[str, Any] = {
        f"d{index}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/d{index + 1}"}}}
        for index in range(length)
    }
    definitions[f"d{length}"] = {"type": "integer"}
    return json.dumps({"$ref": "#/$defs/d0", "$defs": definitions})


WRONG: list[tuple[GrammarKind, str, str]] = [
    ("json_schema", "", "not valid JSON"),
    ("json_schema", "{", "not valid JSON"),
    ("json_schema", '{"const": NaN}', "NaN"),
    ("json_schema", "1" * 5000, "not valid JSON"),
    ("json_schema", '"x"', "neither an object nor true"),
    ("json_schema", "false", "neither an object nor true"),
    ("json_schema", '{"const": "\\ud800"}', "not valid JSON"),
    ("json_schema", "[" * 60_000, "nested"),
    ("json_schema", '{"items":' * 70 + "{}" + "}" * 70, "nested"),
    ("json_schema", json.dumps({"enum": [0] * 11_000}), "10000 values"),
    ("json_schema", json.dumps({"enum": ["x" * MAX_BYTES]}), "bytes"),
    ("json_schema", '{"$ref": "https://example.com/schema.json"}', "only references within"),
    ("json_schema", '{"items": {"$ref": "file:///etc/passwd"}}', "only references within"),
    ("json_schema", '{"$ref": "#/$defs/missing"}', "missing"),
    ("json_schema", '{"$ref": "#"}', "no text can match"),
    ("json_schema", '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}', "no text can match"),
    ("json_schema", '{"type": "banana"}', "banana"),
    ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
    ("json_schema", '{"oneOf": [{"type": "integer"}, {"type": "number"}]}', "anyOf"),
    ("json_schema", '{"type": "string", "pattern": "((a{99}){99}){99}"}', "repetitions"),
    ("json_schema", '{"patternProperties": {"' + "(" * 70 + '": {}}}', "nested groups"),
    ("regex", "(", "unclosed"),
    ("regex", "a(?=b)", "look-ahead"),
    ("regex", r"(a)\1", "backreferences"),
    ("regex", "a{100000000000}", "repetitions"),
    ("regex", "(" * 1000 + "a" + ")" * 1000, "nested groups"),
    ("regex", "((((a{9}){9}){9}){9}){9}", "repetitions"),
    ("regex", "a\x00b", "NUL"),
    ("regex", "\ud800", "surrogate"),
    ("choice", "[]", "at least one string"),
    ("choice", "{}", "at least one string"),
    ("choice", '["a", 1]', "at least one string"),
    ("choice", "a", "not valid JSON"),
    ("grammar", "", "mpty"),
    ("grammar", "hello world", "cannot be used"),
    ("grammar", "start: missing", "missing"),
    ("grammar", "start: start", "no text can match"),
    ("grammar", 'start: A\nA: "x" A', "circular"),
    ("grammar", "start: " + "(" * 5000 + '"a"' + ")" * 5000, "nested"),
    ("grammar", 'rule ::= "x"', "no rule 'root'"),
    ("grammar", "root ::= other", "'other'"),
    ("grammar", 'root ::= "a"\nroot ::= "b"', "twice"),
    ("grammar", 'root ::= "a" )', "not open"),
    ("grammar", 'root ::= ( "a"', "open"),
    ("grammar", "root ::= *", "repeats nothing, or"),
    ("grammar", 'root ::= "a', "cannot be read"),
    ("grammar", "root ::= []", "empty class"),
    ("grammar", "root ::= [^]", "empty class"),
    ("grammar", r'root ::= "\uD800"', "no character"),
    ("grammar", '"a"\nroot ::= "b"', "begin with a rule"),
    ("grammar", "root ::= root", "no text can match"),
    ("grammar", 'root ::= "x"' + "*" * 50_000, "a repetition"),
]


@pytest.mark.parametrize(
    ("kind", "text", "reason"), WRONG, ids=lambda value: str(value)[:40].encode("utf-8", "replace")
)
def test_wrong_grammars_are_refused_with_the_reason(
    compiler: GrammarCompiler, kind: GrammarKind, text: str, reason: str
) -> None:
    with pytest.raises(InvalidInputError, match=reason) as refusal:
        compiler.compile(Grammar(kind, text))
    assert len(str(refusal.value)) < 700
    works(compiler, Grammar("json_object"))


LETHAL: list[tuple[GrammarKind, str]] = [
    ("json_schema", chain(700)),
    ("grammar", "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(3000)) + 'r3000: "y"'),
    ("grammar", "start: T0\n" + "".join(f"T{i}: T{i + 1} T{i + 1}\n" for i in range(120)) + 'T120: "y"'),
    ("grammar", "start: A\nA: " + " & ".join(f"/.*a.{{{i % 20}}}/" for i in range(200))),
    (
        "json_schema",
        json.dumps({"allOf": [{"type": "string", "pattern": f".*a.{{{i}}}"} for i in range(50)]}),
    ),
]


@pytest.mark.parametrize(("kind", "text"), LETHAL, ids=lambda value: str(value)[:30])
def test_what_would_crash_or_hang_is_refused(compiler: GrammarCompiler, kind: GrammarKind, text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"make it smaller|fuel exhausted|too big"):
        compiler.compile(Grammar(kind, text))
    works(compiler, Grammar("json_schema", '{"type": "array"}'))


def test_slow_steps_are_bounded_by_the_library(compiler: GrammarCompiler) -> None:
    for pattern in (
        r".*a.{200}b",
        "(.{0,150}a){50}",
        "(a|b)*a(a|b){400}",
        "(x+x+)+y",
        r"(\w{1,50}\s){1,99}x",
    ):
        works(compiler, Grammar("regex", pattern), 200)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**12) | st.text(max_size=6) | st.floats(),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.sampled_from(["type", "enum", "x"]) | st.text(max_size=3), children, max_size=4)
    ),
    max_leaves=8,
)
TYPES = st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object", "x"])
SCHEMAS = st.recursive(
    st.booleans()
    | st.fixed_dictionaries(
        {}, optional={"type": TYPES, "enum": st.lists(JSON_VALUES), "const": JSON_VALUES}
    ),
    lambda children: st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES | st.lists(TYPES, max_size=3) | JSON_VALUES,
            "properties": st.dictionaries(st.text(max_size=4), children, max_size=4),
            "required": st.lists(st.text(max_size=4), max_size=3),
            "additionalProperties": children,
            "items": children,
            "prefixItems": st.lists(children, max_size=3),
            "minItems": st.integers(-1, 10**7),
            "maxItems": st.integers(-1, 10**7),
            "minLength": st.integers(-1, 10**7),
            "maxLength": st.integers(-1, 10**7),
            "minimum": st.integers() | st.floats(),
            "maximum": st.integers() | st.floats(),
            "multipleOf": st.integers() | st.floats(),
            "pattern": st.text(max_size=8),
            "format": st.sampled_from(["date", "uuid", "ipv6", "nonsense"]),
            "anyOf": st.lists(children, max_size=3),
            "allOf": st.lists(children, max_size=3),
            "oneOf": st.lists(children, max_size=3),
            "$ref": st.sampled_from(["#", "#/$defs/a", "#/properties/x", "#/"]),
            "$defs": st.dictionaries(st.sampled_from("ab"), children, max_size=2),
            "x-guidance": JSON_VALUES,
        },
    ),
    max_leaves=10,
)
PIECES = st.lists(
    st.sampled_from(
        [*'abr()[]{}|*+?.^$\\/"-:,\n ', "root", "::=", "start", "A", "{2,3}", "%json", "%import", "~", "&"]
    ),
    max_size=25,
).map("".join)
GRAMMARS = (
    st.builds(Grammar, st.just("json_schema"), st.builds(json.dumps, SCHEMAS | JSON_VALUES), st.booleans())
    | st.builds(Grammar, st.sampled_from(["regex", "choice", "json_schema"]), PIECES | st.text(max_size=20))
    | st.builds(
        Grammar, st.just("grammar"), PIECES | PIECES.map("root ::= ".__add__) | PIECES.map("start: ".__add__)
    )
)


@given(grammar=GRAMMARS)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_sent_is_compiled_or_refused(compiler: GrammarCompiler, grammar: Grammar) -> None:
    with contextlib.suppress(InvalidInputError):
        works(compiler, grammar, 5)


@given(text=PIECES | st.text())
def test_translation_and_checks_of_any_text_end(text: str) -> None:
    for function in (lambda: to_lark("root ::= " + text), lambda: check_regex(text, "expression")):
        with contextlib.suppress(InvalidInputError):
            function()


def test_compiled_grammars_are_kept(compiler: GrammarCompiler) -> None:
    first = compiler.compile(Grammar("regex", "kept"))
    assert compiler.compile(Grammar("regex", "kept")) is first
    for index in range(70):
        compiler.compile(Grammar("regex", f"other{index}"))
    assert compiler.compile(Grammar("regex", "kept")) is not first


def test_threads_share_a_compiler(compiler: GrammarCompiler) -> None:
    failures: list[BaseException] = []

    def compile_some(worker: int) -> None:
        try:
            for index in range(10):
                works(compiler, Grammar("choice", json.dumps([f"{worker % 2}-{index}"])))
        except BaseException as error:  # noqa: BLE001 - reported by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=compile_some, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_child_ends_with_the_compiler(tokenizer: Path) -> None:
    compiler = GrammarCompiler(str(tokenizer), SIZE, [0])
    before = set(psutil.Process().children())
    compiler.compile(Grammar("regex", "a"))
    (child,) = set(psutil.Process().children()) - before
    compiler.close()
    assert not child.is_running()
    # and is started again when it is needed
    compiler.compile(Grammar("regex", "b"))
    compiler.close()


def test_a_child_that_was_killed_is_replaced(tokenizer: Path) -> None:
    compiler = GrammarCompiler(str(tokenizer), SIZE, [0])
    before = set(psutil.Process().children())
    compiler.compile(Grammar("regex", "a"))
    (child,) = set(psutil.Process().children()) - before
    child.kill()
    psutil.wait_procs([child], timeout=10)
    works(compiler, Grammar("regex", "b"))
    compiler.close()


def test_tokenizers_that_cannot_follow_grammars(tmp_path: Path) -> None:
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    path = tmp_path / "tokenizer.json"
    words.save(str(path))
    for broken in (str(path), str(tmp_path / "missing.json")):
        with pytest.raises(InvalidInputError, match="tokenizer"):
            GrammarCompiler(broken, 2, [0]).compile(Grammar("regex", "a"))
