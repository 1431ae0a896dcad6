"""Questions of `dim doctor` about a network: membership, certificates, and what orchestrators answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dim_pipelines.cli.doctor_findings import Finding, Question
from dim_pipelines.errors import ConfigurationError, DimError

if TYPE_CHECKING:
    from dim_pipelines.domain.roster import Role
    from dim_pipelines.identity.certificates import ClientCertificate
    from dim_pipelines.identity.membership import Membership, Orchestrator
    from dim_pipelines.node.contacts import Contacts
    from dim_pipelines.settings import Home
    from dim_pipelines.wire.v1 import orchestrator_pb2

_DAY_MS: Final = 86_400_000
_HOUR_MS: Final = 3_600_000
DELEGATION_SOON_MS: Final = 5 * _DAY_MS
"""A roster that nobody may sign any more in less than this is worth a warning."""
CERTIFICATE_SOON_MS: Final = 6 * _HOUR_MS
"""A client certificate is renewed at half of its 24 hours: one with less left than this was not."""
SKEW_BAD_MS: Final = 30_000
"""A record further in the future is refused (`discovery.judgement`)."""
SKEW_WARNING_MS: Final = 5_000
LAST_TASKS: Final = 10


@dataclass(frozen=True, slots=True)
class Answer:
    """What an orchestrator said of this home's member, or why it said nothing.

    Attributes:
        orchestrator: who.
        seconds: how long it took.
        skew_ms: how far this machine's clock is ahead of the orchestrator's.
        reply: what it said; None where it did not.
        error: why not.
    """

    orchestrator: Orchestrator
    seconds: float
    skew_ms: int
    reply: orchestrator_pb2.GetNodeReply | None
    error: DimError | None = None


class NetworkVisit:
    """One visit to all orchestrators, shared by the questions that need its answers."""

    def __init__(self, membership: Membership) -> None:
        """Prepare the visit of a home."""
        self.membership = membership
        self._visiting: asyncio.Task[list[Answer]] | None = None

    def questions(self) -> dict[str, Question]:
        """Give the questions by name, in the order in which they are shown."""
        checks: dict[str, Question] = {
            "network": self.network,
            "certificates": self.certificates,
            "orchestrators": self.orchestrators,
            "clock": self.clock,
        }
        if "node" in self._roles():
            checks |= {"record": self.record, "last tasks": self.last_tasks}
        return checks

    async def network(self) -> Finding:
        """Ask whether this home is a member, and how long the roster can still be signed."""
        membership, now_ms = self.membership, _now_ms()
        view = membership.roster
        member = membership.member  # raises with the reason where it was revoked
        text = f"{member.label or membership.name[:12]} is {', '.join(member.roles)} of {view.network}"
        left_ms = view.delegation.not_after_ms - now_ms
        details = (
            f"roster version {view.version}, {len(view.members)} members, {len(view.revoked)} revoked; "
            f"it may be signed for {_span(left_ms)} more",
        )
        if left_ms < DELEGATION_SOON_MS:
            hint = "the holder of the root key renews it: see docs/how-to/run-a-network.md"
            return Finding("network", "bad" if left_ms <= 0 else "warning", text, hint, details)
        return Finding("network", "good", text, details=details)

    async def certificates(self) -> Finding:
        """Ask when each client certificate ends."""
        now_ms = _now_ms()
        lines, worst = [], None
        for role, certificate in self._clients():
            left_ms = certificate.not_after_ms - now_ms
            worst = left_ms if worst is None else min(worst, left_ms)
            lines.append(f"{role}: {'ended' if left_ms <= 0 else f'{_span(left_ms)} left'}")
        if worst is None:
            return Finding(
                "certificates", "bad", "there is none", "a running daemon fetches them, and `dim network join`"
            )
        text = ", ".join(lines)
        if worst <= 0:
            return Finding("certificates", "bad", text, "a running daemon renews them: does it reach an orchestrator?")
        return Finding("certificates", "warning" if worst < CERTIFICATE_SOON_MS else "good", text)

    async def orchestrators(self) -> Finding:
        """Ask which orchestrators answer over TLS."""
        answers = await self._answers()
        if not answers:
            return Finding("orchestrators", "bad", "the roster names none with an address")
        lines = tuple(
            f"{answer.orchestrator.label} at {', '.join(answer.orchestrator.addresses)}: "
            + (str(answer.error.message) if answer.error else f"{1000 * answer.seconds:.0f} ms")
            for answer in answers
        )
        good = [answer for answer in answers if answer.error is None]
        text = f"{len(good)} of {len(answers)} answer over TLS"
        hints = [answer.error.hint for answer in answers if answer.error and answer.error.hint]
        if not good:
            hint = hints[0] if hints else "are they up, and does a firewall stand between?"
            return Finding("orchestrators", "bad", text, hint, lines)
        return Finding("orchestrators", "good" if len(good) == len(answers) else "warning", text, details=lines)

    async def clock(self) -> Finding:
        """Ask how far this machine's clock is from those of the orchestrators."""
        skews = [answer.skew_ms for answer in await self._answers() if answer.reply is not None]
        if not skews:
            return Finding("clock", "unknown", "no orchestrator told the time")
        return judge_clock(sorted(skews)[len(skews) // 2])

    async def record(self) -> Finding:
        """Ask whether others have this node's record, and in which state they see it."""
        from dim_pipelines.discovery.record import verify_record

        rows = [
            (answer.orchestrator.label, answer.reply.node)
            for answer in await self._answers()
            if answer.reply is not None and answer.reply.HasField("node")
        ]
        if not rows:
            return Finding("record", "bad", "no orchestrator has heard of this node", "dim node start")
        now_ms = _now_ms()
        lines, states = [], set()
        for label, row in rows:
            states.add(row.state)
            line = f"{label}: {row.state} for {_span(now_ms - row.since_ms)}"
            line += f" ({row.reason})" if row.reason else ""
            if row.record:
                record = verify_record(row.record, self.membership.name)
                left_ms = record.expires_ms - now_ms
                line += f", record {record.sequence} " + ("ended" if left_ms <= 0 else f"for {_span(left_ms)} more")
            lines.append(line)
        verdict: dict[str, str] = {"ELIGIBLE": "work may go to it", "VERIFIED": "known, but not seen to answer yet"}
        best = next((state for state in ("ELIGIBLE", "VERIFIED") if state in states), "")
        if not best:
            hint = "dim node start" if "GONE" in states else "does the node's port take connections? See its reach"
            return Finding(
                "record", "bad", f"the network counts it as {' and '.join(sorted(states))}", hint, tuple(lines)
            )
        return Finding("record", "good" if best == "ELIGIBLE" else "warning", verdict[best], details=tuple(lines))

    async def last_tasks(self) -> Finding:
        """Ask why the last batches were not given to this node."""
        kept: dict[tuple[str, int], tuple[bool, Sequence[str]]] = {}
        for answer in await self._answers():
            for each in answer.reply.refusals if answer.reply is not None else ():
                kept[each.batch, each.at_ms] = (each.chosen, tuple(each.reasons))
        if not kept:
            return Finding("last tasks", "unknown", "no batch was planned since this node is known")
        newest = sorted(kept.items(), key=lambda item: item[0][1], reverse=True)[:LAST_TASKS]
        chosen = sum(1 for _, (was, _) in newest if was)
        now_ms = _now_ms()
        lines = tuple(
            f"{batch}, {_span(now_ms - at_ms)} ago: " + ("given to it" if was else "; ".join(reasons) or "not needed")
            for (batch, at_ms), (was, reasons) in newest
        )
        return Finding(
            "last tasks", "good", f"{chosen} of the last {len(newest)} batches were given to it", details=lines
        )

    def _roles(self) -> tuple[Role, ...]:
        """Give what the roster lets this home be; nothing where it was revoked, which `network` says."""
        member = self.membership.roster.members.get(self.membership.name)
        return member.roles if member is not None else ()

    def _clients(self) -> list[tuple[Role, ClientCertificate]]:
        found = []
        for role in self._roles():
            try:
                client = self.membership.client(role)
                client.not_after_ms  # noqa: B018  reads the file
            except ConfigurationError:
                continue  # not every role has one in every home
            found.append((role, client))
        return found

    async def _answers(self) -> list[Answer]:
        if self._visiting is None:
            self._visiting = asyncio.create_task(self._visit())
        return await asyncio.shield(self._visiting)

    async def _visit(self) -> list[Answer]:
        from dim_pipelines.node.contacts import Contacts

        clients = self._clients()
        if not clients:
            raise ConfigurationError("this home has no client certificate to show", hint="dim node start fetches one")
        contacts = Contacts(self.membership.orchestrators, lambda: clients[0][1])
        try:
            return list(await asyncio.gather(*(self._ask(contacts, each) for each in self.membership.orchestrators())))
        finally:
            await contacts.close()

    async def _ask(self, contacts: Contacts, orchestrator: Orchestrator) -> Answer:
        from dim_pipelines.wire.v1 import orchestrator_pb2

        request = orchestrator_pb2.GetNodeRequest(name=self.membership.name, limit=LAST_TASKS)
        begun, begun_ms = time.monotonic(), _now_ms()
        try:
            reply = await contacts.ask(orchestrator, lambda stub: stub.GetNode(request))
        except DimError as error:
            return Answer(orchestrator, time.monotonic() - begun, 0, None, error)
        seconds = time.monotonic() - begun
        # The answer was written about half way between the question and its end.
        skew_ms = begun_ms + int(seconds * 500) - int(reply.now_ms)
        return Answer(orchestrator, seconds, skew_ms, reply)


def judge_clock(skew_ms: int) -> Finding:
    """Say what a clock that is `skew_ms` ahead of the others means; negative: behind."""
    where = "ahead of" if skew_ms > 0 else "behind"
    text = f"{abs(skew_ms) / 1000:.1f} s {where} the orchestrators"
    hint = "set the clock: timedatectl set-ntp true"
    if abs(skew_ms) > SKEW_BAD_MS:
        return Finding("clock", "bad", f"{text}: records and certificates are refused", hint)
    return Finding(
        "clock", "warning" if abs(skew_ms) > SKEW_WARNING_MS else "good", text, hint * (abs(skew_ms) > SKEW_WARNING_MS)
    )


def questions(home: Home) -> dict[str, Question]:
    """Give the questions of a home; one alone where it has joined no network."""
    from dim_pipelines.identity.membership import Membership

    membership = Membership.load(home)
    if membership is not None:
        return NetworkVisit(membership).questions()

    async def none() -> Finding:
        return Finding(
            "network", "unknown", "this home has joined none", "dim network join INVITE, or dim network init"
        )

    return {"network": none}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _span(ms: int) -> str:
    """Write a span of time with its largest unit."""
    seconds = max(0, ms) / 1000
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
