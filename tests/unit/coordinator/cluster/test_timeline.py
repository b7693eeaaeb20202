"""A request's time, split into segments that leave nothing out and count nothing twice."""

from __future__ import annotations

import pytest

from coordinator.cluster.lifecycle import RequestLife
from coordinator.cluster.service_api import Generation
from coordinator.cluster.timeline import Attempt, Stage, Timeline
from coordinator.planning.demand import COLD_REQUESTS
from protocol.sampling import SamplingParams
from protocol.spans import Span
from tests.sim.cluster import Cluster, run


def spent(timeline: Timeline, until_s: float) -> dict[str, float]:
    """Seconds by stage."""
    found: dict[str, float] = {}
    for segment in timeline.segments(until_s):
        found[segment.stage] = found.get(segment.stage, 0.0) + segment.seconds
    return found


def handed_over() -> Timeline:
    """Submitted at 10, dispatched at 11, first token at 16, second at 18, last at 20."""
    timeline = Timeline(10.0)
    timeline.dispatched("p", "d", 11.0)
    prefill = {Span.QUEUE: 1.0, Span.PREFILL: 3.5, Span.UNHEARD: 0.25}
    timeline.heard("p", prefill, 16.0, is_new=True)
    adoption = {Span.WAIT_BLOCKS: 0.1, Span.EXPOSED_TRANSFER: 0.5, Span.UNHEARD: 0.0}
    timeline.heard("d", adoption, 17.0, is_new=False)
    timeline.heard("d", {Span.STEP_WAIT: 0.25, Span.FIRST_STEP: 1.0}, 18.0, is_new=True)
    timeline.heard("d", {}, 20.0, is_new=True)
    return timeline


def test_a_handoff_has_every_stage() -> None:
    assert spent(handed_over(), 20.0) == {
        "queue": 1.0,
        "prefill_queue": 1.25,  # a part of what was not reported: the worker was in a step
        "prefill": 3.5,
        "control": 0.25 + 0.25,
        "decode_wait": 0.25,
        "exposed_transfer": 0.5,
        "first_step": 1.0,
        "decode": 2.0,
    }


@pytest.mark.parametrize("until_s", [16.0, 17.0, 18.5, 20.0, 25.0])
def test_segments_sum_to_the_whole_wherever_it_is_cut(until_s: float) -> None:
    assert sum(spent(handed_over(), until_s).values()) == pytest.approx(until_s - 10.0)


def test_waiting_for_blocks_counts_only_beyond_the_prefill_it_overlaps() -> None:
    timeline = Timeline(0.0)
    timeline.dispatched("p", "d", 0.0)
    timeline.heard("p", {Span.QUEUE: 1.0, Span.PREFILL: 3.0}, 4.0, is_new=True)
    timeline.heard("d", {Span.WAIT_BLOCKS: 6.0, Span.EXPOSED_TRANSFER: 1.0}, 7.0, is_new=False)
    timeline.heard("d", {Span.STEP_WAIT: 0.0, Span.FIRST_STEP: 1.0}, 8.0, is_new=True)
    assert spent(timeline, 8.0)["decode_wait"] == pytest.approx(2.0)


def test_reports_longer_than_their_interval_are_cut() -> None:
    timeline = Timeline(0.0)
    timeline.dispatched("p", "d", 0.0)
    timeline.heard("p", {Span.QUEUE: 5.0, Span.PREFILL: 9.0}, 6.0, is_new=True)
    assert spent(timeline, 6.0) == {
        "queue": 0.0,
        "prefill_queue": 5.0,
        "prefill": 1.0,
        "control": 0.0,
        "decode": 0.0,
    }


def test_a_prompt_computed_where_it_decodes_has_no_handoff() -> None:
    timeline = Timeline(0.0)
    timeline.dispatched(None, "d", 0.5)
    timeline.heard("d", {Span.QUEUE: 1.0, Span.PREFILL: 2.0}, 3.5, is_new=True)
    timeline.heard("d", {}, 5.0, is_new=True)
    segments = timeline.segments(5.0)
    assert {s.stage: s.seconds for s in segments if s.seconds} == {
        "queue": 0.5,
        "prefill_queue": 1.0,
        "prefill": 2.0,
        "decode": 1.5,
    }
    assert {s.role for s in segments if s.stage == "prefill"} == {"decode"}


def test_a_failed_attempt_keeps_its_stages_and_what_it_lost_is_replay() -> None:
    timeline = Timeline(0.0)
    timeline.dispatched("p", "d", 1.0)
    timeline.heard("p", {Span.QUEUE: 0.0, Span.PREFILL: 2.0}, 3.0, is_new=True)
    timeline.failed(7.0)
    timeline.dispatched("p", "e", 8.0)
    timeline.heard("p", {Span.QUEUE: 0.0, Span.PREFILL: 3.0}, 11.0, is_new=True)
    assert timeline.replays == 1
    assert spent(timeline, 11.0) == {
        "queue": 2.0,
        "prefill_queue": 0.0,
        "prefill": 5.0,
        "control": 0.0,
        "decode": 0.0,
        "replay": 4.0,
    }


def moved(life: RequestLife) -> RequestLife:
    """Three tokens, the last of them by another worker than the first."""
    timeline = life.timeline
    life.dispatch("p", "d")
    timeline.dispatched("p", "d", 1.0)
    timeline.heard("p", {Span.QUEUE: 0.5, Span.PREFILL: 1.5}, 3.0, is_new=True)
    timeline.heard("d", {Span.FIRST_STEP: 1.0}, 4.0, is_new=True)
    timeline.handed_over(5.0)
    timeline.dispatched(None, "e", 5.0)
    reading = {Span.QUEUE: 0.0, Span.PREFIX_FETCH: 1.0, Span.PREFILL: 0.5}
    timeline.heard("e", reading, 7.0, is_new=True)
    life.emitted += [1, 2, 3]
    return life


def test_an_answer_that_is_handed_over_has_lost_nothing() -> None:
    timeline = moved(RequestLife(generation("r", 3), 0.0, 60.0)).timeline
    assert timeline.replays == 0
    assert (timeline.opening.prefill_worker, timeline.attempts[-1].decode_worker) == ("p", "e")
    assert spent(timeline, 7.0) == {
        "queue": 1.0,
        "prefill_queue": 0.5,
        "prefill": 2.0,
        "control": 0.5,
        "decode_wait": 0.0,
        "exposed_transfer": 0.0,
        "first_step": 1.0,
        "decode": 1.0,
        "prefix_fetch": 1.0,
    }


def test_of_an_answer_that_is_handed_over_is_learned_what_its_first_prefill_took() -> None:
    told = moved(RequestLife(generation("r", 3), 0.0, 60.0)).summary()
    assert (told.worker, told.is_prefilled_apart, told.prefill_s) == ("p", True, 1.5)
    assert (told.first_s, told.last_s, told.replays) == (3.0, 7.0, 0)


def test_what_was_under_way_when_a_client_left_is_said() -> None:
    timeline = Timeline(0.0)
    assert spent(timeline, 2.0) == {"queue": 2.0}
    timeline.dispatched("p", "d", 2.0)
    assert spent(timeline, 5.0) == {"queue": 2.0, "prefill": 3.0}


def generation(name: str, max_tokens: int) -> Generation:
    return Generation(name, [7] * 40, SamplingParams(max_tokens=max_tokens, temperature=0.0))


@pytest.mark.parametrize(("prefill", "victim"), [(1, None), (0, None), (2, "prefill-0"), (1, "d")])
def test_simulated_requests_add_up(prefill: int, victim: str | None) -> None:
    """Production code on a virtual clock, with a death in the middle."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        streams = [cluster.service.submit(generation(str(i), 60)) for i in range(6)]
        if victim:
            await cluster.sleep(0.004)
            cluster.kill(victim if victim != "d" else "decode-0")
        ends_s: list[float] = []
        for stream in streams:
            at_s = [event.at_s async for event in stream if event.error is None]
            assert at_s[-1] is not None
            ends_s.append(at_s[-1])
        for stream, end_s in zip(streams, ends_s, strict=True):
            stages = spent(stream.timeline, end_s)
            assert set(stages) <= set(Stage)
            assert min(stages.values()) >= 0.0
            assert sum(stages.values()) == pytest.approx(end_s - stream.timeline.submitted_s)
        lost = [stream.timeline for stream in streams if stream.timeline.replays]
        assert bool(lost) == (victim is not None)
        assert all(spent(t, e).get("replay", 0.0) > 0 for t in lost for e in [max(ends_s)])

    run(scenario, prefill=prefill, decode=2)


def test_an_answer_without_tokens_is_learned_from_too() -> None:
    """The second half of them, by workers that are warm."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        for number in range(8):
            stream = cluster.service.submit(generation(str(number), 0))
            assert await cluster.drain(stream) == []
            (attempt,) = stream.timeline.attempts
            assert attempt.first_s is not None
            assert attempt.first_s == attempt.last_s
        demand, now_s = cluster.service.demand, cluster.clock.now_s()
        assert demand.placed_s(now_s) > 0
        assert demand.held(now_s)[0].count >= 8 - COLD_REQUESTS

    run(scenario, prefill=1, decode=1)


def test_a_prefix_that_was_read_elsewhere_is_a_stage_of_its_own() -> None:
    attempt = Attempt(0.0, "P", "D", first_s=4.0, last_s=4.0)
    attempt.reports["P"] = {Span.QUEUE: 1.0, Span.PREFIX_FETCH: 0.5, Span.PREFILL: 2.0}
    stages = {segment.stage: segment.seconds for segment in attempt.segments(4.0)}
    assert stages[Stage.PREFIX_FETCH] == 0.5
    assert sum(stages.values()) == 4.0
