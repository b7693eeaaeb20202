"""TLS of the HTTP port. Owns the certificate's files: that they fit together, and that a change of them is served.

Certificates are renewed by whoever writes their files: they are looked at each second, and new connections get what is
there, once it can be used. A half-written pair is not, nor one of another time; the former one goes on until the pair fits.
"""

from __future__ import annotations

import logging
import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import ConfigError

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0
NOT_YET_VALID, EXPIRED = 9, 10
"""X509_V_ERR_CERT_* of OpenSSL."""
MOST_TURNS = 10
Stamp = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. A certificate without `keyfile` has its key in its own file; with `ca_certs` clients must show a
    certificate of one of these authorities."""

    certfile: str
    keyfile: str | None = None
    ca_certs: str | None = None

    def stamp(self) -> Stamp:
        """Another value when a file is another."""
        return tuple(_stamp(name) for name in (self.certfile, self.keyfile, self.ca_certs))

    def load(self, context: ssl.SSLContext) -> None:
        """Put them into a context; raises OSError, of which ssl.SSLError is one."""
        context.load_cert_chain(self.certfile, self.keyfile, password="")
        if self.ca_certs is not None:
            context.load_verify_locations(self.ca_certs)

    def trouble_of_date(self) -> str:
        """Why clients that look at dates refuse the certificate now, or "". Raises as `load`.

        It is shown to a client within this process, which believes it whoever signed it: the date is all that is asked.
        """
        server, client = (
            ssl.SSLContext(kind) for kind in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
        )
        server.load_cert_chain(self.certfile, self.keyfile, password="")
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        client.load_verify_locations(self.certfile)
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
        try:
            for _ in range(MOST_TURNS):
                for end in ends:
                    with suppress(ssl.SSLWantReadError):
                        end.do_handshake()
        except ssl.SSLCertVerificationError as error:
            return error.verify_message if error.verify_code in (NOT_YET_VALID, EXPIRED) else ""
        return ""

    def context(self) -> ssl.SSLContext:
        """A server's, TLS 1.2 or newer. Raises as `load`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        if self.ca_certs is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        self.load(context)
        return context


class Tls:
    """The context of a server; ConfigError for files that cannot be used. Authorities that leave `ca_certs` are
    believed until the next start."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = files.stamp()
        self._trouble = ""
        self._timer: asyncio.TimerHandle | None = None
        try:
            self.context = files.context()
            trouble = files.trouble_of_date()
        except (OSError, ValueError) as error:
            names = " and ".join(
                name for name in (files.certfile, files.keyfile, files.ca_certs) if name
            )
            raise ConfigError(f"--ssl-certfile: cannot use {names}: {error}") from error
        if trouble:
            told = "--ssl-certfile: clients will refuse %s (%s); renew it, the new one is served at once"
            log.warning(told, files.certfile, trouble)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look from now on."""
        self.close()
        self._timer = loop.call_later(LOOK_EVERY_S, self._look, loop)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        stamp = self._files.stamp()
        if stamp != self._seen and self._reload():
            self._seen = stamp
        self.watch(loop)

    def _reload(self) -> bool:
        """Whether it is used. What cannot be is tried again at each look: its rights may change, and no file with them."""
        try:
            self._files.context()
            told = self._files.trouble_of_date()
            if not told:
                self._files.load(self.context)
        except (OSError, ValueError) as error:
            told = str(error)
        if told:
            if told != self._trouble:
                log.error("the new certificate cannot be used, the former one is: %s", told)
            self._trouble = told
            return False
        self._trouble = ""
        log.info("new connections get the new certificate")
        return True


def _stamp(name: str | None) -> tuple[int, int, int] | None:
    if name is None:
        return None
    try:
        found = Path(name).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
