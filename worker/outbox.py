"""What a worker says. Owns the outputs gathered over a step, which leave in one frame; the lines are passed in.

What is told to the coordinator leaves in the order in which it was said: gathered outputs before what is told at once.
A Goodbye, above all, is the last word of its start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from protocol.messages.reports import Output, Outputs, TransferFailed

FRAME_SCORES = 4096
"""Log-probabilities of prompts in one frame: it has a greatest size, and whoever reads it does nothing else meanwhile."""

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.context import WorkerContext
    from protocol.messages.peers import PeerMessage
    from protocol.messages.records import Message, PeerAddress
    from protocol.sampling import ScoredToken


class Lines(Protocol):
    """Where messages leave: sockets, or what stands for them."""

    def tell(self, message: Message) -> None:
        """To the coordinator."""
        ...

    def reply(self, identity: bytes, message: PeerMessage) -> bool:
        """To the reader behind `identity`; False when it is gone."""
        ...

    def ask(self, source: PeerAddress, message: PeerMessage) -> None:
        """To a worker that we pull from."""
        ...


def pieces_of(output: Output) -> Iterator[Output]:
    """The scores that no frame has room for go before, in outputs of their own."""
    scores, start = output.prompt_scores, 0
    most = max(1, FRAME_SCORES // (1 + max((len(score.top) for score in scores), default=0)))
    while len(scores) - start > most:
        yield Output(
            incarnation=output.incarnation,
            request_id=output.request_id,
            attempt=output.attempt,
            index=output.index,
            tokens=[],
            prompt_index=output.prompt_index + start,
            prompt_scores=scores[start : start + most],
        )
        start += most
    if start:
        output = replace(
            output, prompt_index=output.prompt_index + start, prompt_scores=scores[start:]
        )
    yield output


def _weight(scores: Sequence[ScoredToken]) -> int:
    return sum(1 + len(score.top) for score in scores)


class Outbox:
    """Satisfies PrefillOutbox and DecodeOutbox."""

    def __init__(self, lines: Lines, context: WorkerContext) -> None:
        self._lines = lines
        self._context = context
        self._outputs: list[Output] = []
        self._num_scores = 0

    @property
    def is_empty(self) -> bool:
        """Whether a flush would say nothing."""
        return not self._outputs

    def output(self, output: Output) -> None:
        """Keep for the next flush; flush when it is much. What is too much for a frame leaves in several."""
        if not output.prompt_scores:  # every token of every answer comes this way
            self._outputs.append(output)
            return
        for piece in pieces_of(output):
            self._outputs.append(piece)
            self._num_scores += _weight(piece.prompt_scores)
            if self._num_scores >= FRAME_SCORES:
                self.flush()

    def transfer_failed(self, message: TransferFailed) -> None:
        """See DecodeOutbox."""
        self.tell(message)

    def tell(self, message: Message) -> None:
        """Send to the coordinator at once, after what is gathered."""
        self.flush()
        self._lines.tell(message)

    def reply(self, identity: bytes, message: PeerMessage) -> bool:
        """Answer a worker that pulls from us."""
        return self._lines.reply(identity, message)

    def ask(self, source: PeerAddress, message: PeerMessage) -> None:
        """Tell a worker that we pull from."""
        self._lines.ask(source, message)

    def flush(self) -> None:
        """Send the gathered outputs."""
        if self._outputs:
            outputs, self._outputs, self._num_scores = self._outputs, [], 0
            self._lines.tell(Outputs(incarnation=self._context.incarnation, outputs=outputs))
