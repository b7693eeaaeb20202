"""What one call of C would take long over is refused first, in every dialect; the client hears which field it was."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from coordinator.cluster.service_api import StreamEvent
from coordinator.edge.answers.choice_text import longest_partial
from coordinator.edge.answers.grammar_check import schema_constraint
from coordinator.edge.apis.anthropic.requests import parse_messages
from coordinator.edge.apis.ollama.types import ChatRequest as OllamaChat
from coordinator.edge.apis.openai.responses.types import ResponsesRequest
from coordinator.edge.http.bodies import MAX_IDS, MAX_VALUES
from coordinator.edge.http.limits import MAX_TOLD_BYTES
from coordinator.edge.text.conversation import Conversation, ToolCall, Turn
from protocol.constraints import MAX_CONSTRAINT_BYTES
from protocol.errors import InvalidRequest
from protocol.finish import FinishReason
from protocol.sampling import SampledToken

SAY = {"role": "user", "content": "x"}
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [SAY]}),
        ("/v1/messages", {"messages": [SAY], "max_tokens": 1}),
        ("/v1/messages/count_tokens", {"messages": [SAY]}),
        (RESPONSES, {"input": "x"}),
        ("/api/chat", {"messages": [SAY]}),
        ("/api/generate", {"prompt": "x"}),
        ("/tokenize", {"prompt": "x"}),
    ],
)
async def test_only_lists_of_ids_may_be_long(client, path, fields):
    reply = await client.post(path, content=orjson.dumps(fields | {"u": [1] * MAX_VALUES}))
    assert reply.status_code == 400
    assert f"more than {MAX_VALUES}" in reply.text


async def test_ids_may_be_as_many_as_a_body_holds(client):
    reply = await client.post("/detokenize", json={"tokens": [40] * (MAX_VALUES + 1)})
    assert reply.status_code == 200
    assert MAX_IDS > 1_000_000


@pytest.mark.parametrize("text", ["[" * 40 + "]" * 40, '{"a":' * 900 + "1" + "}" * 900])
def test_a_schema_in_a_text_is_bounded_in_depth(text):
    with pytest.raises(InvalidRequest, match="guided_json is nested more than 32 levels deep"):
        schema_constraint(text, "guided_json")


def test_a_schema_in_a_text_is_bounded_before_it_is_read():
    with pytest.raises(InvalidRequest, match=f"must have at most {MAX_CONSTRAINT_BYTES} bytes"):
        schema_constraint("[" * (MAX_CONSTRAINT_BYTES + 1), "guided_json")
    with pytest.raises(InvalidRequest, match="objects and arrays"):
        schema_constraint("[" + ",".join(["[]"] * 20_000) + "]", "guided_json")


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (OllamaChat, {"messages": [SAY | {"tool_calls": [1] * 1000}]}),
        (OllamaChat, {"messages": [SAY], "tools": [1] * 100}),
    ],
)
def test_one_wrong_element_is_enough(model, fields):
    """An error for each of a million was a second of one call."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(fields)
    assert caught.value.error_count() == 1


def test_one_wrong_block_within_a_result_is_enough():
    content = [{"type": "tool_result", "tool_use_id": "x", "content": [1] * 1000}]
    body = {"max_tokens": 1, "messages": [{"role": "user", "content": content}]}
    with pytest.raises(InvalidRequest) as caught:
        parse_messages(orjson.dumps(body))
    assert isinstance(caught.value.__cause__, ValidationError)
    assert caught.value.__cause__.error_count() < 5


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"metadata": {f"k{i}": "v" for i in range(17)}}, "metadata"),
        ({"metadata": {f"k{i}": 1 for i in range(30_000)}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"user": "u" * 513}, "user"),
        ({"safety_identifier": "u" * 513}, "safety_identifier"),
        ({"prompt_cache_key": "u" * 513}, "prompt_cache_key"),
        ({"reasoning": {"effort": "e" * 513}}, "reasoning.effort"),
        ({"tools": [{"type": "function", "name": "f", "u": "x" * MAX_TOLD_BYTES}]}, "tools"),
        (
            {"tool_choice": {"type": "allowed_tools", "tools": [], "u": "x" * MAX_TOLD_BYTES}},
            "tool_choice",
        ),
        ({"text": {"format": {"type": "text", "u": "x" * MAX_TOLD_BYTES}}}, "text"),
    ],
)
async def test_what_a_response_says_again_is_bounded(client, fields, field):
    """A stream says it three times."""
    reply = await client.post(RESPONSES, content=orjson.dumps({"input": "x"} | fields))
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == field


def test_metadata_may_be_as_much_as_openai_allows():
    metadata = {f"{i:064}": "v" * 512 for i in range(16)}
    asked = ResponsesRequest.model_validate({"input": "x", "metadata": metadata})
    assert asked.metadata == metadata


@pytest.mark.parametrize("depth", [10, 500, 900, 5000])
def test_arguments_of_any_depth_are_looked_through(depth):
    """They are text of a model's, nested as deep as it liked."""
    arguments = '{"a":' * depth + '"<|x|>"' + "}" * depth
    turn = Turn("assistant", calls=(ToolCall("f", arguments),))
    assert any("<|x|>" in text for text in Conversation(turns=[turn]).brought())


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=6))
def test_the_longest_beginning_of_a_stop_that_ends_a_text(text, stop):
    longest = max(
        (length for length in range(1, len(stop)) if text.endswith(stop[:length])), default=0
    )
    assert longest_partial(text, stop) == longest


async def test_prompts_that_are_long_together_have_the_ids_they_have_alone(
    client, service, tokenizer
):
    texts = ["hello " * 40, "END", "naïve café" * 9]
    texts *= 30
    service.default = [
        StreamEvent(tokens=[SampledToken(token_id=40)], finish_reason=FinishReason.LENGTH)
    ]
    reply = await client.post("/v1/completions", json={"prompt": texts, "max_tokens": 1})
    assert reply.status_code == 200
    asked = [generation.prompt_token_ids for generation in service.generations]
    assert asked == [tokenizer.encode(text, add_special_tokens=True) for text in texts]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {"messages": [SAY | {"content": "xyz" * 50_000}]}, "messages"),
        (RESPONSES, {"input": "xyz" * 50_000}, "input"),
        ("/api/generate", {"prompt": "xyz" * 50_000}, "prompt"),
        ("/api/chat", {"messages": [SAY | {"content": "xyz" * 50_000}]}, "messages"),
        (
            "/v1/messages",
            {"messages": [SAY | {"content": "xyz" * 50_000}], "max_tokens": 1},
            "messages",
        ),
        (
            "/v1/messages/count_tokens",
            {"messages": [SAY | {"content": "xyz" * 50_000}]},
            "messages",
        ),
        ("/tokenize", {"prompt": "xyz" * 50_000}, "prompt"),
        ("/v1/completions", {"prompt": "xyz" * 50_000}, "prompt"),
    ],
)
async def test_what_is_far_too_long_is_told_in_every_dialect(client, path, body, field):
    reply = await client.post(path, content=orjson.dumps(body))
    assert reply.status_code == 400
    assert "This model's maximum context length is 256 tokens" in reply.text
    assert f"your {field} has 150000 characters" in reply.text
