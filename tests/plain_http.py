"""HTTP clients of tests, which ask over plain sockets. Owns what spares each of them the reading of all authorities."""

from __future__ import annotations

import ssl

NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For `verify=`: httpx reads 140 certificates for every client that is not given a context, also where nobody speaks TLS.
It trusts nobody, so that a client that does speak it fails."""
