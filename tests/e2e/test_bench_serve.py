"""`baton bench serve` against an endpoint whose timing is known, in another process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.marks import deep
from tests.patience import ATTEMPTS, PATIENCE_S, in_time, slowness
from tests.unit.coordinator.edge.conftest import build_tokenizer

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
TTFT_MS, ITL_MS, TOKENS = 50.0, 10.0, 24
WITHIN_MS = 1.0


@contextmanager
def metronome(*flags: object) -> Iterator[str]:
    """URL of a server that answers at known times."""
    command = [sys.executable, "-m", "benchmarks.peers.metronome", *map(str, flags)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save(str(directory / "tokenizer.json"))
    return directory


def bench(tokenizer: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.cli", "bench", "serve", "--tokenizer", tokenizer]
    command += ["--random-input-len", 64, "--random-output-len", TOKENS, "--seed", 3, *flags]
    return subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE_S,
    )


@pytest.fixture(scope="module", params=["openai", deep("openai-chat")])
def result(
    request: pytest.FixtureRequest, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The result file of thirty requests, ten a second: the first that nothing disturbed, or that least disturbed.

    Other work on the machine only adds time; an error of the client is in every run.
    """
    runs: list[dict[str, Any]] = []
    file = tmp_path_factory.mktemp("out") / "result.json"
    with metronome("--ttft-ms", TTFT_MS, "--itl-ms", ITL_MS) as url:
        flags = ["--url", url, "--backend", request.param, "--num-prompts", 30, "--num-warmups", 2]
        flags += ["--request-rate", 10, "--output", file, "--save-detailed"]
        flags += ["--max-client-lag", 1000]  # lateness is judged here, by how slow the machine is
        for _ in range(ATTEMPTS):
            before = slowness()
            done = bench(tokenizer, *flags)
            assert done.returncode == 0, done.stderr
            slow = max(before, slowness())
            runs.append({"slow": slow, **json.loads(file.read_text(encoding="utf-8"))})
            if errors_ms(runs[-1]) < WITHIN_MS:
                return runs[-1]
    return min(runs, key=lambda run: errors_ms(run) / run["slow"])


EXPECTED_MS = {
    "median_ttft_ms": TTFT_MS,
    "median_itl_ms": ITL_MS,
    "mean_tpot_ms": ITL_MS,
    "median_tpot_ms": ITL_MS,
    "median_e2el_ms": TTFT_MS + ITL_MS * (TOKENS - 1),
}


def errors_ms(run: dict[str, Any]) -> float:
    """The largest error of a run, over all that is known."""
    errors = [abs(run[key] - expected) for key, expected in EXPECTED_MS.items()]
    return max(*errors, delay_ms(run), lateness_ms(run) / 2)


@pytest.mark.alone
@pytest.mark.parametrize(("key", "expected_ms"), EXPECTED_MS.items())
def test_known_timing_is_measured_within_a_millisecond(
    result: dict[str, Any], key: str, expected_ms: float
) -> None:
    assert result[key] == pytest.approx(expected_ms, abs=WITHIN_MS * result["slow"])


@pytest.mark.alone
def test_tokens_are_seen_within_a_millisecond_of_leaving(result: dict[str, Any]) -> None:
    assert 0 < delay_ms(result) < WITHIN_MS * result["slow"]


def delay_ms(result: dict[str, Any]) -> float:
    """From a token's leaving to its being seen: its text is the instant at which the server sent it."""
    delays_ms = []
    for text, start_s, ttft_s, gaps_s in zip(
        *(result[key] for key in ("generated_texts", "start_times", "ttfts", "itls")), strict=True
    ):
        at_s = start_s + ttft_s
        for sent_ns, gap_s in zip(text.split(), [*gaps_s, 0.0], strict=True):
            delays_ms.append(at_s * 1e3 - int(sent_ns) / 1e6)
            at_s += gap_s
    return statistics.median(delays_ms)


@pytest.mark.alone
def test_requests_leave_when_they_are_due(result: dict[str, Any]) -> None:
    assert lateness_ms(result) < 2 * WITHIN_MS * result["slow"]


def lateness_ms(result: dict[str, Any]) -> float:
    """From when a request was due to its leaving."""
    pairs = zip(result["start_times"], result["due_times"], strict=True)
    return statistics.median((start - due) * 1e3 for start, due in pairs)


@pytest.mark.alone
def test_usage_is_counted(result: dict[str, Any]) -> None:
    assert result["total_output_tokens"] == 30 * TOKENS


@pytest.mark.alone
def test_the_client_states_what_it_cost(result: dict[str, Any]) -> None:
    assert 0 < result["client"]["cpu_share"] < min(0.5 * result["slow"], 1.0)


@pytest.fixture(scope="module")
def failing(tokenizer: Path) -> subprocess.CompletedProcess[str]:
    """A run in which a third of the requests fail."""
    with metronome("--fail-every", 3) as url:
        return bench(tokenizer, "--url", url, "--num-prompts", 9)


def test_failed_requests_fail_the_run(failing: subprocess.CompletedProcess[str]) -> None:
    assert failing.returncode == 1


def test_causes_of_failed_requests_are_counted(failing: subprocess.CompletedProcess[str]) -> None:
    assert "3 x HTTP 500: a failure on purpose" in failing.stderr


def test_failed_requests_stand_in_the_table(failing: subprocess.CompletedProcess[str]) -> None:
    assert "Failed requests:                         3" in failing.stdout


@pytest.mark.alone
def test_a_client_that_is_the_bottleneck_marks_what_it_prints_and_writes(
    tokenizer: Path, tmp_path: Path
) -> None:
    """Thousands of tokens at once are more than it can take one by one."""
    file, page = tmp_path / "result.json", tmp_path / "page.html"
    with metronome("--at-once") as url:
        flags = ["--num-prompts", 60, "--random-output-len", 8000, "--max-client-share", 0.3]
        done = bench(tokenizer, "--url", url, *flags, "--output", file, "--report", page)
    result = json.loads(file.read_text(encoding="utf-8"))
    assert done.returncode == 3
    assert "Successful requests:                     60" in done.stdout
    assert "UNRELIABLE" in done.stdout
    assert (result["completed"], "bottleneck" in result["unreliable"]) == (60, True)
    assert "Unreliable figures" in page.read_text(encoding="utf-8")


def test_a_search_that_the_client_cannot_follow_is_unreliable(
    tokenizer: Path, tmp_path: Path
) -> None:
    file = tmp_path / "result.json"
    with metronome("--itl-ms", 1) as url:
        flags = ["--find-max-rate", "--goodput", "ttft:500", "--max-rate", 40, "--output", file]
        flags += ["--num-prompts", 4, "--request-rate", 40, "--max-client-share", 0]
        done = bench(tokenizer, "--url", url, *flags)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert done.returncode == 3
    assert (found["max_rate"]["rate"], found["max_rate"]["is_bounded"]) == (None, False)
    assert "at 10 req/s the client was the bottleneck" in found["unreliable"]


def test_a_client_that_is_the_bottleneck_says_what_to_do(tokenizer: Path) -> None:
    with metronome() as url:
        flags = ["--num-prompts", 4, "--max-client-share", 0.00001]
        done = bench(tokenizer, "--url", url, *flags)
    assert "send less at once" in done.stderr


def test_no_server_is_an_error_that_names_the_url(tokenizer: Path) -> None:
    done = bench(tokenizer, "--url", "http://127.0.0.1:9", "--num-prompts", 1)
    assert (done.returncode, "no server at 127.0.0.1:9" in done.stderr) == (1, True)


@pytest.mark.alone
def test_two_endpoints_are_compared(tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"

    def error() -> float:
        with metronome("--itl-ms", 20) as slow, metronome("--itl-ms", 10) as fast:
            urls = ["--url", f"slow={slow}", "--url", f"fast={fast}"]
            bench(tokenizer, *urls, "--num-prompts", 6, "--request-rate", 10, "--output", file)
        ratio = json.loads(file.read_text(encoding="utf-8"))["ratios"]["fast"]["median_itl_ms"]
        return float(abs(ratio - 2.0))

    in_time(error, 0.2)


@pytest.mark.alone
def test_held_back_requests_wait_outside_of_ttft(tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"

    def waited_ms() -> float:
        with metronome() as url:
            flags = ["--url", url, "--num-prompts", 6, "--max-concurrency", 1, "--output", file]
            bench(tokenizer, *flags)
        told = json.loads(file.read_text(encoding="utf-8"))
        return float(told["median_ttft_ms"]) - TTFT_MS

    in_time(waited_ms, 5.0)


@pytest.mark.deep
@pytest.mark.alone
def test_the_highest_rate_is_searched(tokenizer: Path, tmp_path: Path) -> None:
    """Every answer takes the same time, so every rate keeps the SLO."""
    file = tmp_path / "result.json"
    with metronome("--itl-ms", 1) as url:
        flags = ["--find-max-rate", "--goodput", "ttft:10000", "--max-rate", 40, "--output", file]
        bench(tokenizer, "--url", url, "--num-prompts", 8, "--request-rate", 10, *flags)
    found = json.loads(file.read_text(encoding="utf-8"))["max_rate"]
    assert (found["rate"], found["is_bounded"]) == (40.0, False)


def test_a_report_is_written(tokenizer: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    with metronome() as url:
        bench(tokenizer, "--url", url, "--num-prompts", 3, "--report", page)
    assert "<svg" in page.read_text(encoding="utf-8")
