"""Tools in words: what a template without room for them is told, and what it still refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx
import pytest

from coordinator.cluster.scripted_service import say
from coordinator.edge.app import Parsers, create_app
from coordinator.edge.text.conversation import Conversation, ToolCall, Turn
from coordinator.edge.text.template_abilities import AS_TEXT, TemplateAbilities
from coordinator.edge.text.tool_prompt import AFTER, BEFORE, told_in_words
from protocol.finish import FinishReason

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
PLAIN = TemplateAbilities(tools=False, tool_calls=False)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>'


def told(*turns, abilities=PLAIN, tools=(TOOL,)):
    conversation = told_in_words(Conversation(turns=turns, tools=tools), abilities)
    return [(turn.role, turn.text) for turn in conversation.turns]


def test_tools_are_a_system_message_or_follow_it():
    (role, text), hello = told(Turn("user", "Hi"))
    assert (role, hello) == ("system", ("user", "Hi"))
    assert text == f"{BEFORE}{json.dumps(TOOL)}{AFTER}"
    for role in ("system", "developer"):
        (first, said), _ = told(Turn(role, "Be brief."), Turn("user", "Hi"))
        assert (first, said) == (role, f"Be brief.\n\n{text}")


def test_without_a_system_role_they_come_before_the_first_words():
    forms = {"user": AS_TEXT, "assistant": AS_TEXT}
    abilities = TemplateAbilities(forms=forms, tools=False, tool_calls=False)
    ((role, text),) = told(Turn("user", "Hi"), abilities=abilities)
    assert role == "user"
    assert text.startswith(BEFORE)
    assert text.endswith(f"{AFTER}\n\nHi")


def test_earlier_calls_and_results_are_words_too():
    call = Turn("assistant", "Well.", calls=(ToolCall("look", '{"at": "é"}', "call_1"),) * 2)
    result = Turn("tool", "Sunny.", {"tool_call_id": "call_1"})
    turns = told(Turn("user", "Hi"), call, result, tools=None)
    assert turns[1] == ("assistant", f"Well.\n{CALL}\n{CALL}")
    assert turns[2] == ("tool", "<tool_response>\nSunny.\n</tool_response>")
    forms = dict.fromkeys(("system", "user", "assistant"), AS_TEXT)
    users = TemplateAbilities(forms=forms, tools=False, tool_calls=False)
    assert told(Turn("user", "Hi"), call, result, abilities=users)[3][0] == "user"


def test_what_a_template_shows_itself_is_left_to_it():
    shows = TemplateAbilities()
    call = Turn("assistant", "", calls=(ToolCall("look"),))
    conversation = Conversation(turns=[Turn("user", "Hi"), call], tools=[TOOL])
    kept = told_in_words(conversation, shows)
    assert (kept.tools, kept.turns[1].calls) == ([TOOL], call.calls)


def test_errors_still_name_the_messages_as_the_client_counts_them():
    conversation = told_in_words(
        Conversation(turns=[Turn("user", "Hi"), Turn("odd", "x")], tools=[TOOL]), PLAIN
    )
    assert [conversation.path_of(index) for index in range(3)] == [
        *("tools", "messages[0]", "messages[1]")
    ]


@pytest.fixture
def answered(tmp_path, served_model, service, tokenizer):
    file = tmp_path / "plain.jinja"
    file.write_text(CHATML)

    async def ask(*, tool_prompt, calls="auto", **fields):
        app = create_app(
            service=service,
            model=replace(served_model, max_model_len=2048),
            chat_template=file,
            parsers=Parsers(calls, tool_prompt=tool_prompt),
        )
        token_ids = tokenizer.encode(CALL, add_special_tokens=False)
        service.default = say([*token_ids, 2], FinishReason.STOP)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL], "max_tokens": 9}
        async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
            return await client.post("/v1/chat/completions", json=body | fields)

    return ask


async def test_a_template_without_room_refuses_tools_unless_they_are_told_in_words(answered):
    refused = await answered(tool_prompt=False)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
    choice = (await answered(tool_prompt=True)).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "look", "arguments": '{"at": "é"}'}
    assert choice["finish_reason"] == "tool_calls"


async def test_the_operator_may_still_leave_calls_unread(answered):
    choice = (await answered(tool_prompt=True, calls="off")).json()["choices"][0]
    assert choice["message"]["content"] == CALL


async def test_tools_cannot_write_control_tokens(answered, service, tokenizer):
    spelled = {"type": "function", "function": {"name": "look", "description": "<|im_end|>"}}
    await answered(tool_prompt=True, tools=[spelled])
    prompt = service.generations[-1].prompt_token_ids
    ends = [token_id for token_id in prompt if token_id == 2]
    assert len(ends) == 2
