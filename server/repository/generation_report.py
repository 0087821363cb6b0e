"""What ``headrace check`` says of a model that generates text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.server.repository.generation import GenerationModel


def describe_generation(model: GenerationModel) -> list[str]:
    """Return lines for people: lengths, the cache, how texts end, and what chats need."""
    settings, spec = model.settings, model.spec
    size = model.kv_token_bytes * spec.kv_tokens
    shown = f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
    cache = f" (up to {shown} in float32)" if size else ""
    ends = [f"{number} {settings.tokenizer.id_to_token(number)!r}" for number in settings.eos_ids]
    defaults = {
        name: value
        for name in settings.defaults.__slots__
        if (value := getattr(settings.defaults, name)) is not None
    }
    lines = [
        f"sequences of up to {spec.max_tokens} tokens, {spec.max_sequences} at once",
        f"KV cache for {spec.kv_tokens} tokens in blocks of {spec.block_tokens}{cache}, prefix cache "
        + ("on" if spec.prefix_cache else "off"),
        f"vocabulary of {settings.vocabulary_size} tokens; texts end with {', '.join(ends) or 'no token'}",
        "chat templates: "
        + (", ".join(sorted(settings.chat_templates)) or "none, so it completes texts but does not chat"),
        f"tool calls: {settings.tool_parser or 'not parsed'}",
    ]
    if defaults:
        lines.append("sampling defaults: " + ", ".join(f"{name} {value}" for name, value in defaults.items()))
    if spec.draft_tokens:
        lines.append(f"{spec.draft_tokens} tokens guessed by prompt lookup in each step")
    return lines
