"""Options of models that come and go. Owns their names, parsers and defaults."""

from __future__ import annotations

from deploy.config.option import ON, Option
from deploy.config.values import keep_alive, parse_bytes, switch, whole

ON_DEMAND = (
    Option(
        "max-loaded-models",
        whole(1, 64),
        None,
        "models in memory at once: they come when they are asked for, and the least recently used goes (default: all stay)",
        metavar="N",
    ),
    Option(
        "memory-budget",
        parse_bytes,
        None,
        "what weights, KV pools and processes of models in memory may take, as 8GiB; models come and go then",
        metavar="SIZE",
    ),
    Option(
        "models-autoload",
        switch,
        ON,
        "models that come and go are loaded by the requests that name them; off: by baton load and POST /models/load alone",
        kind="switch",
    ),
    Option(
        "keep-alive",
        keep_alive,
        300.0,
        "how long a model that may go stays without use: 5m, seconds, 0, or -1 for ever; a request's keep_alive wins",
        metavar="TIME",
    ),
)
