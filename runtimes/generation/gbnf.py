"""Grammars as llama.cpp (GBNF) and xgrammar (EBNF) write them, turned into the Lark dialect of llguidance.

Rules are ``name ::= alternatives`` of names, ``"literals"``, ``[classes]``, ``.``, groups and repetitions;
comments begin with ``#``. A rule from which no recursion can be reached becomes a terminal, so that all of
it is matched exactly. Terminals of recursive rules are matched greedily: each takes the longest text it can.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from headrace.runtimes.base import InvalidInputError

_ESCAPES: Final = MappingProxyType({"n": "\n", "r": "\r", "t": "\t"})
_TOKEN: Final = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
      | (?P<define>::=)
      | (?P<name>[A-Za-z_][A-Za-z0-9_.-]*)
      | (?P<literal>"(?:\\.|[^"\\\n])*")
      | (?P<set>\[(?:\\.|[^\]\\\n])*\])
      | (?P<repeat>[*+?]|\{\s*\d+\s*(?:,\s*\d*\s*)?\})
      | (?P<mark>[()|.])""",
    re.VERBOSE,
)
_CHARACTER: Final = re.compile(
    r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|(.)", re.DOTALL
)


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


@dataclass(slots=True)
class _Rule:
    """A rule as pieces of Lark; a piece that is a tuple holds the name of another rule."""

    pieces: list[str | tuple[str]] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        return {piece[0] for piece in self.pieces if isinstance(piece, tuple)}


def to_lark(text: str) -> str:
    """Translate a grammar whose output is matched by its rule ``root``.

    Raises:
        InvalidInputError: the grammar is malformed, names a rule that it lacks, or has no ``root``.
    """
    rules = _parse(_tokens(text))
    for name, rule in rules.items():
        for missing in sorted(rule.names - rules.keys()):
            raise InvalidInputError(f"rule {name!r} of the grammar names {missing!r}; define that rule too")
    if "root" not in rules:
        raise InvalidInputError(
            "the grammar has no rule 'root'; give that name to what the output must match"
        )
    recursive = _reaching_recursion(rules)
    names = {name: f"{'r' if name in recursive else 'T'}{index}" for index, name in enumerate(rules)}
    lines = [f"start: {names['root']}"]
    for name, rule in rules.items():
        pieces = (piece if isinstance(piece, str) else names[piece[0]] for piece in rule.pieces)
        lines.append(f"{names[name]}: {' '.join(pieces)}")
    return "\n".join(lines) + "\n"


def _tokens(text: str) -> list[_Token]:
    tokens, place, line = [], 0, 1
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None or found.lastgroup is None:
            snippet = text[place : place + 20].partition("\n")[0]
            raise InvalidInputError(
                f'line {line} of the grammar cannot be read at {snippet!r}; expected a rule name, "literal", '
                "[class], group, '|' or repetition"
            )
        if found.lastgroup != "space":
            tokens.append(_Token(found.lastgroup, found[0], line))
        line += found[0].count("\n")
        place = found.end()
    return tokens


def _parse(tokens: list[_Token]) -> dict[str, _Rule]:
    """Read rules: a name followed by ``::=`` begins the next one, wherever lines break."""
    rules: dict[str, _Rule] = {}
    starts = [index - 1 for index, token in enumerate(tokens) if token.kind == "define"]
    if not starts or starts[0] != 0:
        raise InvalidInputError("the grammar does not begin with a rule; expected name ::= alternatives")
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        name = tokens[start]
        if name.kind != "name":
            raise InvalidInputError(
                f"line {name.line} of the grammar defines {name.text!r}; expected a rule name"
            )
        if name.text in rules:
            raise InvalidInputError(f"the grammar defines {name.text!r} twice; keep one of the rules")
        rules[name.text] = _rule(tokens[start + 2 : end], name)
    return rules


def _rule(tokens: list[_Token], name: _Token) -> _Rule:
    rule = _Rule(["("])
    groups, operand, repeatable = 0, False, False
    for token in tokens:
        if token.kind == "repeat":
            if not repeatable:
                raise InvalidInputError(
                    f"line {token.line} of the grammar repeats nothing, or a repetition, with "
                    f"{token.text!r}; put a literal, class, name or group before it"
                )
            rule.pieces.append(re.sub(r"\s", "", token.text))
            repeatable = False
        elif token.text == "(":
            groups += 1
            rule.pieces.append("(")
            operand = repeatable = False
        elif token.text in {"|", ")"}:
            rule.pieces += [token.text] if operand else ['""', token.text]
            groups -= token.text == ")"
            if groups < 0:
                raise InvalidInputError(f"line {token.line} of the grammar closes a group that is not open")
            operand = repeatable = token.text == ")"
        else:
            rule.pieces.append(_operand(token))
            operand = repeatable = True
    if groups:
        raise InvalidInputError(f"rule {name.text!r} of the grammar leaves a '(' open; close it with ')'")
    rule.pieces += [")"] if operand else ['""', ")"]
    return rule


def _operand(token: _Token) -> str | tuple[str]:
    if token.kind == "name":
        return (token.text,)
    if token.kind == "mark":
        return r"/[\u{0}-\u{10FFFF}]/"
    if token.kind == "literal":
        return json.dumps("".join(chr(code) for code, _ in _characters(token)), ensure_ascii=False)
    return _class(token)


def _class(token: _Token) -> str:
    characters = _characters(token)
    negated = bool(characters) and characters[0] == (ord("^"), False)
    members = characters[negated:]
    if not members:
        raise InvalidInputError(
            f"line {token.line} of the grammar has an empty class {token.text}; name a character"
        )
    written = []
    for index, (code, escaped) in enumerate(members):
        inside = 0 < index < len(members) - 1
        written.append("-" if inside and code == ord("-") and not escaped else f"\\u{{{code:X}}}")
    return f"/[{'^' * negated}{''.join(written)}]/"


def _characters(token: _Token) -> list[tuple[int, bool]]:
    """Return the code points between the quotes or brackets, and whether each was escaped."""
    codes = []
    for found in _CHARACTER.finditer(token.text, 1, len(token.text) - 1):
        digits = found[1] or found[2] or found[3]
        code = int(digits, 16) if digits else ord(_ESCAPES.get(found[4] or "", found[4] or found[5]))
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise InvalidInputError(f"line {token.line} of the grammar has {found[0]}, which is no character")
        codes.append((code, found[5] is None))
    return codes


def _reaching_recursion(rules: dict[str, _Rule]) -> set[str]:
    """Return the rules from which a cycle can be reached: what is left when leaves are taken off."""
    waiting = {name: rule.names for name, rule in rules.items()}
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, used in waiting.items():
        for other in used:
            users[other].append(name)
    leaves = [name for name, used in waiting.items() if not used]
    while leaves:
        leaf = leaves.pop()
        del waiting[leaf]
        for user in users[leaf]:
            waiting[user].discard(leaf)
            if not waiting[user]:
                leaves.append(user)
    return set(waiting)
