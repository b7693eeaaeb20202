"""From flags to requests. Owns which dataset is built from which flags, and that a repeated run sees new prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.serve.file_prompts import custom_requests, oversample, sharegpt_requests
from benchmarks.serve.random_prompts import (
    PrefixShape,
    PromptFormat,
    RandomLengths,
    TraceScale,
    prefix_requests,
    random_requests,
    trace_requests,
)
from simulation.traces import read_trace

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from benchmarks.serve.request import BenchRequest
    from benchmarks.serve.vocabulary import Vocabulary

DRAW_STEP = 7919
"""Between the seeds of two draws of one run."""


class Dataset:
    """`draw(0)` are the prompts that are measured; other numbers give other prompts where they are drawn, so
    that a prefix cache knows none of them. Prompts of a file are the file's, each time."""

    def __init__(self, flags: argparse.Namespace, vocabulary: Callable[[], Vocabulary]) -> None:
        self._flags = flags
        self._vocabulary = vocabulary
        chosen = flags.prompt_format
        if chosen == "auto":
            chosen = "ids" if flags.backend == "openai" else "text"
        self._format: PromptFormat = chosen

    def draw(self, number: int, total: int | None = None) -> list[BenchRequest]:
        """`total` requests (default: --num-prompts); fewer when a file is short and must not be repeated."""
        flags = self._flags
        total = flags.num_prompts if total is None else total
        seed = flags.seed + DRAW_STEP * number
        if flags.dataset_name == "random":
            return random_requests(self._lengths(), total, self._vocabulary(), self._format, seed)
        if flags.dataset_name == "prefix_repetition":
            return prefix_requests(self._shape(), total, self._vocabulary(), self._format, seed)
        if flags.dataset_name in ("trace", "timed_trace"):
            lines = read_trace(flags.dataset_path, total, "--dataset-path")
            return trace_requests(lines, self._scale(), self._vocabulary(), self._format, seed)
        requests = self._from_file(total)
        return requests if flags.no_oversample else oversample(requests, total, flags.seed)

    def _from_file(self, total: int) -> list[BenchRequest]:
        flags = self._flags
        if flags.dataset_name == "sharegpt":
            output = flags.output_len or flags.sharegpt_output_len
            return sharegpt_requests(
                flags.dataset_path, total, self._vocabulary(), flags.seed, output
            )
        output = flags.output_len or flags.custom_output_len
        return custom_requests(
            flags.dataset_path, total, flags.seed, output, shuffle=not flags.disable_shuffle
        )

    def _lengths(self) -> RandomLengths:
        flags = self._flags
        return RandomLengths(
            input_len=flags.input_len or flags.random_input_len,
            output_len=flags.output_len or flags.random_output_len,
            input_ratio=flags.random_range_ratio[0],
            output_ratio=flags.random_range_ratio[1],
            prefix_len=flags.random_prefix_len,
        )

    def _shape(self) -> PrefixShape:
        flags = self._flags
        return PrefixShape(
            prefix_len=flags.prefix_repetition_prefix_len,
            suffix_len=flags.prefix_repetition_suffix_len,
            num_prefixes=flags.prefix_repetition_num_prefixes,
            output_len=flags.output_len or flags.prefix_repetition_output_len,
        )

    def _scale(self) -> TraceScale:
        """Mooncake's units for `trace`, those of vLLM's defaults for `timed_trace`."""
        flags = self._flags
        chunk, seconds = (16, 1.0) if flags.dataset_name == "timed_trace" else (512, 0.001)
        output = flags.trace_output_scale
        return TraceScale(
            chunk_tokens=flags.trace_chunk_tokens or chunk,
            seconds=flags.trace_seconds or seconds,
            length=flags.trace_length_scale,
            output=flags.trace_length_scale if output is None else output,
            time=flags.trace_time_scale,
        )
