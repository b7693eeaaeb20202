"""`baton drain --all`, and SIGTERM after it: what Kubernetes and systemd do before a server goes. Paced workers, real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from tests.e2e.server import BATON, PACED, Server

pytestmark = pytest.mark.e2e
ANSWER = {"prompt": [1, 2, 3], "max_tokens": 120, "ignore_eos": True, "stream": True}


def test_answers_that_run_end_whole_and_new_ones_are_told_to_go_elsewhere() -> None:
    with Server("--pd", "1p1d", program=PACED) as server:
        with server.client.stream("POST", "/v1/completions", json=ANSWER) as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith("data: ")
            asked = server.client.post("/cluster/drain")
            assert asked.json() == {"draining": True, "live": 1}
            drain = subprocess.Popen(
                [str(BATON), "drain", "--all", "--url", server.url],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ},
            )
            assert server.client.get("/health").status_code == 503
            assert server.client.get("/live").status_code == 200
            refused = server.client.post("/v1/completions", json={**ANSWER, "stream": False})
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            assert int(refused.headers["retry-after"]) >= 1
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        finish = [json.loads(line[6:])["choices"][0]["finish_reason"] for line in rest[:-1]]
        assert [reason for reason in finish if reason] == ["length"]
        told, _ = drain.communicate(timeout=60)
        assert drain.returncode == 0
        assert told.splitlines()[-1] == "done: nothing is left"
        assert server.client.get("/cluster").json()["draining"] is True
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


def test_a_drain_that_takes_too_long_says_what_is_left() -> None:
    with (
        Server("--pd", "1p1d", program=PACED) as server,
        server.client.stream(
            "POST", "/v1/completions", json={**ANSWER, "max_tokens": 4000}
        ) as reply,
    ):
        lines = reply.iter_lines()  # closing it would be going away
        assert next(lines)
        done = subprocess.run(
            [str(BATON), "drain", "--all", "--timeout", "0.2", "--url", server.url],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "not done after 0.2 s" in done.stderr
