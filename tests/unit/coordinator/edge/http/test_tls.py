"""HTTPS: which certificates are taken and shown, what a change of the files does, and whose forwarded headers count."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from coordinator.edge.http.tls import Tls, TlsFiles
from coordinator.edge.http.wire.limits import WireLimits
from coordinator.edge.http.wire.server import make_server
from protocol.errors import ConfigError
from tests.patience import ATTEMPTS, PATIENCE_S

DAY = datetime.timedelta(days=1)


def certify(directory, name, *, signer=None, is_authority=False, begins=-DAY, ends=DAY):
    """A certificate for localhost and its key; who signed it, for others to be signed. It is good from and to so long from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_name, issuer_key = signer or (subject, key)
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    cert, secret = directory / f"{name}.crt", directory / f"{name}.key"
    cert.write_bytes(built.public_bytes(pem))
    plain = serialization.NoEncryption()
    secret.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return str(cert), str(secret), (subject, key)


def renew(file, by):
    """As those do who renew certificates."""
    Path(by).replace(file)


async def tell(scope, receive, send):
    """Who asks, and how."""
    body = f"{scope['scheme']} {scope['client'][0]} {'x' * 100_000}".encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(tls=None, proxies=(), limits=None):
    server = make_server(tell, host="127.0.0.1", port=0, limits=limits, tls=tls, proxies=proxies)
    server.config.lifespan = "off"
    running = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.wait({running}, timeout=0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await running


def trusting(authority, *own):
    context = ssl.create_default_context(cafile=authority)
    if own:
        context.load_cert_chain(*own)
    return context


async def ask(port, context):
    async with httpx.AsyncClient(verify=context, trust_env=False) as client:
        return await client.get(f"https://localhost:{port}/")


async def shown(port):
    """The serial number of the certificate that a new connection gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    told = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return x509.load_der_x509_certificate(told).subject.rfc4514_string()


async def test_a_large_answer_comes_whole_over_tls(tmp_path):
    cert, key, _ = certify(tmp_path, "one")
    async with serving(Tls(TlsFiles(cert, key))) as port:
        reply = await ask(port, trusting(cert))
    assert reply.text.startswith("https 127.0.0.1 xx")
    assert len(reply.text) > 100_000


async def test_old_protocols_are_refused(tmp_path):
    cert, key, _ = certify(tmp_path, "one")
    context = Tls(TlsFiles(cert, key)).context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


async def test_a_new_pair_is_served_and_half_of_one_is_not(tmp_path):
    cert, key, _ = certify(tmp_path, "one")
    new_cert, new_key, _ = certify(tmp_path, "two")
    tls = Tls(TlsFiles(cert, key))
    async with serving(tls) as port:
        tls.watch(asyncio.get_running_loop())
        assert await shown(port) == "CN=one"
        renew(cert, new_cert)
        tls._look(asyncio.get_running_loop())
        assert await shown(port) == "CN=one"
        renew(key, new_key)
        async with asyncio.timeout(PATIENCE_S):
            while await shown(port) != "CN=two":
                pass
        tls.close()


async def test_a_pair_that_can_be_read_later_is_served_then(tmp_path, monkeypatch, caplog):
    cert, key, _ = certify(tmp_path, "one")
    new_cert, new_key, _ = certify(tmp_path, "two")
    tls, loop = Tls(TlsFiles(cert, key)), asyncio.get_running_loop()
    load = TlsFiles.load

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    async with serving(tls) as port:
        renew(cert, new_cert)
        renew(key, new_key)
        monkeypatch.setattr(TlsFiles, "load", refuse)
        for _ in range(3):
            tls._look(loop)
        assert await shown(port) == "CN=one"
        assert caplog.text.count("Permission denied") == 1
        monkeypatch.setattr(TlsFiles, "load", load)
        tls._look(loop)
        assert await shown(port) == "CN=two"
        tls.close()


async def test_a_client_that_does_not_shake_hands_is_left_after_the_deadline_of_a_head(tmp_path):
    cert, key, _ = certify(tmp_path, "one")
    limits = WireLimits(head_deadline_s=1.0)
    async with serving(Tls(TlsFiles(cert, key)), limits=limits) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        for attempt in range(ATTEMPTS):
            try:
                assert (await ask(port, trusting(cert))).status_code == 200
                break
            except httpx.TransportError:  # whoever is stopped for a moment shakes hands too late
                assert attempt < ATTEMPTS - 1


async def test_with_authorities_a_client_must_be_known(tmp_path):
    cert, key, _ = certify(tmp_path, "server")
    authority, _, signer = certify(tmp_path, "authority", is_authority=True)
    known = certify(tmp_path, "known", signer=signer)
    stranger = certify(tmp_path, "stranger")
    async with serving(Tls(TlsFiles(cert, key, authority))) as port:
        assert (await ask(port, trusting(cert, *known[:2]))).status_code == 200
        for context in (trusting(cert), trusting(cert, *stranger[:2])):
            with pytest.raises(httpx.TransportError):
                await ask(port, context)


def test_files_that_cannot_be_used_are_named(tmp_path):
    cert, key, _ = certify(tmp_path, "one")
    other = certify(tmp_path, "two")[1]
    (tmp_path / "empty").touch()
    for files in (
        TlsFiles(cert, other),
        TlsFiles(str(tmp_path / "nowhere"), key),
        TlsFiles(str(tmp_path / "empty")),
        TlsFiles(cert, key, str(tmp_path / "empty")),
    ):
        with pytest.raises(ConfigError, match="--ssl-certfile: cannot use"):
            Tls(files)


@pytest.mark.parametrize(
    ("proxies", "told"),
    [
        ((), "http 127.0.0.1"),
        (("127.0.0.1",), "https 203.0.113.9"),
        (("127.0.0.0/8",), "https 203.0.113.9"),
        (("10.0.0.1",), "http 127.0.0.1"),
    ],
)
async def test_forwarded_headers_count_from_named_proxies_only(proxies, told):
    headers = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    async with (
        serving(proxies=proxies) as port,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        reply = await client.get(f"http://127.0.0.1:{port}/", headers=headers)
    assert reply.text.startswith(f"{told} ")
