"""What the files beside tokenizer.json change in it. Owns their order, and what is written into the tokenizer for them, both
as transformers has them; torch-free.

    special_tokens_map.json    before tokenizer_config.json, unless that has `added_tokens_decoder`
    bos_token, eos_token, …    are tokens in every text, also where the vocabulary has them as words alone

`add_bos_token` and `add_eos_token` have no effect beside a tokenizer.json: what that puts around a text is put there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tokenizers import Tokenizer

_NAMED = "_token"
"""How the names of special tokens end: `bos_token`, and those that a model has of its own."""
_LISTS = ("additional_special_tokens", "extra_special_tokens")
LISTED = "added_tokens_decoder"


def with_older(settings: Mapping[str, Any], older: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json, and the special tokens of the special_tokens_map.json beside it."""
    if LISTED in settings:
        return dict(settings)
    return {
        **settings,
        **{name: value for name, value in older.items() if name.endswith(_NAMED) or name in _LISTS},
    }


def token_text(value: object) -> str | None:
    """A token is told as a string, or as an object with `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _special_texts(settings: Mapping[str, Any]) -> Iterator[str]:
    """Of every special token that is told by name or in a list."""
    named = [value for name, value in settings.items() if name.endswith(_NAMED)]
    for told in (named, *map(settings.get, _LISTS)):
        entries = list(told.values()) if isinstance(told, dict) else told
        for entry in entries if isinstance(entries, list) else ():
            if text := token_text(entry):
                yield text


def settled(serialized: bytes, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> bytes:
    """The tokenizer.json that finds in a text the special tokens that transformers finds with these settings; as it was
    where it does so by itself."""
    missing = _unlisted(tokenizer, settings)
    if not missing:
        return serialized
    fields = json.loads(serialized)
    fields["added_tokens"] = [*missing, *(fields.get("added_tokens") or [])]
    return json.dumps(fields, ensure_ascii=False).encode()


def _unlisted(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Special tokens that the vocabulary has, and a text would be searched for in vain."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    found = {
        text: tokenizer.token_to_id(text) for text in _special_texts(settings) if text not in known
    }
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": token_id, "content": text, **flags, "special": True}
        for text, token_id in found.items()
        if token_id is not None
    ]
