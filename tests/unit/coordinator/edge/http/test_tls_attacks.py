"""HTTPS against who means harm, and against renewals that went wrong: half handshakes, renegotiation, certificates of another time."""

from __future__ import annotations

import asyncio
import datetime
import logging
import shutil
import socket
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from coordinator.edge.http.tls import Tls, TlsFiles
from coordinator.edge.http.wire.limits import WireLimits
from tests.patience import PATIENCE_S, until
from tests.unit.coordinator.edge.http.test_tls import (
    DAY,
    ask,
    certify,
    renew,
    serving,
    shown,
    trusting,
)

OLD = {"begins": -2 * DAY, "ends": -DAY}
LATER = {"begins": DAY, "ends": 2 * DAY}
CROWD = 100


def hello() -> bytes:
    """A ClientHello as it goes over the wire."""
    told = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), told, server_hostname="h")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return told.read()


HELLO = hello()
BEGUN = {
    "nothing": b"",
    "a byte": HELLO[:1],
    "half a record": HELLO[: len(HELLO) // 2],
    "all but a byte": HELLO[:-1],
    "a hello and silence": HELLO,
    "a record of the longest length": b"\x16\x03\x01\xff\xff" + bytes(100),
    "two hellos": HELLO + HELLO,
    "an alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "zeros": bytes(500),
    "plain HTTP": b"GET /v1/models HTTP/1.1\r\nhost: h\r\n\r\n",
    "SSL 2": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(40),
}


async def begin(port, told):
    """Say so much, and wait until the other end hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with suppress(ConnectionError):
        writer.write(told)
        await writer.drain()
        while await reader.read(65536):
            pass
    writer.close()


async def test_who_begins_a_handshake_and_stops_costs_nobody_else_anything(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cert, key, _ = certify(tmp_path, "one")
    limits = WireLimits(head_deadline_s=8.0)
    async with serving(Tls(TlsFiles(cert, key)), limits=limits) as port:
        kinds = list(BEGUN.values())
        crowd = [
            asyncio.create_task(begin(port, kinds[number % len(kinds)])) for number in range(CROWD)
        ]
        for _ in range(5):
            assert (await ask(port, trusting(cert))).status_code == 200
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*crowd)
        assert (await ask(port, trusting(cert))).status_code == 200
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def open_descriptors() -> int:
    """Of this process, server and client."""
    return len(list(Path("/proc/self/fd").iterdir()))


def handshaken(port, context, told: bytes) -> ssl.SSLSocket:
    """A connection after its handshake, on which so much was said."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    secured = context.wrap_socket(plain, server_hostname="localhost")
    secured.sendall(told)
    return secured


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GET /v1/models HTTP/1.1\r\nhost: x", id="half a head"),
        pytest.param(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n", id="idle after an answer"),
    ],
)
async def test_who_is_silent_after_the_handshake_is_not_waited_for(tmp_path, told):
    """Such a client answers the end of TLS as little as anything else."""
    cert, key, _ = certify(tmp_path, "one")
    limits = WireLimits(head_deadline_s=1.0, keep_alive_s=1.0, linger_s=1.0)
    async with serving(Tls(TlsFiles(cert, key)), limits=limits) as port:
        before = open_descriptors()
        secured = await asyncio.to_thread(handshaken, port, trusting(cert), told)
        await asyncio.to_thread(
            until, lambda: open_descriptors() <= before + 1, "its end", 15.0
        )  # asyncio's own patience is 30 s
        secured.close()


def renegotiated(port) -> str:
    """What openssl's client tells of a second handshake over the same connection."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl here")
    command = [
        program,
        "s_client",
        "-connect",
        f"127.0.0.1:{port}",
        "-tls1_2",
        "-legacy_renegotiation",
    ]
    done = subprocess.run(
        command, input="R\n", check=False, capture_output=True, text=True, timeout=PATIENCE_S
    )
    return done.stdout + done.stderr


async def test_nobody_shakes_hands_twice_over_one_connection(tmp_path):
    cert, key, _ = certify(tmp_path, "one")
    async with serving(Tls(TlsFiles(cert, key))) as port:
        told = await asyncio.to_thread(renegotiated, port)
        assert "RENEGOTIATING" in told
        assert "no renegotiation" in told
        assert (await ask(port, trusting(cert))).status_code == 200


@pytest.mark.parametrize("is_new", [False, True], ids=["TLS 1.2", "TLS 1.3"])
async def test_a_client_whose_certificate_is_not_good_now_gets_no_answer(tmp_path, is_new):
    cert, key, _ = certify(tmp_path, "server")
    authority, _, signer = certify(tmp_path, "authority", is_authority=True)
    _, _, other = certify(tmp_path, "other", is_authority=True)
    (tmp_path / "double").mkdir()
    bad = [
        certify(tmp_path, "expired", signer=signer, **OLD),
        certify(tmp_path, "early", signer=signer, **LATER),
        certify(tmp_path, "of another", signer=other),
        certify(tmp_path, "of itself"),
        certify(tmp_path / "double", "authority", is_authority=True),  # the name, with another key
    ]
    async with serving(Tls(TlsFiles(cert, key, authority))) as port:
        for parts in bad:
            context = trusting(cert, *parts[:2])
            if not is_new:
                context.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises(httpx.TransportError):
                await ask(port, context)
        known = certify(tmp_path, "known", signer=signer)
        assert (await ask(port, trusting(cert, *known[:2]))).status_code == 200


@pytest.mark.parametrize("when", [OLD, LATER], ids=["expired", "not yet valid"])
async def test_a_renewal_of_another_time_is_not_served(tmp_path, caplog, when):
    cert, key, _ = certify(tmp_path, "one")
    wrong_cert, wrong_key, _ = certify(tmp_path, "wrong", **when)
    good_cert, good_key, _ = certify(tmp_path, "good")
    tls, loop = Tls(TlsFiles(cert, key)), asyncio.get_running_loop()
    async with serving(tls) as port:
        renew(key, wrong_key)
        renew(cert, wrong_cert)
        for _ in range(3):
            tls._look(loop)
        assert await shown(port) == "CN=one"
        assert caplog.text.count("the new certificate cannot be used, the former one is") == 1
        assert ("expired" if when is OLD else "not yet valid") in caplog.text
        renew(key, good_key)
        renew(cert, good_cert)
        tls._look(loop)
        assert await shown(port) == "CN=good"
        tls.close()


async def test_a_certificate_that_is_early_is_served_when_its_time_has_come(tmp_path):
    cert, key, _ = certify(tmp_path, "one")
    soon = {"begins": datetime.timedelta(seconds=2), "ends": DAY}
    early_cert, early_key, _ = certify(tmp_path, "soon", **soon)
    tls, loop = Tls(TlsFiles(cert, key)), asyncio.get_running_loop()
    async with serving(tls) as port:
        renew(key, early_key)
        renew(cert, early_cert)
        tls._look(loop)
        assert await shown(port) == "CN=one"
        async with asyncio.timeout(PATIENCE_S):
            while await shown(port) != "CN=soon":
                pass
        tls.close()


@pytest.mark.parametrize("told", [b"", b"\0" * 3000, b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
@pytest.mark.parametrize("which", ["cert", "key", "authority"])
async def test_a_renewal_that_is_damaged_is_not_served(tmp_path, told, which):
    cert, key, _ = certify(tmp_path, "one")
    authority, _, signer = certify(tmp_path, "authority", is_authority=True)
    known = certify(tmp_path, "known", signer=signer)
    tls, loop = Tls(TlsFiles(cert, key, authority)), asyncio.get_running_loop()
    async with serving(tls) as port:
        damaged = {"cert": cert, "key": key, "authority": authority}[which]
        Path(damaged).write_bytes(told)  # noqa: ASYNC240
        tls._look(loop)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(*known[:2])
        assert (await ask(port, context)).status_code == 200
        tls.close()


async def test_an_expired_certificate_is_told_at_the_start(tmp_path, caplog):
    """It is served: whoever has no other one would rather have that."""
    cert, key, _ = certify(tmp_path, "old", **OLD)
    async with serving(Tls(TlsFiles(cert, key))) as port:
        assert await shown(port) == "CN=old"
    assert "clients will refuse" in caplog.text
    assert "expired" in caplog.text
