"""What happens to a store's folder under real servers: another model takes its turn, files are swapped, foreign or doubled, the
disk is too small, becomes read-only and is well again. Tokens are exact throughout."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.config.topology import cache_directory
from deploy.host.model_source import prepare
from engine.attesting import attested_tokens
from engine.checkpoints.prepared import fingerprint
from kvtransfer.store.layout import segment_name
from protocol.content_keys import root_key
from tests.e2e.crowd import MODEL, Crowd
from tests.e2e.server import MOCK, Server
from tests.e2e.test_store import BLOCK, ask, await_ready, prompt_of
from tests.e2e.test_store_disk import (
    KNOWN,
    SMALL,
    await_on_disk,
    await_read,
    clear,
    files,
    serve,
    store,
)
from tests.patience import until

pytestmark = [pytest.mark.e2e, pytest.mark.deep]
PROMPTS = 6


def fill(server: Server, prompts: list[list[int]]) -> None:
    """Ask for each once, and see it on the disk."""
    await_ready(server)
    for count, prompt in enumerate(prompts, start=1):
        ask(server, prompt)
        await_on_disk(server, count * KNOWN // BLOCK)


def segments(path: Path) -> list[Path]:
    return [file for file in files(path) if file.suffix == ".seg"]


def swap(one: Path, other: Path) -> None:
    """Their contents, in the files that a running store has open."""
    first, second = one.read_bytes(), other.read_bytes()
    for file, content in ((one, second), (other, first)):
        with file.open("r+b") as opened:
            opened.write(content)


def ask_other(server: Server, prompt: list[int], root: bytes) -> int:
    """As `ask`, of a model with that root."""
    reply = server.complete(
        model=MODEL, prompt=prompt, max_tokens=8, seed=1, ignore_eos=True, return_token_ids=True
    )
    assert reply["choices"][0]["token_ids"] == attested_tokens(root, prompt, 8, 1)
    cached: int = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


def test_models_that_take_turns_on_one_path_never_meet(tmp_path: Path) -> None:
    prompts = [prompt_of(seed) for seed in range(3)]
    kept = f"dram=24MiB,disk=64MiB,path={tmp_path}"
    with serve(tmp_path, "64MiB") as server:
        fill(server, prompts)
        beside = subprocess.run(
            [*MOCK, "serve", *SMALL, "--kv-store", kept, "--port", "0"],
            check=False,
            capture_output=True,
            text=True,
        )
        assert beside.returncode == 2
        assert "is used by process" in beside.stderr
        assert "Traceback" not in beside.stderr
    prepared = prepare(MODEL, (), "bfloat16", cache_directory(), lambda *_: None)
    root = root_key(fingerprint(Path(prepared.directory), BLOCK).hash_bytes())
    other = ("--pd", "1p1d1s", "--dtype", "bfloat16", "--kv-cache-memory", "24MiB")
    with Server(*other, "--kv-store", kept, program=MOCK) as server:
        await_ready(server)
        assert [ask_other(server, prompt, root) for prompt in prompts] == [0, 0, 0]
        assert server.audit()["balanced"]
    with serve(tmp_path, "64MiB") as server:
        await_ready(server)
        until(lambda: server.cluster()["storing"]["known_blocks"] > 0, "the disk being known")
        await_read(server, prompts)
        assert store(server)["disk_proofs_failed"] == 0
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_that_were_swapped_doubled_or_are_foreign_are_computed(tmp_path: Path) -> None:
    prompts = [prompt_of(seed) for seed in range(PROMPTS)]
    with serve(tmp_path, "2MiB") as server:
        fill(server, prompts)
        first, second, *_ = segments(tmp_path)
        swap(first, second)
        for prompt in prompts:
            ask(server, prompt)
        until(lambda: server.audit()["balanced"], "every account adding up")
    folder = first.parent
    foreign = {
        folder / segment_name(4000): random.Random(1).randbytes(1 << 16),
        folder / segment_name(4001): b"",
        folder / "notes.txt": b"not a segment",
    }
    for file, content in foreign.items():
        file.write_bytes(content)
    shutil.copy(segments(tmp_path)[-3], folder / segment_name(4002))
    with serve(tmp_path, "2MiB") as server:
        await_ready(server)
        for prompt in [*prompts, *prompts]:
            ask(server, prompt)
        until(lambda: server.audit()["balanced"], "every account adding up")
    assert (folder / "notes.txt").read_bytes() == b"not a segment"


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    path = tmp_path / "tiny"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(path)]
    mounted = subprocess.run(mount, check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr!r}")
    yield path
    subprocess.run(["umount", path], check=True)


def remount(path: Path, how: str) -> None:
    """Also while files are open to be written to: as an error of the disk makes it."""
    subprocess.run(["mount", "-o", f"remount,{how}", path], check=True)


def test_a_disk_that_is_too_small_full_and_well_again_costs_no_token(tiny: Path) -> None:
    prompts = [prompt_of(seed) for seed in range(PROMPTS)]
    with serve(tiny, "64MiB") as server:
        await_ready(server)
        with Crowd(server.url, 4) as crowd:
            until(lambda: store(server).get("disk_blocks", 0) > 20, "some blocks on it")
            filler = tiny / "filler"
            filler.write_bytes(bytes(os.statvfs(tiny).f_bavail * 4096))
            crowd.await_more(8)
            os.truncate(filler, 0)
            written = store(server)["disk_written_bytes"]
            until(lambda: store(server)["disk_written_bytes"] > written, "writes going on")
        assert crowd.failures == []
        for prompt in prompts:
            ask(server, prompt)
        until(lambda: server.audit()["balanced"], "every account adding up")


def test_a_read_only_disk_is_read_and_nothing_else(tiny: Path) -> None:
    prompts = [prompt_of(seed) for seed in range(3)]
    with serve(tiny, "64MiB") as server:
        fill(server, prompts)
    remount(tiny, "ro")
    with serve(tiny, "64MiB") as server:
        await_ready(server)
        until(lambda: server.cluster()["storing"]["known_blocks"] > 0, "the disk being known")
        await_read(server, prompts)
        ask(server, prompt_of(99))
        assert store(server)["disk_written_bytes"] == 0
        until(lambda: server.audit()["balanced"], "every account adding up")
    remount(tiny, "rw")
    clear(tiny)
    assert list(tiny.iterdir()) == []


def test_a_path_that_cannot_be_is_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", Path("/proc/kv")):
        kept = f"dram=24MiB,disk=64MiB,path={path}"
        command = [*MOCK, "serve", *SMALL, "--kv-store", kept, "--port", "0"]
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
        assert ended.returncode == 2
        said = " ".join(ended.stderr.split())
        assert f"--kv-store: path=: {path}" in said
        assert "name a folder" in said
        assert "Traceback" not in said
