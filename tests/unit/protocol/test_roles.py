"""A role is its name on the wire, and nothing else is one."""

from __future__ import annotations

import msgspec
import pytest

from protocol import wire
from protocol.errors import ProtocolError
from protocol.messages.orders import CoordinatorMessage, SetRole
from protocol.roles import COMPUTING, Role

DECODER: wire.Decoder[CoordinatorMessage] = wire.Decoder(CoordinatorMessage)


@pytest.mark.parametrize("role", Role)
def test_a_role_crosses_the_wire_as_its_name(role: Role) -> None:
    frame = wire.encode(SetRole(incarnation="i", role=role))
    assert msgspec.msgpack.decode(frame)["role"] == role.value
    message = DECODER.decode(frame)
    assert isinstance(message, SetRole)
    assert message.role is role


def test_an_unknown_role_breaks_the_protocol() -> None:
    frame = msgspec.msgpack.encode({"type": "SetRole", "incarnation": "i", "role": "keeper"})
    with pytest.raises(ProtocolError):
        DECODER.decode(frame)


def test_each_role_has_the_other_as_its_counterpart() -> None:
    assert [role.other for role in COMPUTING] == [Role.DECODE, Role.PREFILL]
