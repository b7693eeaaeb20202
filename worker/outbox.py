"""What a worker says. Owns the outputs gathered over a step, which leave in one frame; the lines are passed in.

What is told to the coordinator leaves in the order in which it was said: gathered outputs before what is told at once.
A Goodbye, above all, is the last word of its start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from protocol.messages.reports import Output, Outputs, TransferFailed

FRAME_SCORES = 32 * 1024
"""Log-probabilities of prompts in one frame, which has a greatest size."""

if TYPE_CHECKING:
    from engine.context import WorkerContext
    from protocol.messages.peers import PeerMessage
    from protocol.messages.records import Message, PeerAddress


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
        """Keep for the next flush; flush when it is much."""
        self._outputs.append(output)
        self._num_scores += sum(1 + len(score.top) for score in output.prompt_scores)
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
