"""Tokens of one choice to the text its client sees. Owns stop strings, held-back text and finish reasons; pure.

Text arrives in pieces of any size and a stop string may lie across them. The stop string that is
complete first wins, the longest of several, so where a text is cut does not depend on its pieces. Only a tail that is a
proper prefix of some stop string is held back, so a stream without such a tail is never late.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.edge.answers.answer import Delta
from protocol.finish import FinishReason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.cluster.service_api import StreamEvent
    from coordinator.edge.answers.answer import PromptScores
    from coordinator.edge.text.tokenizer import TextTokenizer
    from protocol.sampling import SampledToken


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How tokens become text; `hidden_ids` end a text and are not part of it. `prompt_scores` are told how likely each
    prompt is, where that is asked for. `marks` are what is shown of tokens that readers of parts look for;
    `constraint_field` is what the client calls its constraint, for errors."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = 0
    hidden_ids: frozenset[int] = frozenset()
    prompt_scores: Sequence[PromptScores] = ()
    marks: Mapping[int, str] = field(default_factory=dict)
    constraint_field: str = ""


class StopStrings:
    """Passes text through until a stop string is complete; then `matched` says which."""

    def __init__(self, stops: Sequence[str], *, include_match: bool = False) -> None:
        self._stops = tuple(stops)
        self._include_match = include_match
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Text that is certain not to be part of a stop string; nothing after a match."""
        if self.matched is not None or not text:
            return ""
        if not self._stops:
            return text
        return self._scan(self._held + text)

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _scan(self, text: str) -> str:
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self._stops if stop in text]
        if found:
            end, minus_length = min(found)
            self.matched, self._held = text[end + minus_length : end], ""
            return text[:end] if self._include_match else text[: end + minus_length]
        kept = max(longest_partial(text, stop) for stop in self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def longest_partial(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    start = text.find(stop[0], max(len(text) - len(stop) + 1, 0))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return len(text) - start if start >= 0 else 0


class ChoiceText:
    """Grows with the events of one choice; after `finish_reason` nothing changes any more."""

    def __init__(
        self,
        index: int,
        tokenizer: TextTokenizer,
        options: TextOptions,
        prompt: Sequence[int] = (),
    ) -> None:
        self._index = index
        self._options = options
        self._detokenizer = tokenizer.detokenizer(
            skip_special_tokens=options.skip_special_tokens, prompt=prompt
        )
        self._stops = StopStrings(options.stops, include_match=options.include_stop)
        self._waiting: list[SampledToken] = []
        self._waiting_ids: list[int] = []
        self._waiting_offsets: list[int] = []
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None

    def push(self, event: StreamEvent) -> Delta | None:
        """Text that is certain now, if any is. Tokens without text wait for the text they belong to."""
        if self.finish_reason is not None:
            return None
        text = ""
        for position, token in enumerate(event.tokens):
            self.num_tokens += 1
            self._waiting_ids.append(token.token_id)
            if self._ends(event, position):
                break
            self._waiting.append(token)
            text += self._add(self._shown(token.token_id))
            self._waiting_offsets.append(self._detokenizer.offset)
            if self._stops.matched is not None:
                return self._finish(text, FinishReason.STOP, self._stops.matched)
        if event.finish_reason is not None:
            return self._end(text, event)
        return self._delta(text) if text else None

    def _shown(self, token_id: int) -> str:
        mark = self._options.marks.get(token_id)
        return self._detokenizer.push(token_id) if mark is None else mark

    def _add(self, text: str) -> str:
        """Stop strings count only after `min_tokens`."""
        if self.num_tokens <= self._options.min_tokens and self._options.min_tokens:
            return text
        return self._stops.push(text)

    def _ends(self, event: StreamEvent, position: int) -> bool:
        """Whether this token ended the text and is no part of it."""
        is_last = position == len(event.tokens) - 1
        if (
            event.finish_reason is not FinishReason.STOP
            or not is_last
            or self._options.include_stop
        ):
            return False
        token_id = event.tokens[position].token_id
        return token_id == event.stop_token_id or token_id in self._options.hidden_ids

    def _end(self, text: str, event: StreamEvent) -> Delta:
        text += self._stops.push(self._detokenizer.finish())
        if self._stops.matched is not None:
            return self._finish(text, FinishReason.STOP, self._stops.matched)
        text += self._stops.finish()
        return self._finish(text, event.finish_reason or FinishReason.STOP, event.stop_token_id)

    def _finish(self, text: str, reason: FinishReason, stop_reason: str | int | None) -> Delta:
        self.finish_reason = reason
        delta = self._delta(text)
        delta.finish_reason, delta.stop_reason = reason, stop_reason
        return delta

    def _delta(self, text: str) -> Delta:
        tokens, self._waiting = self._waiting, []
        token_ids, self._waiting_ids = self._waiting_ids, []
        offsets, self._waiting_offsets = self._waiting_offsets, []
        return Delta(self._index, text, tokens, token_ids, offsets=offsets)
