"""How likely a prompt was, as clients read it: echoed with logprobs, and as prompt_logprobs, whole and streamed."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from coordinator.cluster.scripted_service import say
from coordinator.cluster.service_api import StreamEvent
from protocol.finish import FinishReason
from protocol.sampling import SampledToken, ScoredToken, TokenLogprob

TEXT = "Hello 東京"


def score(token_id: int, other: int = 5) -> ScoredToken:
    return ScoredToken(logprob=-1.5, rank=2, top=[(other, -0.5), (token_id, -1.5)])


def scored_script(tokenizer, prompt, answer=(7,), pieces=2, finish=FinishReason.LENGTH):
    """An event for some of the prompt's tokens each, then the answer's."""
    scores = [score(token_id) for token_id in prompt[1:]]
    size = max(-(-len(scores) // pieces), 1)
    events = [
        StreamEvent(prompt_scores=scores[at : at + size]) for at in range(0, len(scores), size)
    ]
    logprob = TokenLogprob(logprob=-0.25, top=[(7, -0.25)])
    tokens = [SampledToken(token_id=token_id, logprob=logprob) for token_id in answer]
    return [*events, StreamEvent(tokens=tokens, finish_reason=finish)]


async def complete(client, **fields):
    return await client.post("/v1/completions", json={"prompt": TEXT} | fields)


def lines(response):
    told = response.text.split("\n\n")
    return [
        orjson.loads(line.removeprefix("data: ")) for line in told if line.startswith("data: {")
    ]


@pytest.fixture
def prompt(tokenizer):
    return tokenizer.encode(TEXT, add_special_tokens=True)


async def test_echo_tells_the_prompt_and_the_answer_in_parallel_lists(
    client, service, tokenizer, prompt
):
    service.default = scored_script(tokenizer, prompt)
    choice = (await complete(client, echo=True, logprobs=1)).json()["choices"][0]
    told = choice["logprobs"]
    assert {len(column) for column in told.values()} == {len(prompt) + 1}
    assert told["token_logprobs"] == [None, *[-1.5] * (len(prompt) - 1), -0.25]
    assert told["top_logprobs"][0] is None
    own, best = tokenizer.token_text(prompt[1]), tokenizer.token_text(5)
    assert told["top_logprobs"][1] == {own: -1.5, best: -0.5}
    assert told["tokens"][:-1] == [tokenizer.token_text(token_id) for token_id in prompt]
    assert choice["text"] == TEXT + tokenizer.token_text(7)
    assert told["text_offset"][0] == 0
    assert told["text_offset"][-1] == len(TEXT)
    assert told["text_offset"] == sorted(told["text_offset"])
    for offset, token in zip(told["text_offset"], told["tokens"], strict=True):
        assert "\ufffd" in token or choice["text"].startswith(token, offset)
    asked = service.generations[0].sampling
    assert (asked.prompt_logprobs, asked.logprobs) == (1, 1)


async def test_others_have_turns_between_many_scores(client, service, tokenizer, prompt):
    """All that is there was spelled in one turn of the loop."""
    service.default, turns = scored_script(tokenizer, prompt, pieces=len(prompt)), 0
    asked = asyncio.create_task(complete(client, echo=True, logprobs=1))
    while not service.generations:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)
    while not asked.done():
        turns += 1
        await asyncio.sleep(0)
    assert (await asked).status_code == 200
    assert turns >= len(service.default) - 1


async def test_nothing_is_written_where_no_tokens_are_asked_for(client, service, tokenizer, prompt):
    service.default = scored_script(tokenizer, prompt, answer=())
    body = (await complete(client, echo=True, logprobs=0, max_tokens=0)).json()
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert choice["logprobs"]["token_logprobs"] == [None, *[-1.5] * (len(prompt) - 1)]
    assert choice["logprobs"]["top_logprobs"][1] == {tokenizer.token_text(prompt[1]): -1.5}
    assert body["usage"]["completion_tokens"] == 0
    assert service.generations[0].sampling.max_tokens == 0


async def test_prompt_logprobs_have_the_form_of_vllm(client, service, tokenizer, prompt):
    service.default = scored_script(tokenizer, prompt)
    choice = (await complete(client, prompt_logprobs=1)).json()["choices"][0]
    told = choice["prompt_logprobs"]
    assert told[0] is None
    own = {"logprob": -1.5, "rank": 2, "decoded_token": tokenizer.token_text(prompt[1])}
    best = {"logprob": -0.5, "rank": 1, "decoded_token": tokenizer.token_text(5)}
    assert told[1] == {str(prompt[1]): own, "5": best}
    assert len(told) == len(prompt)
    assert choice["logprobs"] is None


async def test_a_chat_tells_them_beside_its_choices(client, service, tokenizer):
    service.default = say([7])
    first = await client.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]}
    )
    assert "prompt_logprobs" not in first.json()
    prompt = service.generations[0].prompt_token_ids
    service.default = scored_script(tokenizer, prompt)
    asked = {"messages": [{"role": "user", "content": "x"}], "prompt_logprobs": 0}
    whole = (await client.post("/v1/chat/completions", json=asked)).json()
    assert [None, *whole["prompt_logprobs"][1:]] == whole["prompt_logprobs"]
    assert list(whole["prompt_logprobs"][1]) == [str(prompt[1])]
    chunks = lines(await client.post("/v1/chat/completions", json=asked | {"stream": True}))
    assert chunks[0]["prompt_logprobs"] == whole["prompt_logprobs"]
    assert not any("prompt_logprobs" in chunk for chunk in chunks[1:])


async def test_a_stream_says_what_a_whole_answer_says(client, service, tokenizer, prompt):
    service.default = scored_script(tokenizer, prompt, answer=(7, 8, 9))
    asked = {"echo": True, "logprobs": 2, "prompt_logprobs": 1}
    whole = (await complete(client, **asked)).json()["choices"][0]
    chunks = [chunk["choices"][0] for chunk in lines(await complete(client, stream=True, **asked))]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    assert chunks[0]["prompt_logprobs"] == whole["prompt_logprobs"]
    for column, told in whole["logprobs"].items():
        assert [entry for chunk in chunks for entry in chunk["logprobs"][column]] == told


async def test_choices_share_their_prompts_scores_and_wait_for_them(
    client, service, tokenizer, prompt
):
    """The second choice has its answer before the first has scored the prompt."""
    service.scripts.extend([scored_script(tokenizer, prompt), say([8])])
    asked = {"echo": True, "logprobs": 1, "n": 2}
    whole = (await complete(client, **asked)).json()["choices"]
    assert [one.sampling.prompt_logprobs for one in service.generations] == [1, None]
    first, second = (choice["logprobs"]["token_logprobs"] for choice in whole)
    assert first[:-1] == second == [None, *[-1.5] * (len(prompt) - 1)]
    service.scripts.extend([scored_script(tokenizer, prompt), say([8])])
    texts = ["", ""]
    for chunk in lines(await complete(client, stream=True, **asked)):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole]


async def test_several_prompts_each_have_their_own(client, service, tokenizer):
    prompts = [[5, 6, 7], [8, 9], [10]]
    service.scripts.extend(scored_script(tokenizer, prompt) for prompt in prompts)
    whole = (await complete(client, prompt=prompts, echo=True, logprobs=0, max_tokens=1)).json()
    counts = [len(choice["logprobs"]["tokens"]) for choice in whole["choices"]]
    assert counts == [4, 3, 2]


async def test_too_many_are_refused_with_the_limit(client, service):
    many = {"prompt": [list(range(5, 205))] * 64, "echo": True, "logprobs": 20, "max_tokens": 1}
    response = await complete(client, **many)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "prompt"
    assert "262144" in error["message"]
    assert "268800" in error["message"]
    assert service.generations == []


@pytest.mark.parametrize("value", [-1, 21, True, "1", 0.5])
async def test_other_counts_are_refused_by_name(client, value):
    response = await complete(client, prompt_logprobs=value)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt_logprobs")


async def test_a_prompt_as_long_as_the_context_can_be_scored(client, service, served_model):
    prompt = [5] * served_model.max_model_len
    service.default = scored_script(None, prompt, answer=())
    fits = await complete(client, prompt=prompt, echo=True, logprobs=0, max_tokens=0)
    assert fits.status_code == 200
    assert (await complete(client, prompt=prompt, max_tokens=1)).status_code == 400
    assert (await complete(client, prompt=prompt)).status_code == 400


async def test_tokenizer_info_has_what_a_client_needs_to_tokenize_itself(client):
    told = (await client.get("/tokenizer_info")).json()
    assert (told["bos_token"], told["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert told["chat_template"].startswith("{% for message in messages %}")
