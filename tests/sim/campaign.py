"""One seed, one run: a load with faults against the simulated cluster, checked against contract C1 to C5.

usage: python -m tests.sim.campaign [--seeds N] [--first SEED] [--verbose]

C1  every token equals the oracle          C2  no admitted request lost while a worker survives
C1, C3 hold for the scores of a prompt, too, in a fifth of the requests
C3  exactly once, in order (equality)      C4  every stream ends within the time limit
C5  blocks, leases, offers, sequences and reservations are zero when the load is over, and when a drained worker leaves
    every account that a worker gives of itself meanwhile is balanced, and the last one empty
C6  the pools are in the end what was wanted: coordinator, launcher and workers agree on who there is, and as what

Faults: lost, repeated and reordered messages, deaths, SIGTERM (in a third of the seeds), pauses, flipped bits, partitions, slow workers and
links, cancelled requests, chats of two turns, a third of the seeds with no headroom (preemptions), a quarter with a death
of the coordinator (in half of them it is paused, too), whose open streams may be cut and are counted. In half of the seeds some requests have less time than they
need, and workers are audited in the middle of everything. In half of the seeds the pools are scaled, drained
and flipped meanwhile; in a third they are put to sleep.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import random
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace

from msgspec import structs

import coordinator.cluster.ledger
from coordinator.cluster.lifecycle import MAX_WORKER_DEATHS
from coordinator.cluster.live_requests import EventStream
from coordinator.cluster.service_api import Generation
from coordinator.cluster.sleeper import Sleeper
from protocol.errors import (
    BatonError,
    DeadlineExceeded,
    GivenUp,
    NoLauncher,
    Overloaded,
    PoolConflict,
    RequestAborted,
    WorkerLost,
    WorkerNotFound,
)
from protocol.roles import COMPUTING, Role
from protocol.sampling import SamplingParams, ScoredToken
from protocol.sleeping import Part
from tests.sim.cluster import Cluster, StreamCut, run
from tests.sim.network import Faults
from tests.sim.worker import BLOCK_SIZE, Policy

REQUESTS = 50
SCORING = 0.2
STORES = (0, 0, 1, 2)
"""How many there are, by chance."""
DISK_BLOCKS = (0, 24, 512)
"""Of each store: none, one that evicts, one that does not."""
TIME_LIMIT_S = 120.0


@dataclass
class Report:
    """What one seed showed."""

    seed: int
    violations: list[str] = field(default_factory=list)
    completed: int = 0
    scored: int = 0
    refused: int = 0
    cancelled: int = 0
    errors: int = 0
    cut: int = 0
    late: int = 0
    accounts: int = 0
    preemptions: int = 0
    replays: int = 0
    transfer_failures: int = 0
    fetched_blocks: int = 0
    scalings: int = 0
    faults: int = 0
    naps: int = 0
    trace: str = ""


class Campaign:
    """The load, the faults and the checks of one seed."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.rng = random.Random(seed * 7919 + 13)
        self.report = Report(seed)
        self.naps: list[asyncio.Future[None]] = []
        self._history = hashlib.blake2b(digest_size=8)
        self.chatting = self.rng.choice([0.0, 0.5])
        self.cancelling = self.rng.choice([0.15, 0.15, 0.5])
        self.restarts_coordinator = self.rng.random() < 0.25
        self.scales = self.rng.random() < 0.5
        self.pauses_coordinator = random.Random(seed + 1).random() < 0.5
        self.sleeps = random.Random(seed + 5).random() < 0.3
        self.stops = random.Random(seed + 2).random() < 0.3
        self.load_s = self.rng.choice([0.2, 1.0, 3.0])
        self.hurrying = random.Random(seed).choice([0.0, 0.2])
        self.usual_delay_s = cluster.network.faults.delay_s

    async def run(self) -> None:
        """The whole run."""
        await self.cluster.until_ready()
        clients = [asyncio.ensure_future(self._client(i)) for i in range(REQUESTS)]
        faults = asyncio.ensure_future(self._inject())
        done, pending = await asyncio.wait(clients, timeout=TIME_LIMIT_S)
        for late in pending:
            self.report.violations.append("C4: a stream did not end in time")
            late.cancel()
        for client in done:
            client.result()
        await faults
        await self.cluster.quiet()
        await self._wake()
        self._check_accounts()
        self.cluster.ask_for_accounts()
        await self.cluster.sleep(1.0)
        self._check_accounts(is_over=True)
        self.report.violations += [f"C5: {leak}" for leak in self.cluster.leaks()]
        self.report.violations += [f"C6: {misfit}" for misfit in self.cluster.misfits()]
        self._close()

    async def _wake(self) -> None:
        """What sleeps is awake in the end, as is compared."""
        if self.naps:
            await asyncio.wait(self.naps)
            self.cluster.service.sleeper.reset()
            await self.cluster.quiet()

    def _check_accounts(self, *, is_over: bool = False) -> None:
        for account in self.cluster.accounts:
            self.report.accounts += 1
            held = sum(hold.blocks for hold in account.holds)
            numbers = (account.blocks.held, held, account.leases, account.transfers)
            is_empty = not any((*numbers, account.sequences))
            if not account.balanced or held < account.blocks.held or (is_over and not is_empty):
                self.report.violations.append(f"C5: an account that does not add up: {account}")
        self.cluster.accounts.clear()

    def _close(self) -> None:
        requests, counts = self.cluster.service.requests, self.cluster.network.counts
        self.report.preemptions = sum(
            worker.decode.scheduler.num_preemptions for worker in self.cluster.workers.values()
        )
        self.report.fetched_blocks = sum(
            worker.prefill.prefixes.fetched_blocks for worker in self.cluster.workers.values()
        )
        self.report.replays += requests.replays
        self.report.transfer_failures += requests.transfer_failures
        self.report.faults += counts["lost"] + counts["duplicated"] + counts["reordered"]
        self._history.update(repr(sorted(counts.items())).encode())
        self.report.trace = self._history.hexdigest()

    async def _client(self, index: int) -> None:
        rng = random.Random(self.rng.random())
        await asyncio.sleep(rng.uniform(0, self.load_s))
        shared = list(range(rng.randrange(0, 24)))
        prompt = shared + [rng.randrange(1000) for _ in range(rng.randrange(1, 24))]
        sampling = SamplingParams(max_tokens=rng.randrange(1, 24), seed=rng.randrange(3))
        sampling = self._scored(index, sampling)
        salt = rng.choice(["", "tenant"])
        time_s = rng.uniform(0.01, 0.4) if rng.random() < self.hurrying else 600.0
        request = Generation(f"r{index}", prompt, sampling, cache_salt=salt, deadline_in_s=time_s)
        answer = await self._ask(request, rng)
        if answer and rng.random() < self.chatting:
            await asyncio.sleep(rng.uniform(0, 0.2))
            await self._next_turn(request, answer, rng)

    def _scored(self, index: int, sampling: SamplingParams) -> SamplingParams:
        """Some are scored, some of them and nothing else; the other draws of a seed stay as they were."""
        rng = random.Random(f"{self.report.seed}/{index}")
        if rng.random() >= SCORING:
            return sampling
        count = rng.choice([0, sampling.max_tokens])
        return structs.replace(sampling, prompt_logprobs=1, max_tokens=count)

    async def _next_turn(self, request: Generation, answer: list[int], rng: random.Random) -> None:
        """The history and a few tokens more, if one pool can hold them."""
        more = [rng.randrange(1000) for _ in range(rng.randrange(1, 9))]
        history = [*request.prompt_token_ids, *answer, *more]
        if len(history) + request.sampling.max_tokens < self.cluster.num_blocks * BLOCK_SIZE:
            turn = replace(request, request_id=f"{request.request_id}b", prompt_token_ids=history)
            await self._ask(turn, rng)

    async def _ask(self, request: Generation, rng: random.Random) -> list[int]:
        """The answer's tokens; none of a request that was refused."""
        try:
            stream = self.cluster.service.submit(request)
        except (Overloaded, WorkerLost):
            self.report.refused += 1
            return []
        if rng.random() < self.cancelling:
            asyncio.get_running_loop().call_later(
                rng.uniform(0, 0.1), stream.cancel, "client disconnected"
            )
        return await self._read(request, stream)

    async def _read(self, request: Generation, stream: EventStream) -> list[int]:
        life = self.cluster.service.requests._lives[request.request_id]
        tokens: list[int] = []
        scores: list[ScoredToken] = []
        error: BatonError | None = None
        async for event in stream:
            scores += event.prompt_scores
            tokens += [token.token_id for token in event.tokens]
            error = event.error
        expected = self.cluster.oracle(request)
        self._history.update(repr((request.request_id, tokens, str(error))).encode())
        if tokens != expected[: len(tokens)]:
            self.report.violations.append(f"C1/C3: {request.request_id} has wrong tokens")
        known = self.cluster.scores(request)
        if scores != known[: len(scores)] or (tokens and scores != known):
            self.report.violations.append(f"C1/C3: {request.request_id} has wrong scores")
        self.report.scored += bool(known) and error is None
        if error is None and (len(tokens), len(scores)) != (len(expected), len(known)):
            self.report.violations.append(f"C3: {request.request_id} ended short, silently")
        self._count(error, life.worker_deaths, is_hurried=request.deadline_in_s < TIME_LIMIT_S)
        return tokens

    def _count(self, error: BatonError | None, worker_deaths: int, *, is_hurried: bool) -> None:
        if error is None:
            self.report.completed += 1
        elif isinstance(error, StreamCut):
            self.report.cut += 1
        elif isinstance(error, RequestAborted):
            self.report.cancelled += 1
        elif isinstance(error, DeadlineExceeded) and is_hurried:
            self.report.late += 1
        elif isinstance(error, GivenUp) and worker_deaths > MAX_WORKER_DEATHS:
            self.report.errors += 1
        else:
            self.report.violations.append(f"C2: a request was lost: {error}")

    async def _inject(self) -> None:
        for _ in range(self.rng.randrange(3, 8)):
            await asyncio.sleep(self.rng.uniform(0, self.load_s / 4))
            faults = [self._kill, self._pause, self._corrupt, self._partition]
            faults += [self._slow_worker, self._slow_network]
            if self.pauses_coordinator:
                faults.append(self._pause_coordinator)
            if self.stops:
                faults += [self._stop, self._stop]
            if self.restarts_coordinator:
                faults.append(self._restart_coordinator)
            if self.cluster.disks:
                faults.append(self._spoil_disk)
            await self.rng.choice(faults)()
            if self.scales:
                await self.rng.choice([self._scale, self._scale, self._drain, self._flip])()
            if self.sleeps:
                self._sleep()
            if self.hurrying:
                self.cluster.ask_for_accounts()
            self.report.faults += 1

    def _sleep(self) -> None:
        """Whoever asks wakes it, in the middle of falling asleep, too; a second call wakes it before."""
        self.naps.append(asyncio.ensure_future(self._nap(self.cluster.service.sleeper)))

    async def _nap(self, sleeper: Sleeper) -> None:
        rng = random.Random(f"nap {self.report.seed}/{len(self.naps)}")
        with suppress(PoolConflict, WorkerLost):
            await sleeper.sleep(rng.choice([1, 2]))
            self.report.naps += 1
        await asyncio.sleep(rng.uniform(0, 0.5))
        with suppress(PoolConflict, WorkerLost):
            await sleeper.wake(rng.choice([set(Part), {Part.WEIGHTS}, {Part.KV_CACHE}]))

    def _victim(self) -> str:
        return self.rng.choice(sorted(self.cluster.workers))

    async def _kill(self) -> None:
        """The launcher starts it again, sooner the first time than the third."""
        victim = self._victim()
        if self.cluster.is_alive(victim):
            self.cluster.kill(victim)

    async def _stop(self) -> None:
        """It drains, and the launcher starts it again; a second one does not wait."""
        self.cluster.workers[self._victim()].stop()

    async def _pause(self) -> None:
        self.cluster.pause(self._victim(), self.rng.choice([0.2, 1.0, 5.0]))

    async def _corrupt(self) -> None:
        self.cluster.corrupt_next_pull()

    async def _spoil_disk(self) -> None:
        """Under a store's pool: gone for good, slow, or full, so that blocks go while they are read."""
        disk = self.rng.choice([disk for _, disk in sorted(self.cluster.disks.items())])
        happens = self.rng.choice(["lost", "slow", "evicting"])
        disk.is_lost |= happens == "lost"
        disk.evicts_during_loads |= happens == "evicting"
        disk.load_s = 1.5 if happens == "slow" else disk.load_s

    async def _slow_worker(self) -> None:
        self.cluster.slow_down(self._victim(), self.rng.choice([3.0, 10.0]))

    async def _slow_network(self) -> None:
        faults = self.cluster.network.faults
        faults.delay_s = (0.05, 0.2)
        delay_s = self.rng.choice([0.2, 1.0])
        asyncio.get_running_loop().call_later(
            delay_s, setattr, faults, "delay_s", self.usual_delay_s
        )

    async def _pause_coordinator(self) -> None:
        self.cluster.pause_coordinator(self.rng.choice([0.5, 4.0, 10.0]))

    async def _restart_coordinator(self) -> None:
        """Once a run: requests that it had are cut, and nothing of them may stay anywhere."""
        self.restarts_coordinator = False
        self.report.replays += self.cluster.service.requests.replays
        self.report.transfer_failures += self.cluster.service.requests.transfer_failures
        self.cluster.restart_coordinator()

    async def _scale(self) -> None:
        with suppress(NoLauncher):  # a coordinator that has just begun
            self.cluster.scaler.scale(self.rng.randrange(5), self.rng.randrange(1, 5))
            self.report.scalings += 1

    async def _drain(self) -> None:
        with suppress(WorkerNotFound, PoolConflict, NoLauncher):
            self.cluster.scaler.drain(self._victim())
            self.report.scalings += 1

    async def _flip(self) -> None:
        with suppress(WorkerNotFound, PoolConflict, NoLauncher):
            victim, role = self._victim(), self.rng.choice(COMPUTING)
            if not victim.startswith(Role.STORE):
                self.cluster.scaler.set_role(victim, role)
                self.report.scalings += 1

    async def _partition(self) -> None:
        pair = self.rng.sample([*sorted(self.cluster.workers), "coordinator"], 2)
        cut = frozenset(pair)
        self.cluster.network.cut.add(cut)
        delay_s = self.rng.choice([0.1, 1.0, 4.0])
        asyncio.get_running_loop().call_later(delay_s, self.cluster.network.cut.discard, cut)


def run_seed(seed: int, policy: Policy | None = None, *, num_blocks: int | None = None) -> Report:
    """One run; the same seed gives the same report."""
    rng = random.Random(seed)
    faults = Faults(
        delay_s=(0.0001, rng.choice([0.0005, 0.003, 0.02])),
        lose=rng.choice([0.0, 0.001, 0.01]),
        duplicate=rng.choice([0.0, 0.01]),
        reorder=rng.choice([0.0, 0.01]),
    )
    found: list[Campaign] = []

    async def scenario(cluster: Cluster) -> None:
        campaign = Campaign(cluster, seed)
        found.append(campaign)
        await campaign.run()

    blocks = num_blocks or rng.choice([20, 48, 96, 400])
    headroom = coordinator.cluster.ledger.HEADROOM_TOKENS
    coordinator.cluster.ledger.HEADROOM_TOKENS = rng.choice([0, headroom, headroom])
    try:
        run(
            scenario,
            prefill=3,
            decode=3,
            stores=random.Random(seed + 3).choice(STORES),
            disk_blocks=random.Random(seed + 4).choice(DISK_BLOCKS),
            num_blocks=blocks,
            seed=seed,
            faults=faults,
            policy=policy,
        )
    finally:
        coordinator.cluster.ledger.HEADROOM_TOKENS = headroom
    return found[0].report


COUNTED = (
    "completed",
    "scored",
    "refused",
    "cancelled",
    "cut",
    "late",
    "accounts",
    "errors",
    "replays",
    "transfer_failures",
    "preemptions",
    "fetched_blocks",
    "scalings",
    "faults",
    "naps",
)


def main() -> int:
    """Exit status 1 when any seed shows a violation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--skip-digest", action="store_true", help="a mutant: must be caught")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    policy = Policy(skip_digest=arguments.skip_digest)
    bad = 0
    totals: dict[str, int] = {}
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        report = run_seed(seed, policy)
        for name in COUNTED:
            totals[name] = totals.get(name, 0) + getattr(report, name)
        if report.violations or arguments.verbose:
            print(report)
        if report.violations:
            bad += 1
            print(f"replay: python -m tests.sim.campaign --first {seed} --seeds 1 --verbose")
    print(f"{arguments.seeds} seeds, {bad} with violations; {totals}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
