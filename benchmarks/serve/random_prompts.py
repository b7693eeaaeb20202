"""Prompts that nobody wrote: random, with repeated prefixes, or shaped like a trace. Owns lengths and sharing.

`prompt_format` ids: the prompt is token ids, so its length is exact. text: made of words, decoded and fitted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from benchmarks.serve.request import BenchRequest
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from benchmarks.serve.vocabulary import Vocabulary
    from simulation.traces import TraceLine

PromptFormat = Literal["ids", "text"]


@dataclass(frozen=True)
class RandomLengths:
    """Tokens. A length is drawn between (1 - ratio) and (1 + ratio) times the wanted; the prefix comes on top."""

    input_len: int = 1024
    output_len: int = 128
    input_ratio: float = 0.0
    output_ratio: float = 0.0
    prefix_len: int = 0


class PromptWriter:
    """Turns ids into a prompt of the wanted format."""

    def __init__(
        self, vocabulary: Vocabulary, prompt_format: PromptFormat, draw: np.random.Generator
    ) -> None:
        self.vocabulary = vocabulary
        self._text = prompt_format == "text"
        self._draw = draw

    @property
    def num_added_tokens(self) -> int:
        """Tokens that the server puts around a prompt of this format."""
        return self.vocabulary.num_added_tokens if self._text else 0

    def ids(self, count: int) -> list[int]:
        """Drawn for a prompt of this format."""
        return self.vocabulary.draw(self._draw, count, words=self._text)

    def request(self, ids: list[int], max_tokens: int) -> BenchRequest:
        """A prompt of exactly these ids, or of text with as many tokens."""
        if not self._text:
            return BenchRequest(ids, len(ids), max_tokens)
        text, count = self.vocabulary.fit_text(ids, self._draw)
        return BenchRequest(text, count + self.num_added_tokens, max_tokens)


def random_requests(
    lengths: RandomLengths,
    total: int,
    vocabulary: Vocabulary,
    prompt_format: PromptFormat,
    seed: int,
) -> list[BenchRequest]:
    """`total` independent prompts behind one common prefix."""
    draw = np.random.default_rng(seed)
    writer = PromptWriter(vocabulary, prompt_format, draw)
    own_len = max(0, lengths.input_len - writer.num_added_tokens)
    inputs = _draw_lengths(draw, own_len, lengths.input_ratio, total, 0)
    outputs = _draw_lengths(draw, lengths.output_len, lengths.output_ratio, total, 1)
    if lengths.prefix_len + min(inputs) < 1:
        raise ConfigError("--random-input-len: a prompt needs at least one token")
    prefix = writer.ids(lengths.prefix_len)
    return [
        writer.request(prefix + writer.ids(size), max_tokens)
        for size, max_tokens in zip(inputs, outputs, strict=True)
    ]


def _draw_lengths(
    draw: np.random.Generator, wanted: int, ratio: float, total: int, least: int
) -> list[int]:
    if not 0 <= ratio < 1:
        raise ConfigError("--random-range-ratio: must be at least 0 and less than 1")
    low = max(math.floor(wanted * (1 - ratio)), least)
    high = max(math.ceil(wanted * (1 + ratio)), least)
    sizes: list[int] = draw.integers(low, high + 1, size=total).tolist()
    return sizes


@dataclass(frozen=True)
class PrefixShape:
    """Tokens of `prefix_repetition`: each prompt is one of `num_prefixes` prefixes and a suffix of its own."""

    prefix_len: int = 256
    suffix_len: int = 256
    num_prefixes: int = 10
    output_len: int = 128


def prefix_requests(
    shape: PrefixShape, total: int, vocabulary: Vocabulary, prompt_format: PromptFormat, seed: int
) -> list[BenchRequest]:
    """`total // num_prefixes` prompts of each prefix, shuffled."""
    each = total // shape.num_prefixes
    if each == 0:
        raise ConfigError("--num-prompts: must be at least --prefix-repetition-num-prefixes")
    draw = np.random.default_rng(seed)
    writer = PromptWriter(vocabulary, prompt_format, draw)
    requests: list[BenchRequest] = []
    for _ in range(shape.num_prefixes):
        prefix = writer.ids(shape.prefix_len)
        requests += [
            writer.request(prefix + writer.ids(shape.suffix_len), shape.output_len)
            for _ in range(each)
        ]
    return [requests[index] for index in draw.permutation(len(requests))]


@dataclass(frozen=True)
class TraceScale:
    """`chunk_tokens` a hash id, `seconds` a unit of its timestamps; lengths and times are multiplied by the rest."""

    chunk_tokens: int = 512
    seconds: float = 0.001
    length: float = 1.0
    output: float = 1.0
    time: float = 1.0


def trace_requests(
    lines: list[TraceLine],
    scale: TraceScale,
    vocabulary: Vocabulary,
    prompt_format: PromptFormat,
    seed: int,
) -> list[BenchRequest]:
    """Prompts in which equal hash ids are equal tokens, at the trace's own times from its first line on."""
    chunk = max(1, round(scale.chunk_tokens * scale.length))
    words = prompt_format == "text"
    known: dict[int, list[int]] = {}

    def tokens_of(hash_id: int) -> list[int]:
        if hash_id not in known:
            draw = np.random.default_rng((seed, 0, hash_id))
            known[hash_id] = vocabulary.draw(draw, chunk, words=words)
        return known[hash_id]

    requests = []
    for index, line in enumerate(lines):
        length = max(1, round(line.input_length * scale.length))
        ids = [token for hash_id in line.hash_ids for token in tokens_of(hash_id)][:length]
        rest = np.random.default_rng((seed, 1, index))
        ids += vocabulary.draw(rest, length - len(ids), words=words)
        at_s = (line.timestamp - lines[0].timestamp) * scale.seconds * scale.time
        max_tokens = max(1, round(line.output_length * scale.output))
        prompt: str | list[int] = ids
        if words:
            prompt = vocabulary.tokenizer.decode(ids, skip_special_tokens=False)
        requests.append(BenchRequest(prompt, length, max_tokens, at_s))
    return requests
