"""The one tree of errors, and the one table that maps it to HTTP statuses.

FeedbackMetricsError
├── Refused              the event can never be counted: 400, the broker dead-letters it
│   └── TooLarge         the body exceeds FEEDBACK_MAX_BODY: 413
├── Unauthorized         the bearer token is missing or wrong: 401
├── NotFound             a page or model that does not exist: 404, never on POST /
├── Unreadable           a model's stored state cannot be shown: 500, of that model only
├── Unavailable          a retry can succeed: 503 with Retry-After
│   ├── Overloaded       raised when the queue of uncommitted events is full
│   └── StoreUnavailable raised when the store cannot commit or read now
├── StoreUnusable        raised at start when no retry can mend the store: exit status 2
├── ConfigurationError   raised at start when a setting makes no sense: exit status 2
└── ConstantsDiffer      raised by a store when another writer fixed a model's constant first;
                         the committer evaluates again and it never leaves the process
"""

from __future__ import annotations


class FeedbackMetricsError(Exception):
    """Base of every error that this package raises on purpose."""


class Refused(FeedbackMetricsError):
    """Raised when an event can never be counted; says which field is wrong and why."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.model = ""
        """The id of the event's model, where that was known."""


class TooLarge(Refused):
    """Raised when a body is larger than the limit."""


class Unauthorized(FeedbackMetricsError):
    """Raised when the request does not carry the identity that the settings demand."""


class NotFound(FeedbackMetricsError):
    """Raised when a path or a model is unknown."""


class Unreadable(FeedbackMetricsError):
    """Raised when the stored state of a model cannot be shown; the log has the cause."""

    def __init__(self) -> None:
        super().__init__("the stored state of this model cannot be read; the log has more")


class Unavailable(FeedbackMetricsError):
    """Raised when the same request can succeed later."""

    retry_after = 1
    """Seconds after which a retry makes sense."""


class Overloaded(Unavailable):
    """Raised when more events wait for a commit than the queue may hold."""


class StoreUnavailable(Unavailable):
    """Raised when the store cannot commit or read now; `kind` is a label of few values."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class StoreUnusable(FeedbackMetricsError):
    """Raised at start when the store's address or its content can never serve."""


class ConfigurationError(FeedbackMetricsError):
    """Raised at start when a setting, flag or configuration file makes no sense."""


class ConstantsDiffer(FeedbackMetricsError):
    """Raised by `Store.commit` when presupposed constants differ from the stored ones."""


_STATUSES: tuple[tuple[type[FeedbackMetricsError], int, str], ...] = (
    (TooLarge, 413, "Content Too Large"),
    (Refused, 400, "Bad Request"),
    (Unauthorized, 401, "Unauthorized"),
    (NotFound, 404, "Not Found"),
    (Unreadable, 500, "Internal Server Error"),
    (Unavailable, 503, "Service Unavailable"),
)


def status_of(error: BaseException) -> tuple[int, str]:
    """HTTP status and its title for `error`; anything unforeseen is (500, ...)."""
    for kind, status, title in _STATUSES:
        if isinstance(error, kind):
            return status, title
    return 500, "Internal Server Error"
