"""The table, the result file and the page."""

from __future__ import annotations

import re

import orjson
import pytest

from benchmarks.serve.arguments import parse
from benchmarks.serve.plots import Series, plot, ticks
from benchmarks.serve.report import report_page
from benchmarks.serve.result import detailed, error_counts
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
        *("Pools of one", "Requests within the SLO"),
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
