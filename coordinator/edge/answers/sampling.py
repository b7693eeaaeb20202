"""From what a client said to complete sampling. Owns the order: request, then operator or model, then API.

Workers fill in nothing: what leaves here is final, `seed` included.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from protocol.errors import ConfigError, ContextLengthExceeded, InvalidRequest
from protocol.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

SEED_SPACE = 2**63
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingWishes:
    """What a client said, in nobody's dialect; None where it was silent.

    `max_tokens_field` is what the client calls `max_tokens`, for errors. `logprobs` None is off, 0 tells
    the chosen token only, n tells the n best besides. A `top_k` below 1 is off.
    """

    max_tokens: int | None = None
    max_tokens_field: str = "max_tokens"
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What holds when a request is silent; the model's generation_config.json may move it. `draw_seed` makes the seed."""

    draw_seed: Callable[[], int]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_directory(cls, directory: Path, draw_seed: Callable[[], int]) -> SamplingDefaults:
        """Read `generation_config.json` when there is one; raises ConfigError for nonsense."""
        path = directory / "generation_config.json"
        if not path.exists():
            return cls(draw_seed)
        try:
            config = json.loads(path.read_bytes())
            eos_token_ids = _ids(config.get("eos_token_id"))
            return cls(draw_seed, **_known(config), eos_token_ids=eos_token_ids)
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} cannot be used: {error}") from error


def _known(config: dict[str, Any]) -> dict[str, Any]:
    names = {known.name for known in fields(SamplingDefaults)} - {"eos_token_ids", "draw_seed"}
    kinds = {"top_k": int}
    return {
        name: kinds.get(name, float)(value)
        for name, value in config.items()
        if name in names and value is not None
    }


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(int(token_id) for token_id in value)


def _no_name(_: int) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which token ids the model can take, and which end a text."""

    size: int
    eos_token_ids: tuple[int, ...]
    name_of: Callable[[int], str] = _no_name

    def check(self, token_ids: Collection[int], param: str) -> None:
        """Raise InvalidRequest for an id outside the vocabulary."""
        if token_ids and max(token_ids) >= self.size:
            name = self.name_of(max(token_ids))
            named = f" ({name!r})" if name else ""
            message = (
                f"{param}: token id {max(token_ids)}{named} is not below the vocabulary's size"
                f" {self.size}"
            )
            raise InvalidRequest(message, param)


def resolve_sampling(
    wishes: SamplingWishes,
    *,
    defaults: SamplingDefaults,
    vocabulary: Vocabulary,
    max_tokens: int,
) -> SamplingParams:
    """Complete sampling of the first choice. Raises InvalidRequest for ids outside the vocabulary."""
    vocabulary.check(wishes.stop_token_ids, "stop_token_ids")
    vocabulary.check(wishes.logit_bias, "logit_bias")
    if wishes.min_tokens > max_tokens:
        message = f"min_tokens {wishes.min_tokens} is more than max_tokens {max_tokens}"
        raise InvalidRequest(message, "min_tokens")
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=wishes.min_tokens,
        temperature=_or(wishes.temperature, defaults.temperature),
        top_p=_or(wishes.top_p, defaults.top_p),
        top_k=max(_or(wishes.top_k, defaults.top_k), 0),
        min_p=_or(wishes.min_p, defaults.min_p),
        presence_penalty=wishes.presence_penalty,
        frequency_penalty=wishes.frequency_penalty,
        repetition_penalty=_or(wishes.repetition_penalty, defaults.repetition_penalty),
        logit_bias=dict(wishes.logit_bias),
        seed=defaults.draw_seed() if wishes.seed is None else wishes.seed % SEED_SPACE,
        logprobs=wishes.logprobs,
        stop_token_ids=tuple(wishes.stop_token_ids),
        eos_token_ids=vocabulary.eos_token_ids,
        ignore_eos=wishes.ignore_eos,
    )


def resolve_max_tokens(
    asked: int | None, *, param: str, default: int, num_prompt_tokens: int, max_model_len: int
) -> int:
    """How many tokens may come. Raises InvalidRequest, with both numbers, when they do not fit.

    `param` names the field that held `asked`.
    """
    remaining = max_model_len - num_prompt_tokens
    if asked is None:
        return min(default, remaining)
    if asked > remaining:
        told = (
            f"you requested {asked + num_prompt_tokens} tokens ({num_prompt_tokens} in the prompt,"
            f" {asked} in {param}). Please reduce the length of the prompt or {param}."
        )
        raise ContextLengthExceeded(max_model_len, told, param)
    return asked


def check_prompt_length(num_prompt_tokens: int, max_model_len: int, param: str) -> None:
    """Raise InvalidRequest for an empty prompt or one that leaves no room for an answer."""
    if num_prompt_tokens == 0:
        raise InvalidRequest("the prompt has no tokens", param)
    if num_prompt_tokens >= max_model_len:
        told = f"your {param} resulted in {num_prompt_tokens} tokens, which leave no room for an answer."
        raise ContextLengthExceeded(max_model_len, told, param)


def _or(value: Number | None, default: Number) -> Number:
    return default if value is None else value
