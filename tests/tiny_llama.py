"""A Llama of a few thousand random weights, as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 80
LONGEST = 64


def write_tiny_llama(folder: Path, kind: str = "Llama", **changes: Any) -> None:
    """Write it; the words of its tokenizer are single characters, from the space on.

    ``kind`` may name another architecture of transformers, ``changes`` other settings.
    """
    import torch
    import transformers
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": LONGEST,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **changes,
    }
    config = getattr(transformers, f"{kind}Config")(**settings)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    letters = {chr(0x20 + index): index for index in range(VOCABULARY)}
    words = Tokenizer(WordLevel(letters, unk_token=" "))
    words.pre_tokenizer = Split(Regex("."), "isolated")
    wrapper: Any = transformers.PreTrainedTokenizerFast
    wrapper(tokenizer_object=words).save_pretrained(folder)
