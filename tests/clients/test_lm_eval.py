"""lm-eval scores a server as it scores the same weights with transformers: multiple choice and rolling perplexity, without internet."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from deploy.config.topology import cache_directory
from deploy.host.model_source import prepare
from tests.clients.test_clients_of_a_model import ENVIRONMENTS, needs, run
from tests.e2e.server import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.deep, needs("others/lm_eval")]
TASKS = Path(__file__).parent / "lm_eval"
WINDOW = 256
"""Tokens of one prompt; the longest passages take several."""
TOLERANCE = 1e-3
METRICS = {
    "baton_choices": ("acc", "acc_norm"),
    "baton_passages": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks, with the place of their questions."""
    directory = tmp_path_factory.mktemp("tasks")
    for path in TASKS.glob("*.yaml"):
        told = path.read_text(encoding="utf-8").replace("DIRECTORY", str(TASKS))
        (directory / path.name).write_text(told, encoding="utf-8")
    return directory


def scored(tasks: Path, output: Path, backend: str, **arguments: object) -> tuple[Any, Any]:
    """Metrics by task, and what each text's likelihood is."""
    quietly = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(output / "home")}
    told = ",".join(f"{key}={value}" for key, value in arguments.items())
    program = ENVIRONMENTS / "others" / "lm_eval" / "bin" / "lm_eval"
    command = [program, "--model", backend, "--model_args", told, "--tasks", ",".join(METRICS)]
    more = ["--include_path", tasks, "--output_path", output / "told", "--log_samples"]
    run([*command, *more, "--batch_size", "1", "--device", "cpu"], env=os.environ | quietly)
    (results,) = (output / "told").rglob("results_*.json")
    samples = {}
    for task in METRICS:
        (path,) = (output / "told").rglob(f"samples_{task}_*.jsonl")
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        samples[task] = {line["doc_id"]: numbers(line["resps"]) for line in lines}
    return json.loads(results.read_text(encoding="utf-8"))["results"], samples


def numbers(told: Any) -> list[float]:
    """Log-likelihoods, however they are nested; whether a text is the likeliest one counts as 0 or 1."""
    if isinstance(told, list):
        return [number for one in told for number in numbers(one)]
    return [float({"True": 1, "False": 0}.get(told, told))]


@pytest.fixture(scope="module")
def by_transformers(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """What lm-eval's own backend says of the same weights."""
    from tests.e2e.reference import smollm2

    prepared = prepare("smollm2-135m", (), "float32", cache_directory(), lambda *_: None)
    directory = tmp_path_factory.mktemp("checkpoint")
    smollm2(prepared.directory).save_pretrained(directory)
    own = Path(prepared.directory)
    shutil.copy(own / "tokenizer.json", directory)
    settings = json.loads((own / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    where = {"pretrained": directory, "dtype": "float32", "max_length": WINDOW}
    return scored(tasks, tmp_path_factory.mktemp("transformers"), "hf", **where)


def test_lm_eval_agrees_with_its_own_transformers_backend(
    tasks: Path, by_transformers: tuple[Any, Any], tmp_path: Path
) -> None:
    with Server("--pd", "1p1d", "--dtype", "float32", "--kv-cache-memory", "256MiB") as server:
        results, samples = scored(
            tasks,
            tmp_path,
            "local-completions",
            model="smollm2-135m",
            base_url=f"{server.url}/v1/completions",
            tokenizer_backend="remote",
            max_length=WINDOW + 2,  # it keeps two for tokens that are written
            num_concurrent=4,
        )
        assert server.audit()["balanced"]
    expected, likelihoods = by_transformers
    for task, names in METRICS.items():
        for name in names:
            told = expected[task][f"{name},none"]
            assert results[task][f"{name},none"] == pytest.approx(told, rel=TOLERANCE), name
    assert samples.keys() == likelihoods.keys()
    for task, own in likelihoods.items():
        assert samples[task].keys() == own.keys()
        for number, told in own.items():
            assert samples[task][number] == pytest.approx(told, rel=1e-5, abs=TOLERANCE)
