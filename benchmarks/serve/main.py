"""`baton bench serve`: load on one or several OpenAI endpoints. Owns the order of a whole invocation and its exit status.

0 measured    1 a request failed, or there is no server    2 a flag or file is wrong
3 the client was the bottleneck: the figures are shown and written, and marked unreliable
"""

from __future__ import annotations

import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

import orjson
import uvloop

from benchmarks.serve.arguments import endpoints, parse
from benchmarks.serve.datasets import Dataset
from benchmarks.serve.endpoint import Endpoint, count_outputs
from benchmarks.serve.measure import ratios
from benchmarks.serve.report import report_page
from benchmarks.serve.result import detailed, error_counts, file_name, make_result
from benchmarks.serve.table import comparison_table, result_table
from benchmarks.serve.vocabulary import Vocabulary, load_vocabulary
from deploy.config.topology import environment
from protocol.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.serve.result import Measured
    from benchmarks.serve.search import RateSearch

COMPARED = (
    *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput"),
    *("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms"),
    *("median_itl_ms", "p99_itl_ms", "median_e2el_ms", "p99_e2el_ms"),
)
MAX_CAUSES = 10
FAILED, UNRELIABLE = 1, 3


class Bench:
    """One invocation. Every endpoint is asked the same prompts at the same times, one endpoint after the other."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self._flags = flags
        self._names: list[str] = []
        key = flags.api_key or environment().get("BATON_API_KEY")
        self._endpoints = [Endpoint(name, url, flags, key) for name, url in endpoints(flags)]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Of the first endpoint's model; loaded when a dataset or a count needs it."""
        return load_vocabulary(self._names, given=self._flags.tokenizer is not None)

    async def run(self) -> list[Measured]:
        """Every endpoint's result."""
        try:
            for endpoint in self._endpoints:
                await endpoint.meet()
            self._names = self._endpoints[0].names
            dataset = Dataset(self._flags, lambda: self.vocabulary)
            return [await self._measure(endpoint, dataset) for endpoint in self._endpoints]
        finally:
            for endpoint in self._endpoints:
                endpoint.close()

    async def _measure(self, endpoint: Endpoint, dataset: Dataset) -> Measured:
        await endpoint.warm_up(dataset)
        if self._flags.find_max_rate:
            measured = await endpoint.find_max_rate(dataset)
        else:
            measured = await endpoint.measure(dataset.draw(0), self._flags.traffic)
        loaded = "vocabulary" in self.__dict__ or self._flags.tokenizer is not None
        count_outputs(measured.run, self.vocabulary if loaded else None)
        measured.result = make_result(measured, self._flags)
        return measured


def main(argv: Sequence[str]) -> int:
    """Exit status."""
    flags = parse(argv)
    _make_folders(flags)
    measured = uvloop.run(Bench(flags).run())
    _show(measured, flags)
    _write(measured, flags)
    failed = _tell_failures(measured)
    if _tell_doubts(measured):  # failures, too, may be the client's
        return UNRELIABLE
    return FAILED if failed else 0


def _show(measured: list[Measured], flags: argparse.Namespace) -> None:
    several = len(measured) > 1
    for one in measured:
        title = one.name if several else ""
        print(result_table(one.result, flags.metrics, flags.percentiles, title))
        if one.search is not None:
            print(f"Highest rate within the SLO (req/s): {_highest(one.search)}")
    if several:
        results = {one.name: one.result for one in measured}
        print(comparison_table(results, _ratios(measured), COMPARED))


def _highest(search: RateSearch) -> str:
    if search.best is None:
        return "not known: the client was late at every rate"
    if not all(trial.reliable for trial in search.trials):
        return f"{search.best:.3f} or more; the client could not send faster in time"
    if not search.is_bounded:
        return f"{search.best:.3f} or more; raise --max-rate and --num-prompts"
    return f"{search.best:.3f}"


def _tell_doubts(measured: list[Measured]) -> bool:
    """Whether any figures are the client's; the reasons go to standard error."""
    for one in measured:
        if one.unreliable:
            print(f"{one.name}: unreliable figures: {one.unreliable}", file=sys.stderr)
    return any(one.unreliable for one in measured)


def _ratios(measured: list[Measured]) -> dict[str, dict[str, float]]:
    """The first endpoint's figures over each other endpoint's."""
    return {one.name: ratios(measured[0].result, one.result) for one in measured[1:]}


def _tell_failures(measured: list[Measured]) -> bool:
    """Whether any request failed; the causes go to standard error."""
    for one in measured:
        causes = error_counts(one.run.outcomes)
        if causes:
            total, failed = len(one.run.outcomes), sum(causes.values())
            print(f"{one.name}: {failed} of {total} requests failed:", file=sys.stderr)
        for cause, times in list(causes.items())[:MAX_CAUSES]:
            print(f"  {times} x {cause}", file=sys.stderr)
    return any(one.result["failed"] for one in measured if one.search is None)


def _make_folders(flags: argparse.Namespace) -> None:
    """Before the load, not after it: ConfigError where a file could not be written."""
    folders = {"--result-dir": flags.result_dir} if flags.save_result else {}
    for flag, path in (("--output", flags.output), ("--report", flags.report)):
        if path is None:
            continue
        if path.is_dir():
            raise ConfigError(f"{flag}: {path} is a folder; name a file in it")
        folders[flag] = path.parent
    for flag, folder in folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{flag}: cannot make the folder {folder}: {error}") from None


def _write(measured: list[Measured], flags: argparse.Namespace) -> None:
    for path in _result_paths(measured, flags):
        _write_file("--output", path, orjson.dumps(_document(measured, flags)) + b"\n")
    if flags.report is not None:
        _write_file("--report", flags.report, report_page(measured, flags).encode())
        print(f"report: {flags.report}")


def _result_paths(measured: list[Measured], flags: argparse.Namespace) -> list[Path]:
    paths = [flags.output] if flags.output is not None else []
    if flags.save_result:
        name = flags.result_filename or file_name(flags, measured[0].model)
        paths.append(flags.result_dir / name)
    return paths


def _document(measured: list[Measured], flags: argparse.Namespace) -> dict[str, Any]:
    """One endpoint: its result. Several: all of them by name, and the ratios."""
    whole = {
        one.name: {**one.result, **(detailed(one.run) if flags.save_detailed else {})}
        for one in measured
    }
    if len(measured) == 1:
        return whole[measured[0].name]
    return {"endpoints": whole, "ratios": _ratios(measured)}


def _write_file(flag: str, path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{flag}: cannot write {path}: {error}") from None
