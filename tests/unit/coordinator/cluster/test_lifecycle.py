"""The life of a request through every kind of loss: exactly once, in order, or an explicit end."""

from __future__ import annotations

from coordinator.cluster.lifecycle import (
    MAX_REPLAYS,
    MAX_WORKER_DEATHS,
    Loss,
    Phase,
    RequestLife,
    Verdict,
)
from coordinator.cluster.service_api import Generation
from protocol.failures import ErrorKind, Failure
from protocol.finish import FinishReason
from protocol.messages.reports import Output
from protocol.sampling import SampledToken, SamplingParams


def life() -> RequestLife:
    generation = Generation("r", [1, 2, 3], SamplingParams(max_tokens=10))
    return RequestLife(generation, 0.0, 100.0)


def output(
    index: int, *tokens: int, finish: FinishReason | None = None, error: Failure | None = None
) -> Output:
    return Output(
        incarnation="i",
        request_id="r",
        attempt=1,
        index=index,
        tokens=[SampledToken(token_id=token) for token in tokens],
        finish_reason=finish,
        error=error,
    )


def ids(tokens: list[SampledToken]) -> list[int]:
    return [token.token_id for token in tokens]


def test_first_token_from_prefill_is_not_repeated_by_decode() -> None:
    request = life()
    request.dispatch("p", "d")
    assert ids(request.deliver(output(0, 7), "p").tokens) == [7]
    adoption = request.deliver(output(0, 7), "d")
    assert adoption.tokens == []
    assert adoption.adopted
    assert ids(request.deliver(output(1, 8), "d").tokens) == [8]
    assert request.emitted == [7, 8]


def test_decode_may_overtake_prefill() -> None:
    request = life()
    request.dispatch("p", "d")
    assert ids(request.deliver(output(0, 7), "d").tokens) == [7]
    assert request.deliver(output(0, 7), "p").tokens == []
    assert request.phase is Phase.DECODE


def test_gap_is_reported_and_nothing_is_emitted() -> None:
    request = life()
    request.dispatch("p", "d")
    assert request.deliver(output(2, 9), "d").has_gap
    assert request.emitted == []


def test_prefill_loss_matters_only_before_the_handoff() -> None:
    request = life()
    request.dispatch("p", "d")
    assert request.lose_worker("p") is Verdict.REPLAY
    request.dispatch("p2", "d")
    request.deliver(output(0, 7), "d")
    assert request.lose_worker("p2") is Verdict.NOTHING


def test_replay_continues_after_what_was_emitted() -> None:
    request = life()
    request.dispatch("p", "d")
    request.deliver(output(0, 7), "p")
    request.deliver(output(0, 7, 8), "d")
    assert request.lose_worker("d") is Verdict.REPLAY
    assert request.token_ids == [1, 2, 3, 7, 8]
    assert request.max_new_tokens == 8
    assert request.dispatch("p", "d2") == 2
    assert not request.is_current(1)
    assert ids(request.deliver(output(2, 9, finish=FinishReason.STOP), "d2").tokens) == [9]
    assert request.is_finished


def test_request_that_outlives_its_workers_is_quarantined() -> None:
    request = life()
    for _ in range(MAX_WORKER_DEATHS):
        request.dispatch(None, "d")
        assert request.lose_worker("d") is Verdict.REPLAY
    request.dispatch(None, "d")
    assert request.lose_worker("d") is Verdict.POISON


def test_failed_transfers_do_not_replay_for_ever() -> None:
    request = life()
    verdicts = []
    for _ in range(MAX_REPLAYS + 1):
        request.dispatch("p", "d")
        verdicts.append(request.requeue())
    assert verdicts == [Verdict.REPLAY] * MAX_REPLAYS + [Verdict.POISON]


def test_finish_at_the_first_token_needs_no_decode_worker() -> None:
    request = life()
    request.dispatch("p", "d")
    delivery = request.deliver(output(0, 2, finish=FinishReason.STOP), "p")
    assert delivery.finish_reason == "stop"
    assert request.lose_worker("d") is Verdict.NOTHING


def test_error_of_a_worker_ends_the_request() -> None:
    request = life()
    request.dispatch("p", "d")
    failure = Failure(ErrorKind.DEADLINE_EXCEEDED, "too late")
    assert request.deliver(output(0, error=failure), "d").error == failure
    assert request.is_finished


def test_what_is_meant_for_one_route_ends_with_it() -> None:
    """A probe in the waiting line would wait for a worker that is ready, which nobody is before a probe ends."""
    for lose in (
        lambda probe: probe.requeue(),
        lambda probe: probe.requeue(is_failure=False),
        lambda probe: probe.lose_worker("p", Loss.SILENT),
    ):
        probe = RequestLife(life().generation, 0.0, 100.0, is_tied=True)
        probe.dispatch("p", "d")
        assert lose(probe) is Verdict.POISON
