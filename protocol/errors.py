"""Every error Baton raises on purpose. Owns the exception tree; knows nothing of HTTP frameworks.

BatonError
├── InvalidRequest     400  the client's field is wrong; `param` names it
│   ├── ContextLengthExceeded 400  prompt and answer do not fit into the model's context
│   ├── GrammarDeadEnd 400  nothing follows in the answer that its grammar allows, or that is worth finding
│   ├── ModelNotFound  404  no such model is served
│   └── WorkerNotFound 404  no such worker is here
├── PoolConflict       409  the pools are in no state for what an operator asks
├── Overloaded         429  no room now; `retry_after_s` says when to come back
│   ├── LimitReached   429  this key may not use more now
│   ├── GrammarsUnavailable 503 no schema can be tried now
│   ├── ModelUnavailable 503 the model cannot be loaded now; the message says why
│   └── Draining       503  this server ends what it has and takes nothing new
├── LedgerUnavailable  503  what is used cannot be written down, and so nothing is served
├── RequestAborted     499  the client went away or an operator cancelled
├── DeadlineExceeded   504  the request's own deadline passed
├── TransferError      502  KV blocks could not be moved or proven
│   ├── LayoutMismatch      the two pools disagree; `field` names where
│   ├── LeaseExpired        the holder no longer promises the bytes
│   ├── PeerLost            the other process is gone
│   │   └── OutOfReach      it never was where this road leads
│   └── DigestMismatch      the bytes read are not the bytes promised
├── WorkerLost         503  every worker that could serve this died
├── NoLauncher         503  nobody here can start or stop workers
├── ProtocolError      502  a message that breaks the protocol
├── ConfigError        2    flags or files that cannot work; exit status, not HTTP
│   └── StoreError          a path that no store can use; the message names it
├── GivenUp            500  the request's attempts failed again and again; the message says how the last one did
└── InternalError      500  a bug of ours
"""

from __future__ import annotations


class BatonError(Exception):
    """Root of the tree. `http_status`, `error_type` and `code` (OpenAI's, where it has one) are what a client sees."""

    http_status = 500
    error_type = "InternalServerError"
    code: str | None = None


class InvalidRequest(BatonError):
    """The client's input is wrong; `param` names the field."""

    http_status = 400
    error_type = "BadRequestError"
    code: str | None = "invalid_value"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or type(self).code


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer do not fit into the model's context. Clients act on the first words, which are OpenAI's."""

    code: str | None = "context_length_exceeded"

    def __init__(self, max_model_len: int, told: str, param: str | None = None) -> None:
        message = f"This model's maximum context length is {max_model_len} tokens. However, {told}"
        super().__init__(message, param)


class GrammarDeadEnd(InvalidRequest):
    """An answer came to where its grammar lets nothing follow, or where what follows takes too much work to find."""

    code: str | None = "grammar_dead_end"


class ModelNotFound(InvalidRequest):
    """The request names a model that is not served."""

    http_status = 404
    error_type = "NotFoundError"
    code: str | None = "model_not_found"


class WorkerNotFound(InvalidRequest):
    """An operator names a worker that is not here."""

    http_status = 404
    error_type = "NotFoundError"


class PoolConflict(BatonError):
    """What is asked would leave the pools unable to serve; the message says what to do first."""

    http_status = 409
    error_type = "ConflictError"


class Overloaded(BatonError):
    """No capacity now; retry after `retry_after_s` seconds."""

    http_status = 429
    error_type = "RateLimitError"
    code: str | None = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LimitReached(Overloaded):
    """The key's own limit. `headers` tell how far it is; unless `may_retry`, coming back soon is of no use. An infinite
    `retry_after_s` is never."""

    def __init__(
        self,
        message: str,
        retry_after_s: float,
        headers: dict[str, str],
        *,
        may_retry: bool = True,
        code: str | None = None,
    ) -> None:
        super().__init__(message, retry_after_s)
        self.headers = headers
        self.may_retry = may_retry
        self.code = code or type(self).code


class Draining(Overloaded):
    """This server takes nothing new and will end; another one, or the one after it, does."""

    http_status = 503
    error_type = "ServiceUnavailableError"
    code: str | None = "draining"

    def __init__(self) -> None:
        super().__init__("this server is draining: it ends what it has and takes nothing new", 5.0)


class GrammarsUnavailable(Overloaded):
    """No schema or grammar can be tried now, whatever it says."""

    http_status = 503
    error_type = "ServiceUnavailableError"
    code: str | None = "grammars_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the process that tries schemas and grammars {reason}; send the request again", 10.0
        )


class ModelUnavailable(Overloaded):
    """A model could not be brought into memory; it is tried again for a request after `retry_after_s`."""

    http_status = 503
    error_type = "ServiceUnavailableError"
    code: str | None = "model_unavailable"

    def __init__(self, model: str, reason: str, retry_after_s: float) -> None:
        super().__init__(f"the model {model!r} cannot be loaded now: {reason}", retry_after_s)


class LedgerUnavailable(BatonError):
    """Usage cannot be written, and the operator wants no answers without it."""

    http_status = 503
    error_type = "ServiceUnavailableError"
    code: str | None = "ledger_unavailable"


class RequestAborted(BatonError):
    """The client went away, or an operator cancelled the request."""

    http_status = 499
    error_type = "RequestAborted"


class DeadlineExceeded(BatonError):
    """The request's own deadline passed."""

    http_status = 504
    error_type = "DeadlineExceededError"


class TransferError(BatonError):
    """KV blocks could not be moved or proven; never a reason to serve text."""

    http_status = 502
    error_type = "TransferError"


class LayoutMismatch(TransferError):
    """Two pools disagree about the meaning of their bytes; `field` names where."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field

    @classmethod
    def of(cls, field: str, ours: object, theirs: object) -> LayoutMismatch:
        """What two values of one field make."""
        return cls(f"KV layouts differ in {field}: ours {ours!r}, theirs {theirs!r}", field)


class LeaseExpired(TransferError):
    """The holder of the blocks no longer promises their bytes."""


class PeerLost(TransferError):
    """The process at the other end is gone or does not answer."""


class OutOfReach(PeerLost):
    """This road does not lead to the other process, and need not: another one is taken."""


class DigestMismatch(TransferError):
    """The bytes read are not the bytes promised; the read blocks were dropped."""


class WorkerLost(BatonError):
    """Every worker that could have served the request died."""

    http_status = 503
    error_type = "ServiceUnavailableError"


class NoLauncher(BatonError):
    """Workers cannot be started: no launcher is connected."""

    http_status = 503
    error_type = "ServiceUnavailableError"


class ProtocolError(BatonError):
    """A message that breaks the protocol: counted and dropped, never fatal."""

    http_status = 502
    error_type = "ProtocolError"


class ConfigError(BatonError):
    """A flag, variable or file that cannot work; the message names it and says what to do."""


class StoreError(ConfigError):
    """A path that cannot hold stored blocks, or that another process uses; the message names both."""


class GivenUp(BatonError):
    """Every attempt at the request failed, or ended the worker that made it."""


class InternalError(BatonError):
    """A bug of ours."""
