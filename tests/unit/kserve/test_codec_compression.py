"""Compressed bodies."""

from __future__ import annotations

import contextlib
import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.server.codecs.compression import (
    check_encoding,
    choose_encoding,
    compress,
    decompress,
)
from headrace.server.errors import HeadraceError, InvalidArgumentError, PayloadTooLargeError, UnsupportedError

ENCODINGS = ["gzip", "deflate"]


@given(body=st.binary(max_size=2000), encoding=st.sampled_from(ENCODINGS))
def test_round_trip(body: bytes, encoding: str) -> None:
    assert decompress(compress(body, encoding), encoding, 2000) == body


def test_what_others_compress_and_read() -> None:
    assert decompress(gzip.compress(b"hello"), "gzip", 5) == b"hello"
    assert decompress(zlib.compress(b"hello"), "deflate", 5) == b"hello"
    assert gzip.decompress(compress(b"hello", "gzip")) == b"hello"
    assert zlib.decompress(compress(b"hello", "deflate")) == b"hello"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bomb_is_refused_at_the_limit(encoding: str) -> None:
    bomb = compress(bytes(1 << 24), encoding)
    assert len(bomb) < 1 << 17
    with pytest.raises(PayloadTooLargeError, match="maximum allowed input size of 1000 bytes"):
        decompress(bomb, encoding, 1000)
    assert len(decompress(compress(bytes(1000), encoding), encoding, 1000)) == 1000


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("damage", ["garbage", "cut", "flipped", "followed", "empty"])
def test_damage_is_refused(encoding: str, damage: str) -> None:
    whole = compress(b"some text that is long enough" * 5, encoding)
    body = {
        "garbage": b"no such data",
        "cut": whole[:-3],
        "flipped": whole[:-2] + bytes([whole[-2] ^ 255]) + whole[-1:],
        "followed": whole + b"x",
        "empty": b"",
    }[damage]
    with pytest.raises(InvalidArgumentError, match=f"the request body is not valid {encoding} data"):
        decompress(body, encoding, 1 << 20)


@given(body=st.binary(max_size=200), encoding=st.sampled_from(ENCODINGS))
def test_any_bytes_are_inflated_or_refused(body: bytes, encoding: str) -> None:
    with contextlib.suppress(HeadraceError):
        assert isinstance(decompress(body, encoding, 1000), bytes)


@pytest.mark.parametrize(
    ("header", "coding"),
    [("", ""), ("identity", ""), ("GZip", "gzip"), (" deflate ", "deflate")],
)
def test_known_request_encodings(header: str, coding: str) -> None:
    assert check_encoding(header) == coding


@pytest.mark.parametrize("header", ["br", "gzip, deflate", "zstd", "*"])
def test_unknown_request_encodings(header: str) -> None:
    with pytest.raises(UnsupportedError, match="Unsupported compression type"):
        check_encoding(header)


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("", ""),
        ("*", ""),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("identity, deflate", "deflate"),
        ("deflate;q=0.9, gzip;q=0.8", "deflate"),
        ("gzip;q=0.5, identity", ""),
        ("gzip;q=0, deflate;q=0", ""),
        ("gzip;q=0", ""),
        ("br, zstd", ""),
        ("br;q=1.0, gzip;q=0.8, *;q=0.1", "gzip"),
        ("GZIP ; Q=0.3", "gzip"),
        ("gzip;q=abc", ""),
        ("gzip;q=nan", ""),
        ("gzip;q=5", ""),
        (",,;q=1,gzip", "gzip"),
    ],
)
def test_choice_of_the_answer(accept: str, coding: str) -> None:
    assert choose_encoding(accept) == coding


@given(st.text(max_size=40))
def test_any_header_gives_a_choice(accept: str) -> None:
    assert choose_encoding(accept) in {"", "gzip", "deflate"}
