"""From what a client asked to what is generated. Owns the order: request, then operator or model, then API; and the
checks that need a model.

Workers fill in nothing: what leaves here is final, `seed` included.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from coordinator.cluster.service_api import Generation
from protocol.errors import ConfigError, ContextLengthExceeded, InvalidRequest
from protocol.ids import new_request_id
from protocol.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from coordinator.edge.answers.answer import AnswerRequest, SamplingWishes
    from coordinator.edge.http.side_work import LoopTurns
    from protocol.adapters import AdapterRef

SEED_SPACE = 2**63
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What holds when a request is silent; the model's generation_config.json may move it: with `do_sample: false` a
    silent request is greedy, as in transformers. `draw_seed` makes the seed."""

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
    found = {
        name: kinds.get(name, float)(value)
        for name, value in config.items()
        if name in names and value is not None
    }
    return found | ({"temperature": 0.0} if config.get("do_sample") is False else {})


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


@dataclass(frozen=True, slots=True)
class ModelRules:
    """What one model fills in where a request is silent, and what it cannot do."""

    defaults: SamplingDefaults
    vocabulary: Vocabulary
    max_model_len: int
    request_deadline_s: float

    async def generations(
        self,
        asked: AnswerRequest,
        salt: str,
        tenant: str = "",
        weight: float = 1.0,
        adapter: AdapterRef | None = None,
        *,
        turns: LoopTurns,
    ) -> list[Generation]:
        """Every choice of every prompt; choice i of a prompt draws from seed + i. Raises InvalidRequest for what
        does not fit the model. Many are made in several turns of the loop."""

        def made(one: tuple[tuple[list[int], SamplingParams], int]) -> Generation:
            (prompt, sampling), choice = one
            return Generation(
                request_id=new_request_id(),
                prompt_token_ids=prompt,
                sampling=_of_choice(sampling, choice),
                deadline_in_s=self.request_deadline_s,
                cache_salt=salt,
                adapter=adapter,
                tenant=tenant,
                weight=weight,
                priority=asked.priority,
            )

        sampled = await turns.each(asked.prompts, lambda prompt: self._sampling(asked, prompt))
        resolved = zip(asked.prompts, sampled, strict=True)
        choices = range(asked.choices_per_prompt)
        return await turns.each(list(product(resolved, choices)), made)

    def _sampling(self, asked: AnswerRequest, prompt: list[int]) -> SamplingParams:
        self.vocabulary.check(prompt, asked.prompt_field)
        least = 0 if asked.wishes.max_tokens == 0 else 1
        check_prompt_length(len(prompt), self.max_model_len, asked.prompt_field, least)
        max_tokens = resolve_max_tokens(
            asked.wishes.max_tokens,
            param=asked.wishes.max_tokens_field,
            default=asked.default_max_tokens,
            num_prompt_tokens=len(prompt),
            max_model_len=self.max_model_len,
        )
        return resolve_sampling(
            asked.wishes,
            defaults=self.defaults,
            vocabulary=self.vocabulary,
            max_tokens=max_tokens,
        )


def _of_choice(sampling: SamplingParams, choice: int) -> SamplingParams:
    """Choices draw differently; the first one scores the prompt for all of them."""
    seed = (sampling.seed + choice) % SEED_SPACE
    scored = sampling.prompt_logprobs if choice == 0 else None
    return msgspec.structs.replace(sampling, seed=seed, prompt_logprobs=scored)


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
        prompt_logprobs=wishes.prompt_logprobs,
        stop_token_ids=tuple(wishes.stop_token_ids),
        eos_token_ids=vocabulary.eos_token_ids,
        ignore_eos=wishes.ignore_eos,
        constraint=wishes.constraint,
        pooling=wishes.pooling,
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


def check_prompt_length(
    num_prompt_tokens: int, max_model_len: int, param: str, least: int = 1
) -> None:
    """Raise InvalidRequest for an empty prompt or one that leaves no room for an answer of `least` tokens."""
    if num_prompt_tokens == 0:
        raise InvalidRequest("the prompt has no tokens", param)
    if num_prompt_tokens + least > max_model_len:
        told = f"your {param} resulted in {num_prompt_tokens} tokens, which leave no room for an answer."
        raise ContextLengthExceeded(max_model_len, told, param)


def _or(value: Number | None, default: Number) -> Number:
    return default if value is None else value
