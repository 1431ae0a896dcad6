"""Every error that DIM raises on purpose.

The tree says what the caller should do::

    DimError
    ├── ConfigurationError         mend the settings or the command line
    ├── InputError                 mend the rows, the columns or the file (carries where)
    ├── AccessError
    │   ├── Unauthenticated        say who you are
    │   ├── Forbidden              ask the owner for trust or a role
    │   └── QuotaExceeded          wait, or ask for more
    ├── ContentError
    │   ├── ContentNotFound        nobody asked has the block
    │   ├── ContentMismatch        the bytes are not what the CID names
    │   └── ContentUnavailable     the store does not answer, or is full (retryable)
    ├── DiscoveryError
    │   ├── NameUnresolved         nobody asked knows a record of the name (retryable)
    │   ├── RecordExpired          the publisher has to publish again
    │   ├── RecordForged           the record is malformed, foreign, or not signed by its name's key
    │   └── RolledBack             an older record or roster than one that was accepted
    ├── NodeError
    │   ├── NodeUnreachable        another node (retryable)
    │   ├── NodeBusy               the same node later, or another (retryable)
    │   ├── NodeRefused            another node: this one will not take the task
    │   └── EngineFailed           the model failed on the rows (retryable elsewhere)
    ├── SchedulingError
    │   └── NoFeasibleNode         carries each node's reason
    ├── CoordinationError
    │   └── StaleEpoch             a newer run of the batch has taken over: stop
    ├── ProtocolError              the other side sent what the protocol forbids: drop the session
    └── Cancelled                  the user stopped the batch

The docstring of a class is its default message. Foreign errors are translated where they are met and
always chained as the cause.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping


class DimError(Exception):
    """Something in DIM failed."""

    code = "internal"
    retryable = False
    default_hint = ""

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        """Make the error.

        Args:
            message: one line: what was wrong and where. The class's docstring when left out.
            hint: what the person can do about it; the class's default hint when left out.
        """
        self.message = message or (inspect.getdoc(type(self)) or "").splitlines()[0]
        self.hint = self.default_hint if hint is None else hint
        super().__init__(self.message)


class ConfigurationError(DimError):
    """A setting or an argument is wrong."""

    code = "configuration"


class InputError(DimError):
    """The input cannot be used."""

    code = "input"


class AccessError(DimError):
    """Access was denied."""

    code = "access"


class Unauthenticated(AccessError):
    """The caller did not say who they are."""

    code = "unauthenticated"


class Forbidden(AccessError):
    """The caller may not do this."""

    code = "forbidden"


class QuotaExceeded(AccessError):
    """A limit of the caller is used up."""

    code = "quota_exceeded"
    retryable = True


class ContentError(DimError):
    """Content could not be stored or read."""

    code = "content"


class ContentNotFound(ContentError):
    """No store that was asked has this content."""

    code = "content_not_found"


class ContentMismatch(ContentError):
    """The bytes are not what their CID names."""

    code = "content_mismatch"


class ContentUnavailable(ContentError):
    """The content store does not answer or cannot write."""

    code = "content_unavailable"
    retryable = True


class DiscoveryError(DimError):
    """A record or a roster cannot be used."""

    code = "discovery"


class NameUnresolved(DiscoveryError):
    """No record of this name can be found."""

    code = "name_unresolved"
    retryable = True


class RecordExpired(DiscoveryError):
    """The record has expired."""

    code = "record_expired"


class RecordForged(DiscoveryError):
    """The record is not what its name's key signed."""

    code = "record_forged"


class RolledBack(DiscoveryError):
    """A newer one was accepted before."""

    code = "rolled_back"


class NodeError(DimError):
    """A node could not do a task."""

    code = "node"


class NodeUnreachable(NodeError):
    """The node does not answer."""

    code = "node_unreachable"
    retryable = True


class NodeBusy(NodeError):
    """The node has no room at the moment."""

    code = "node_busy"
    retryable = True


class NodeRefused(NodeError):
    """The node will not take this work."""

    code = "node_refused"


class EngineFailed(NodeError):
    """The engine failed while it ran the model."""

    code = "engine_failed"
    retryable = True


class SchedulingError(DimError):
    """The work could not be placed."""

    code = "scheduling"


class NoFeasibleNode(SchedulingError):
    """No node can take this work."""

    code = "no_feasible_node"

    def __init__(
        self,
        message: str | None = None,
        *,
        reasons: Mapping[str, str] | None = None,
        hint: str | None = None,
    ) -> None:
        """Make the error.

        Args:
            message: one line; when left out it is made from the reasons.
            reasons: node name → why that node cannot take the work.
            hint: what to do.
        """
        self.reasons = dict(reasons or {})
        if message is None and self.reasons:
            listed = "; ".join(f"{node}: {why}" for node, why in sorted(self.reasons.items()))
            message = f"no node can take this work ({listed})"
        super().__init__(message, hint=hint)


class CoordinationError(DimError):
    """The processes of a batch disagree."""

    code = "coordination"


class StaleEpoch(CoordinationError):
    """A newer run of this batch has taken over."""

    code = "stale_epoch"


class ProtocolError(DimError):
    """The other side broke the protocol."""

    code = "protocol"
    retryable = True


class Cancelled(DimError):
    """The batch was cancelled."""

    code = "cancelled"
