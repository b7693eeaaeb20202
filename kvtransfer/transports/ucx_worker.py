"""UCX itself, through ucxx: a context and a worker for one thread, and how a transfer over it is ended."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

from protocol.addresses import is_loopback
from protocol.clock import precise_s

log = logging.getLogger(__name__)
_SEGMENT = "1m"
"""Over TCP the default segment of 8 KiB halves the rate."""
_END_S = 0.5


class UcxWorker:
    """One UCX context and worker, used by one thread; waits on a descriptor instead of spinning."""

    def __init__(self, host: str) -> None:
        api = import_module("ucxx._lib.libucxx")
        self._api = api
        self._array = import_module("ucxx._lib.arr").Array
        options = {
            "TCP_TX_SEG_SIZE": _SEGMENT,
            "TCP_RX_SEG_SIZE": _SEGMENT,
            "RNDV_SCHEME": "get_zcopy",
        }
        if is_loopback(host):
            options["NET_DEVICES"] = "lo"  # no listener beyond loopback
        features = (api.Feature.TAG, api.Feature.WAKEUP)
        self._context = api.UCXContext(options, feature_flags=features)
        self._worker = api.UCXWorker(self._context)
        self._worker.init_blocking_progress_mode()
        self.fileno: int = self._worker.epoll_file_descriptor
        self.address = bytes(self._worker.address)

    def connect(self, address: bytes) -> Any:
        """An endpoint to the worker at `address`, with peer error mode."""
        theirs = self._api.UCXAddress.create_from_buffer(address)
        return self._api.UCXEndpoint.create_from_worker_address(
            self._worker, theirs, endpoint_error_handling=True
        )

    def send(self, endpoint: Any, view: memoryview, tag: int) -> Any:
        """Start sending; the view must live until the request has completed."""
        return endpoint.tag_send(self._array(view), self._api.UCXXTag(tag))

    def receive(self, endpoint: Any, view: memoryview, tag: int) -> Any:
        """Start receiving into the view."""
        return endpoint.tag_recv(self._array(view), self._api.UCXXTag(tag))

    def progress(self) -> None:
        """Do whatever can be done now."""
        self._worker.progress()

    def may_wait(self) -> bool:
        """Whether the descriptor will tell of what happens next; else progress again first."""
        return bool(self._worker.arm())

    def end(self, endpoint: Any, requests: list[Any]) -> None:
        """Close the endpoint; afterwards none of the requests touches memory any more.

        A rendezvous with a stopped process cannot always be ended. Its bytes would be written by
        this worker's own progress, so the worker is then kept and never driven again."""
        endpoint.close_blocking()
        self._worker.cancel_inflight_requests()
        until_s = precise_s() + _END_S
        while not all(request.completed for request in requests):
            if precise_s() > until_s:
                log.warning("a read over UCX could not be ended; its worker is set aside")
                _set_aside.append((self, requests))
                return
            self._worker.progress()


_set_aside: list[tuple[UcxWorker, list[Any]]] = []
"""Workers that must not be driven, nor destroyed, which would drive them."""


def failure(request: Any) -> str:
    """Why a request that is over has failed; empty when it has not."""
    try:
        request.check_error()
    except Exception as error:  # noqa: BLE001 - ucxx has a class for each status
        return str(error) or type(error).__name__
    return ""
