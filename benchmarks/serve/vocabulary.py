"""Random token ids and random text of an exact length. Owns which tokens of a model may be drawn.

Where the tokenizer comes from: a directory with `tokenizer.json`, or whatever `baton serve` takes as MODEL.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coordinator.edge.text.tokenizer import TextTokenizer
from deploy.config.topology import cache_directory
from deploy.host.model_source import find_source, prepare, resolve_dtype
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_REFITS = 10


class Vocabulary:
    """One model's tokens. `num_added_tokens` is what the tokenizer puts around a text (BOS, EOS)."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.num_added_tokens = len(tokenizer.encode("", add_special_tokens=True))

    @cached_property
    def ordinary_ids(self) -> np.ndarray:
        """Every id that has a token and is not special."""
        special = self.tokenizer.special_ids
        name = self.tokenizer.token_name
        known = (i for i in range(self.tokenizer.size) if i not in special and name(i))
        return np.fromiter(known, dtype=np.int64)

    @cached_property
    def word_ids(self) -> np.ndarray:
        """Ids whose text is a space and ASCII letters: their text mostly encodes to themselves again."""
        text = self.tokenizer.token_text
        words = [int(i) for i in self.ordinary_ids if _is_word(text(int(i)))]
        return np.array(words, dtype=np.int64) if words else self.ordinary_ids

    def draw(self, draw: np.random.Generator, count: int, *, words: bool = False) -> list[int]:
        """`count` ids, independent and uniform."""
        ids = self.word_ids if words else self.ordinary_ids
        drawn: list[int] = ids[draw.integers(0, len(ids), size=count)].tolist()
        return drawn

    def count(self, text: str, *, add_special_tokens: bool = True) -> int:
        """How many tokens a text is."""
        return len(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def fit_text(self, ids: list[int], draw: np.random.Generator) -> tuple[str, int]:
        """Text that encodes to as many tokens as `ids` has, and how many it really is.

        Decoding and encoding again may join or split tokens; what is missing is drawn, what is too much is cut.
        """
        wanted, tokenizer = len(ids), self.tokenizer
        text = tokenizer.decode(ids, skip_special_tokens=False)
        for _ in range(MAX_REFITS):
            ids = tokenizer.encode(text, add_special_tokens=False)
            if len(ids) == wanted:
                break
            ids = ids[:wanted] + self.draw(draw, max(0, wanted - len(ids)), words=True)
            text = tokenizer.decode(ids, skip_special_tokens=False)
        return text, self.count(text, add_special_tokens=False)


def _is_word(text: str) -> bool:
    return text.startswith(" ") and text.isascii() and text[1:].isalpha()


def load_vocabulary(names: Iterable[str], *, given: bool) -> Vocabulary:
    """The first of `names` that leads to a tokenizer; ConfigError says to give --tokenizer."""
    tried = []
    for name in names:
        try:
            return Vocabulary(TextTokenizer.from_directory(tokenizer_directory(name)))
        except ConfigError as error:
            tried.append(str(error))
    hint = "" if given else "; give --tokenizer, a directory with the model's tokenizer.json"
    raise ConfigError(f"--tokenizer: {'; '.join(dict.fromkeys(tried))}{hint}")


def tokenizer_directory(name: str) -> Path:
    """A directory with `tokenizer.json`, converting a GGUF or the embedded model when it was not yet."""
    directory = Path(name).expanduser()
    if (directory / "tokenizer.json").is_file():
        return directory
    if find_source(name).kind == "hub":
        raise ConfigError(f"{name!r} is no directory with a tokenizer.json")
    return Path(
        prepare(name, (), resolve_dtype("auto"), cache_directory(), lambda *_: None).directory
    )
