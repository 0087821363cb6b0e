"""Stop texts: found wherever they lie, with as little held back as can be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.server.tasks.stop_strings import StopPatterns, StopSearch

alphabet = st.text("ab<|", max_size=30)


def run(stops: list[str], pieces: list[str], *, include: bool = False) -> tuple[str, str]:
    search = StopSearch(StopPatterns(stops), include=include)
    text = ""
    for piece in pieces:
        released, stop = search.feed(piece)
        text += released
        if stop:
            return text, stop
    return text + search.flush(), ""


def expected(stops: list[str], text: str) -> tuple[str, str]:
    """Straight from the definition: the match that ends first, of those the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, ""


@given(
    stops=st.lists(st.text("ab<|", min_size=1, max_size=5), min_size=1, max_size=5),
    pieces=st.lists(alphabet, max_size=12),
)
def test_it_agrees_with_the_definition_in_any_pieces(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    assert run(stops, pieces) == expected(stops, text) == run(stops, list(text))


@given(
    stops=st.lists(st.text("ab<|", min_size=1, max_size=5), min_size=1, max_size=5),
    pieces=st.lists(alphabet, max_size=12),
)
def test_only_what_may_become_a_stop_is_held_back(stops: list[str], pieces: list[str]) -> None:
    search = StopSearch(StopPatterns(stops))
    seen = text = ""
    for piece in pieces:
        seen += piece
        released, stop = search.feed(piece)
        text += released
        if stop:
            return
        held = seen[len(text) :]
        assert seen == text + held
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_the_stop_text_may_stay() -> None:
    assert run(["</s>", "\n\n"], ["one\n", "\ntwo</s>"], include=True) == ("one\n\n", "\n\n")


def test_unarmed_text_goes_through_but_still_begins_a_match() -> None:
    search = StopSearch(StopPatterns(["ab", "abab"]))
    assert search.feed("ab", armed=False) == ("", "")  # it may become the longer one
    assert search.feed("c", armed=False) == ("abc", "")
    assert search.feed("xa", armed=False) == ("x", "")
    assert search.feed("b!") == ("", "ab")
