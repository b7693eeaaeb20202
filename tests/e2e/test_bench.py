"""`baton bench engine` and `baton bench coordinator`, small."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import BATON
from tests.patience import PATIENCE_S, in_time

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("model")]
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def bench(*arguments: str, cwd: Path | None = None) -> dict[str, Any]:
    """The last line's JSON."""
    done = subprocess.run(
        [str(BATON), "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


@pytest.fixture(scope="module")
def engine_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("shape")
    (directory / "config.json").write_text(json.dumps(SHAPE))
    sizes = ("--prompts", "16,70", "--batches", "1,3", "--contexts", "20", "--chunk", "32")
    written = ("--output", str(directory / "report.json"))
    report = bench("engine", "--random", str(directory / "config.json"), *sizes, *written)
    assert json.loads((directory / "report.json").read_text()) == report
    return report


@pytest.mark.alone
def test_engine_reports_every_prompt_length(engine_report) -> None:
    assert [entry["prompt_tokens"] for entry in engine_report["prefill"]] == [16, 70]


@pytest.mark.alone
def test_engine_reports_every_batch_and_context(engine_report) -> None:
    cases = [(entry["batch"], entry["context_tokens"]) for entry in engine_report["decode"]]
    assert cases == [(1, 20), (3, 20)]


@pytest.mark.deep
def test_engine_takes_the_embedded_model_from_any_folder(tmp_path: Path) -> None:
    """In the default dtype of this processor; `tmp_path` is in no checkout."""
    sizes = ("--prompts", "16", "--batches", "1", "--contexts", "16", "--chunk", "32")
    lent = min(len(os.sched_getaffinity(0)) - 1, 1)
    cores = ("--threads", "1", "--lent-cores", str(lent))
    report = bench("engine", "smollm2-135m", *sizes, *cores, cwd=tmp_path)
    assert (report["threads"], report["lent_cores"]) == (1, lent)
    assert report["host"]["cores"]
    assert report["model"] == "smollm2-135m"
    assert report["dtype"] in ("float32", "bfloat16")


@pytest.mark.alone
def test_engine_measures_the_machine_in_the_same_run(engine_report) -> None:
    limits = engine_report["limits"]
    assert min(limits["read_gb_per_s"], *limits["gemm_gflops"].values()) > 0.1


@pytest.mark.alone
def test_no_step_is_faster_than_the_limit(engine_report) -> None:
    shares = [entry["of_limit"] for entry in engine_report["prefill"] + engine_report["decode"]]
    assert all(0 < share < 1 for share in shares)


def test_more_cores_than_there_are_name_the_flag() -> None:
    command = [str(BATON), "bench", "engine", "--threads", "1", "--lent-cores", "4096"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, "--lent-cores" in done.stderr) == (2, True)


def test_wrong_shape_names_the_flag(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = subprocess.run(
        [str(BATON), "bench", "engine", "--random", str(tmp_path / "config.json")],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, "--random" in done.stderr) == (2, True)


@pytest.mark.deep
@pytest.mark.alone
def test_coordinator_relays_what_is_offered() -> None:
    def error() -> float:
        """Of what comes out, against what went in."""
        report = bench("coordinator", "--streams", "4,16", "--tokens", "40", "--step-ms", "20")
        for level in report["levels"]:
            assert 0 < level["added_p50_ms"] <= level["added_p99_ms"]
        return max(
            abs(level["tokens_per_s"] / level["offered_tokens_per_s"] - 1.0)
            for level in report["levels"]
        )

    in_time(error, 0.3)
