"""A process that serves the HTTP edge alone, over a cluster that only pretends. Owns its parts from model to port.

usage: python -m tests.e2e.edge_server DIRECTORY [OPTIONS_AS_JSON]      prints the port, and ends with its stdin
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from coordinator.accounts.accounts import Accounts, AccountSettings
from coordinator.cluster.scripted_service import IteratedStream, ScriptedPools, ScriptedService
from coordinator.cluster.service_api import StreamEvent
from coordinator.cluster.timeline import Timeline
from coordinator.edge.app import EdgeLimits, ServedModel, create_app
from coordinator.edge.http.wire.limits import WireLimits
from coordinator.edge.http.wire.server import make_server
from protocol.clock import SystemClock
from protocol.finish import FinishReason
from protocol.model_config import ModelConfig
from protocol.sampling import SampledToken, ScoredToken, TokenLogprob
from tests.patience import PATIENCE_S
from tests.unit.coordinator.edge.http.all_options import everything

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from coordinator.cluster.service_api import Generation
    from protocol.sampling import SamplingParams

TOKEN_EVERY_S = 0.02
MAX_MODEL_LEN = 8192
SCORES_AT_ONCE = 195
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


def make_model(directory: Path, *, has_bound: bool = True) -> ServedModel:
    """256 byte tokens and one long one, so that a text of 8,192 x 16 bytes could fit. Without
    a bound: nobody can tell from a text's bytes how few tokens it has."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate([*alphabet, "Ġ" * 16])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if not has_bound:
        tokenizer.normalizer = normalizers.NFKC()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    config = ModelConfig(
        family="llama",
        vocab_size=257,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        max_position_embeddings=MAX_MODEL_LEN,
    )
    return ServedModel(("tiny",), directory, config, MAX_MODEL_LEN)


def alternatives(count: int) -> list[tuple[int, float]]:
    return [(65 + rank, -1.0 - rank) for rank in range(count)]


def tokens_of(sampling: SamplingParams) -> list[SampledToken]:
    """One, unless none is asked for, with the log-probabilities that are asked for."""
    if not sampling.max_tokens:
        return []
    if sampling.logprobs is None:
        return [SampledToken(token_id=64)]
    logprob = TokenLogprob(logprob=-0.5, top=alternatives(sampling.logprobs))
    return [SampledToken(token_id=64, logprob=logprob)]


def scores_of(generation: Generation) -> Iterator[StreamEvent]:
    """As workers tell them: some of the prompt's tokens each."""
    top = generation.sampling.prompt_logprobs
    if top is None:
        return
    score = ScoredToken(logprob=-0.5, rank=1, top=alternatives(top))
    left = len(generation.prompt_token_ids) - 1
    while left > 0:
        yield StreamEvent(prompt_scores=[score] * min(left, SCORES_AT_ONCE))
        left -= SCORES_AT_ONCE


class PacedStream(IteratedStream):
    """A token now, and one more each `TOKEN_EVERY_S`, as many as were asked for."""

    def __init__(self, generation: Generation) -> None:
        self.timeline = Timeline(0.0)
        self._sampling = generation.sampling
        self._left = generation.sampling.max_tokens
        self._events: asyncio.Queue[StreamEvent] = asyncio.Queue()
        self._timer: asyncio.TimerHandle | None = None
        for event in scores_of(generation):
            self._events.put_nowait(event)
        self._tick()

    def _tick(self) -> None:
        self._left -= 1
        reason = None if self._left > 0 else FinishReason.LENGTH
        self._events.put_nowait(StreamEvent(tokens=tokens_of(self._sampling), finish_reason=reason))
        if reason is None:
            self._timer = asyncio.get_running_loop().call_later(TOKEN_EVERY_S, self._tick)

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        while True:
            event = await self._events.get()
            yield event
            if event.finish_reason is not None:
                return

    def cancel(self, reason: str) -> None:
        """Tick no more."""
        if self._timer is not None:
            self._timer.cancel()

    def finish(self) -> None:
        """As a cancel."""
        self.cancel("complete")


class OneToken(IteratedStream):
    """A token at once, and no more."""

    def __init__(self, generation: Generation) -> None:
        self.timeline = Timeline(0.0)
        self._generation = generation

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        for event in scores_of(self._generation):
            yield event
        tokens = tokens_of(self._generation.sampling)
        yield StreamEvent(tokens=tokens, finish_reason=FinishReason.LENGTH)

    def cancel(self, reason: str) -> None:
        """It is over."""

    def finish(self) -> None:
        """It is over."""


@dataclass
class PacedService(ScriptedService):
    """Every generation is a paced stream, or one token."""

    is_short: bool = False

    def submit(self, generation: Any) -> Any:
        """A new stream."""
        return OneToken(generation) if self.is_short else PacedStream(generation)


@contextmanager
def edge_server(directory: Path, **options: Any) -> Iterator[int]:
    """The process, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.edge_server", str(directory), json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0


async def serve(directory: Path, options: dict[str, Any]) -> None:
    """Until stdin ends."""
    if "descriptors" in options:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (options["descriptors"], most))
    accounts = None
    if "keys_db" in options:
        settings = AccountSettings(Path(options["keys_db"]), tuple(options.get("prices", ())))
        accounts = Accounts.open(settings, SystemClock())
        accounts.start(asyncio.get_running_loop())
    app = create_app(
        accounts=accounts,
        service=PacedService(
            deque(), view={"workers": []}, is_short=options.get("is_short", False)
        ),
        model=make_model(directory, has_bound=options.get("has_bound", True)),
        pools=ScriptedPools(),
        limits=EdgeLimits(**options.get("edge_limits", {})),
        **(everything(directory) if options.get("has_everything") else {}),
        **options.get("app", {}),
    )
    limits = WireLimits(**options.get("limits", {}))
    server = make_server(app, host="127.0.0.1", port=0, limits=limits)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.wait({running}, timeout=0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.should_exit = True
    await running
    if accounts is not None:
        await accounts.close()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]), json.loads(sys.argv[2])))
