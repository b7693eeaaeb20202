"""A control token that a request spells is text, whatever field it came in and whichever template shows it."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable

import pytest

from coordinator.edge.text.control_tokens import ROLES
from coordinator.edge.text.conversation import Conversation, ToolCall, Turn
from protocol.errors import InvalidRequest
from tests.unit.coordinator.edge.text.chat_models import LOOSE, SPECIALS
from tests.unit.coordinator.edge.text.test_control_tokens import id_of
from tests.unit.coordinator.edge.text.test_template_abilities import (
    FAMILIES,
    HELLO,
    LIBRARY,
    WELL,
    reader_of,
)

CALL_ID = "call_1"


def _called(call: ToolCall, *results: Turn) -> Conversation:
    return Conversation(turns=[HELLO, Turn("assistant", "", calls=[call]), *results])


def _result(text: str, **others: str) -> Turn:
    return Turn("tool", text, {"tool_call_id": CALL_ID, **others})


def _tool(name: str, description: str, key: str) -> dict:
    properties = {key: {"type": "string", "description": description, "enum": [description]}}
    parameters = {"type": "object", "properties": properties, "required": [key]}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


GET = ToolCall("get", '{"a": 1}', CALL_ID)
PATHS: dict[str, Callable[[str], Conversation]] = {
    "user": lambda x: Conversation(turns=[Turn("user", x)]),
    "an earlier user": lambda x: Conversation(turns=[Turn("user", x), WELL, HELLO]),
    "system": lambda x: Conversation(turns=[Turn("system", x), HELLO]),
    "developer": lambda x: Conversation(turns=[Turn("developer", x), HELLO]),
    "assistant": lambda x: Conversation(turns=[HELLO, Turn("assistant", x), HELLO]),
    "thoughts": lambda x: Conversation(turns=[HELLO, Turn("assistant", "y", reasoning=x), HELLO]),
    "parts": lambda x: Conversation(turns=[Turn("user", ("y", x, x))]),
    "halves": lambda x: Conversation(turns=[Turn("user", (x[: len(x) // 2], x[len(x) // 2 :]))]),
    "continued": lambda x: Conversation(
        turns=[HELLO, Turn("assistant", "y" + x)], continue_final_turn=True
    ),
    "a name": lambda x: Conversation(turns=[Turn("user", "y", {"name": x})]),
    "a field of its own": lambda x: Conversation(turns=[Turn("user", "y", {"title": x})]),
    "a role": lambda x: Conversation(turns=[HELLO, Turn(x, "y")]),
    "a call": lambda x: _called(ToolCall(x, '{"a": 1}', CALL_ID), _result("y")),
    "a call's id": lambda x: _called(ToolCall("get", '{"a": 1}', x), _result("y")),
    "an argument": lambda x: _called(ToolCall("get", json.dumps({"a": x}), CALL_ID), _result("y")),
    "an escaped argument": lambda x: _called(
        ToolCall("get", '{"a": "' + "".join(f"\\u{ord(c):04x}" for c in x) + '"}', CALL_ID),
        _result("y"),
    ),
    "an argument's name": lambda x: _called(
        ToolCall("get", json.dumps({x: 1}), CALL_ID), _result("y")
    ),
    "arguments that are no object": lambda x: _called(ToolCall("get", x, CALL_ID), _result("y")),
    "a result": lambda x: _called(GET, _result(x)),
    "a result's name": lambda x: _called(GET, _result("y", name=x)),
    "a result's call": lambda x: _called(GET, Turn("tool", "y", {"tool_call_id": x})),
    "a tool": lambda x: Conversation(turns=[HELLO], tools=[_tool(x, "y", "z")]),
    "a tool's description": lambda x: Conversation(turns=[HELLO], tools=[_tool("y", x, "z")]),
    "a parameter": lambda x: Conversation(turns=[HELLO], tools=[_tool("y", "y", x)]),
    "a document's title": lambda x: Conversation(
        turns=[HELLO], documents=[{"title": x, "text": "y"}]
    ),
    "a document": lambda x: Conversation(turns=[HELLO], documents=[{"title": "y", "text": x}]),
    "a variable": lambda x: Conversation(turns=[HELLO], template_kwargs={"date_string": x}),
    "an effort": lambda x: Conversation(turns=[HELLO], template_kwargs={"reasoning_effort": x}),
    "thoughts in a text": lambda x: Conversation(
        turns=[HELLO, Turn("assistant", f"<think>{x}</think>{x}"), HELLO]
    ),
}
CONTROL = {id_of(LIBRARY, name): name for name in SPECIALS if name != "<unk>"}
LOOSE_ONES = {id_of(LIBRARY, name): name for name in LOOSE}
BACK = {"assistant", "thoughts", "thoughts in a text", "continued"}
"""Where an earlier answer brings its own `<think>` back."""
NEVER_SHOWN = {"a name"}


def attacks(draw: random.Random) -> list[str]:
    """Tokens whole, in pairs, in pieces, within others, and the words that templates put brackets around."""
    one, other = draw.choice(SPECIALS), draw.choice(SPECIALS + LOOSE)
    cut = draw.randrange(1, len(one))
    inner = one.strip("<|>[]/")
    return [one, one + other, f"a {one}system\n{other} b", one[:cut] + other + one[cut:], inner]


async def control_of(
    name: str, conversation: Conversation, *, is_back: bool
) -> Counter[str] | None:
    """Which control tokens the prompt has, and how many; None where it is refused."""
    loose = {} if is_back else {i: it for i, it in LOOSE_ONES.items() if it in FAMILIES[name]}
    known = CONTROL | loose
    try:
        ids = await reader_of(name).chat(conversation)
    except InvalidRequest:
        return None
    return Counter(known[one] for one in ids if one in known)


@pytest.mark.parametrize("path", PATHS)
async def test_no_field_of_a_request_makes_a_control_token(path: str) -> None:
    asked, is_back = PATHS[path], path in BACK
    shown = 0
    for name in FAMILIES:
        harmless = await control_of(name, asked("plain"), is_back=is_back)
        for attack in attacks(random.Random(f"{path} {name}")):
            if path == "a role" and attack in ROLES:
                continue
            found = await control_of(name, asked(attack), is_back=is_back)
            assert found is None or found == harmless, (name, attack)
            shown += found is not None
    assert bool(shown) == (path not in NEVER_SHOWN)
