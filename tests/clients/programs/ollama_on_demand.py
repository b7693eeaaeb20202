"""What Ollama's own client makes of models that come and go. Prints one JSON object.

usage: python ollama_on_demand.py URL MODEL OTHER
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime

import ollama

HELLO = [{"role": "user", "content": "Hello"}]
FEW = {"num_predict": 4, "temperature": 0}
KEPT = {"text": "1h30m", "seconds": 90, "fraction": 90.5, "for ever": -1, "for ever, too": "-1m"}
BAD = ("soon", "5 m", "1h30", "nan")


class Asked:
    """One client, and what it is told."""

    def __init__(self, url: str, model: str, other: str) -> None:
        self.client, self.url, self.model, self.other = ollama.Client(url), url, model, other

    def stays_s(self, name: str) -> float | None:
        """How long that model stays by `ps`, to the second; None for one that is not there, -1 for ever."""
        for card in self.client.ps().models:
            if card.model == name:
                if card.expires_at.year == 9999:
                    return -1.0
                return round((card.expires_at - datetime.now(UTC)).total_seconds())
        return None

    def gone(self, name: str) -> bool:
        """Asks until it is not there."""
        return any(self.stays_s(name) is None for _ in range(2000))

    def all(self) -> dict[str, object]:
        """Everything, in an order in which each begins where the one before ended."""
        client, model = self.client, self.model
        told: dict[str, object] = {"first": [card.model for card in client.ps().models]}
        told["listed"] = [card.model for card in client.list().models]
        loaded = client.generate(model=model, keep_alive="10m")
        told["load"] = [loaded.done_reason, self.stays_s(model)]
        for kind, word in KEPT.items():
            client.chat(model=model, messages=HELLO, options=FEW, keep_alive=word)
            told[kind] = self.stays_s(model)
        client.generate(model=model, prompt="Hi", options=FEW)
        told["nothing said"] = self.stays_s(model)
        told["zero in words"] = self.zero("0")
        told["zero"] = self.zero(0)
        told["zero, streamed"] = self.zero_streamed()
        client.chat(model=model, messages=[], keep_alive=-1)
        unloaded = client.chat(model=model, messages=[], keep_alive=0)
        told["unload"] = [unloaded.done_reason, self.gone(model)]
        told["refused"] = [self.refused(word) for word in BAD]
        told["still out"] = self.stays_s(model)
        shown = client.show(model)
        told["show"] = [shown.details.family, shown.modelinfo["general.architecture"]]
        told["shown, not loaded"] = self.stays_s(model)
        told["both"] = sorted(asyncio.run(self.both()))
        told["running"] = sorted(card.model for card in client.ps().models)
        try:
            client.show("nobody")
        except ollama.ResponseError as error:
            told["unknown"] = error.status_code
        return told

    def zero(self, word: float | str) -> list[object]:
        """An answer, after which its model goes."""
        answer = self.client.generate(
            model=self.model, prompt="Hi", options=FEW, keep_alive=word
        ).response
        return [bool(answer), self.gone(self.model)]

    def zero_streamed(self) -> list[object]:
        """The same, streamed."""
        lines = self.client.generate(
            model=self.model, prompt="Hi", options=FEW, keep_alive=0, stream=True
        )
        return [list(lines)[-1].done, self.gone(self.model)]

    def refused(self, word: str) -> list[object]:
        """By its field."""
        try:
            self.client.generate(model=self.model, prompt="Hi", keep_alive=word)
        except ollama.ResponseError as error:
            return [error.status_code, "keep_alive" in error.error]
        return []

    async def both(self) -> list[str]:
        """Two models at once."""
        client = ollama.AsyncClient(self.url)
        answers = await asyncio.gather(
            *(
                client.generate(model=name, prompt="Hi", options=FEW)
                for name in (self.model, self.other)
            )
        )
        return [answer.model for answer in answers]


if __name__ == "__main__":
    print(json.dumps(Asked(*sys.argv[1:4]).all()))
