"""Building a Hugging Face tokenizer from GGUF metadata. Owns what `tokenizer.ggml.*` means; must not know tensors.

    gpt2     byte-level BPE: tokens, merges, and the split rule named by `pre` (engine.checkpoints.gguf_pre_tokenizers)
    llama    SentencePiece's BPE: tokens with scores; merges follow from the scores, unknown characters fall to bytes

Others are refused. Which of its tokens end a turn a GGUF file tells in part by their texts alone, as llama.cpp has it.
"""

from __future__ import annotations

from typing import Any, NoReturn

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from engine.checkpoints.fields import Fields, shown
from engine.checkpoints.gguf_pre_tokenizers import PRE_TOKENIZERS

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_KINDS = range(7)
_PREFIX = "tokenizer.ggml."
_CONTROL_LOOKING = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|eom_id|>"),
        *("<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<end_of_utterance>"),
        "<｜end▁of▁sentence｜>",  # noqa: RUF001
    }
)
_ENDS_IF_CONTROL = frozenset({"</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"})
_NOT_NEUTRAL = (
    "remove_extra_whitespaces",
    "add_sep_token",
    "precompiled_charsmap",
    "suppress_tokens",
)
_SPACE = "\u2581"
_PIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}
"""Those of SentencePiece's special tokens in a file that does not tell them."""


class GgufVocabulary:
    """The tokens of a GGUF file and what is said about them."""

    def __init__(self, fields: Fields) -> None:
        own = {
            key.removeprefix(_PREFIX): value
            for key, value in fields.values.items()
            if key.startswith(_PREFIX)
        }
        self.fields = Fields(own, f"{fields.where}: tokenizer.ggml")
        self.tokens = _texts(self.entries("tokens", str))
        self.kinds: list[int] = [_NORMAL] * len(self.tokens)
        if own.get("token_type") is not None:
            self.kinds = self.entries("token_type", int, len(self.tokens))
            if any(kind not in _KINDS for kind in self.kinds):
                self.fields.refuse("token_type", f"must be from 0 to {_KINDS[-1]}")
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            twice = next(t for i, t in enumerate(self.tokens) if self.ids[t] != i)
            self.fields.refuse("tokens", f"has {shown(twice)} twice")
        for name in _NOT_NEUTRAL:
            if own.get(name):
                self.fields.refuse(name, f"of {shown(own[name])} is not supported")

    def entries(self, name: str, kind: type, count: int | None = None) -> list[Any]:
        """A list with at least one entry, all of `kind`; of `count` entries when that is given."""
        value = self.fields.values.get(name)
        if not isinstance(value, list) or not value:
            self.fields.refuse(
                name, "is missing or empty; use the Hugging Face directory of this model"
            )
        if any(type(item) is not kind for item in value):
            self.fields.refuse(name, f"must hold values of type {kind.__name__} only")
        if count not in (None, len(value)):
            self.fields.refuse(name, f"has {len(value)} entries for {count} tokens")
        return value

    def special(self, name: str) -> int | None:
        """The id of a special token (`bos`, `eos`, …); ConfigError when it is none of the vocabulary's."""
        key = f"{name}_token_id"
        if not self.fields.has(key):
            return self._default_of(name)
        token_id = self.fields.integer(key, least=-1, most=2**32 - 1)
        if token_id in (-1, 2**32 - 1):  # written for none
            return None
        if token_id >= len(self.tokens):
            self.fields.refuse(
                key, f"{token_id} is not below the number of tokens, {len(self.tokens)}"
            )
        return token_id

    def _default_of(self, name: str) -> int | None:
        is_piece = self.fields.values.get("model") == "llama"
        default = _PIECE_IDS.get(name) if is_piece else None
        return default if default is not None and default < len(self.tokens) else None

    def ends(self) -> tuple[int, ...]:
        """What ends a text or a turn: named ids, and known texts."""
        named = [self.special(name) for name in ("eos", "eot", "eom")]
        known = [
            index
            for index, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if token in _CONTROL_LOOKING or (token in _ENDS_IF_CONTROL and kind == _CONTROL)
        ]
        if {"<|return|>", "<|call|>", "<|end|>"} <= self.ids.keys():
            known.remove(self.ids["<|end|>"])  # there it ends a message, not the turn
        return tuple(dict.fromkeys([*(one for one in named if one is not None), *known]))

    def settings(self) -> dict[str, Any]:
        """A small tokenizer_config.json: the special tokens by name, and whether BOS is added."""
        settings: dict[str, Any] = {"add_bos_token": self.flag("add_bos_token", default=False)}
        names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
        for key, name in names.items():
            token_id = self.special(key)
            if token_id is not None:
                settings[f"{name}_token"] = self.tokens[token_id]
        return settings

    def flag(self, name: str, *, default: bool) -> bool:
        """A key that is true or false."""
        return self.fields.flag(name, default=default)


def _texts(tokens: list[str]) -> list[str]:
    """An empty token cannot be found in a text; it gets a name, as llama.cpp gives it."""
    return [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]


def build_tokenizer(vocabulary: GgufVocabulary) -> bytes:
    """A tokenizer.json for a GGUF file; ConfigError names what is not supported."""
    model = vocabulary.fields.text("model", "(none)")
    vocabulary.entries("token_type", int)  # without it control tokens would be taken for text
    if model == "gpt2":
        tokenizer = _byte_level(vocabulary)
    elif model == "llama":
        tokenizer = _sentence_piece(vocabulary)
    else:
        _unsupported(vocabulary, "model", model, ["gpt2", "llama"])
    return str(tokenizer.to_str(pretty=False)).encode()


def _unsupported(vocabulary: GgufVocabulary, name: str, value: str, known: list[str]) -> NoReturn:
    vocabulary.fields.refuse(
        name,
        f"{shown(value)} is not supported; supported: {', '.join(known)}; "
        "use the Hugging Face directory of this model",
    )


def _byte_level(vocabulary: GgufVocabulary) -> Tokenizer:
    name = vocabulary.fields.text("pre", "default")
    pre = PRE_TOKENIZERS.get(name)
    if pre is None:
        _unsupported(vocabulary, "pre", name, sorted(PRE_TOKENIZERS))
    merges = [_pair(vocabulary, merge) for merge in vocabulary.entries("merges", str)]
    tokenizer = _with_merges(vocabulary, merges, ignore_merges=pre.ignore_merges)
    normalizer = pre.normalizer()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre.build()
    tokenizer.decoder = decoders.ByteLevel()
    _add_special_tokens(tokenizer, vocabulary)
    frame = _frame(vocabulary, adds_bos=pre.adds_bos)
    byte_level = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = (
        byte_level if frame is None else processors.Sequence([byte_level, frame])
    )
    return tokenizer


def _pair(vocabulary: GgufVocabulary, merge: str) -> tuple[str, str]:
    """Two tokens with a space between, which may itself begin the first."""
    at = merge.find(" ", 1)
    first, second = merge[:at], merge[at + 1 :]
    if at < 0 or not {first, second, first + second} <= vocabulary.ids.keys():
        vocabulary.fields.refuse(
            "merges", f"has {shown(merge)}, which is no pair of tokens that make one"
        )
    return first, second


def _sentence_piece(vocabulary: GgufVocabulary) -> Tokenizer:
    unknown = vocabulary.special("unknown")
    tokenizer = _with_merges(
        vocabulary,
        _merges_by_score(vocabulary),
        unk_token=vocabulary.tokens[0 if unknown is None else unknown],
        fuse_unk=True,
        byte_fallback=all(f"<0x{byte:02X}>" in vocabulary.ids for byte in range(256)),
    )
    spaces = normalizers.Replace(" ", _SPACE)
    back = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.flag("add_space_prefix", default=True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        tokenizer.decoder = decoders.Sequence([*back, decoders.Strip(content=" ", left=1, right=0)])
    else:
        tokenizer.normalizer = spaces
        tokenizer.decoder = decoders.Sequence(back)
    _add_special_tokens(tokenizer, vocabulary)
    frame = _frame(vocabulary, adds_bos=True)
    if frame is not None:
        tokenizer.post_processor = frame
    return tokenizer


def _merges_by_score(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """Every way to make a token of two, those of the best scores first: SentencePiece's order of merging."""
    scores = vocabulary.entries("scores", float, len(vocabulary.tokens))
    ids = {
        token: token_id
        for token, token_id in vocabulary.ids.items()
        if vocabulary.kinds[token_id] not in (_CONTROL, _UNKNOWN, _BYTE)
    }
    found: list[tuple[float, int, int, str, str]] = []
    for token, token_id in ids.items():
        ways = [
            (ids[token[:cut]], ids[token[cut:]], token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in ids and token[cut:] in ids
        ]
        found += [
            (-scores[token_id], -len(first), -len(second), first, second)
            for _, _, first, second in sorted(ways)
        ]
    found.sort(key=lambda way: way[:3])
    return [(first, second) for *_, first, second in found]


def _with_merges(
    vocabulary: GgufVocabulary, merges: list[tuple[str, str]], **options: Any
) -> Tokenizer:
    try:
        return Tokenizer(BPE(vocabulary.ids, merges, **options))
    except Exception as error:  # noqa: BLE001 - the library raises bare ones
        vocabulary.fields.refuse("merges", f"make no tokenizer: {shown(str(error))}")


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: GgufVocabulary) -> None:
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
            for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
            if kind in (_CONTROL, _USER_DEFINED, _UNKNOWN)
        ]
    )


def _frame(vocabulary: GgufVocabulary, *, adds_bos: bool) -> Any:
    """What is put around a text: nothing, its first token, its last token, or both."""
    wanted = {
        "bos": vocabulary.flag("add_bos_token", default=adds_bos),
        "eos": vocabulary.flag("add_eos_token", default=False),
    }
    found: dict[str, tuple[str, int]] = {}
    for name, is_wanted in wanted.items():
        token_id = vocabulary.special(name)
        key, flag = f"{name}_token_id", f"add_{name}_token"
        fields = vocabulary.fields
        if is_wanted and token_id is None and fields.has(flag) and not fields.has(key):
            fields.refuse(key, f"is missing, though `{flag}` asks for it")
        if is_wanted and token_id is not None:
            found[name] = (vocabulary.tokens[token_id], token_id)
    if not found:
        return None
    begin = [found["bos"][0]] if "bos" in found else []
    end = [found["eos"][0]] if "eos" in found else []
    return processors.TemplateProcessing(
        single=[*begin, "$A", *end],
        pair=[*begin, "$A", "$B", *end],
        special_tokens=list(dict.fromkeys(found.values())),
    )
