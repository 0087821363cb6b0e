"""Words that must not be generated, as the token ids that spell them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from headrace.server.errors import InvalidArgumentError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from headrace.server.tasks.tokenization import Tokenizing

MAX_WORDS: Final = 512
MAX_CHARACTERS: Final = 256


async def bad_word_ids(
    tokenizing: Tokenizing, tokenizer: Tokenizer, words: Sequence[str] | None
) -> tuple[tuple[int, ...], ...]:
    """Return the token sequences that spell ``words``: at the start of a text and behind a space.

    Raises:
        InvalidArgumentError: too many words, or an empty or very long one.
    """
    if not words:
        return ()
    if len(words) > MAX_WORDS:
        raise InvalidArgumentError(
            f"bad_words has {len(words)} entries, at most {MAX_WORDS} may be", field="bad_words"
        )
    for word in words:
        if not word.strip() or len(word) > MAX_CHARACTERS:
            raise InvalidArgumentError(
                f"bad_words takes words of 1 to {MAX_CHARACTERS} characters", field="bad_words"
            )
    return await tokenizing.run(_spellings, tokenizer, words)


def _spellings(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    variants = [form for word in words for form in (word, " " + word.lstrip())]
    try:
        encodings = tokenizer.encode_batch_fast(variants, add_special_tokens=False)
    except BaseException as error:  # a panic in the library is not an Exception
        raise InvalidArgumentError(f"tokenizer error {error}", field="bad_words") from error
    return tuple(dict.fromkeys(tuple(encoding.ids) for encoding in encodings if encoding.ids))
