"""Options of who may come in, and how much they may take. Owns those of security and of accounts."""

from __future__ import annotations

from coordinator.accounts.prices import price_text
from deploy.config.option import ON, Option
from deploy.config.values import Choice, proxy, switch, text

SECURITY = (
    Option(
        "api-key",
        text,
        (),
        "key that clients must send; may be repeated",
        kind="several",
        metavar="KEY",
        secret=True,
    ),
    Option(
        "admin-api-key",
        text,
        (),
        "key for /cluster and /metrics; those of --api-key are then refused there; may be repeated",
        kind="several",
        metavar="KEY",
        secret=True,
    ),
    Option(
        "allowed-hosts",
        text,
        (),
        "without keys: names of this server besides localhost, addresses and --host; '*' for any",
        kind="several",
        metavar="NAME",
    ),
    Option(
        "allowed-origins",
        text,
        (),
        "web pages that may use this server, as https://chat.example.com; '*' for any (default: its own)",
        kind="several",
        metavar="ORIGIN",
    ),
    Option(
        "allowed-methods",
        text,
        ("*",),
        "methods that those pages may use",
        kind="several",
        metavar="METHOD",
    ),
    Option(
        "allowed-headers",
        text,
        ("*",),
        "headers that those pages may send",
        kind="several",
        metavar="NAME",
    ),
    Option(
        "allow-credentials",
        switch,
        not ON,
        "let those pages send cookies and credentials",
        kind="switch",
    ),
    Option(
        "auth",
        switch,
        ON,
        "refuse to listen beyond loopback without keys; --no-auth where something else guards the port",
        kind="switch",
    ),
)

TLS = (
    Option(
        "ssl-certfile",
        text,
        None,
        "serve HTTPS with this certificate chain (PEM); a renewed file is served without a restart",
        metavar="FILE",
    ),
    Option(
        "ssl-keyfile",
        text,
        None,
        "its key (default: in the certificate's file)",
        metavar="FILE",
    ),
    Option(
        "ssl-ca-certs",
        text,
        None,
        "clients must show a certificate of one of these authorities (PEM)",
        metavar="FILE",
    ),
    Option(
        "forwarded-allow-ips",
        proxy,
        (),
        "proxies whose X-Forwarded headers count: addresses or networks (default: nobody's)",
        kind="several",
        metavar="ADDRESS",
    ),
)
ACCOUNTS = (
    Option(
        "keys-db",
        text,
        None,
        "SQLite file of keys (`baton keys`), their limits, and the ledger of what they used",
        metavar="FILE",
    ),
    Option(
        "router-config",
        text,
        None,
        "model groups and upstream servers, as in a LiteLLM config.yaml (model_list, router_settings)",
        metavar="FILE",
    ),
    Option(
        "price",
        price_text,
        (),
        "what a million tokens cost, as MODEL=INPUT/OUTPUT or MODEL=INPUT/CACHED/OUTPUT; * is any model",
        kind="several",
        metavar="PRICE",
    ),
    Option(
        "ledger-failure",
        Choice("serve", "refuse"),
        "serve",
        "where usage cannot be written down: serve all the same, or refuse requests",
    ),
)
