"""Further clients, untouched and each in its own environment (`make clients`), against `baton serve` and its own model.

Temperature 0 and small answers; what is asserted is their shape, for a model of this size says what it likes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.server import Server

ROOT = Path(__file__).parents[2]
ENVIRONMENTS, PROGRAMS = ROOT / ".clients", ROOT / "tests" / "clients" / "programs"
PATIENCE_S = 240.0
QUIETLY = ("--no-cache", "--no-table", "--no-share")
THREE_SCHEMAS = ("json_schema", "function_calling", "json_mode")
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.deep]


def needs(path):
    made = ENVIRONMENTS / path / ".installed"
    return pytest.mark.skipif(not made.exists(), reason=f"make clients makes {made.parent}")


@pytest.fixture(scope="module")
def server():
    with Server("--pd", "1p1d", "--kv-cache-memory", "256MiB") as serving:
        yield serving


def run(command, **more):
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        **more,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def python(client, asked, server):
    environment = ENVIRONMENTS / "others" / client
    told = run([environment / "bin" / "python", PROGRAMS / f"with_{client}.py", server.url, asked])
    return json.loads(told.splitlines()[-1])


def node(client, asked, server):
    """A module is looked for beside the program that imports it."""
    environment = ENVIRONMENTS / "npm" / client
    program = shutil.copy(PROGRAMS / f"with_{client}.mjs", environment / "program.mjs")
    return json.loads(run(["node", program, server.url, asked]).splitlines()[-1])


def is_said(*texts):
    """One text, and not an empty one."""
    return len({*texts}) == 1 and isinstance(texts[0], str) and bool(texts[0].strip())


def is_call(call, name="weather"):
    return call[0] == name and isinstance(call[1]["city"], str)


@needs("others/langchain")
def test_langchain(server):
    told = python("langchain", "text", server)
    assert is_said(*(told[name] for name in ("whole", "streamed", "asynchronous", "responses")))
    assert told["usage"]
    told = python("langchain", "tools", server)
    assert len(told["calls"]) == 2
    assert all(map(is_call, [*told["calls"], *told["streamed"]]))
    assert told["calls"][0] == told["streamed"][0]
    assert told["agent"][0] == "human"
    assert told["agent"][-1] == "ai"
    told = python("langchain", "schema", server)
    assert [told[method][0] for method in THREE_SCHEMAS[:2]] == ["City", "City"]
    json.loads(told["json_mode"][1])


@needs("others/llamaindex")
def test_llamaindex(server):
    told = python("llamaindex", "text", server)
    assert is_said(told["whole"], told["streamed"], told["asynchronous"])
    told = python("llamaindex", "tools", server)
    assert told["calls"] == told["streamed"]
    assert all(map(is_call, told["calls"]))
    assert python("llamaindex", "schema", server) == {"parsed": "City"}


@needs("others/instructor")
def test_instructor(server):
    told = python("instructor", "schema", server)
    assert told.pop("streamed") == [True, True]
    assert set(told.values()) == {"City"}


@needs("others/pydantic_ai")
def test_pydantic_ai(server):
    told = python("pydantic_ai", "text", server)
    assert set(told) == {"chat", "responses", "messages"}
    assert is_said(*(text for pair in told.values() for text in pair))
    assert set(python("pydantic_ai", "schema", server).values()) == {"City"}


@needs("others/openai_agents")
def test_openai_agents(server):
    told = python("openai_agents", "text", server)
    assert is_said(*told["responses"], *told["chat"])
    told = python("openai_agents", "tools", server)
    assert told == {"responses": [1, True], "chat": [1, True]}
    assert set(python("openai_agents", "schema", server).values()) == {"City"}


@needs("others/litellm")
def test_litellm(server):
    told = python("litellm", "text", server)
    assert is_said(*(text for texts in told.values() for text in texts))
    told = python("litellm", "tools", server)
    for choices in told.values():
        assert [reason for reason, _, _ in choices] == ["tool_calls", "tool_calls"]
        assert all(is_call(call) for _, *call in choices)
    assert set(map(tuple, python("litellm", "schema", server).values())) == {("name",)}


@needs("others/llm")
def test_llm(server):
    told = python("llm", "text", server)
    assert is_said(told["whole"], told["streamed"])
    assert python("llm", "tools", server) == {"said": True}
    assert python("llm", "schema", server) == {"keys": ["name"]}


@needs("npm/openai")
def test_openai_of_npm(server):
    told = node("openai", "text", server)
    assert is_said(told["whole"], told["streamed"], *told["responses"])
    told = node("openai", "tools", server)
    assert told["calls"][0] == told["calls"][1]
    assert told["calls"][0][0] == "tool_calls"
    assert is_call(told["calls"][0][1:])
    ((kind, *call),) = told["items"]
    assert kind == "function_call"
    assert is_call(call)
    told = node("openai", "schema", server)
    assert all(isinstance(city["big"], bool) for city in told.values())


@needs("npm/vercel")
def test_vercels_sdk(server):
    told = node("vercel", "text", server)
    assert set(told) == {"responses", "chat", "compatible"}
    assert is_said(*(text for whole, streamed, _ in told.values() for text in (whole, streamed)))
    assert all(counted for _, _, counted in told.values())
    told = node("vercel", "tools", server)
    assert all(is_call(call) for calls in told.values() for call in calls)
    told = node("vercel", "schema", server)
    assert all(sorted(city) == ["big", "name"] for city in told.values())


@needs("npm/promptfoo")
def test_promptfoo(server, tmp_path):
    output, program = tmp_path / "told.json", ENVIRONMENTS / "npm/promptfoo/node_modules/.bin"
    program_of_it = (PROGRAMS / "promptfoo.yaml").read_text().replace("URL", server.url)
    (tmp_path / "promptfoo.yaml").write_text(program_of_it)
    environment = {
        **os.environ,
        "PROMPTFOO_CONFIG_DIR": str(tmp_path),
        "PROMPTFOO_DISABLE_TELEMETRY": "1",
        "PROMPTFOO_DISABLE_UPDATE": "1",
    }
    run(
        [program / "promptfoo", "eval", "-c", "promptfoo.yaml", "-o", output, *QUIETLY],
        env=environment,
        cwd=tmp_path,
    )
    results = json.loads(output.read_text())["results"]
    assert results["stats"]["successes"] == 4, results["results"]
    by_label = {
        each["provider"]["label"]: each["response"]["output"] for each in results["results"]
    }
    told = by_label["schema"]
    assert list(json.loads(told) if isinstance(told, str) else told) == ["word"]
    assert all(is_said(by_label[label]) for label in ("chat", "responses"))
