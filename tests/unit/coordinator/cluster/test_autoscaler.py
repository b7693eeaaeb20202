"""From what the service sees to observations, and from decisions to orders; grammar of the options."""

from __future__ import annotations

import pytest

from coordinator.edge.telemetry.metrics import EdgeMetrics
from coordinator.planning.demand import COLD_REQUESTS, DemandBook, FinishedRequest, StepFit
from coordinator.planning.observations import Held, Hold, Limits, Range, Scale, Targets
from coordinator.planning.sketch import Arrivals, Sketch, SlidingSketch
from deploy.cli import main
from deploy.config.autoscale import limits_of, targets_of
from protocol.errors import ConfigError, NoLauncher
from simulation.cluster import SimCluster
from simulation.policies import Planned, Static
from simulation.workload import SimRequest, random_workload
from tests.unit.simulation.test_cluster import HARDWARE, LIMITS, TARGETS


def finished_cluster() -> tuple[SimCluster, Planned]:
    policy = Planned(TARGETS, LIMITS)
    cluster = SimCluster(random_workload(300, 1.0, (600, 40), 0.3, seed=1), HARDWARE, (1, 1))
    cluster.run(policy)
    return cluster, policy


def test_rates_and_lengths_are_what_came() -> None:
    cluster, policy = finished_cluster()
    assert policy.autoscaler is not None
    seen = policy.autoscaler.observe(cluster.now_s)
    assert seen.rate_slow == pytest.approx(1.0, rel=0.1)
    assert seen.prompt_tokens.mean == pytest.approx(600, rel=0.1)
    assert seen.output_tokens.mean == pytest.approx(40, rel=0.1)


def test_service_times_and_steps_are_what_they_cost() -> None:
    cluster, policy = finished_cluster()
    assert policy.autoscaler is not None
    seen = policy.autoscaler.observe(cluster.now_s)
    assert seen.service_s.mean == pytest.approx(0.6, rel=0.1)
    assert seen.prefill_tokens_per_s == pytest.approx(1000, rel=0.1)
    assert seen.step is not None
    assert seen.step.seconds(2) == pytest.approx(0.012, rel=0.25)


def judged(prefill_s: float | None, ttft_s: float) -> Held:
    """One request after some that warmed the worker up, of 4,000 tokens at 1,000 a second; the target is 2 s."""
    book = DemandBook(Targets(2.0, 0.1), prefill_tokens_per_s=1000.0)
    for number in range(4):
        is_last = number == 3
        told = FinishedRequest(
            worker="w",
            is_prefilled_apart=prefill_s is not None,
            num_prompt_tokens=4000,
            num_output_tokens=1,
            submitted_s=0.0,
            dispatched_s=0.0,
            first_s=ttft_s if is_last else 0.1,
            last_s=0.0,
            prefill_s=prefill_s,
            prefix_fetch_s=0.0,
            replays=0,
        )
        book.finished(1.0, told)
    return book.held(1.0)[0]


@pytest.mark.parametrize(
    ("prefill_s", "ttft_s", "held", "blamable"),
    [
        (1.0, 1.5, 1.0, 0.0),
        (1.0, 5.0, 0.0, 1.0),
        (3.0, 5.0, 0.0, 0.0),
        (None, 5.0, 0.0, 0.0),  # a decode worker computed it: 4 s by its length
    ],
)
def test_a_miss_is_blamed_on_waiting_alone(
    prefill_s: float | None, ttft_s: float, held: float, blamable: float
) -> None:
    found = judged(prefill_s, ttft_s)
    assert (found.count, found.share, found.blamable) == (1, held, blamable)


def test_what_is_refused_is_work_that_came() -> None:
    book = DemandBook(Targets(2.0, 0.1))
    for number in range(10):
        book.arrived(100.0 + number, {500: 1})
    for number in (1, 2):
        book.refused(100.0 + number, [500])
    tokens, share = book.refused_lately(110.0)
    assert tokens == 1000
    assert share == pytest.approx(0.2)
    assert book.refused_lately(200.0)[0] == 0
    assert book.held(110.0)[0].blamable == 1.0


@pytest.mark.parametrize("is_scored", [False, True])
def test_a_prompt_that_is_scored_teaches_nothing_of_what_prompts_cost(is_scored: bool) -> None:
    book = DemandBook(Targets(2.0, 0.1))
    for number in range(COLD_REQUESTS + 1):
        told = FinishedRequest(
            worker="w",
            is_prefilled_apart=True,
            num_prompt_tokens=4000,
            num_output_tokens=1,
            submitted_s=0.0,
            dispatched_s=0.0,
            first_s=0.1,
            last_s=0.1,
            prefill_s=0.1,
            prefix_fetch_s=0.0,
            replays=0,
            is_scored=is_scored,
        )
        book.finished(float(number), told)
    assert book.prompt_cost.count == (0 if is_scored else 1)
    assert book.service_s(4.0).count == 1, "it takes a worker's time all the same"


@pytest.mark.parametrize(("work", "asked_for"), [([800] * 3, 2400), ([800, 2100], 0)])
def test_choices_of_a_request_are_computed_beside_each_other(
    work: list[int], asked_for: int
) -> None:
    """The target is 2 s, and a token takes a millisecond."""
    book = DemandBook(Targets(2.0, 0.1))
    for length in range(100, 2000, 100):
        book.prompt_cost.add(length, 0, length / 1000)
    book.refused(100.0, work)
    assert book.refused_lately(110.0)[0] == asked_for
    assert book.held(110.0)[0].blamable == float(asked_for > 0)


def test_the_first_requests_of_a_worker_are_not_believed() -> None:
    requests = [SimRequest(i, 5.0 * i, 500, 5) for i in range(3)]
    cluster = SimCluster(requests, HARDWARE, (1, 1))
    cluster.run(Static())
    assert cluster.service.demand.service_s(cluster.now_s).count == 0


def test_an_order_that_is_refused_is_counted_and_given_again() -> None:
    _, policy = finished_cluster()
    autoscaler = policy.autoscaler
    assert autoscaler is not None

    class Refusing:
        def scale_as_fits(self, prefill, decode):
            raise NoLauncher("nobody starts workers")

        def set_role(self, worker_id, role):
            raise NoLauncher("nobody starts workers")

    autoscaler._scaler = Refusing()
    autoscaler._obey(Scale(2, 1, "more"), 0.0)
    assert autoscaler.counts["refused"] == 1


def test_the_cluster_view_tells_the_last_decision() -> None:
    cluster, _ = finished_cluster()
    shown = cluster.service.cluster()["autoscaler"]
    assert shown["enabled"] is True
    assert shown["last_decision"] in ("hold", "flip", "scale")
    assert shown["reason"]


def test_off_is_said_too() -> None:
    cluster = SimCluster([SimRequest(0, 0.0, 10, 2)], HARDWARE, (1, 1))
    shown = cluster.service.cluster()["autoscaler"]
    assert (shown["enabled"], shown["settings"]["mode"]) == (False, "off")
    text = EdgeMetrics("m", cluster.service.cluster, cluster.clock).exposition().decode()
    told = [line for line in text.splitlines() if "baton_autoscaler" in line]
    assert len(told) == 6, "three names, with help and type"
    assert all(line.startswith("#") for line in told), "and no sample"


def test_metrics_tell_needs_and_decisions() -> None:
    cluster, _ = finished_cluster()
    text = EdgeMetrics("m", cluster.service.cluster, cluster.clock).exposition().decode()
    assert 'baton_autoscaler_needed{role="prefill"}' in text
    assert 'baton_autoscaler_decisions_total{decision="hold"}' in text
    assert "baton_autoscaler_trouble 0.0" in text


# ---- parts


def test_a_quantile_is_within_its_bucket() -> None:
    sketch = Sketch()
    for value in range(1, 1001):
        sketch.add(float(value))
    found = sketch.distribution()
    for share in (0.1, 0.5, 0.9, 0.99):
        assert found.quantile(share) == pytest.approx(1000 * share, rel=0.05)
    assert found.mean == pytest.approx(500.5)


def test_old_values_leave_the_window() -> None:
    sliding = SlidingSketch(60.0, 10.0)
    sliding.add(0.0, 5.0)
    sliding.add(100.0, 7.0)
    assert sliding.over(100.0, 60.0).values == (7.0,)


def test_even_arrivals_have_no_dispersion_and_batches_much() -> None:
    even, batches = Arrivals(), Arrivals()
    for second in range(600):
        even.add(float(second))
        if second % 20 == 0:
            batches.add(float(second), 20)
    assert even.dispersion(600.0, 600.0) == pytest.approx(0.25)
    assert batches.dispersion(600.0, 600.0) > 5


def test_a_step_fit_tells_base_and_slope_apart() -> None:
    step = StepFit()
    for n in (1, 4, 16, 8, 2):
        step.add(n, 0.01 + 0.002 * n, 20)
    cost = step.cost()
    assert cost is not None
    assert cost.seconds(10) == pytest.approx(0.03, rel=0.1)


def test_a_step_fit_of_one_size_is_right_at_that_size() -> None:
    step = StepFit()
    for _ in range(20):
        step.add(8, 0.03, 50)
    cost = step.cost()
    assert cost is not None
    assert cost.seconds(8) == pytest.approx(0.03, rel=0.02)
    assert cost.base_s > 0
    assert cost.per_sequence_s > 0


def test_targets_that_nobody_set_are_always_held() -> None:
    book = DemandBook()
    assert book.held(0.0)[0].share == 1.0
    assert isinstance(Hold("x").reason, str)


# ---- options


def test_ranges_are_read() -> None:
    assert limits_of(["prefill=1..4,decode=2..8"]) == Limits(Range(1, 4), Range(2, 8), 12)
    assert limits_of(["prefill=1..4", "decode=1..8", "total=9"]).budget == 9
    asleep = limits_of(["prefill=0..4,decode=0..8", "idle=60s"])
    assert asleep == Limits(Range(0, 4), Range(0, 8), 12, 60.0)
    assert asleep.may_sleep
    assert not limits_of(["prefill=0..4,decode=1..8"]).may_sleep


def test_targets_are_read() -> None:
    assert targets_of(["ttft:2000", "tpot:100"]) == Targets(2.0, 0.1, 0.9)
    assert targets_of(["ttft:500ms,tpot:30,goal:0.95"]) == Targets(0.5, 0.03, 0.95)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prefill=1..4", "says nothing of decode"),
        ("prefill=4..1,decode=1..2", "the lower one first"),
        ("prefill=0..0,decode=0..0", "write 0 to"),
        ("prefill=1..4,decode=0..2", "prefill must begin at 0, too"),
        ("prefill=1..4,decode=1..2,idle=60", "no range begins at 0"),
        ("prefill=0..4,decode=0..2,total=0", "must be 1 to"),
        ("prefill=0..4,decode=0..2,idle=0", "is no range"),
        ("prefill=1..4,decode=1..2,total=1", "must be 2 to"),
        ("prefill=1..4,prefill=1..4,decode=1..2", "there twice"),
        ("prefill=1-4", "is no range"),
    ],
)
def test_a_range_that_cannot_be_says_why(text, said) -> None:
    with pytest.raises(ConfigError, match=said):
        limits_of([text])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--autoscale", "prefill=2..4,decode=1..4"],
            "--autoscale: prefill=2..4 does not hold the 1",
        ),
        (
            ["--pd", "2p2d", "--autoscale", "prefill=1..4", "decode=1..4", "total=3"],
            "more than total=3",
        ),
        (["--slo", "ttft:1"], "--slo: needs tpot"),
        (["--slo", "tfft:1"], "'tfft:1' is no target"),
    ],
)
def test_serve_refuses_what_cannot_be(arguments, said, capsys) -> None:
    assert main(["serve", *arguments, "--print-config"]) == 2
    assert said in capsys.readouterr().err


def test_print_config_shows_both(capsys) -> None:
    assert main(["serve", "--autoscale", "prefill=1..2,decode=1..2", "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert "autoscale: ['prefill=1..2,decode=1..2']" in shown
    assert "slo: ['ttft:2000', 'tpot:100']" in shown
