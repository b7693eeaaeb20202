"""Prompts: exact lengths, and the sharing that a dataset promises."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path

import pytest

from benchmarks.serve.arguments import parse
from benchmarks.serve.datasets import Dataset
from benchmarks.serve.file_prompts import custom_requests, oversample, sharegpt_requests
from benchmarks.serve.random_prompts import (
    PrefixShape,
    RandomLengths,
    TraceScale,
    prefix_requests,
    random_requests,
    trace_requests,
)
from benchmarks.serve.request import BenchRequest
from benchmarks.serve.vocabulary import Vocabulary
from protocol.errors import ConfigError
from simulation.traces import TraceLine

LENGTHS = RandomLengths(input_len=40, output_len=8, input_ratio=0.5, output_ratio=0.25)


def ids_of(request: BenchRequest) -> list[int]:
    assert isinstance(request.prompt, list)
    return [token for token in request.prompt if isinstance(token, int)]


def shared(first: BenchRequest, second: BenchRequest) -> int:
    """Leading tokens that two prompts have in common."""
    pairs = zip(ids_of(first), ids_of(second), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def test_random_prompts_have_exactly_the_length_asked_for(vocabulary: Vocabulary) -> None:
    requests = random_requests(RandomLengths(input_len=33), 5, vocabulary, "ids", 0)
    assert [len(ids_of(request)) for request in requests] == [33] * 5


def test_random_lengths_stay_within_the_ratio(vocabulary: Vocabulary) -> None:
    requests = random_requests(LENGTHS, 300, vocabulary, "ids", 0)
    sizes = {request.num_prompt_tokens for request in requests}
    assert (min(sizes), max(sizes)) == (20, 60)


def test_output_lengths_have_a_ratio_of_their_own(vocabulary: Vocabulary) -> None:
    requests = random_requests(LENGTHS, 300, vocabulary, "ids", 0)
    assert {request.max_tokens for request in requests} == {6, 7, 8, 9, 10}


def test_all_random_prompts_begin_with_the_prefix(vocabulary: Vocabulary) -> None:
    lengths = RandomLengths(input_len=30, prefix_len=16)
    first, second = random_requests(lengths, 2, vocabulary, "ids", 0)
    assert 16 <= shared(first, second) < 20


def test_random_prompts_hold_no_special_tokens(vocabulary: Vocabulary) -> None:
    (request,) = random_requests(RandomLengths(input_len=5000), 1, vocabulary, "ids", 0)
    assert not vocabulary.tokenizer.special_ids & set(ids_of(request))


def test_equal_seeds_give_equal_prompts(vocabulary: Vocabulary) -> None:
    first = random_requests(LENGTHS, 4, vocabulary, "ids", 9)
    assert first == random_requests(LENGTHS, 4, vocabulary, "ids", 9)


def test_random_text_encodes_to_the_length_asked_for(vocabulary: Vocabulary) -> None:
    requests = random_requests(RandomLengths(input_len=33), 5, vocabulary, "text", 0)
    assert [vocabulary.count(str(request.prompt)) for request in requests] == [33] * 5


def test_prefixes_repeat_as_often_as_asked(vocabulary: Vocabulary) -> None:
    shape = PrefixShape(prefix_len=12, suffix_len=4, num_prefixes=3)
    requests = prefix_requests(shape, 12, vocabulary, "ids", 0)
    heads = [tuple(ids_of(request)[:12]) for request in requests]
    assert sorted(heads.count(head) for head in set(heads)) == [4, 4, 4]


def test_prefixed_prompts_are_shuffled(vocabulary: Vocabulary) -> None:
    shape = PrefixShape(prefix_len=12, suffix_len=4, num_prefixes=2)
    heads = [ids_of(r)[0] for r in prefix_requests(shape, 20, vocabulary, "ids", 0)]
    assert heads[:10] != [heads[0]] * 10


TRACE = [
    TraceLine(1000, 24, 10, [5, 6, 7]),
    TraceLine(3000, 26, 20, [5, 6, 8]),
    TraceLine(4000, 8, 30, [9]),
]
SCALE = TraceScale(chunk_tokens=10)


def test_equal_hash_ids_are_equal_tokens(vocabulary: Vocabulary) -> None:
    first, second, _ = trace_requests(TRACE, SCALE, vocabulary, "ids", 0)
    assert 20 <= shared(first, second) <= 22


def test_different_hash_ids_share_nothing(vocabulary: Vocabulary) -> None:
    first, _, third = trace_requests(TRACE, SCALE, vocabulary, "ids", 0)
    assert shared(first, third) <= 1


def test_traced_prompts_have_the_trace_s_lengths(vocabulary: Vocabulary) -> None:
    requests = trace_requests(TRACE, SCALE, vocabulary, "ids", 0)
    assert [len(ids_of(request)) for request in requests] == [24, 26, 8]


def test_traced_times_count_from_the_first_line(vocabulary: Vocabulary) -> None:
    requests = trace_requests(TRACE, SCALE, vocabulary, "ids", 0)
    assert [request.arrival_s for request in requests] == [0.0, 2.0, 3.0]


def test_the_length_scale_keeps_the_shared_part_in_proportion(vocabulary: Vocabulary) -> None:
    scale = TraceScale(chunk_tokens=10, length=0.5)
    first, second, _ = trace_requests(TRACE, scale, vocabulary, "ids", 0)
    assert 10 <= shared(first, second) <= 12


def test_the_length_scale_shortens_prompts(vocabulary: Vocabulary) -> None:
    requests = trace_requests(TRACE, TraceScale(10, length=0.5), vocabulary, "ids", 0)
    assert [request.num_prompt_tokens for request in requests] == [12, 13, 4]


def test_the_time_scale_shortens_the_hour(vocabulary: Vocabulary) -> None:
    requests = trace_requests(TRACE, TraceScale(10, time=0.1), vocabulary, "ids", 0)
    assert [request.arrival_s for request in requests] == pytest.approx([0.0, 0.2, 0.3])


def test_a_prompt_longer_than_its_hash_ids_is_filled_up(vocabulary: Vocabulary) -> None:
    (request,) = trace_requests([TraceLine(0, 30, 1, [1])], SCALE, vocabulary, "ids", 0)
    assert len(ids_of(request)) == 30


def flags(*given: str) -> Dataset:
    def no_vocabulary() -> Vocabulary:
        raise AssertionError("this dataset needs no tokenizer")

    return Dataset(parse(given), no_vocabulary)


def test_timed_trace_takes_the_units_of_its_name(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = tmp_path / "t.jsonl"
    lines = [{"timestamp": at, "input_length": 3, "output_length": 2} for at in (0, 4)]
    path.write_text("\n".join(map(json.dumps, lines)))
    parsed = parse(["--dataset-name", "timed_trace", "--dataset-path", str(path)])
    requests = Dataset(parsed, lambda: vocabulary).draw(0)
    assert requests[1].arrival_s == 4.0


def test_another_draw_gives_other_prompts(vocabulary: Vocabulary) -> None:
    dataset = Dataset(parse(["--num-prompts", "2"]), lambda: vocabulary)
    assert shared(dataset.draw(0)[0], dataset.draw(1)[0]) < 5


def test_custom_prompts_need_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"prompt": "hello"}\n')
    dataset = flags("--dataset", "custom", "--dataset-path", str(path), "--num-prompts", "3")
    assert [request.prompt for request in dataset.draw(0)] == ["hello"] * 3


def test_custom_lines_bring_their_output_lengths(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"prompt": [1, 2], "output_tokens": 5}\n{"prompt": "b", "output_tokens": 6}\n')
    requests = custom_requests(path, 2, 0, -1, shuffle=False)
    assert [request.max_tokens for request in requests] == [5, 6]


def test_a_custom_line_without_a_prompt_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(ConfigError, match="line 2"):
        custom_requests(path, 2, 0, 16, shuffle=False)


def conversation(question: str, answer: str) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "x", "conversations": turns}


def sharegpt(tmp_path: Path, *entries: dict) -> Path:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(entries))
    return path


LONG_ENOUGH = "Hello world! How are you today?"


def test_sharegpt_asks_the_first_turn(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = sharegpt(tmp_path, conversation(LONG_ENOUGH, LONG_ENOUGH))
    (request,) = sharegpt_requests(path, 5, vocabulary, 0, None)
    assert request.prompt == LONG_ENOUGH


def test_sharegpt_answers_are_as_long_as_the_file_s(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = sharegpt(tmp_path, conversation(LONG_ENOUGH, LONG_ENOUGH))
    (request,) = sharegpt_requests(path, 5, vocabulary, 0, None)
    assert request.max_tokens == vocabulary.count(LONG_ENOUGH)


def test_sharegpt_leaves_out_what_is_too_long(tmp_path: Path, vocabulary: Vocabulary) -> None:
    entries = [conversation("ab " * 3000, LONG_ENOUGH), conversation(LONG_ENOUGH, LONG_ENOUGH)]
    assert len(sharegpt_requests(sharegpt(tmp_path, *entries), 5, vocabulary, 0, None)) == 1


def test_oversampling_repeats_until_there_are_enough() -> None:
    assert oversample([1, 2], 5, seed=0)[:2] == [1, 2]
