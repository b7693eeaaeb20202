"""Tokens of the whole system against transformers, float32, same weights."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from deploy.config.topology import cache_directory
from deploy.host.model_source import prepare
from tests.e2e.reference import first_difference, smollm2
from tests.e2e.server import Server
from tests.marks import deep

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("model")]
BLOCK = 16
SCORE_TOLERANCE = 1e-3
SOME = [1, 16, 17, 33, 129, 600]
ALL = [1, 2, 15, 16, 17, 31, 32, 33, 48, 100, 127, 128, 129, 200, 255, 256, 257, 300, 600, 700]
"""Around blocks and the tokens that one step may take."""


def prompts(lengths: list[int]) -> list[list[int]]:
    """One prompt of each length, then two that share a prefix with others."""
    rng = random.Random(5)
    found = [[rng.randrange(17, 49000) for _ in range(length)] for length in lengths]
    return [*found, found[-1][:512] + found[3], found[-2][: 16 * 9]]


@pytest.fixture(scope="module")
def oracle() -> Any:
    prepared = prepare("smollm2-135m", (), "float32", cache_directory(), lambda *_: None)
    return smollm2(prepared.directory)


@pytest.fixture(scope="module", params=[deep("0p1d"), "1p1d", deep("2p2d")])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    arguments = ["--pd", request.param, "--dtype", "float32", "--kv-cache-memory", "512MiB"]
    with Server(*arguments, "--max-num-batched-tokens", "128") as server:
        yield server


def complete(server: Server, prompt: list[int], num_tokens: int) -> list[int]:
    reply = server.complete(
        model="smollm2-135m",
        prompt=prompt,
        max_tokens=num_tokens,
        temperature=0,
        ignore_eos=True,
        return_token_ids=True,
    )
    tokens: list[int] = reply["choices"][0]["token_ids"]
    return tokens


@pytest.mark.parametrize(
    ("lengths", "num_tokens"),
    [(SOME, 16), deep(SOME, 32), deep(ALL, 64)],
    ids=["some", "longer", "all"],
)
def test_alone_at_once_and_with_prefix_hits(
    server: Server, oracle: Any, lengths: list[int], num_tokens: int
) -> None:
    asked = prompts(lengths)
    alone = [complete(server, prompt, num_tokens) for prompt in asked]
    assert {len(tokens) for tokens in alone} == {num_tokens}
    for prompt, tokens in zip(asked, alone, strict=True):
        assert first_difference(oracle, prompt, tokens) is None, len(prompt)
    with ThreadPoolExecutor(16) as pool:
        at_once = list(pool.map(lambda prompt: complete(server, prompt, num_tokens), asked))
    assert at_once == alone
    assert server.audit()["balanced"]


def test_repeated_prompt_is_mostly_cached(server: Server) -> None:
    (prompt,) = (prompt for prompt in prompts(SOME) if len(prompt) == max(SOME))
    body = {"model": "smollm2-135m", "prompt": prompt, "max_tokens": 1, "temperature": 0}
    server.complete(**body)
    usage = server.complete(**body)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= len(prompt) - BLOCK


def scored(server: Server, prompt: list[int], **more: Any) -> dict[str, Any]:
    asked = {"model": "smollm2-135m", "prompt": prompt, "temperature": 0, **more}
    choice: dict[str, Any] = server.complete(**asked)["choices"][0]
    return choice


def test_prompts_are_scored_as_transformers_does(server: Server, oracle: Any) -> None:
    """First without anything cached, then with all that is; chunks end at 128 tokens."""
    for prompt in (prompts(ALL)[place] for place in (0, 1, 4, 12)):
        with torch.inference_mode():
            logits = oracle(input_ids=torch.tensor([prompt])).logits[0]
        told = torch.log_softmax(logits, dim=-1)
        expected = told[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
        echoed = scored(server, prompt, echo=True, logprobs=2, max_tokens=0)["logprobs"]
        assert echoed["token_logprobs"][0] is None
        own = torch.tensor(echoed["token_logprobs"][1:])
        assert torch.allclose(own, expected, atol=SCORE_TOLERANCE, rtol=0.0)
        again = scored(server, prompt, echo=True, logprobs=2, max_tokens=0)["logprobs"]
        assert again == echoed
        entries = scored(server, prompt, prompt_logprobs=1, max_tokens=1)["prompt_logprobs"]
        assert entries[0] is None
        for entry, token_id, logprob, row in zip(
            entries[1:], prompt[1:], echoed["token_logprobs"][1:], told, strict=False
        ):
            assert entry[str(token_id)]["logprob"] == logprob
            best = next(int(token) for token, it in entry.items() if it["rank"] == 1)
            assert row[best] > row.max() - SCORE_TOLERANCE
    assert server.audit()["balanced"]


def test_an_echo_goes_on_as_the_answer_would(server: Server) -> None:
    prompt = prompts(ALL)[10]
    plain = scored(server, prompt, max_tokens=8, logprobs=1)
    echoed = scored(server, prompt, max_tokens=8, logprobs=1, echo=True)
    assert echoed["text"].endswith(plain["text"])
    own = echoed["logprobs"]["token_logprobs"][len(prompt) :]
    assert own == plain["logprobs"]["token_logprobs"]
