"""One endpoint under load: its model, the warm-up, a run, or a search for the highest rate. Owns their order."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.serve.arrivals import own_times
from benchmarks.serve.client import Client, parse_url
from benchmarks.serve.load import OpenLoop, Prepared
from benchmarks.serve.measure import attainment
from benchmarks.serve.pools import PoolWatch
from benchmarks.serve.progress import LiveProgress
from benchmarks.serve.request import PATHS, BodyMaker
from benchmarks.serve.result import Measured, error_counts
from benchmarks.serve.search import RateSearch
from protocol.errors import BatonError
from simulation.traffic import schedule

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from benchmarks.serve.datasets import Dataset
    from benchmarks.serve.load import Run
    from benchmarks.serve.request import BenchRequest
    from benchmarks.serve.vocabulary import Vocabulary
    from simulation.traffic import Traffic

WARMUP_DRAW = 1_000_003
"""Number of the draw that warm-up prompts come from: none of them is measured."""


class Endpoint:
    """A server that is measured. `names` are where its tokenizer may be found."""

    def __init__(self, name: str, url: str, flags: argparse.Namespace, api_key: str | None) -> None:
        self.name, self.url = name, url
        self.names: list[str] = []
        self._flags = flags
        self._model = ""
        origin, prefix = parse_url(url, insecure=flags.insecure)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = Client(
            origin, prefix, {**headers, **flags.headers}, timeout_s=flags.request_timeout
        )

    async def meet(self) -> None:
        """Learn the model's name; BatonError when there is no server, or it does not tell."""
        flags = self._flags
        await self._client.connect()
        served = await self._client.get_json("/v1/models")
        card = {}
        if isinstance(served, dict) and served.get("data"):
            card = served["data"][0]
        self._model = flags.served_model_name or flags.model or card.get("id", "")
        if not self._model:
            raise BatonError(
                f"{self.url}: GET /v1/models names no model (is --api-key needed?); give --model"
            )
        found = (flags.tokenizer, flags.model, card.get("root"), card.get("id"))
        self.names = [flags.tokenizer] if flags.tokenizer else [name for name in found if name]

    async def warm_up(self, dataset: Dataset) -> None:
        """--num-warmups requests that are not measured; BatonError when one fails."""
        total = self._flags.num_warmups
        if total == 0:
            return
        requests = self._prepare(dataset.draw(WARMUP_DRAW, self._warmup_draws(total))[:total])
        loop = OpenLoop(self._client, self._flags.max_concurrency)
        run = await loop.run(requests, [0.0] * len(requests))
        for cause in error_counts(run.outcomes):
            raise BatonError(f"{self.url}: a warm-up request failed: {cause}")

    def _warmup_draws(self, total: int) -> int:
        if self._flags.dataset_name == "prefix_repetition":
            return max(total, int(self._flags.prefix_repetition_num_prefixes))
        return total

    def _prepare(self, requests: Sequence[BenchRequest]) -> list[Prepared]:
        flags = self._flags
        bodies = BodyMaker(flags.backend, self._model, flags.extra)
        path = flags.endpoint or PATHS[flags.backend]
        return [
            Prepared(
                self._client.message(
                    path, bodies.body(request), f"{flags.request_id_prefix}{number}"
                ),
                request.num_prompt_tokens,
            )
            for number, request in enumerate(requests)
        ]

    async def measure(self, requests: Sequence[BenchRequest], traffic: Traffic) -> Measured:
        """One run; `unreliable` says so when its figures are the client's."""
        flags = self._flags
        own = own_times(requests) if flags.self_timed else None
        due_s = own or schedule(traffic, len(requests), flags.seed)
        prepared = self._prepare(requests)
        watch = PoolWatch(timeline=flags.report is not None)
        progress = LiveProgress(self.name, len(requests), quiet=flags.disable_tqdm)
        async with watch.watching(self._client):
            with progress:
                run = await OpenLoop(self._client, flags.max_concurrency, [progress]).run(
                    prepared, due_s
                )
        return Measured(
            self.name,
            self.url,
            self._model,
            traffic.rate,
            own is not None,
            run,
            watch,
            run.overhead.verdict(flags.limits),
        )

    async def find_max_rate(self, dataset: Dataset) -> Measured:
        """The run at the highest rate within the SLO; BatonError when no rate is.

        A rate that the client could not send in time is not kept: the answer then is a bound of the client's, and
        unreliable. Where no other rate was measured, the run is the last one."""
        flags = self._flags
        top = flags.max_rate or float(flags.num_prompts)
        first = min(1.0, top) if flags.request_rate > top else flags.request_rate
        search = RateSearch(first, flags.slo_attainment, flags.search_precision, top)
        measured: Measured | None = None
        kept: Measured | None = None
        share, doubt = 0.0, ""
        while (rate := search.next_rate()) is not None:
            traffic = replace(flags.traffic, rate=rate)
            measured = await self.measure(dataset.draw(len(search.trials)), traffic)
            share = attainment(measured.run.outcomes, flags.slo_ms)
            search.record(rate, share, reliable=not measured.unreliable)
            note = "; unreliable: the client was late" if measured.unreliable else ""
            print(f"{self.name}: {rate:.3f} req/s, {share:.1%} within the SLO{note}", flush=True)
            if measured.unreliable:
                doubt = f"at {rate:.4g} req/s {measured.unreliable}"
            if rate == search.best:
                kept = measured
        chosen = kept or measured
        if chosen is None or (kept is None and not doubt):
            raise BatonError(
                f"{self.url}: no rate down to {search.trials[-1].rate:.4g} req/s keeps the SLO "
                f"({share:.1%} of requests); loosen --goodput"
            )
        chosen.search, chosen.unreliable = search, doubt
        return chosen

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()


def count_outputs(run: Run, vocabulary: Vocabulary | None) -> None:
    """Where a server told no usage: tokens of the text, or its events when there is no tokenizer."""
    for outcome in run.outcomes:
        if outcome.is_good and outcome.num_output_tokens == 0:
            outcome.num_output_tokens = len(outcome.gaps_s) + 1
            if vocabulary is not None and outcome.text:
                outcome.num_output_tokens = vocabulary.count(outcome.text, add_special_tokens=False)
