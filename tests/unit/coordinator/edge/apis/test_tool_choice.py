"""Whether an answer must call, in each dialect's words: the same grammar for all."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from coordinator.cluster.scripted_service import say
from coordinator.edge.app import Parsers, create_app
from deploy.processes.grammar_main import refusal
from engine.grammar.compiler import GrammarCompiler
from engine.grammar.vocabulary import GrammarVocabulary
from protocol.finish import FinishReason
from protocol.sampling import SamplingParams

EOS = 256
COMPILER = GrammarCompiler(
    GrammarVocabulary([*(bytes([byte]) for byte in range(256)), b""], (EOS,), {"<end>": EOS})
)
AT = {
    "type": "object",
    "properties": {"at": {"const": "x"}},
    "required": ["at"],
    "additionalProperties": False,
}
LOOK = '<tool_call>{"name": "look", "arguments": {"at": "x"}}</tool_call>'
STAY = '<tool_call>{"name": "stay", "arguments": {}}</tool_call>'
HELLO = [{"role": "user", "content": "Hello"}]


class Compiles:
    worked_s = 0.0

    async def refusal(self, constraint):
        return refusal(COMPILER, constraint)


def chat(**more):
    tools = [
        {"type": "function", "function": {"name": "look", "parameters": AT}},
        {"type": "function", "function": {"name": "stay"}},
    ]
    return "/v1/chat/completions", {"messages": HELLO, "tools": tools, "max_tokens": 9} | more


def responses(**more):
    tools = [
        {"type": "function", "name": "look", "parameters": AT},
        {"type": "function", "name": "stay"},
    ]
    return "/v1/responses", {"input": "Hello", "tools": tools} | more


def messages(**more):
    tools = [{"name": "look", "input_schema": AT}, {"name": "stay"}]
    return "/v1/messages", {"messages": HELLO, "tools": tools, "max_tokens": 9} | more


def ollama(**more):
    _, body = chat()
    return "/api/chat", {"messages": HELLO, "tools": body["tools"], "stream": False} | more


def allowed(mode, *names):
    functions = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": functions}}


def flat(mode, *names):
    functions = [{"type": "function", "name": name} for name in names]
    return {"type": "allowed_tools", "mode": mode, "tools": functions}


NAMED = {"type": "function", "function": {"name": "stay"}}
FREE = [chat(), chat(tool_choice="auto"), responses(), responses(tool_choice="auto")]
FREE += [messages(), messages(tool_choice={"type": "auto"}), ollama()]
MUST = [chat(tool_choice="required"), chat(tool_choice="any"), responses(tool_choice="required")]
MUST += [messages(tool_choice={"type": "any"})]
ONE = [chat(tool_choice=NAMED), responses(tool_choice={"type": "function", "name": "stay"})]
ONE += [messages(tool_choice={"type": "tool", "name": "stay"})]
ONLY = [
    chat(tool_choice=allowed("required", "stay")),
    responses(tool_choice=flat("required", "stay")),
]
SINGLE = [
    chat(tool_choice="required", parallel_tool_calls=False),
    responses(tool_choice="required", parallel_tool_calls=False),
    messages(tool_choice={"type": "any", "disable_parallel_tool_use": True}),
]
CLOSED = [chat(tool_choice="none"), responses(tool_choice="none")]
CLOSED += [messages(tool_choice={"type": "none"})]


@pytest.fixture
async def client(service, served_model):
    service.default = say([5, 2], FinishReason.STOP)
    model = replace(served_model, max_model_len=2048)
    app = create_app(service=service, model=model, parsers=Parsers("hermes"), grammars=Compiles())
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as connected:
        yield connected


@pytest.fixture
def kept_to(client, service):
    async def ask(asked):
        path, body = asked
        reply = await client.post(path, json=body)
        assert reply.status_code == 200, reply.text
        constraint = service.generations[-1].sampling.constraint
        if constraint is None:
            return lambda _text: True
        grammar = COMPILER.compile(constraint)

        def lets_through(text):
            guide = COMPILER.guide(grammar, SamplingParams(max_tokens=9))
            guide.accept_all([*text.encode(), EOS])
            return guide.failure is None

        return lets_through

    return ask


@pytest.mark.parametrize("asked", FREE)
async def test_a_free_answer_is_text_or_calls(kept_to, asked):
    lets_through = await kept_to(asked)
    assert all(map(lets_through, ("Hello", f"So: {LOOK}", LOOK + STAY)))
    assert not lets_through(LOOK.replace('"x"', '"y"'))


@pytest.mark.parametrize("asked", [*MUST, *SINGLE])
async def test_an_answer_that_must_call_is_calls(kept_to, asked):
    lets_through = await kept_to(asked)
    assert lets_through(LOOK)
    assert lets_through(STAY)
    assert not lets_through("Hello")
    assert not lets_through(f"{LOOK} Hello")
    assert lets_through(f"{LOOK}\n{STAY}") == (asked not in SINGLE)


@pytest.mark.parametrize("asked", [*ONE, *ONLY])
async def test_a_named_tool_is_the_one_that_is_called(kept_to, asked):
    lets_through = await kept_to(asked)
    assert lets_through(STAY)
    assert not lets_through(LOOK)
    assert not lets_through("Hello")
    assert lets_through(f"{STAY}\n{STAY}") == (asked in ONLY)


@pytest.mark.parametrize("asked", CLOSED)
async def test_an_answer_that_must_not_call_is_free(kept_to, service, asked):
    await kept_to(asked)
    assert service.generations[-1].sampling.constraint is None


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (chat(tool_choice={"type": "function"}), "tool_choice"),
        (chat(tool_choice={"type": "function", "function": {"name": "none"}}), "tool_choice"),
        (chat(tool_choice="required", tools=None), "tool_choice"),
        (chat(tool_choice="sometimes"), "tool_choice"),
        (chat(tools=[{"type": "function", "function": {"name": "a", "parameters": 5}}]), "tools"),
        (responses(tool_choice={"type": "function", "name": "none"}), "tool_choice"),
        (responses(tool_choice={"type": "web_search"}), "tool_choice"),
        (messages(tool_choice={"type": "tool"}), "tool_choice"),
        (messages(tool_choice={"type": "tool", "name": "none"}), "tool_choice"),
    ],
)
async def test_a_choice_that_is_none_is_refused(client, asked, param):
    path, body = asked
    reply = await client.post(path, json=body)
    assert reply.status_code == 400, reply.text
    assert param in reply.text


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        (
            chat(
                tools=[{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}],
                tool_choice="required",
            ),
            "tools[0].function.parameters",
        ),
        (
            chat(
                tools=[
                    {
                        "type": "function",
                        "function": {"name": "a", "parameters": {"not": {}}, "strict": True},
                    }
                ]
            ),
            "tools[0].function.parameters",
        ),
        (
            responses(
                tools=[
                    {"type": "function", "name": "b"},
                    {"type": "function", "name": "a", "parameters": {"not": {}}, "strict": True},
                ]
            ),
            "tools[1].parameters",
        ),
        (
            messages(
                tools=[{"name": "a", "input_schema": {"not": {}}}], tool_choice={"type": "any"}
            ),
            "tools[0].input_schema",
        ),
    ],
)
async def test_a_schema_that_a_call_must_keep_to_and_cannot_is_named(client, asked, place):
    path, body = asked
    reply = await client.post(path, json=body)
    assert reply.status_code == 400
    assert f"{place}: unsupported keywords in the schema: not" in reply.text


OF_NONE = [
    (chat(tool_choice=allowed("auto", "stay", "go")), "tools[1].function.name"),
    (chat(tool_choice=allowed("sometimes", "stay")), "mode"),
    (chat(tool_choice={"allowed_tools": {"tools": [5]}}), "tools[0].function.name"),
    (chat(tool_choice={"allowed_tools": {"tools": [{}]}}), "tools[0].function.name"),
    (responses(tool_choice=flat("auto", "stay", "go")), "tools[1].name"),
    (responses(tool_choice=flat("sometimes", "stay")), "mode"),
    (responses(tool_choice={"type": "allowed_tools", "tools": [None]}), "tools[0].name"),
]


@pytest.mark.parametrize(("asked", "field"), OF_NONE)
async def test_a_choice_of_tools_that_are_not_there_is_refused(client, service, asked, field):
    path, body = asked
    reply = await client.post(path, json=body)
    assert reply.status_code == 400
    param = reply.json()["error"]["param"]
    assert param.startswith("tool_choice.")
    assert param.endswith(field)
    assert service.generations == []
