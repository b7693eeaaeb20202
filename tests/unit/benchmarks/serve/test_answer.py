"""Bytes to arrival times, and what counts as a whole answer."""

from __future__ import annotations

import json

import pytest

from benchmarks.serve.answer import Answer, Outcome


def token(text: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def delta(content: str | None) -> bytes:
    choice = {"index": 0, "delta": {"content": content}}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"


def outcome(*pieces: tuple[bytes, float]) -> Outcome:
    answer = Answer(start_s=10.0)
    for data, at_s in pieces:
        answer.feed(data, at_s)
    return answer.finish(num_prompt_tokens=7)


def whole() -> Outcome:
    return outcome(
        (token("a"), 10.5), (token("b"), 10.6), (token("", "length"), 10.8), (USAGE + DONE, 11.9)
    )


def test_ttft_ends_at_the_first_event() -> None:
    assert whole().ttft_s == pytest.approx(0.5)


def test_gaps_are_between_events() -> None:
    assert whole().gaps_s == pytest.approx([0.1, 0.2])


def test_latency_ends_at_the_last_event_with_choices() -> None:
    assert whole().latency_s == pytest.approx(0.8)


def test_usage_says_how_many_tokens_came() -> None:
    assert whole().num_output_tokens == 3


def test_usage_says_how_long_the_prompt_was() -> None:
    assert whole().num_prompt_tokens == 9


def test_without_usage_the_prompt_is_what_the_client_sent() -> None:
    assert outcome((token("a", "stop"), 10.5)).num_prompt_tokens == 7


def test_the_text_is_put_together() -> None:
    assert whole().text == "ab"


def test_tpot_leaves_the_first_token_out() -> None:
    assert whole().tpot_s == pytest.approx((0.8 - 0.5) / 2)


def test_a_chat_role_event_ends_ttft() -> None:
    """As vllm bench serve counts it."""
    assert outcome((delta(""), 10.2), (delta("x"), 10.4), (DONE, 10.4)).ttft_s == pytest.approx(0.2)


def test_chat_content_is_text() -> None:
    assert outcome((delta("x") + delta(None) + delta("y") + DONE, 10.4)).text == "xy"


def test_events_of_one_read_have_one_time() -> None:
    assert outcome((token("a") + token("b", "stop"), 10.5)).gaps_s == [0.0]


@pytest.mark.parametrize("cut", range(1, len(token("a")), 7))
def test_an_event_counts_when_its_last_byte_came(cut: int) -> None:
    data = token("a", "stop")
    assert outcome((data[:cut], 10.1), (data[cut:], 10.5)).ttft_s == pytest.approx(0.5)


def test_carriage_returns_end_lines_too() -> None:
    assert outcome((token("a", "stop").replace(b"\n", b"\r\n"), 10.5)).is_good


def test_comments_are_no_events() -> None:
    assert outcome((b": keep-alive\n\n", 10.1), (token("a", "stop"), 10.5)).ttft_s == 0.5


def test_a_stream_that_breaks_off_has_failed() -> None:
    assert "without a finish_reason" in outcome((token("a"), 10.5)).error


def test_an_error_event_fails_the_answer() -> None:
    event = b'data: {"error":{"message":"worker lost"}}\n\n'
    assert "worker lost" in outcome((token("a"), 10.5), (event + DONE, 10.6)).error


def test_an_answer_without_choices_has_failed() -> None:
    assert "no event with choices" in outcome((DONE, 10.5)).error


def test_what_is_not_json_fails_the_answer() -> None:
    assert "no completion" in outcome((b"data: <html>\n\n", 10.5)).error
