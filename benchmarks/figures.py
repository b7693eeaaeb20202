"""The README's figures, written from the result files. Owns the text between its two markers.

usage: python -m benchmarks.figures [--check]
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- figures: begin. Written by python -m benchmarks.figures; do not edit by hand. -->"
END = "<!-- figures: end -->"
NAMES = {
    "request_throughput": "requests a second (more is better)",
    "median_ttft_ms": "time to first token, median, ms",
    "median_tpot_ms": "time per output token, median, ms",
    "p99_itl_ms": "gap between tokens, 99th percentile, ms",
}


def table(path: Path) -> str:
    """One duel as a Markdown table; where Baton loses, it says so by the ratio."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    where = result["environment"]
    ready = result["ready_after_s"]
    lines = [
        *textwrap.wrap(
            f"`{result['a']}` against {result['b']}, {where['cores']} cores ({where['cpu']}), {where['date'][:10]}, "
            f"from `{path.relative_to(ROOT)}`; load average {where['load_before'][0]:.1f} before the run.",
            118,
            break_long_words=False,
            break_on_hyphens=False,
        ),
        "",
        "| load | figure | Baton | vLLM | Baton / vLLM |",
        "|---|---|---|---|---|",
        f"| start | ready after, s | {ready['a']:.1f} | {ready['b']:.0f} | {ready['a'] / ready['b']:.2f} |",
    ]
    for row in result["rows"]:
        if row["figure"] in NAMES:
            size, output, _, _, concurrency = row["load"].split(":")
            load = f"{size} in, {output} out, {concurrency} at once"
            figures = f"{row['a']:.2f} | {row['b']:.2f} | {row['ratio']:.2f}"
            lines.append(f"| {load} | {NAMES[row['figure']]} | {figures} |")
    return "\n".join(lines)


def written(readme: str) -> str:
    """The README with its figures block made anew, from the newest result of each kind."""
    results = sorted((ROOT / "benchmarks" / "results").glob("*-duel-*.json"))
    newest = {path.name[len("YYYY-MM-DD") :]: path for path in results}
    block = "\n\n".join(table(newest[kind]) for kind in sorted(newest, reverse=True))
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{block}\n{END}{tail}"


def main() -> int:
    """With --check, exit status 1 when the README is not what the files say."""
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    after = written(before)
    if "--check" in sys.argv:
        return int(before != after)
    path.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
