"""A pool's descriptor handed over a unix socket. Owns the socket's two ends; must not know what the descriptor opens.

    reader ── connect (uid checked by SO_PEERCRED) ── Greeting ──► server thread
           ◄── Answer + descriptor (SCM_RIGHTS) ──
           opens the pool with it; the open socket tells when the source ends
           ── LeaseQuery ──► only after a digest was wrong: was it the lease?
           ◄── LeaseState ──

The address is a path and whose path it is: the same path may exist on the reader's own host, or in its
container, and belong to anybody. Each end checks the other's uid.
"""

from __future__ import annotations

import array
import logging
import os
import selectors
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from kvtransfer.runs import join_runs
from kvtransfer.transports.handshake import (
    MAX_RUNS,
    Answer,
    Greeting,
    LeaseQuery,
    LeaseState,
    answer_decoder,
    answer_of,
    are_same,
    check_answer,
    refusal,
)
from protocol import wire
from protocol.errors import OutOfReach, PeerLost, ProtocolError, TransferError
from protocol.failures import transfer_error_of
from protocol.ids import files_identity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvtransfer.transport import LocalPool

log = logging.getLogger(__name__)
MAX_FRAME_BYTES = 64 << 10
FULL_S = 0.1
"""When no reader could be accepted, how long others wait."""
_CREDENTIALS = struct.Struct("3i")
_AT = "@"
GREETING = b"G"
QUERY = b"Q"

_greeting_decoder: wire.Decoder[Greeting] = wire.Decoder(Greeting)
_query_decoder: wire.Decoder[LeaseQuery] = wire.Decoder(LeaseQuery)
_state_decoder: wire.Decoder[LeaseState] = wire.Decoder(LeaseState)


def path_at(address: str) -> Path:
    """The path in an address. Raises OutOfReach when it is a path of another host or container."""
    path, _, identity = address.rpartition(_AT)
    if identity != files_identity():
        raise OutOfReach("its files are not ours: another host, or another container")
    return Path(path)


def _uid_of(connection: socket.socket) -> int:
    """The user at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


class DescriptorServer:
    """A thread that hands the pool's descriptor to processes of the same user. A road says which."""

    name = "descriptors"

    def __init__(self, pool: LocalPool, path: Path) -> None:
        self.address = f"{path}{_AT}{files_identity()}"
        self.dropped_messages = 0
        self._pool = pool
        self._path = path
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(128)
        self._listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._is_listening = False
        self._listen(is_wanted=True)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=f"baton-{self.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready = self._selector.select(None if self._is_listening else FULL_S)
            self._listen(is_wanted=True)
            for key, _ in ready:
                if key.fileobj is self._wake_reader:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._serve(key.fileobj)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # the reader left already, or no descriptor is free
            log.warning("could not accept a reader: %s", error)
            self.dropped_messages += 1
            self._listen(is_wanted=False)
            return
        if (uid := _uid_of(connection)) != os.getuid():
            log.warning("refused a reader of uid %d; only this worker's own user may read", uid)
            connection.close()
            return
        connection.setblocking(False)  # noqa: FBT003
        self._selector.register(connection, selectors.EVENT_READ)

    def _listen(self, *, is_wanted: bool) -> None:
        """Not for a moment after a failure: the listener would be ready at once, again and again."""
        if is_wanted and not self._is_listening:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif self._is_listening and not is_wanted:
            self._selector.unregister(self._listener)
        self._is_listening = is_wanted

    def _serve(self, connection: socket.socket) -> None:
        try:
            frame = connection.recv(MAX_FRAME_BYTES)
            if frame[:1] == GREETING:
                self._welcome(connection, _greeting_decoder.decode(frame[1:]))
            elif frame[:1] == QUERY:
                query = _query_decoder.decode(frame[1:])
                error = refusal(self._pool, query.incarnation, query.lease_id, query.runs)
                connection.send(wire.encode(LeaseState(error=error)))
            else:
                raise ProtocolError("reader closed" if not frame else "unknown frame")
        except (OSError, ProtocolError) as error:
            log.debug("reader left: %s", error)
            self._selector.unregister(connection)
            connection.close()

    def _welcome(self, connection: socket.socket, greeting: Greeting) -> None:
        answer = answer_of(self._pool)
        frame = wire.encode(answer)
        if not are_same(greeting, answer):
            connection.send(frame)
            return
        descriptor = self.descriptor()
        try:
            rights = array.array("i", [descriptor])
            connection.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        finally:
            os.close(descriptor)

    def descriptor(self) -> int:
        """What a reader gets: a descriptor of its own, which the server closes after sending it."""
        return os.dup(self._pool.memory.fd)

    def close(self) -> None:
        """Close every connection; readers see PeerLost."""
        self._wake_writer.send(b"x")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._wake_writer.close()
        self._selector.close()
        self._path.unlink(missing_ok=True)


class DescriptorLink:
    """A connection to the server of one pool, and its descriptor; what it opens is the road's to say."""

    name = "descriptors"

    def __init__(self, address: str, greeting: Greeting, timeout_s: float) -> None:
        self._incarnation = greeting.incarnation
        self._interrupted = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(str(path_at(address)))
            if (uid := _uid_of(self._socket)) != os.getuid():
                raise PeerLost(f"another user, uid {uid}, listens at {address}")
            answer, descriptor = self._greet(greeting)
            self._socket.settimeout(0)
            try:
                self.open_pool(descriptor, answer)
            finally:
                os.close(descriptor)
        except (OSError, TransferError) as error:
            self._socket.close()
            if isinstance(error, TransferError):
                raise
            raise PeerLost(f"cannot reach {address}: {error}") from error

    def open_pool(self, descriptor: int, answer: Answer) -> None:
        """Map the pool that was answered for; the descriptor is closed afterwards."""
        raise NotImplementedError

    def _greet(self, greeting: Greeting) -> tuple[Answer, int]:
        self._socket.send(GREETING + wire.encode(greeting))
        frame, ancillary, _, _ = self._socket.recvmsg(
            MAX_FRAME_BYTES, socket.CMSG_SPACE(struct.calcsize("i"))
        )
        descriptors = array.array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(payload)
        try:
            if not frame:
                raise PeerLost("the source closed the connection: another user, or shutting down")
            answer = _decoded(answer_decoder, frame)
            check_answer(greeting, answer)
            if not descriptors:
                raise TransferError("no descriptor came with the answer")
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return answer, descriptors[0]

    def check_alive(self) -> None:
        try:
            frame = self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as error:
            raise PeerLost(f"the source is gone: {error}") from error
        if not frame:
            raise PeerLost("the source is gone")

    def confirm(self, lease_id: str, source_ids: Sequence[int], timeout_s: float) -> None:
        """See KvLink."""
        runs = [(run.source, run.length) for run in join_runs(source_ids, source_ids)]
        for start in range(0, len(runs), MAX_RUNS):
            query = LeaseQuery(
                incarnation=self._incarnation,
                lease_id=lease_id,
                runs=runs[start : start + MAX_RUNS],
            )
            try:
                self._socket.settimeout(timeout_s)
                self._socket.send(QUERY + wire.encode(query))
                frame = self._socket.recv(MAX_FRAME_BYTES)
                self._socket.settimeout(0)
            except OSError as error:
                raise PeerLost(f"the source does not answer: {error}") from error
            if not frame:
                raise PeerLost("the source is gone")
            if (failure := _decoded(_state_decoder, frame).error) is not None:
                raise transfer_error_of(failure)

    def disconnect(self) -> None:
        """Let the server know that we are gone."""
        self._socket.close()


def _decoded(decoder: wire.Decoder[wire.T], frame: bytes) -> wire.T:
    try:
        return decoder.decode(frame)
    except ProtocolError as error:
        raise TransferError(f"the other end does not speak our protocol: {error}") from error
