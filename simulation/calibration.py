"""What a simulated worker's steps cost. Owns the fit to a result of `baton bench engine`, and scaling to other hardware.

    prompt of n tokens, k of them cached     token_s · (n - k) + attention_s · (n² - k²)
    decode step of a batch                   base_s + sequence_s · batch + context_s · tokens in all contexts

Both are linear in their parameters and fitted by least squares of relative errors, none below zero.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from protocol.errors import ConfigError

DEFAULT_CALIBRATION = Path(__file__).parent / "calibrations" / "2026-11-23-engine.json"
"""SmolLM2-135M on one core, as `baton bench engine` measured it; shipped with this package."""
MEASURED = {
    "prefill": ("prompt_tokens", "ms"),
    "decode": ("batch", "context_tokens", "step_ms"),
}
"""What is fitted of a result: figures of each row of each list."""
ORIGIN = "write it with `baton bench engine MODEL --output FILE`"
SHM_BYTES_PER_S = 4e9
BLOCK_BYTES = 368_640
"""Of SmolLM2-135M, 16 tokens."""
HANDOFF_S = 0.003
"""Messages and the first look at a block, whatever its size."""


@dataclass(frozen=True)
class Hardware:
    """Seconds and sizes of one worker. `start_s` is from the order to the first request."""

    token_s: float
    attention_s: float
    base_s: float
    sequence_s: float
    context_s: float
    transfer_token_s: float = BLOCK_BYTES / 16 / SHM_BYTES_PER_S
    handoff_s: float = HANDOFF_S
    kv_tokens: int = 65_536
    block_size: int = 16
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    start_s: float = 5.0

    def prompt_s(self, cached: int, total: int) -> float:
        """Computing tokens `cached` to `total` of a prompt, alone."""
        linear = self.token_s * (total - cached)
        return linear + self.attention_s * (total * total - cached * cached)

    def step_s(self, batch: int, contexts: float) -> float:
        """One decode step of `batch` sequences that hold `contexts` tokens together."""
        return self.base_s + self.sequence_s * batch + self.context_s * contexts

    def scaled(self, prefill: float = 1.0, decode: float = 1.0) -> Hardware:
        """The same shape on hardware that is so many times as fast."""
        return replace(
            self,
            token_s=self.token_s / prefill,
            attention_s=self.attention_s / prefill,
            base_s=self.base_s / decode,
            sequence_s=self.sequence_s / decode,
            context_s=self.context_s / decode,
        )


def load_calibration(path: Path) -> Hardware:
    """From the JSON of `baton bench engine`; ConfigError names what is missing."""
    report = _report(path)
    for name, figures in MEASURED.items():
        rows = report.get(name)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ConfigError(
                f"--calibration: {path} is no result of a benchmark: no list {name!r}; {ORIGIN}"
            )
        for row in rows:
            for figure in figures:
                if not _is_measured(row.get(figure)):
                    raise ConfigError(
                        f"--calibration: {path}: {figure!r} in {name!r} must be a number above 0; {ORIGIN}"
                    )
    return fit(report)


def _is_measured(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def calibrated_model(path: Path) -> str:
    """The model that was measured."""
    return str(_report(path).get("model", "unknown"))


def _report(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--calibration: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--calibration: {path} is no JSON ({error}); {ORIGIN}") from None
    if not isinstance(report, dict):
        raise ConfigError(f"--calibration: {path} is no JSON object; {ORIGIN}")
    return report


def fit(report: dict[str, Any]) -> Hardware:
    """Least squares over the measured cases."""
    prompts, steps = report["prefill"], report["decode"]
    if len(prompts) < 2 or len(steps) < 3:
        raise ConfigError(
            f"--calibration: needs two prompt lengths and three decode cases; {ORIGIN}"
        )
    lengths = np.array([row["prompt_tokens"] for row in prompts], float)
    token_s, attention_s = _solve(
        np.stack([lengths, lengths**2], axis=1), [row["ms"] / 1e3 for row in prompts]
    )
    batches = np.array([row["batch"] for row in steps], float)
    contexts = batches * [row["context_tokens"] for row in steps]
    base_s, sequence_s, context_s = _solve(
        np.stack([np.ones_like(batches), batches, contexts], axis=1),
        [row["step_ms"] / 1e3 for row in steps],
    )
    return Hardware(token_s, attention_s, base_s, sequence_s, context_s)


def _solve(columns: np.ndarray, seconds: list[float]) -> list[float]:
    """Non-negative least squares of relative errors, by trying every set of parameters that are not zero."""
    count = columns.shape[1]
    rows = columns / np.array(seconds)[:, None]
    best: tuple[float, list[float]] | None = None
    for size in range(count, 0, -1):
        for chosen in combinations(range(count), size):
            found, *_ = np.linalg.lstsq(rows[:, chosen], np.ones(len(seconds)), rcond=None)
            error = float(np.sum((rows[:, chosen] @ found - 1) ** 2))
            if (found >= 0).all() and (best is None or error < best[0]):
                values = [0.0] * count
                for index, value in zip(chosen, found, strict=True):
                    values[index] = float(value)
                best = (error, values)
    assert best is not None
    return best[1]


def relative_errors(report: dict[str, Any], hardware: Hardware) -> dict[str, float]:
    """The worst miss of the fit, prompts and steps, as a share of what was measured."""
    prompts = [
        abs(hardware.prompt_s(0, row["prompt_tokens"]) * 1e3 / row["ms"] - 1)
        for row in report["prefill"]
    ]
    steps = [
        abs(
            hardware.step_s(row["batch"], row["batch"] * row["context_tokens"])
            * 1e3
            / row["step_ms"]
            - 1
        )
        for row in report["decode"]
    ]
    return {"prefill": max(prompts), "decode": max(steps)}
