"""One answer as its bytes come in. Owns server-sent events and what counts as a token's arrival; no sockets, no clock.

Every event with a non-empty `choices` is an arrival, whatever text it has; the usage event is none. Events that came
in one read have one time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass(slots=True)
class Outcome:
    """What came of one request. Instants are of `time.perf_counter`; durations in seconds.

    `due_s` is when the schedule wanted it sent, `queue_s` how long --max-concurrency held it back, `late_s` how
    long the client itself did. `error` is empty when all went well.
    """

    due_s: float = 0.0
    start_s: float = 0.0
    queue_s: float = 0.0
    late_s: float = 0.0
    ttft_s: float = 0.0
    latency_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    text: str = ""
    error: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the answer came whole."""
        return not self.error

    @property
    def tpot_s(self) -> float:
        """Seconds a token after the first; 0 where there is only one."""
        if self.num_output_tokens < 2:
            return 0.0
        return (self.latency_s - self.ttft_s) / (self.num_output_tokens - 1)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class Answer:
    """Collects the events of one streamed answer; `finish` makes the outcome of them."""

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.times_s: list[float] = []
        self.error = ""
        self._buffer = b""
        self._texts: list[str] = []
        self._usage = _Usage()
        self._ended = False

    def feed(self, data: bytes, at_s: float) -> None:
        """A piece of the body that was read at `at_s`."""
        buffer = self._buffer + data
        if b"\r" in buffer:
            buffer = buffer.replace(b"\r\n", b"\n")
        *events, self._buffer = buffer.split(b"\n\n")
        for event in events:
            self._event(event, at_s)

    def _event(self, event: bytes, at_s: float) -> None:
        for line in event.split(b"\n"):
            if line.startswith(b"data:"):
                payload = line[5:].strip()
                if payload == b"[DONE]":
                    self._ended = True
                elif payload:
                    self._payload(payload, at_s)

    def _payload(self, payload: bytes, at_s: float) -> None:
        try:
            event = _decode(payload)
        except msgspec.DecodeError as error:
            self.error = self.error or f"an event that is no completion: {error}"
            return
        if event.error is not None:
            self.error = self.error or f"the stream ended with an error: {error_text(event.error)}"
        if event.choices:
            self.times_s.append(at_s)
            self._choice(event.choices[0])
        if event.usage is not None:
            self._usage = event.usage

    def _choice(self, choice: _Choice) -> None:
        text = choice.text if choice.delta is None else choice.delta.content
        if text:
            self._texts.append(text)
        if choice.finish_reason is not None:
            self._ended = True

    def finish(self, num_prompt_tokens: int) -> Outcome:
        """The outcome; the usage's counts win over the client's own. Without usage, `num_output_tokens` is 0."""
        outcome = Outcome(start_s=self.start_s, text="".join(self._texts), error=self._verdict())
        outcome.num_prompt_tokens = self._usage.prompt_tokens or num_prompt_tokens
        outcome.num_output_tokens = self._usage.completion_tokens or 0
        if self.times_s:
            outcome.ttft_s = self.times_s[0] - self.start_s
            outcome.latency_s = self.times_s[-1] - self.start_s
            later = zip(self.times_s[1:], self.times_s, strict=False)
            outcome.gaps_s = [after - before for after, before in later]
        return outcome

    def _verdict(self) -> str:
        if self.error:
            return self.error
        if not self.times_s:
            return "the answer has no event with choices; is this a streaming endpoint?"
        return "" if self._ended else "the stream ended without a finish_reason and without [DONE]"


def error_text(error: object) -> str:
    """The message of an OpenAI error, or all of it."""
    if isinstance(error, dict):
        return str(error.get("message", error))
    return str(error)
