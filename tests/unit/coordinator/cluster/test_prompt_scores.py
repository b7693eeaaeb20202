"""Scores of a prompt reach the client exactly once, in order and before its tokens, whatever overtakes or is lost."""

from __future__ import annotations

from typing import Any

from coordinator.cluster.lifecycle import Delivery, Phase, RequestLife, Verdict
from coordinator.cluster.service_api import Generation
from protocol.finish import FinishReason
from protocol.messages.reports import Output
from protocol.sampling import Pooling, SampledToken, SamplingParams, ScoredToken


def life(max_tokens: int = 10) -> RequestLife:
    sampling = SamplingParams(max_tokens=max_tokens, prompt_logprobs=0)
    request = RequestLife(Generation("r", [1, 2, 3, 4, 5], sampling), 0.0, 100.0)
    request.dispatch("p", "d")
    return request


def scored(
    first: int, *ranks: int, index: int = 0, tokens: tuple[int, ...] = (), **said: Any
) -> Output:
    return Output(
        incarnation="i",
        request_id="r",
        attempt=1,
        index=index,
        tokens=[SampledToken(token_id=token) for token in tokens],
        prompt_index=first,
        prompt_scores=[ScoredToken(logprob=-1.0, rank=rank) for rank in ranks],
        **said,
    )


def told(delivery: Delivery) -> tuple[list[int], list[int]]:
    return [s.rank for s in delivery.prompt_scores], [t.token_id for t in delivery.tokens]


def test_scores_come_in_pieces_and_the_last_with_the_first_token() -> None:
    request = life()
    assert told(request.deliver(scored(1, 11, 12), "p")) == ([11, 12], [])
    assert request.lacks_scores
    assert told(request.deliver(scored(3, 13, 14, tokens=(7,)), "p")) == ([13, 14], [7])
    assert not request.lacks_scores


def test_repeated_scores_change_nothing() -> None:
    request = life()
    request.deliver(scored(1, 11, 12), "p")
    assert told(request.deliver(scored(1, 11, 12), "p")) == ([], [])
    assert told(request.deliver(scored(1, 11, 12, 13), "p")) == ([13], [])


def test_lost_scores_are_a_gap() -> None:
    request = life()
    assert request.deliver(scored(3, 13, 14), "p").has_gap
    assert request.num_scored_tokens == 1
    assert request.deliver(scored(1, 11, tokens=(7,)), "p").has_gap
    assert request.emitted == []


def test_what_decode_says_before_the_scores_is_held() -> None:
    request = life()
    early = request.deliver(scored(0, tokens=(7,)), "d")
    assert (early.adopted, told(early), early.has_gap) == (True, ([], []), False)
    assert told(request.deliver(scored(0, index=1, tokens=(8,)), "d")) == ([], [])
    assert told(request.deliver(scored(1, 11, 12), "p")) == ([11, 12], [])
    assert told(request.deliver(scored(3, 13, 14, tokens=(7,)), "p")) == ([13, 14], [7, 8])
    assert told(request.deliver(scored(0, index=2, tokens=(9,)), "d")) == ([], [9])


def test_an_end_that_was_held_is_the_end() -> None:
    request = life()
    request.deliver(scored(0, tokens=(7,), finish_reason=FinishReason.STOP), "d")
    assert request.phase is Phase.DECODE
    delivery = request.deliver(scored(1, 11, 12, 13, 14, tokens=(7,)), "p")
    assert (told(delivery), delivery.finish_reason) == (([11, 12, 13, 14], [7]), "stop")
    assert request.is_finished


def test_prefill_worker_is_needed_until_the_scores_are_here() -> None:
    request = life()
    request.ordered("p", 3)
    request.deliver(scored(0, tokens=(7,)), "d")
    assert request.phase is Phase.DECODE
    assert request.needs("p")
    assert request.is_missed_by("p", 3)
    assert request.lose_worker("p") is Verdict.REPLAY
    assert request.held == []


def test_a_replay_goes_on_after_the_scores_that_were_told() -> None:
    request = life()
    request.deliver(scored(1, 11, 12), "p")
    request.requeue()
    request.dispatch("p", "d")
    assert request.num_scored_tokens == 3
    assert told(request.deliver(scored(3, 13, 14, tokens=(7,)), "p")) == ([13, 14], [7])


def test_prefill_worker_is_not_needed_once_all_is_told() -> None:
    request = life()
    request.deliver(scored(1, 11, 12, 13, 14, tokens=(7,)), "p")
    request.deliver(scored(0, tokens=(7,)), "d")
    assert not request.needs("p")


def test_nothing_to_write_ends_with_the_last_score() -> None:
    request = life(max_tokens=0)
    delivery = request.deliver(scored(1, 11, 12, 13, 14, finish_reason=FinishReason.LENGTH), "p")
    assert (told(delivery), delivery.finish_reason) == (([11, 12, 13, 14], []), "length")
    assert request.is_finished


def embedding_life() -> RequestLife:
    sampling = SamplingParams(max_tokens=0, pooling=Pooling.MEAN)
    request = RequestLife(Generation("r", [1, 2, 3], sampling), 0.0, 100.0)
    request.dispatch("p", "d")
    return request


def test_an_embedding_comes_with_the_end() -> None:
    request = embedding_life()
    delivery = request.deliver(scored(0, finish_reason=FinishReason.LENGTH, embedding=b"1234"), "p")
    assert (delivery.embedding, delivery.finish_reason) == (b"1234", "length")
    assert request.is_finished


def test_an_end_that_overtakes_the_embedding_waits_for_it() -> None:
    request = embedding_life()
    early = request.deliver(scored(0, finish_reason=FinishReason.LENGTH), "d")
    assert (early.finish_reason, request.is_finished) == (None, False)
    delivery = request.deliver(scored(0, finish_reason=FinishReason.LENGTH, embedding=b"1234"), "p")
    assert (delivery.embedding, delivery.finish_reason) == (b"1234", "length")


def test_an_end_without_its_embedding_is_a_gap() -> None:
    request = embedding_life()
    assert request.deliver(scored(0, finish_reason=FinishReason.LENGTH), "p").has_gap
    assert not request.is_finished


def test_who_computes_an_embedding_is_needed_to_its_end() -> None:
    request = embedding_life()
    request.deliver(scored(0, finish_reason=FinishReason.LENGTH), "d")
    assert request.needs("p")
    assert request.lose_worker("p") is Verdict.REPLAY
    assert request.helping_salt is None
