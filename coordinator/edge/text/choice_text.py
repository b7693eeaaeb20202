"""Tokens of one choice to the text its client sees. Owns stop strings, held-back text and finish reasons; pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.edge.text.stop_strings import StopStrings

if TYPE_CHECKING:
    from coordinator.cluster.service_api import StreamEvent
    from coordinator.edge.text.tokenizer import TextTokenizer
    from protocol.sampling import SampledToken


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How tokens become text; `hidden_ids` end a text and are not part of it."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = 0
    hidden_ids: frozenset[int] = frozenset()


@dataclass(slots=True)
class TextDelta:
    """What is new for the client. `tokens` made `text`; `token_ids` has the ending token too."""

    text: str = ""
    tokens: list[SampledToken] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class ChoiceText:
    """Grows with the events of one choice; after `finish_reason` nothing changes any more."""

    def __init__(self, tokenizer: TextTokenizer, options: TextOptions) -> None:
        self._options = options
        self._detokenizer = tokenizer.detokenizer(skip_special_tokens=options.skip_special_tokens)
        self._stops = StopStrings(options.stops, include_match=options.include_stop)
        self._waiting: list[SampledToken] = []
        self._waiting_ids: list[int] = []
        self.num_tokens = 0
        self.finish_reason: str | None = None

    def push(self, event: StreamEvent) -> TextDelta:
        """Text that is certain now. Tokens without text wait for the text they belong to."""
        if self.finish_reason is not None:
            return TextDelta()
        text = ""
        for position, token in enumerate(event.tokens):
            self.num_tokens += 1
            self._waiting_ids.append(token.token_id)
            if self._ends(event, position):
                break
            self._waiting.append(token)
            text += self._add(self._detokenizer.push(token.token_id))
            if self._stops.matched is not None:
                return self._finish(text, "stop", self._stops.matched)
        if event.finish_reason is not None:
            return self._end(text, event)
        return self._delta(text) if text else TextDelta()

    def _add(self, text: str) -> str:
        """Stop strings count only after `min_tokens`."""
        if self.num_tokens <= self._options.min_tokens and self._options.min_tokens:
            return text
        return self._stops.push(text)

    def _ends(self, event: StreamEvent, position: int) -> bool:
        """Whether this token ended the text and is no part of it."""
        is_last = position == len(event.tokens) - 1
        if event.finish_reason != "stop" or not is_last or self._options.include_stop:
            return False
        token_id = event.tokens[position].token_id
        return token_id == event.stop_token_id or token_id in self._options.hidden_ids

    def _end(self, text: str, event: StreamEvent) -> TextDelta:
        text += self._stops.push(self._detokenizer.finish())
        if self._stops.matched is not None:
            return self._finish(text, "stop", self._stops.matched)
        text += self._stops.finish()
        return self._finish(text, event.finish_reason or "stop", event.stop_token_id)

    def _finish(self, text: str, reason: str, stop_reason: str | int | None) -> TextDelta:
        self.finish_reason = reason
        delta = self._delta(text)
        delta.finish_reason, delta.stop_reason = reason, stop_reason
        return delta

    def _delta(self, text: str) -> TextDelta:
        tokens, self._waiting = self._waiting, []
        token_ids, self._waiting_ids = self._waiting_ids, []
        return TextDelta(text, tokens, token_ids)
