"""Many JSON schemas against a server: each answer validates, or is the beginning of one, or the schema is refused by name.

usage: python -m tests.e2e.schema_campaign FILE.jsonl [--url URL | --random] [--limit N] [--tokens N]

A line of the file is `{"name", "schema"}`. Without `--url` a server is started here, of the embedded model or, with
`--random`, of one with random weights, which says what no model would. Prints one line for each failure, and then the counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import jsonschema

from tests.e2e.schema_prefix import reason_against
from tests.e2e.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jsonschema.protocols import Validator

ASKED = [{"role": "user", "content": "An example, as JSON."}]
AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one schema; `failure` says what is wrong with it."""

    name: str
    kind: str
    failure: str = ""


def problem_of(schema: Any, text: str) -> str:
    """Why a complete answer is wrong, "" if it is not."""
    try:
        told = json.loads(text)
    except ValueError as error:
        return f"no JSON: {error}: {text[:200]!r}"
    errors = validator_of(schema).iter_errors(told)
    return next((f"{error.message[:200]} in {text[:300]!r}" for error in errors), "")


def validator_of(schema: Any) -> Validator:
    """Of the draft that the schema names."""
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    validator: Validator = kind(schema)
    return validator


def tried(client: httpx.Client, name: str, schema: Any, tokens: int, seed: int = 1) -> Verdict:
    """Ask for one answer, and judge it."""
    return judged(name, schema, asked(client, schema, tokens, seed))


def asked(client: httpx.Client, schema: Any, tokens: int, seed: int = 1) -> httpx.Response:
    """One answer."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    body = {"messages": ASKED, "max_tokens": tokens, "seed": seed, "temperature": 1.0}
    return client.post("/v1/chat/completions", json=body | {"response_format": form})


def judged(name: str, schema: Any, reply: httpx.Response) -> Verdict:
    """What is right or wrong about it."""
    if reply.status_code == 400:
        error = reply.json()["error"]
        is_named = "response_format" in str(error["param"]) and error["message"]
        failure = "" if is_named else f"a refusal without a name: {error}"
        return Verdict(name, f"refused: {error['message'].partition(': ')[2][:70]}", failure)
    if reply.status_code != 200:
        return Verdict(name, str(reply.status_code), reply.text[:300])
    choice = reply.json()["choices"][0]
    text, reason = choice["message"]["content"], choice["finish_reason"]
    if reason == "stop":
        return Verdict(name, reason, problem_of(schema, text))
    if reason != "length":
        return Verdict(name, reason, f"it ended in {reason}")
    told = reason_against(validator_of(schema), text)
    return Verdict(name, reason, told and f"no beginning: {told[:300]}: {text[-200:]!r}")


def run(client: httpx.Client, schemas: Sequence[tuple[str, Any]], tokens: int) -> list[Verdict]:
    """A verdict for each schema, several at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda pair: tried(client, pair[0], pair[1], tokens), schemas))


def read(path: Path, limit: int | None) -> list[tuple[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(line["name"], line["schema"]) for line in lines[:limit]]


@contextlib.contextmanager
def served(url: str | None, *options: str, random: bool) -> Iterator[httpx.Client]:
    """A client of the server to try, which has these options if it is started here."""
    if url is not None:
        with httpx.Client(base_url=url, timeout=300.0) as client:
            yield client
        return
    with tempfile.TemporaryDirectory() as directory:
        model = []
        if random:
            from tests.e2e.random_model import write_random_model

            model = [str(write_random_model(Path(directory)))]
        with Server(*model, "--pd", "1p1d", "--kv-cache-memory", "512MiB", *options) as server:
            server.client.timeout = 300.0
            yield server.client


def main() -> int:
    """Exit status 1 for any failure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--url")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--tokens", type=int, default=160)
    arguments = parser.parse_args()
    with served(arguments.url, random=arguments.random) as client:
        verdicts = run(client, read(arguments.path, arguments.limit), arguments.tokens)
    failures = [verdict for verdict in verdicts if verdict.failure]
    for verdict in failures:
        print(f"{verdict.name}: {verdict.kind}: {verdict.failure}")
    for kind, count in Counter(verdict.kind for verdict in verdicts).most_common():
        print(f"{count:5} {kind}")
    print(json.dumps({"schemas": len(verdicts), "failures": len(failures)}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
