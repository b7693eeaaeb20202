"""From what a client said to complete sampling. Owns the order: request, then operator or model, then API.

Workers fill in nothing: what leaves here is final, `seed` included.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from protocol.errors import ConfigError, InvalidRequest
from protocol.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from coordinator.edge.apis.openai.types import GenerationRequest

SEED_SPACE = 2**63
Number = TypeVar("Number", int, float)


def _random_seed() -> int:
    return secrets.randbits(63)


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What holds when a request is silent; the model's generation_config.json may move it."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    eos_token_ids: tuple[int, ...] = ()
    draw_seed: Callable[[], int] = _random_seed

    @classmethod
    def from_directory(cls, directory: Path) -> SamplingDefaults:
        """Read `generation_config.json` when there is one; raises ConfigError for nonsense."""
        path = directory / "generation_config.json"
        if not path.exists():
            return cls()
        try:
            config = json.loads(path.read_bytes())
            return cls(**_known(config), eos_token_ids=_ids(config.get("eos_token_id")))
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} cannot be used: {error}") from error


def _known(config: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(SamplingDefaults)} - {"eos_token_ids", "draw_seed"}
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


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which token ids the model can take, and which end a text."""

    size: int
    eos_token_ids: tuple[int, ...]

    def check(self, token_ids: list[int], param: str) -> None:
        """Raise InvalidRequest for an id outside the vocabulary."""
        if token_ids and max(token_ids) >= self.size:
            message = f"token id {max(token_ids)} is not below the vocabulary's size {self.size}"
            raise InvalidRequest(message, param)


def resolve_sampling(
    request: GenerationRequest,
    *,
    defaults: SamplingDefaults,
    vocabulary: Vocabulary,
    max_tokens: int,
    logprobs: int | None,
) -> SamplingParams:
    """Complete sampling of the first choice. Raises InvalidRequest for ids outside the vocabulary."""
    stop_token_ids = request.stop_token_ids or []
    vocabulary.check(stop_token_ids, "stop_token_ids")
    vocabulary.check(list(request.logit_bias or ()), "logit_bias")
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        message = f"min_tokens {min_tokens} is more than max_tokens {max_tokens}"
        raise InvalidRequest(message, "min_tokens")
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=_or(request.temperature, defaults.temperature),
        top_p=_or(request.top_p, defaults.top_p),
        top_k=max(_or(request.top_k, defaults.top_k), 0),
        min_p=_or(request.min_p, defaults.min_p),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=_or(request.repetition_penalty, defaults.repetition_penalty),
        logit_bias=request.logit_bias or {},
        seed=defaults.draw_seed() if request.seed is None else request.seed % SEED_SPACE,
        logprobs=logprobs,
        stop_token_ids=tuple(stop_token_ids),
        eos_token_ids=vocabulary.eos_token_ids,
        ignore_eos=bool(request.ignore_eos),
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
        message = (
            f"the model's context holds {max_model_len} tokens; {param} asks for {asked} and the"
            f" prompt has {num_prompt_tokens}, {asked + num_prompt_tokens} together"
        )
        raise InvalidRequest(message, param)
    return asked


def check_prompt_length(num_prompt_tokens: int, max_model_len: int, param: str) -> None:
    """Raise InvalidRequest for an empty prompt or one that leaves no room for an answer."""
    if num_prompt_tokens == 0:
        raise InvalidRequest("the prompt has no tokens", param)
    if num_prompt_tokens >= max_model_len:
        message = (
            f"the prompt has {num_prompt_tokens} tokens; the model's context holds"
            f" {max_model_len}, answer included"
        )
        raise InvalidRequest(message, param)


def _or(value: Number | None, default: Number) -> Number:
    return default if value is None else value
