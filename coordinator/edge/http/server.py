"""The HTTP server around the application. Owns how uvicorn is set up: its loop, its parser, its patience."""

from __future__ import annotations

from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from fastapi import FastAPI


def make_server(app: FastAPI, *, host: str, port: int) -> uvicorn.Server:
    """A server that is ready to run."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)
