"""Clients that ask several names of one server at random, and compare every answer. Owns their requests; who comes and goes is a campaign's.

They speak OpenAI's and Ollama's dialects, whole and streamed, and leave in the middle of an answer. transformers says what each name answers.
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import tokenizers

from tests.e2e.random_model import END_OF_TURN
from tests.greedy import expected_tokens
from tests.patience import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from tests.e2e.server import Server

    Kind = Callable[[httpx.Client, random.Random], None]

BLOCKS = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: "
    "once or twice she had peeped into the book her sister was reading"
)
"""A prompt of several blocks: what is shorter than one is never found in a cache."""
PROMPTS = ("Once upon a time there was", "def main():\n", "The capital of France", BLOCKS)
SHORT, LONG = 8, 64
KEEP_ALIVES = (None, None, None, 0, "2s", -1, "1m")


class Oracle:
    """What every name says to every prompt, by transformers; `models` are loaded one at a time."""

    def __init__(self, tokenizer: Path, models: Mapping[str, Callable[[], Any]]) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        self.tokens = {
            (name, prompt): expected_tokens(model, self._tokenizer.encode(prompt).ids, LONG)
            for name, load in models.items()
            for model in [load()]
            for prompt in PROMPTS
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Who may be asked."""
        return tuple(dict.fromkeys(name for name, _ in self.tokens))

    def text(self, name: str, prompt: str, num_tokens: int) -> str:
        """To the end of turn, if that comes before."""
        tokens = self.tokens[name, prompt][:num_tokens]
        end = tokens.index(END_OF_TURN) if END_OF_TURN in tokens else len(tokens)
        text: str = self._tokenizer.decode(tokens[:end])
        return text


class RandomClients:
    """Against one server. `failures` are sentences, `counts` what was asked."""

    def __init__(
        self,
        server: Server,
        oracle: Oracle,
        seed: int,
        keep_alives: Sequence[float | str | None] = KEEP_ALIVES,
    ) -> None:
        self.server, self.oracle, self.seed = server, oracle, seed
        self._keep_alives = keep_alives
        self.failures: list[str] = []
        self.counts: Counter[str] = Counter()
        self.over = threading.Event()
        self.kinds: list[Kind] = [
            *[self.complete] * 3,
            *[self.generate] * 3,
            *[self.stream] * 2,
            self.leave_early,
        ]

    def run(
        self, seconds: float, num_clients: int = 6, beside: Iterable[Callable[[], None]] = ()
    ) -> None:
        """So long, and others `beside` them until it is over; then nobody asks any more."""
        beside = list(beside)
        with ThreadPoolExecutor(num_clients + len(beside)) as pool:
            jobs = [pool.submit(self._ask_at_random, number) for number in range(num_clients)]
            jobs += [pool.submit(other) for other in beside]
            try:
                self.over.wait(seconds)
            finally:
                self.over.set()
            for job in jobs:
                job.result()

    def failed(self, told: str) -> None:
        """One thing was not as it should be."""
        self.failures.append(told)

    def _ask_at_random(self, number: int) -> None:
        chance = random.Random(f"{self.seed} {number}")
        with httpx.Client(base_url=self.server.url, timeout=2 * PATIENCE_S) as client:
            while not self.over.is_set():
                kind = chance.choice(self.kinds)
                self.counts[getattr(kind, "__name__", "?")] += 1
                try:
                    kind(client, chance)
                except Exception as error:  # noqa: BLE001 - a failure of the campaign, told as one
                    self.failed(f"{kind}: {type(error).__name__}: {error}")

    def asked(self, chance: random.Random) -> tuple[str, str, int]:
        """A name, a prompt, and how many tokens."""
        names = self.oracle.names
        return chance.choice(names), chance.choice(PROMPTS), chance.choice((SHORT, SHORT, LONG))

    def completion(self, name: str, prompt: str, num_tokens: int, **more: Any) -> dict[str, Any]:
        """Its body in OpenAI's dialect."""
        asked = {"model": name, "prompt": prompt, "max_tokens": num_tokens, "temperature": 0}
        return asked | {"ignore_eos": True, "return_token_ids": True} | more

    def complete(self, client: httpx.Client, chance: random.Random) -> None:
        """OpenAI's, whole."""
        name, prompt, num_tokens = self.asked(chance)
        reply = client.post("/v1/completions", json=self.completion(name, prompt, num_tokens))
        if self.is_answer(name, reply):
            tokens = reply.json()["choices"][0]["token_ids"]
            self._compare(name, prompt, tokens, num_tokens)

    def _compare(self, name: str, prompt: str, tokens: list[int], num_tokens: int) -> None:
        expected = self.oracle.tokens[name, prompt][:num_tokens]
        if tokens != expected:
            self.failed(f"{name} says {tokens} to {prompt!r} instead of {expected}")

    def is_answer(self, name: str, reply: httpx.Response) -> bool:
        """Anything but 200 is a failure."""
        if reply.status_code == 200:
            return True
        self.failed(f"{name}: {reply.status_code} {reply.text[:300]}")
        return False

    def generate(self, client: httpx.Client, chance: random.Random) -> None:
        """Ollama's, whole or streamed."""
        name, prompt, num_tokens = self.asked(chance)
        is_stream, keep_alive = chance.random() < 0.5, chance.choice(self._keep_alives)
        body = {"model": name, "prompt": prompt, "raw": True, "stream": is_stream}
        options = {"num_predict": num_tokens, "temperature": 0}
        said = {} if keep_alive is None else {"keep_alive": keep_alive}
        reply = client.post("/api/generate", json=body | said | {"options": options})
        if not self.is_answer(name, reply):
            return
        lines = [json.loads(line) for line in reply.text.splitlines()]
        text = "".join(line["response"] for line in lines)
        expected = self.oracle.text(name, prompt, num_tokens)
        if text != expected or not lines[-1]["done"]:
            self.failed(f"{name} says {text!r} to {prompt!r} instead of {expected!r}")

    def stream(self, client: httpx.Client, chance: random.Random, most: int = LONG) -> None:
        """OpenAI's, of which at most so many tokens are read."""
        name, prompt, _ = self.asked(chance)
        tokens: list[int] = []
        body = self.completion(name, prompt, LONG, stream=True)
        with client.stream("POST", "/v1/completions", json=body) as reply:
            if reply.status_code != 200:
                reply.read()
                self.is_answer(name, reply)
                return
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        self.failed(f"{name}: a stream ended with {event['error']}")
                        return
                    tokens += event["choices"][0]["token_ids"]
                if len(tokens) >= most:
                    break
        self._compare(name, prompt, tokens, len(tokens) if most < LONG else LONG)

    def leave_early(self, client: httpx.Client, chance: random.Random) -> None:
        """In the middle of an answer."""
        self.stream(client, chance, chance.randrange(1, LONG // 2))
