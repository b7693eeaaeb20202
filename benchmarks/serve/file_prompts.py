"""Prompts from files: ShareGPT conversations and custom JSONL. Owns what is taken from them, and in which order."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from benchmarks.serve.request import BenchRequest
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.serve.vocabulary import Vocabulary

MIN_TOKENS, MAX_PROMPT_TOKENS, MAX_TOTAL_TOKENS = 4, 1024, 2048
"""Conversations outside of these are left out, as every client of this field does."""

Item = TypeVar("Item")


class Turn(msgspec.Struct):
    """One thing said."""

    value: str = ""


class Conversation(msgspec.Struct):
    """ShareGPT's format; only the first two turns are used."""

    conversations: list[Turn] = []


class CustomLine(msgspec.Struct):
    """One line of a custom dataset: `prompt` is text or token ids, or `messages` is a conversation."""

    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    output_tokens: int | None = None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--dataset-path: cannot read {path}: {error}") from None


def sharegpt_requests(
    path: Path, total: int, vocabulary: Vocabulary, seed: int, output_len: int | None
) -> list[BenchRequest]:
    """Up to `total` first turns, shuffled; the answer in the file decides the output's length unless given."""
    try:
        entries = msgspec.json.decode(_read(path), type=list[Conversation])
    except msgspec.DecodeError as error:
        raise ConfigError(f"--dataset-path: {path} is not in ShareGPT's format: {error}") from None
    usable = [entry.conversations for entry in entries if len(entry.conversations) >= 2]
    random.Random(seed).shuffle(usable)
    requests: list[BenchRequest] = []
    for asked, answered, *_ in usable:
        if len(requests) == total:
            break
        size = vocabulary.count(asked.value)
        output = output_len or vocabulary.count(answered.value)
        if _usable(size, output, check_output=output_len is None):
            requests.append(BenchRequest(asked.value, size, output))
    if not requests:
        raise ConfigError(f"--dataset-path: {path} has no conversation of a usable length")
    return requests


def _usable(size: int, output: int, *, check_output: bool) -> bool:
    long_enough = size >= MIN_TOKENS and (not check_output or output >= MIN_TOKENS)
    return long_enough and size <= MAX_PROMPT_TOKENS and size + output <= MAX_TOTAL_TOKENS


def custom_requests(
    path: Path, total: int, seed: int, output_len: int, *, shuffle: bool
) -> list[BenchRequest]:
    """Up to `total` lines; `output_len` -1 takes each line's `output_tokens`."""
    requests = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if line.strip():
            requests.append(_custom_request(line, path, number, output_len))
    if not requests:
        raise ConfigError(f"--dataset-path: {path} has no requests")
    if shuffle:
        random.Random(seed).shuffle(requests)
    return requests[:total]


def _custom_request(line: bytes, path: Path, number: int, output_len: int) -> BenchRequest:
    where = f"--dataset-path: {path} line {number}"
    try:
        entry = msgspec.json.decode(line, type=CustomLine)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{where}: {error}") from None
    prompt = entry.messages or entry.prompt
    if not prompt:
        raise ConfigError(f"{where}: needs a prompt, or messages")
    max_tokens = entry.output_tokens if output_len == -1 else output_len
    if max_tokens is None:
        raise ConfigError(f"{where}: --custom-output-len -1 needs output_tokens in every line")
    return BenchRequest(prompt, 0, max_tokens)


def oversample(items: list[Item], total: int, seed: int) -> list[Item]:
    """`items`, and drawn repetitions until there are `total`."""
    draw = random.Random(seed)
    return items + [draw.choice(items) for _ in range(total - len(items))]
