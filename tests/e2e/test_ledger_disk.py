"""The disk of keys and ledger fills up, is taken away or turns read-only under a real server, and comes back: who is served, what
is said, and that every delivered answer is one row in the end."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server import MOCK, Server
from tests.patience import until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.deep,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems"),
]
BOSS = {"authorization": "Bearer boss"}
NOT_WRITTEN = "usage cannot be written down, so nothing is served"


def mount(*words: str | Path) -> None:
    """Or skip, where nobody may."""
    done = subprocess.run(["mount", *words], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


class Full:
    """A small disk in memory, on which something else takes all the room."""

    def __init__(self, path: Path) -> None:
        self.path = path / "disk"
        self.path.mkdir()
        mount("-t", "tmpfs", "-o", "size=10m", "tmpfs", self.path)

    def fail(self) -> None:
        with (self.path / "ballast").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        assert os.statvfs(self.path).f_bavail == 0

    def recover(self) -> None:
        (self.path / "ballast").unlink()


class Immutable:
    """An ext4 whose database files may be changed by nobody for now, by those who have them open neither."""

    def __init__(self, path: Path) -> None:
        if shutil.which("mkfs.ext4") is None or shutil.which("chattr") is None:
            pytest.skip("no ext4 can be made here")
        image, self.path = path / "image", path / "disk"
        self.path.mkdir()
        with image.open("wb") as file:
            file.truncate(48 << 20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        mount("-o", "loop,errors=remount-ro", image, self.path)

    def _change(self, how: str) -> None:
        subprocess.run(["chattr", how, *self.path.glob("keys.db*[!t]")], check=True)

    def fail(self) -> None:
        self._change("+i")

    def recover(self) -> None:
        self._change("-i")


class Broken(Immutable):
    """An ext4 that found itself damaged, and takes no more writes until it is mounted anew."""

    def fail(self) -> None:
        source = subprocess.run(
            ["findmnt", "-no", "SOURCE", self.path], check=True, capture_output=True, text=True
        ).stdout.strip()
        trigger = Path("/sys/fs/ext4") / Path(source).name / "trigger_fs_error"
        if not trigger.exists():
            pytest.skip("no file system can be broken here")
        trigger.write_text("1")

    def recover(self) -> None:
        """As an operator does, with nobody left who uses it."""
        subprocess.run(["umount", self.path], check=True)
        image = self.path.with_name("image")
        repaired = subprocess.run(["fsck.ext4", "-fy", image], check=False, capture_output=True)
        assert repaired.returncode in (0, 1), repaired
        mount("-o", "loop", image, self.path)


@pytest.fixture
def disk(request, tmp_path):
    made = request.param(tmp_path)
    yield made
    subprocess.run(["umount", made.path], check=True)


def serve(disk: Any, failure: str) -> Server:
    options = ("--keys-db", str(disk.path / "keys.db"), "--admin-api-key", "boss")
    return Server(*options, "--ledger-failure", failure, program=MOCK)


class Client:
    """One tenant, and the answers that it has."""

    def __init__(self, server: Server) -> None:
        self.server = server
        made = self.operate("POST", "/keys", tenant="a")
        assert made.status_code == 200, made.text
        self.key_id, self.secret = made.json()["id"], made.json()["key"]
        self.delivered: dict[str, tuple[int, int]] = {}

    def operate(self, method: str, path: str, **body: Any) -> httpx.Response:
        return self.server.client.request(method, path, json=body, headers=BOSS)

    def ask(self, **body: Any) -> httpx.Response:
        told = {"prompt": "Hello", "max_tokens": 4, "ignore_eos": True} | body
        headers = {"authorization": f"Bearer {self.secret}"}
        reply = self.server.client.post("/v1/completions", json=told, headers=headers)
        if reply.status_code == 200:
            usage = reply.json()["usage"]
            self.delivered[reply.json()["id"]] = (
                usage["prompt_tokens"],
                usage["completion_tokens"],
            )
        return reply

    def ledger(self) -> dict[str, Any]:
        told: dict[str, Any] = self.operate("GET", "/usage").json()["ledger"]
        return told

    def is_written(self) -> bool:
        """By what the metrics say."""
        return "baton_ledger_writable 1.0" in self.operate("GET", "/metrics").text

    def is_unwritten(self) -> bool:
        """After one more request, if need be: nobody looks at a disk that has nothing to take."""
        self.ask()
        return not self.ledger()["ok"]


def rows(disk: Any) -> list[tuple[str, int, int]]:
    with closing(sqlite3.connect(disk.path / "keys.db")) as connection:
        told = "SELECT request_id, input_tokens, output_tokens FROM usage WHERE end <> 'crashed'"
        return connection.execute(told).fetchall()


def check(disk: Any, client: Client) -> None:
    """Each answer once, and nothing else."""
    found = rows(disk)
    assert len(found) == len(client.delivered)
    assert {name: (got, said) for name, got, said in found} == client.delivered


@pytest.mark.parametrize("disk", [Full, Immutable], indirect=True)
def test_serving_goes_on_and_all_is_written_when_the_disk_is_back(disk):
    with serve(disk, "serve") as server:
        client = Client(server)
        assert client.ask().status_code == 200
        disk.fail()
        until(client.is_unwritten, "the ledger's failure being told")
        for _ in range(20):
            assert client.ask().status_code == 200
        told = client.ledger()
        assert told["reason"]
        assert told["waiting"] >= 20
        assert told["lost"] == 0
        assert not client.is_written()
        assert "the ledger cannot be written" in server.log()
        made = client.operate("POST", "/keys", tenant="b")
        assert made.status_code == 503, made.text
        assert "the keys' database failed" in made.text
        disk.recover()
        until(client.is_written, "the ledger being written again")
        until(lambda: client.ledger()["waiting"] == 0, "what waited being written")
        assert "the ledger is written again" in server.log()
        assert client.operate("POST", "/keys", tenant="b").status_code == 200
        assert {key["tenant"] for key in client.operate("GET", "/keys").json()["data"]} == {
            "a",
            "b",
        }
        assert client.ask().status_code == 200
    check(disk, client)


@pytest.mark.parametrize("disk", [Full, Immutable], indirect=True)
def test_nothing_is_served_where_it_must_be_written(disk):
    with serve(disk, "refuse") as server:
        client = Client(server)
        assert client.ask().status_code == 200
        disk.fail()
        until(lambda: client.ask().status_code == 503, "a request being refused")
        for body in ({}, {"stream": True}, {"max_tokens": 1}):
            refused = client.ask(**body)
            assert refused.status_code == 503
            assert NOT_WRITTEN in refused.text
            assert int(refused.headers["retry-after"]) >= 1
        assert not client.is_written()
        disk.recover()
        until(lambda: client.ask().status_code == 200, "requests being served again")
        assert client.is_written()
    check(disk, client)


@pytest.mark.parametrize("disk", [Full, Immutable], indirect=True)
def test_what_was_answered_meanwhile_outlives_a_death_and_a_revocation_holds(disk):
    """The map of what is on its way was written before: the next start finds it, and writes when it can."""
    with serve(disk, "serve") as server:
        client = Client(server)
        disk.fail()
        until(client.is_unwritten, "the ledger's failure being told")
        for _ in range(5):
            assert client.ask().status_code == 200
        revoked = client.operate("DELETE", f"/keys/{client.key_id}")
        assert revoked.status_code == 503
        assert client.ask().status_code == 401
        os.kill(server.coordinator_pid(), 9)
        until(server.is_healthy, "the coordinator's next life")
        # the disk never had the revocation, which was told: an operator asks again
        disk.recover()
        if not client.ledger()["ok"] and isinstance(disk, Immutable):
            # what began with nothing that it may write stays so to its end
            os.kill(server.coordinator_pid(), 9)
        until(lambda: server.is_healthy() and client.is_written(), "the ledger being written again")
        assert client.operate("DELETE", f"/keys/{client.key_id}").status_code == 200
        assert client.ask().status_code == 401
        until(lambda: client.ledger()["waiting"] == 0, "what waited being written")
    check(disk, client)


@pytest.mark.parametrize("failure", ["serve", "refuse"])
@pytest.mark.parametrize("disk", [Broken], indirect=True)
def test_a_file_system_that_broke_ends_nothing_and_keeps_what_it_had(disk, failure):
    with serve(disk, failure) as server:
        client = Client(server)
        for _ in range(5):
            assert client.ask().status_code == 200
        until(lambda: client.ledger()["waiting"] == 0, "what was answered being written")
        os.sync()
        before, pid = dict(client.delivered), server.coordinator_pid()
        disk.fail()
        until(client.is_unwritten, "the ledger's failure being told")
        statuses = [client.ask().status_code for _ in range(20)]
        assert set(statuses) == ({200} if failure == "serve" else {503})
        assert not client.is_written()
        assert server.coordinator_pid() == pid
    disk.recover()
    with serve(disk, failure) as server:
        client.server = server
        assert client.ask().status_code == 200
        until(lambda: client.ledger()["waiting"] == 0, "what was answered being written")
    found = rows(disk)
    assert len(found) == len({row[0] for row in found})
    kept = {name: (got, said) for name, got, said in found}
    assert before.items() <= kept.items() <= client.delivered.items()
