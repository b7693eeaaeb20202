"""The table, the result file and the page."""

from __future__ import annotations

import re

import orjson
import pytest

from benchmarks.axes import tick_text, ticks
from benchmarks.serve.arguments import parse, spoken
from benchmarks.serve.overhead import Limits, Overhead
from benchmarks.serve.plots import Mark, Series, plot
from benchmarks.serve.pools import PoolWatch, Sample
from benchmarks.serve.report import report_page
from benchmarks.serve.result import Measured, detailed, error_counts, make_result
from benchmarks.serve.search import RateSearch
from benchmarks.serve.table import comparison_table, result_table
from tests.unit.benchmarks.serve.conftest import measured

METRICS = ["ttft", "tpot", "itl", "e2el"]
FLAGS = ("--request-rate", "2", "--goodput", "ttft:150", "--num-prompts", "2")
TABLE = """\
============ Serving Benchmark Result ============
Successful requests:                     2         
Failed requests:                         0         
Request rate configured (RPS):           2.00      
Benchmark duration (s):                  2.00      
Total input tokens:                      20        
Total generated tokens:                  6         
Request throughput (req/s):              1.00      
Request goodput (req/s):                 1.00      
Output token throughput (tok/s):         3.00      
Peak output token throughput (tok/s):    3.00      
Peak concurrent requests:                1.00      
Total token throughput (tok/s):          13.00     
---------------Time to First Token----------------
Mean TTFT (ms):                          100.00    
Median TTFT (ms):                        100.00    
P99 TTFT (ms):                           100.00    
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          100.00    
Median TPOT (ms):                        100.00    
P99 TPOT (ms):                           100.00    
---------------Inter-token Latency----------------
Mean ITL (ms):                           100.00    
Median ITL (ms):                         100.00    
P99 ITL (ms):                            100.00    
----------------End-to-end Latency----------------
Mean E2EL (ms):                          300.00    
Median E2EL (ms):                        300.00    
P99 E2EL (ms):                           300.00    
"""  # noqa: W291 - vLLM's own padding
VLLM_KEYS = {
    *("date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts"),
    *("request_rate", "burstiness", "max_concurrency", "duration", "completed", "failed"),
    *("total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput"),
    *("output_throughput", "total_token_throughput", "max_output_tokens_per_s"),
    "max_concurrent_requests",
    *(f"{word}_{name}_ms" for name in METRICS for word in ("mean", "median", "std", "p99")),
}


def test_the_table_is_that_of_vllm() -> None:
    assert result_table(measured(*FLAGS).result, METRICS, [99.0]).startswith(TABLE)


def test_the_table_ends_as_that_of_vllm() -> None:
    assert result_table(measured(*FLAGS).result, METRICS, [99.0]).endswith("\n" + "=" * 50)


def test_the_table_states_what_the_client_cost() -> None:
    assert "Client CPU (% of a core):                2.00" in result_table(
        measured(*FLAGS).result, METRICS, [99.0]
    )


def test_the_table_shows_each_pool() -> None:
    assert "prefill x1 (tok/s):                      10.00" in result_table(
        measured(*FLAGS).result, METRICS, [99.0]
    )


def test_a_rate_without_bound_is_not_in_the_table() -> None:
    assert "Request rate configured" not in result_table(measured().result, METRICS, [99.0])


def test_the_result_has_vllm_s_keys() -> None:
    assert set(measured(*FLAGS).result) >= VLLM_KEYS


def test_the_result_is_json() -> None:
    assert orjson.loads(orjson.dumps(measured("--burstiness", "inf").result))["burstiness"] == "inf"


def test_details_have_vllm_s_keys() -> None:
    assert set(detailed(measured().run)) >= {
        *("input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times"),
        *("queue_times", "generated_texts", "errors"),
    }


def test_queue_times_are_reported_where_requests_were_held_back() -> None:
    assert "mean_client_queue_time_ms" in measured("--max-concurrency", "2").result


def test_queue_times_are_left_out_where_none_were() -> None:
    assert "mean_client_queue_time_ms" not in measured().result


def test_causes_of_failure_are_counted() -> None:
    run = measured(errors=("", "HTTP 500: no", "HTTP 500: no")).run
    assert error_counts(run.outcomes) == {"HTTP 500: no": 2}


def test_endpoints_stand_side_by_side_with_ratios() -> None:
    results = {"a": {"median_ttft_ms": 10.0}, "b": {"median_ttft_ms": 40.0}}
    text = comparison_table(results, {"b": {"median_ttft_ms": 0.25}}, ["median_ttft_ms"])
    assert re.fullmatch(r"median_ttft_ms +10.00 +40.00 +0.25", text.splitlines()[1])


def page(*flags: str) -> str:
    one, other = measured(*flags), measured(*flags, name="<two>")
    one.search = RateSearch(1.0)
    one.search.record(1.0, 0.95)
    return report_page([one, other], parse(flags))


def test_the_page_asks_nothing_of_the_network() -> None:
    assert not re.search(r"<(?:script|link|img|iframe)\b|@import|url\(", page(*FLAGS))


@pytest.mark.parametrize(
    "title",
    [
        *("Time to First Token", "Inter-token Latency", "Output over time", "Each request"),
        *("Pools of one: 1p1d", "Requests within the SLO"),
    ],
)
def test_the_page_has_a_plot(title: str) -> None:
    assert f'aria-label="{title}"' in page(*FLAGS)


def test_names_are_escaped_on_the_page() -> None:
    assert "<two>" not in page(*FLAGS)


def test_a_page_of_a_run_in_which_all_failed_can_be_made() -> None:
    assert "no data" in report_page([measured(errors=("no", "no"))], parse([]))


def test_ticks_are_round_and_reach_the_highest() -> None:
    assert ticks(87.0) == [0, 20, 40, 60, 80, 100]


def test_a_step_holds_its_value() -> None:
    drawn = plot("t", "x", "y", [Series("s", [(0, 0), (1, 1)], "step")])
    points = re.findall(r'points="([^"]+)"', drawn)[0].split()
    assert points[0].split(",")[1] == points[1].split(",")[1]


LATE = Overhead(0.9, 0.0, 1.0, 40.0, 90.0, 30.0, 5.0)


def late() -> Measured:
    """What a client that was too slow brought."""
    one = measured(*FLAGS)
    one.unreliable = LATE.verdict(Limits())
    one.result = make_result(one, parse(FLAGS))
    return one


def test_figures_of_a_late_client_are_marked_in_the_table() -> None:
    table = result_table(late().result, METRICS, [99.0])
    assert "Successful requests:                     2" in table
    assert "UNRELIABLE: the client was the bottleneck" in table


def test_figures_of_a_late_client_are_marked_in_the_file() -> None:
    result = late().result
    assert result["median_ttft_ms"] == pytest.approx(100.0)
    assert "send less at once" in result["unreliable"]


def test_figures_of_a_client_in_time_are_not_marked() -> None:
    assert measured().result["unreliable"] is None


def test_the_page_warns_of_a_late_client() -> None:
    assert "<b>Unreliable figures.</b> one: the client was" in report_page([late()], parse(FLAGS))
    assert "Unreliable" not in page(*FLAGS)


def test_the_page_shows_the_slo_where_it_is_a_limit() -> None:
    assert page(*FLAGS).count(">SLO TTFT 150 ms</text>") == 2  # its distribution, and each request


def test_the_page_shows_the_share_that_was_wanted() -> None:
    assert ">wanted 90%</text>" in page(*FLAGS)


def test_a_limit_that_would_press_the_plot_flat_is_told_in_its_title() -> None:
    drawn = plot("t", "x", "y", [Series("s", [(1, 1)])], [Mark("x", 100.0, "SLO 100 ms")])
    assert "(SLO 100 ms is far off)" in drawn
    assert "<line class=" not in drawn.replace('class="grid"', "")


def test_the_page_tells_goodput_command_and_pools_in_words() -> None:
    text = page(*FLAGS)
    assert "goodput: requests a second within the SLO" in text
    assert (
        "<code>baton bench serve --request-rate 2 --goodput ttft:150 --num-prompts 2</code>" in text
    )
    assert "pools 1p1d" in text
    assert "request_goodput" not in text


def test_no_secret_of_the_command_is_shown() -> None:
    words = [
        "--api-key",
        "k1",
        "--api-key=k2",
        "--header",
        "x-key=k3",
        "y=k4",
        "--url",
        "http://u:k5@h",
    ]
    text = spoken(words)
    assert not re.search(r"k\d", text)
    assert "--header 'x-key=***' 'y=***' --url 'http://***@h'" in text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (2500.0, "2500"), (25_000.0, "25k"), (2e6, "2M")]
)
def test_tick(value: float, text: str) -> None:
    assert tick_text(value) == text


def watched(*samples: tuple[float, int]) -> PoolWatch:
    return PoolWatch(samples=[Sample(at_s, {"decode": n}, {"decode": 1}) for at_s, n in samples])


def test_two_samples_at_once_make_no_spike() -> None:
    """A last heartbeat between the last two samples is 50 tokens in a millisecond."""
    even = [(index * 0.5, index * 50) for index in range(9)]
    rates = watched(*even, (4.001, 450)).rates(0.0)["decode"]
    assert max(rate for _, rate in rates) < 130


def test_a_heartbeat_more_or_less_makes_no_saw() -> None:
    """Every other half second has both its beats, and the next none."""
    even = [(index * 0.5, index // 2 * 100) for index in range(21)]
    rates = [rate for at_s, rate in watched(*even).rates(0.0)["decode"] if at_s >= 2.0]
    assert set(rates) == {100.0}


def test_a_change_of_the_pools_is_told() -> None:
    samples = [Sample(0.5 * i, {}, {"prefill": 1, "decode": n}) for i, n in enumerate((1, 1, 2))]
    assert PoolWatch(samples=samples).shape() == "1p1d → 1p2d"
