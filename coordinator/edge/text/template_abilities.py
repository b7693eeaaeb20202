"""What one chat template can do, as a value. Owns the form in which a template is given a conversation.

`template_probe.py` finds it out when a server starts; whoever makes conversations may ask it: whether tools come
out, which variables a request may set, which role stands for another.
"""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from coordinator.edge.text.control_tokens import ROLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.edge.text.conversation import Conversation, ToolCall, Turn

SHORT_ID_CHARACTERS = 9
SHORT_ID_ALPHABET = frozenset(string.ascii_letters + string.digits)


class ContentForm(Enum):
    """How a template wants the content of a message."""

    TEXT = "a text"
    PARTS = "a list of parts"
    ONE_PART = "a list of one part"


AS_TEXT = frozenset({ContentForm.TEXT})
UNPROBED = {role: AS_TEXT for role in ROLES if role != "developer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateAbilities:
    """`forms` has the roles whose words come out, and in which forms these may be. `developer` is among them only
    where the template treats it otherwise than any word that stands there: elsewhere it is `system`.

    `tools`, `tool_calls` and `documents` say whether these come out. Earlier calls have their arguments as an object
    or, with `arguments_are_text`, as JSON text; a message that only calls has a content of None where
    `calls_have_no_content`, else ""; ids of calls have nine letters or digits where `short_call_ids`.

    `reasoning_field` is what an earlier answer's thoughts are called, None where there is no room for them;
    `drops_thoughts` says that they are left out on purpose, even where an answer's text has them.
    `variables` are what else the template reads, and a request may set.
    """

    forms: Mapping[str, frozenset[ContentForm]] = field(default_factory=UNPROBED.copy)
    tools: bool = True
    tool_calls: bool = True
    documents: bool = False
    arguments_are_text: bool = False
    calls_have_no_content: bool = False
    short_call_ids: bool = False
    reasoning_field: str | None = None
    drops_thoughts: bool = False
    variables: frozenset[str] = frozenset()

    @property
    def roles(self) -> frozenset[str]:
        """Roles whose words come out."""
        return frozenset(self.forms)

    def role_of(self, role: str) -> str:
        """What the template is told instead of `role`."""
        if role == "developer" and role not in self.forms and "system" in self.forms:
            return "system"
        return role

    def context(self, conversation: Conversation) -> dict[str, Any]:
        """The conversation as this template wants it, by the names that the field's templates use."""
        prompt = conversation.add_generation_prompt and not conversation.continue_final_turn
        asked = {**conversation.template_hints, **conversation.template_kwargs}
        return {
            **{name: value for name, value in asked.items() if name in self.variables},
            "messages": [self._message(turn) for turn in conversation.turns],
            "tools": conversation.tools,
            "documents": conversation.documents,
            "add_generation_prompt": prompt,
        }

    def _message(self, turn: Turn) -> dict[str, Any]:
        role = self.role_of(turn.role)
        message = {**turn.others, "role": role, "content": self._content(turn, role)}
        if turn.calls:
            message["tool_calls"] = [self._call(call) for call in turn.calls]
        if "tool_call_id" in message:
            message["tool_call_id"] = self._call_id(message["tool_call_id"])
        if turn.reasoning and self.reasoning_field is not None:
            message[self.reasoning_field] = turn.reasoning
        return message

    def _content(self, turn: Turn, role: str) -> str | list[dict[str, str]] | None:
        if turn.calls and self.calls_have_no_content and not turn.text:
            return None
        forms = self.forms.get(role) or self.forms.get("user") or AS_TEXT
        is_list = not isinstance(turn.content, str)
        if ContentForm.PARTS in forms and (is_list or ContentForm.TEXT not in forms):
            return [{"type": "text", "text": text} for text in turn.texts]
        if ContentForm.TEXT not in forms:
            return [{"type": "text", "text": turn.text}]
        return turn.text

    def _call(self, call: ToolCall) -> dict[str, Any]:
        arguments = (call.arguments or "{}") if self.arguments_are_text else call.parsed()
        identity = {"id": self._call_id(call.call_id)} if call.call_id else {}
        function = {"name": call.name, "arguments": arguments}
        return {**identity, "type": "function", "function": function}

    def _call_id(self, call_id: object) -> object:
        """The same id always gets the same short one."""
        if not self.short_call_ids or not isinstance(call_id, str):
            return call_id
        if len(call_id) == SHORT_ID_CHARACTERS and SHORT_ID_ALPHABET.issuperset(call_id):
            return call_id
        return hashlib.sha256(call_id.encode()).hexdigest()[:SHORT_ID_CHARACTERS]
