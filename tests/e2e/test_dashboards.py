"""Every query of the shipped dashboards returns data from a real Prometheus that scrapes a real Baton."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.server import MOCK, Server, free_port
from tests.observability import DIRECTORY, filled, metric_names, queries, rules
from tests.patience import PATIENCE_S, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
MODEL = "smollm2-135m"
SCRAPES = 8
SERVED = (
    *("--pd", "1p1d", "--kv-cache-memory", "256MiB"),
    *("--autoscale", "prefill=1..1,decode=1..1"),
)
STORE = "dram=64MiB,disk=64MiB,path="
OF_REVISIONS = {"baton_revision_share"}
"""Declared by every server, and told by one with revisions: `test_rollout.py` has one."""
VLLM_NAMES = (
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info"),
    *("prompt_tokens_total", "generation_tokens_total", "request_success_total"),
    *("num_preemptions_total", "prefix_cache_queries_total", "prefix_cache_hits_total"),
    *("time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket"),
    *("request_time_per_output_token_seconds_bucket", "e2e_request_latency_seconds_bucket"),
    *(
        "request_queue_time_seconds_sum",
        "request_prefill_time_seconds_sum",
        "request_decode_time_seconds_sum",
    ),
    *(
        "request_inference_time_seconds_sum",
        "request_prompt_tokens_bucket",
        "request_generation_tokens_bucket",
    ),
    *(
        "request_max_num_generation_tokens_sum",
        "request_params_n_bucket",
        "request_params_max_tokens_bucket",
    ),
    *("request_prefill_kv_computed_tokens_sum", "iteration_tokens_total_bucket"),
)
"""What published dashboards for vLLM, llm-d's endpoint picker and benchmark clients read."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = f"{STORE}{tmp_path_factory.mktemp('store')}"
    with Server(*SERVED, "--kv-store", store, program=MOCK) as server:
        yield server


def load(server: Server, index: int) -> None:
    """One request; every tenth is refused, every tenth leaves."""
    body: dict[str, Any] = {"model": MODEL, "prompt": f"{index} tide " * 12, "max_tokens": 20}
    if index % 10 == 3:
        body["temperature"] = 99
    if index % 10 != 7:
        server.client.post("/v1/completions", json=body)
        return
    body |= {"stream": True, "max_tokens": 1000, "ignore_eos": True}
    with server.client.stream("POST", "/v1/completions", json=body) as reply:
        next(reply.iter_lines())


@pytest.fixture(scope="module")
def exposition(server: Server) -> str:
    for index in range(10):
        load(server, index)
    until(
        lambda: "baton_autoscaler_needed{" in server.client.get("/metrics").text,
        "the autoscaler's first decision",
    )
    return server.client.get("/metrics").text


@pytest.fixture(scope="module")
def names(exposition: str) -> set[str]:
    """Every name that a query may ask for; a labelled counter exists before its first count."""
    found = {"up"}
    for family in text_string_to_metric_families(exposition):
        found |= {family.name, f"{family.name}_total"} if family.type == "counter" else set()
        found |= {family.name} & OF_REVISIONS
        found |= {sample.name for sample in family.samples}
    return found


def test_every_metric_of_the_dashboards_exists(names: set[str]) -> None:
    missing = {(title, n) for title, query in queries() for n in metric_names(query) - names}
    assert missing == set()


def test_every_metric_of_the_rules_exists(names: set[str]) -> None:
    asked = {name for rule in rules() for name in metric_names(rule["expr"])}
    assert asked - names == set()


def test_names_that_others_read_exist(names: set[str]) -> None:
    assert {f"vllm:{name}" for name in VLLM_NAMES} - names == set()


def test_the_manual_lists_every_metric(exposition: str) -> None:
    manual = (DIRECTORY.parents[1] / "docs" / "observability.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`((?:vllm:|baton_|http_)[a-z0-9_]+)`", manual))
    families = [f for f in text_string_to_metric_families(exposition) if f.name[:4] != "proc"]
    told = {f"{f.name}_total" if f.type == "counter" else f.name for f in families}
    assert listed == {name for name in told if not name.endswith("_created")}


def test_cache_config_says_the_size_of_the_pools(server: Server, exposition: str) -> None:
    (info,) = [
        sample
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if sample.name == "vllm:cache_config_info"
    ]
    computing = [one for one in server.cluster()["workers"] if one["role"] != "store"]
    blocks = sum(worker["blocks"]["total"] for worker in computing)
    assert (info.labels["block_size"], info.labels["num_gpu_blocks"]) == ("16", str(blocks))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_can_read_the_metrics(exposition: str) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=exposition,
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("vllm:")]
    assert complaints == [], "names that are ours to choose"


def scraping(server: Server, directory: Path) -> Path:
    """The shipped configuration, at this server and once a second."""
    config = yaml.safe_load((DIRECTORY / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DIRECTORY / "rules.yml")]
    target = server.url.removeprefix("http://")
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A Prometheus that has watched some seconds of load."""
    directory = tmp_path_factory.mktemp("prometheus")
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={scraping(server, directory)}"]
    command += [f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address={address}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=PATIENCE_S) as client:
            until(lambda: is_ready(client), "Prometheus")
            seen: set[float] = set()

            def has_watched(scrapes: int) -> bool:
                """Some more load for every scrape, and whether Prometheus has looked so often."""
                count = count_of_scrapes(client)
                if count not in seen:
                    seen.add(count)
                    with ThreadPoolExecutor(4) as pool:
                        list(pool.map(lambda i: load(server, i), range(10)))
                return count >= scrapes

            until(lambda: has_watched(SCRAPES), "some scrapes under load")
            last = count_of_scrapes(client)
            until(lambda: count_of_scrapes(client) > last, "one scrape more")
            yield client
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def is_ready(prometheus: httpx.Client) -> bool:
    """It refuses connections first, then answers that it is not."""
    try:
        return prometheus.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def count_of_scrapes(prometheus: httpx.Client) -> float:
    """Of the last five minutes."""
    found = asked(prometheus, 'count_over_time(up{job="baton"}[5m])')
    return float(found[0]["value"][1]) if found else 0.0


def asked(
    prometheus: httpx.Client, expression: str, at_s: float | None = None
) -> list[dict[str, Any]]:
    """The result at an instant, or now."""
    instant = {} if at_s is None else {"time": f"{at_s:.3f}"}
    reply = prometheus.get("/api/v1/query", params={"query": filled(expression), **instant})
    assert reply.status_code == 200, reply.text
    result: list[dict[str, Any]] = reply.json()["data"]["result"]
    return result


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_every_query_returns_numbers(prometheus: httpx.Client) -> None:
    empty = []
    for title, expression in queries():
        values = [float(series["value"][1]) for series in asked(prometheus, expression)]
        is_told = not metric_names(expression) & OF_REVISIONS
        if is_told and (not values or all(math.isnan(value) for value in values)):
            empty.append((title, expression))
    assert empty == []


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_no_alert_fires_on_a_healthy_server(prometheus: httpx.Client) -> None:
    alerts = prometheus.get("/api/v1/alerts").json()["data"]["alerts"]
    assert [alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"] == []


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_stage_panel_is_as_high_as_the_mean_request(prometheus: httpx.Client) -> None:
    (query,) = [query for title, query in queries() if title == "Mean request, by stage"]
    (last,) = asked(prometheus, 'timestamp(up{job="baton"})')
    at_s = float(last["value"][1])  # both of the same scrapes
    stacked = sum(float(series["value"][1]) for series in asked(prometheus, query, at_s))
    name = "vllm:e2e_request_latency_seconds"
    mean = f"sum(rate({name}_sum[20s])) / sum(rate({name}_count[20s]))"
    (whole,) = asked(prometheus, mean, at_s)
    extrapolated = 2 * 0.5 / SCRAPES  # half an interval, for each of two series by itself
    assert stacked == pytest.approx(float(whole["value"][1]), rel=0.02 + extrapolated)
