"""A request to a group, as one of our own models takes it. Owns its prompts there, and what only another model could answer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from coordinator.edge.answers.answer import NotSayable
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from coordinator.edge.answers.answer import AnswerRequest, RawPrompts
    from coordinator.edge.answers.served import Served, ServedModel


async def asked_of(own: Served, asked: AnswerRequest, *, spells: bool) -> AnswerRequest:
    """The same with its prompts in `own`'s tokens. `spells` says that token ids in the request and in its answer are this
    model's. Raises NotSayable, InvalidRequest for what fits no prompt."""
    if not spells:
        _check_no_ids(own, asked)
    if asked.raw is not None:
        return await _of_texts(own, asked, asked.raw)
    assert asked.conversation is not None, "a group answers conversations and raw prompts"
    reader = own.reader
    prompt = await (reader.chat if asked.keeps_thoughts else reader.turns)(asked.conversation)
    return replace(asked, prompts=[prompt])


def _check_no_ids(own: Served, asked: AnswerRequest) -> None:
    wishes = asked.wishes
    told = {
        "logprobs": wishes.logprobs is not None,
        "logit_bias": bool(wishes.logit_bias),
        "stop_token_ids": bool(wishes.stop_token_ids),
        asked.prompt_field: asked.raw is not None and asked.raw.has_ids,
    }
    for name, is_asked in told.items():
        if is_asked:
            message = f"{name} cannot be asked of {own.model.name!r}, whose token ids are not this group's"
            raise NotSayable(message, name)


async def _of_texts(own: Served, asked: AnswerRequest, raw: RawPrompts) -> AnswerRequest:
    if raw.is_embedded:
        check_embeds(own.model, raw)
    prompts = await tokens_of(own, raw, asked.prompt_field)
    wishes = replace(asked.wishes, pooling=own.model.pooling if raw.is_embedded else None)
    return replace(asked, prompts=prompts, wishes=wishes)


async def tokens_of(own: Served, raw: RawPrompts, param: str) -> list[list[int]]:
    """Token ids of prompts as they are written: of the texts first, then those that are ids already. Raises InvalidRequest."""
    texts = [prompt for prompt in raw.said if isinstance(prompt, str)]
    lists = [prompt for prompt in raw.said if not isinstance(prompt, str)]
    read = await own.reader.texts(texts, add_special_tokens=raw.add_special_tokens, param=param)
    prompts = [*read, *lists]
    return [it[: own.model.max_model_len] for it in prompts] if raw.truncates else prompts


def check_embeds(model: ServedModel, raw: RawPrompts) -> None:
    """Raise NotSayable where a model has no such embeddings."""
    size = model.config.hidden_size
    if model.pooling is None:
        told = f"the model {model.name!r} is not served for embeddings: `baton serve --pooling` says how it is"
        raise NotSayable(told, "model")
    if raw.dimensions is not None and raw.dimensions > size:
        told = f"dimensions must be at most {size}, but is {raw.dimensions}"
        raise NotSayable(told, "dimensions", InvalidRequest.code)
