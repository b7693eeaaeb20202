"""Ollama's own client, untouched (`make clients`), before models that come and go."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.fleet_campaign import write_models
from tests.e2e.server import Server

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".clients" / "ollama" / "bin" / "python"
PROGRAM = ROOT / "tests" / "clients" / "programs" / "ollama_on_demand.py"
PATIENCE_S = 240.0
SLACK_S = 60
"""On a busy machine the client may look that much later."""
USUAL_S = 300
CONFIG = """
pd: 0p1d
dtype: float32
cpu-affinity: none
kv-cache-memory: 16MiB
max-loaded-models: 2
memory-budget: 4GiB
models:
  - {base}/red
  - {base}/blue
"""
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.deep,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"make clients makes {PYTHON}"),
]


def stays(told: object, seconds: float) -> bool:
    return isinstance(told, float | int) and seconds - SLACK_S <= told <= seconds


def test_ps_keep_alive_and_show_are_what_the_client_expects(tmp_path: Path) -> None:
    write_models(tmp_path, ("red", "blue"))
    (tmp_path / "baton.yaml").write_text(CONFIG.format(base=tmp_path))
    with Server("--config", str(tmp_path / "baton.yaml")) as server:
        done = subprocess.run(
            [str(PYTHON), str(PROGRAM), server.url, "red", "blue"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        told = json.loads(done.stdout)
    assert (told["first"], told["listed"]) == ([], ["red", "blue"])
    assert told["load"][0] == "load"
    assert stays(told["load"][1], 600)
    assert stays(told["text"], 5400)
    assert stays(told["seconds"], 90)
    assert stays(told["fraction"], 90.5)
    assert told["for ever"] == told["for ever, too"] == told["nothing said"] == -1
    assert told["zero in words"] == told["zero"] == told["zero, streamed"] == [True, True]
    assert told["unload"] == ["unload", True]
    assert told["refused"] == [[400, True]] * 4
    assert told["still out"] is told["shown, not loaded"] is None
    assert told["show"] == ["llama", "llama"]
    assert told["both"] == told["running"] == ["blue", "red"]
    assert told["unknown"] == 404
