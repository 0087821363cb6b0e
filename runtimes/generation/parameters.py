"""What one generation request asks of the engine. Crosses the IPC, so the server and the worker share it.

The engine trusts these values: ranges are checked in the server, by the task, before a request is sent.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]

MAX_TOP_LOGPROBS: Final = 20
"""Alternatives a request may ask for at each position; OpenAI's limit."""


class Grammar(msgspec.Struct, array_like=True, frozen=True):
    """What the generated text must match.

    Attributes:
        kind: ``json_schema`` (text is a JSON schema), ``json_object`` (any JSON object, text is ignored),
            ``regex`` (the whole output matches), ``choice`` (text is a JSON list of strings, the output is
            one of them), ``grammar`` (EBNF as GBNF or Lark write it).
        text: the schema, expression, list or grammar.
        compact: whether JSON has no whitespace between its tokens.
        whitespace: expression of what may stand between the tokens of JSON that is not compact; "" for 1 to
            16 characters of JSON's whitespace.
        closed: whether objects of a ``json_schema`` whose properties are listed have no others, unless it
            says so by ``additionalProperties``.
    """

    kind: GrammarKind
    text: str = ""
    compact: bool = False
    whitespace: str = ""
    closed: bool = False


class Sampling(msgspec.Struct, array_like=True, frozen=True):
    """How tokens are chosen, and when to stop.

    Attributes:
        max_tokens: new tokens of each sample, at least 0; 0 only computes the prompt (for its logprobs).
        min_tokens: end-of-sequence and stop tokens are impossible before this many new tokens.
        temperature: 0 takes the most likely token; larger is more random.
        top_k: keep this many most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens whose probabilities sum to this; 1 keeps all.
        min_p: drop tokens less likely than this share of the most likely one; 0 drops none.
        typical_p: locally typical sampling's mass; 1 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of tokens that the prompt or the
            output has; 1 changes nothing.
        frequency_penalty: subtracted for each time that the output has the token.
        presence_penalty: subtracted once if the output has the token.
        logit_bias: (token id, added to its logit).
        allowed_token_ids: only these may be chosen; empty allows all.
        bad_words: token id sequences that must not appear in the output.
        stop_token_ids: end the sample, besides the model's own end-of-sequence ids; the token is the last
            of the sample.
        ignore_eos: the model's own end-of-sequence ids do not end the sample.
        seed: the same seed, prompt and parameters give the same tokens; None draws one.
        n: samples returned.
        best_of: samples generated, at least ``n``; the ``n`` with the highest mean logprob are returned,
            best first. With ``beam`` the number of beams. All tokens that the engine generated count in the
            comparison, those behind a stop text too: the server finds stop texts, after the choice.
        beam: beam search instead of sampling.
        length_penalty: exponent of the length that divides a beam's summed logprob.
        logprobs: alternatives reported with each new token; 0 reports only the chosen token's logprob, None
            nothing. Logprobs are the model's own, before penalties, temperature and masks.
        prompt_logprobs: the same for each prompt token.
        watermark: bias a pseudo-random half of the vocabulary (Kirchenbauer et al., 2023).
        penalize_prompt: frequency and presence penalties count the prompt's tokens too.
        grammar: what the output must match.
        priority: smaller runs first; equals in order of arrival.
        cache_salt: prefixes are shared only between requests with an equal salt.
        adapter: name of the adapter, "" for none; part of what a cached prefix is known by.
        prefix_cache: whether cached prefixes may be used and left behind.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    n: int = 1
    best_of: int = 1
    beam: bool = False
    length_penalty: float = 1.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    watermark: bool = False
    penalize_prompt: bool = False
    grammar: Grammar | None = None
    priority: int = 0
    cache_salt: str = ""
    adapter: str = ""
    prefix_cache: bool = True

    @property
    def checked_by_engine(self) -> bool:
        """Whether only the engine can tell that it can follow this: it accepts or refuses it at once."""
        return self.beam or self.grammar is not None
