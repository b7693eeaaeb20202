"""How tokens are chosen, and what is told of them. Owns the wire form; the drawing is in engine.sampling.sampler."""

from __future__ import annotations

import enum

import msgspec

from protocol.constraints import Constraint


class Pooling(enum.StrEnum):
    """Which of a prompt's last hidden states make its embedding: the mean of all, that of its last token or of its first."""

    MEAN = "mean"
    LAST = "last"
    CLS = "cls"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request's sampling, fully resolved by the coordinator: workers fill in no defaults.

    With `max_tokens` 0 nothing is chosen: the prompt is computed, and scored if that is asked for.
    `temperature` 0 is greedy. `top_k` 0 is off. `logprobs` None is off, 0 tells the chosen token
    only, n tells the n best besides; `prompt_logprobs` is the same for the tokens of the prompt. `seed` is always set; position and seed decide a draw, so a
    resumed request draws the same tokens. Ids in `eos_token_ids` end the sequence unless
    `ignore_eos`; ids in `stop_token_ids` always do (both only after `min_tokens` outputs). With a
    `constraint` an answer also ends where nothing may follow. `pooling` asks for the prompt's embedding, with `max_tokens` 0.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    constraint: Constraint | None = None
    pooling: Pooling | None = None


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Log-probability of a chosen token and of the best alternatives, `(token_id, logprob)` each."""

    logprob: float
    top: list[tuple[int, float]] = []


class ScoredToken(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How likely a token of a prompt was after those before it: `rank` 1 is the best (of several alike the last), `top`
    the best alternatives in order, `(token_id, logprob)` each."""

    logprob: float
    rank: int
    top: list[tuple[int, float]] = []


class SampledToken(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One token that a worker chose."""

    token_id: int
    logprob: TokenLogprob | None = None
