"""Keep long computations off the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from headrace.server.tasks.tokenization import Tokenizing

INLINE_BYTES: Final = 64 * 1024
"""Up to this many bytes are worked on where they are: handing them to a thread would take longer."""

Given = ParamSpec("Given")
Result = TypeVar("Result")


async def call_by_size(
    tokenizing: Tokenizing,
    size: int,
    function: Callable[Given, Result],
    *args: Given.args,
    **kwargs: Given.kwargs,
) -> Result:
    """Call ``function`` at once for ``size`` ≤ ``INLINE_BYTES`` bytes of work, else in a tokeniser thread."""
    if size <= INLINE_BYTES:
        return function(*args, **kwargs)
    return await tokenizing.run(function, *args, **kwargs)
