"""What a worker says of an answer's end and of its time are members of two lists, on the wire their words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from protocol import wire
from protocol.errors import ProtocolError
from protocol.finish import FinishReason
from protocol.messages.peers import Announce, PeerMessage
from protocol.messages.reports import Output, Outputs, WorkerMessage
from protocol.spans import Span

REPORTS: wire.Decoder[WorkerMessage] = wire.Decoder(WorkerMessage)
PEERS: wire.Decoder[PeerMessage] = wire.Decoder(PeerMessage)
OUTPUT = Output(
    incarnation="i",
    request_id="r",
    attempt=1,
    index=0,
    tokens=[],
    finish_reason=FinishReason.LENGTH,
    spans=dict.fromkeys(Span, 0.5),
)
ANNOUNCE = Announce(
    incarnation="i",
    request_id="r",
    attempt=1,
    lease_id="l",
    first_block=0,
    offers=[],
    num_tokens=1,
    last=True,
    finish_reason=FinishReason.STOP,
)


def plain(message: msgspec.Struct) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.msgpack.decode(wire.encode(message))
    return told


def test_reasons_and_durations_cross_the_wire_as_their_words() -> None:
    told = plain(OUTPUT)
    assert told["finish_reason"] == "length"
    assert list(told["spans"]) == [span.value for span in Span]
    outputs = REPORTS.decode(wire.encode(Outputs(incarnation="i", outputs=[OUTPUT])))
    assert isinstance(outputs, Outputs)
    assert outputs.outputs == [OUTPUT]
    assert outputs.outputs[0].finish_reason is FinishReason.LENGTH
    announced = PEERS.decode(wire.encode(ANNOUNCE))
    assert isinstance(announced, Announce)
    assert announced.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    "said", [{"finish_reason": "done"}, {"finish_reason": 1}, {"spans": {"nap_s": 1.0}}]
)
def test_another_word_of_a_worker_breaks_the_protocol(said: dict[str, object]) -> None:
    frame = {"type": "Outputs", "incarnation": "i", "outputs": [plain(OUTPUT) | said]}
    with pytest.raises(ProtocolError):
        REPORTS.decode(msgspec.msgpack.encode(frame))


def test_another_word_of_a_peer_breaks_the_protocol() -> None:
    with pytest.raises(ProtocolError):
        PEERS.decode(msgspec.msgpack.encode(plain(ANNOUNCE) | {"finish_reason": "done"}))
