"""Tools told in words, for templates that have no room for them. Owns what the system message says, and how earlier calls
and their results are written into turns.

The form is Hermes': models that were taught calls at all have mostly seen it, and `call_readers.HermesReader` reads the answers.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from coordinator.edge.text.conversation import Conversation, Turn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from coordinator.edge.text.conversation import ToolCall
    from coordinator.edge.text.template_abilities import TemplateAbilities

BEFORE = """You can call functions to help with the request. Their signatures are within <tools></tools>:
<tools>
"""
AFTER = """
</tools>
To call a function, write a JSON object with its name and its arguments within <tool_call></tool_call>:
<tool_call>
{"name": "the function's name", "arguments": {"a parameter": "its value"}}
</tool_call>"""
SYSTEM, USER, TOOL = "system", "user", "tool"


def told_in_words(conversation: Conversation, abilities: TemplateAbilities) -> Conversation:
    """The same with its tools, calls and results as text, where the template does not show them itself."""
    turns = [
        replace(turn, path=conversation.path_of(index))
        for index, turn in enumerate(conversation.turns)
    ]
    if not abilities.tool_calls:
        turns = [_turn(turn, abilities) for turn in turns]
    if conversation.tools and not abilities.tools:
        turns = _with_tools(turns, conversation.tools, abilities)
        return replace(conversation, turns=turns, tools=None)
    return replace(conversation, turns=turns)


def _with_tools(
    turns: list[Turn], tools: Sequence[Mapping[str, Any]], abilities: TemplateAbilities
) -> list[Turn]:
    """In the system message, a new one if there is none; in the first turn of a template that knows no system."""
    told = BEFORE + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools) + AFTER
    first = turns[0] if turns else None
    is_first = first is not None and abilities.role_of(first.role) == SYSTEM
    if first is not None and (is_first or SYSTEM not in abilities.roles):
        said = f"{first.text}\n\n{told}" if is_first else f"{told}\n\n{first.text}"
        return [replace(first, content=said), *turns[1:]]
    return [Turn(SYSTEM, told, path="tools"), *turns]


def _turn(turn: Turn, abilities: TemplateAbilities) -> Turn:
    if turn.calls:
        said = "\n".join([*filter(None, (turn.text,)), *_calls(turn.calls)])
        return replace(turn, content=said, calls=())
    if turn.role != TOOL:
        return turn
    role = TOOL if TOOL in abilities.roles else USER
    return replace(
        turn, role=role, content=f"<tool_response>\n{turn.text}\n</tool_response>", others={}
    )


def _calls(calls: Sequence[ToolCall]) -> Iterator[str]:
    for call in calls:
        told = {"name": call.name, "arguments": call.parsed()}
        yield f"<tool_call>\n{json.dumps(told, ensure_ascii=False)}\n</tool_call>"
