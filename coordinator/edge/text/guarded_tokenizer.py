"""A tokenizer that knows control tokens by other names. Owns these names; text that spells the real ones stays text.

The copy differs from the model's tokenizer in nothing but the spelling of some tokens: ids, merges,
normalization and what a token strips around itself are the same. So a text in which the template's
control tokens are written as stand-ins has the ids that it has otherwise, but for the tokens that
messages spell: the copy has never heard of those.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import orjson
from tokenizers import Tokenizer

from protocol.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Unicode's noncharacters: never exchanged in text, and refused where they would be taken for a stand-in."""


def encoded_ids(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Token ids; InvalidRequest where a vocabulary has no token for some of the text, nor one for the unknown."""
    try:
        ids: list[int] = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[
            0
        ].ids
    except Exception as error:  # the library raises bare ones
        told = f"this model's tokenizer cannot read the text: {error}"
        raise InvalidRequest(told) from error
    return ids


class GuardedTokenizer:
    """Made of a `tokenizer.json` and the names to hide; safe to use from several threads."""

    def __init__(self, serialized: bytes, names: Collection[str]) -> None:
        fields = json.loads(serialized)
        ids = {token["content"]: token["id"] for token in fields.get("added_tokens") or ()}
        self._stand_ins = {
            name: f"{OPEN}{token_id}{CLOSE}" for name, token_id in ids.items() if name in names
        }
        _rename(fields, self._stand_ins, ids)
        self._tokenizer = Tokenizer.from_str(orjson.dumps(fields).decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        for name, token_id in ids.items():
            if self._tokenizer.token_to_id(self._stand_ins.get(name, name)) != token_id:
                raise ConfigError(
                    f"the tokenizer's token {name!r} cannot be told apart from text that spells it: "
                    "serve the model with --allow-special-tokens-in-content"
                )

    def encode(
        self, text: str, written: Iterable[tuple[int, int]], *, add_special_tokens: bool
    ) -> list[int]:
        """Token ids; `written` says where control tokens stand, and nothing else is one."""
        pieces, end = [], 0
        for start, stop in written:
            pieces += [text[end:start], self._stand_ins[text[start:stop]]]
            end = stop
        whole = "".join([*pieces, text[end:]])
        return encoded_ids(self._tokenizer, whole, add_special_tokens=add_special_tokens)


def _rename(fields: dict[str, Any], names: Mapping[str, str], ids: Mapping[str, int]) -> None:
    """Spell tokens anew wherever the library would find one by its name."""
    for token in fields.get("added_tokens") or ():
        token["content"] = names.get(token["content"], token["content"])
    model = fields["model"]
    unknown = model.get("unk_token")
    if isinstance(unknown, str) and unknown in names:
        model["unk_token"] = names[unknown]
    if isinstance(model.get("vocab"), dict):
        _rename_words(model["vocab"], names, ids)
    elif isinstance(model.get("vocab"), list):
        _rename_pieces(model["vocab"], names, ids)
    if isinstance(model.get("merges"), list):
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, names)]


def _rename_words(
    vocabulary: dict[str, int], names: Mapping[str, str], ids: Mapping[str, int]
) -> None:
    """With every added token in the vocabulary, the library has no id to choose."""
    for name in names:
        vocabulary.pop(name, None)
    for name, token_id in ids.items():
        vocabulary.setdefault(names.get(name, name), token_id)


def _rename_pieces(
    pieces: list[list[Any]], names: Mapping[str, str], ids: Mapping[str, int]
) -> None:
    """A unigram model's vocabulary is a list; tokens behind its end are added by the library."""
    for name, stand_in in names.items():
        if ids[name] < len(pieces):
            pieces[ids[name]] = [stand_in, *pieces[ids[name]][1:]]


def _makes(merge: object, names: Mapping[str, str]) -> bool:
    """Models without merges may have anything there."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        return False
    return "".join(parts) in names or any(part in names for part in parts)
