"""`dim network`: making a network, inviting to it, joining it, and who is in it."""

from __future__ import annotations

import asyncio
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen

if TYPE_CHECKING:
    from dim_pipelines.domain.roster import Member, Role
    from dim_pipelines.identity.roster import RosterView
    from dim_pipelines.settings import Home

app = typer.Typer(help="Make a network, invite to it, join it, see who is in it.", no_args_is_help=True)

HomeOption = Annotated[
    Path | None, typer.Option("--home", metavar="DIR", help="The DIM_HOME; $DIM_HOME when left out.")
]
RolesOption = Annotated[
    list[str] | None,
    typer.Option("--role", help="node, orchestrator, run_host, publisher or user; may be repeated."),
]
SessionsOption = Annotated[
    int | None, typer.Option("--max-sessions", min=0, help="The most work sessions at a time; no limit when left out.")
]
StreamsOption = Annotated[
    int | None, typer.Option("--max-streams", min=0, help="The most tunnels at a time; no limit when left out.")
]


@app.command("init")
def init(
    label: Annotated[str | None, typer.Option("--label", help="This member's name; the host's when left out.")] = None,
    owner: Annotated[str, typer.Option("--owner", help="Whom this member belongs to.")] = "local",
    renew: Annotated[
        bool, typer.Option("--renew", help="No new network: let this home sign the roster for another 30 days.")
    ] = False,
    root_key: Annotated[
        Path | None,
        typer.Option("--root-key", metavar="FILE", help="With --renew: the root key, where it is not in the home."),
    ] = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Make a network whose first member is this home.

    The root key keys/root.key IS the network: move it to a safe place, it is needed again only for --renew.
    """
    from dim_pipelines.orchestrator.founding import found

    screen, where = Screen(as_json, debug), _home(home)
    if renew:
        return _renew(screen, where, root_key)
    membership = found(where, label or socket.gethostname(), owner, _now_ms())
    root = where.keys / "root.key"
    record = {"network": membership.network, "name": membership.name, "root_key": str(root), "home": str(where.root)}
    lines = [
        f"network  {membership.network}",
        f"root key {root}: keep it safe and offline; whoever has it is the network",
        "next     dim orchestrator start (or dim up), then dim network invite",
    ]
    screen.result(record, "\n".join(lines))
    return Exit.DONE


def _renew(screen: Screen, home: Home, root_key: Path | None) -> int:
    from dim_pipelines.errors import ConfigurationError
    from dim_pipelines.orchestrator.admissions import load_key, root_key_path
    from dim_pipelines.orchestrator.door import keep
    from dim_pipelines.orchestrator.founding import keep_root_record, open_editor

    path = root_key or root_key_path(home)
    root = load_key(path)
    if root is None:
        raise ConfigurationError(f"there is no root key at {path}", hint="say where it is: --root-key FILE")
    editor, now = open_editor(home, _now_ms()), _now_ms()
    view = editor.admissions.renew(editor.membership.roster, root, now)
    keep(editor.membership, view, now)
    keep_root_record(home, root, view)
    ends = view.delegation.not_after_ms
    screen.result(
        {"network": view.network, "version": view.version, "not_after_ms": ends},
        f"this home may sign the roster until {_day(ends)}",
    )
    return Exit.DONE


@app.command("invite")
def invite(
    role: RolesOption = None,
    owner: Annotated[str, typer.Option("--owner", help="Whom the new member belongs to.")] = "local",
    hours: Annotated[float, typer.Option("--hours", min=0.01, max=24 * 365, help="How long it may be used.")] = 24.0,
    max_sessions: SessionsOption = None,
    max_streams: StreamsOption = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Print an invite: a string that admits one member, once. Pass it on as secretly as a password."""
    from dim_pipelines.database.engine import open_database
    from dim_pipelines.domain.roster import Limits
    from dim_pipelines.errors import ConfigurationError
    from dim_pipelines.identity.invites import format_invite
    from dim_pipelines.orchestrator.founding import open_editor
    from dim_pipelines.orchestrator.invites import Admission, Invites
    from dim_pipelines.wire.tls import certificate_hash

    screen, where, now = Screen(as_json, debug), _home(home), _now_ms()
    editor = open_editor(where, now)
    own = editor.membership.member
    if not editor.admissions.can_edit or not own.doors or own.certificate is None:
        raise ConfigurationError(
            "this home has no door through which somebody could join",
            hint="start its orchestrator: dim orchestrator start, or dim up",
        )
    pin = certificate_hash(own.certificate)
    admission = Admission(_roles(role or ["node"]), owner, Limits(max_sessions=max_sessions, max_streams=max_streams))
    made = Invites(open_database(where.database_url)).make(
        editor.membership.network,
        [(door, pin) for door in own.doors],
        admission,
        lifetime_ms=int(hours * 3_600_000),
        now_ms=now,
    )
    text = format_invite(made)
    if not (where.network / "orchestrator.json").exists():
        screen.warn("no orchestrator runs in this home: nobody can join before it does (dim orchestrator start)")
    record = {
        "invite": text,
        "id": made.id,
        "roles": list(made.roles),
        "doors": list(made.doors),
        "not_after_ms": made.not_after_ms,
    }
    screen.say(f"for one {', '.join(made.roles)}, until {_day(made.not_after_ms)}; there: dim network join INVITE")
    screen.result(record, text)
    return Exit.DONE


@app.command("join")
def join(
    invite: Annotated[str, typer.Argument(help="What dim network invite printed.")],
    label: Annotated[str | None, typer.Option("--label", help="This member's name; the host's when left out.")] = None,
    publishers: Annotated[
        bool,
        typer.Option(
            "--publishers/--no-publishers", help="Load models that the network's publishers have signed, or do not."
        ),
    ] = True,
    home: HomeOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Join a network with an invite; then `dim node start` lends this machine to it."""
    from dim_pipelines.identity.invites import parse_invite
    from dim_pipelines.identity.joining import join_network
    from dim_pipelines.identity.keys import load_or_create_key
    from dim_pipelines.identity.membership import Membership
    from dim_pipelines.orchestrator.daemon import member_key

    screen, where = Screen(as_json, debug), _home(home)
    text = "".join(invite.split())
    before = Membership.load(where)
    if before is not None:
        key = member_key(where, before)
    else:
        a_node = "node" in parse_invite(text, _now_ms()).roles
        key = load_or_create_key(where.node_key if a_node else where.user_key)
    joined = asyncio.run(
        join_network(where, text, label=label or socket.gethostname(), key=key, trust_publishers=publishers)
    )
    roles = joined.member.roles
    record = {"network": joined.network, "name": joined.name, "roles": list(roles), "home": str(where.root)}
    lines = [f"joined {joined.network} as {', '.join(roles)}", f"name   {joined.name}"]
    if "node" in roles:
        trust = "are" if publishers else "are not"
        lines.append(f"models signed by the network's publishers {trust} loaded here (--no-publishers, --publishers)")
        lines.append("next   dim node start")
    elif "orchestrator" in roles:
        lines.append("next   dim orchestrator start")
    screen.result(record, "\n".join(lines))
    return Exit.DONE


@app.command("admit")
def admit(
    key: Annotated[str, typer.Argument(help="The member's public key (ed25519:…) or IPNS name (k51…).")],
    role: RolesOption = None,
    owner: Annotated[str, typer.Option("--owner", help="Whom the member belongs to.")] = "local",
    label: Annotated[str, typer.Option("--label", help="The member's name for people.")] = "",
    max_sessions: SessionsOption = None,
    max_streams: StreamsOption = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Admit a key to the network, or change what an admitted one may do."""
    from dim_pipelines.domain.ipns import ipns_name
    from dim_pipelines.domain.roster import Limits, Member
    from dim_pipelines.orchestrator.door import keep
    from dim_pipelines.orchestrator.founding import open_editor

    screen, where, now = Screen(as_json, debug), _home(home), _now_ms()
    editor = open_editor(where, now)
    public = _public(key)
    before = editor.membership.roster.members.get(ipns_name(public))
    fields = before.model_dump() if before else {"key": public, "admitted_ms": now}
    changed = {
        "roles": _roles(role or ["node"]),
        "owner": owner,
        "label": label or (before.label if before else ""),
        "limits": Limits(max_sessions=max_sessions, max_streams=max_streams),
    }
    member = Member.model_validate({**fields, **changed})
    view = editor.admissions.admit(editor.membership.roster, [member], now)
    keep(editor.membership, view, now)
    screen.result(
        {"name": ipns_name(public), "roles": list(member.roles), "version": view.version},
        f"{ipns_name(public)} is in the network as {', '.join(member.roles)} (roster version {view.version})",
    )
    return Exit.DONE


@app.command("revoke")
def revoke(
    member: Annotated[str, typer.Argument(help="IPNS name, public key or label of the member.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; the member and everybody else sees it.")] = "revoked",
    home: HomeOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Take a member out of the network for good; its open streams are cut within seconds."""
    from dim_pipelines.errors import ConfigurationError
    from dim_pipelines.orchestrator.door import keep
    from dim_pipelines.orchestrator.founding import open_editor

    screen, where, now = Screen(as_json, debug), _home(home), _now_ms()
    editor = open_editor(where, now)
    name = _find(editor.membership.roster, member)
    if name == editor.membership.name:
        raise ConfigurationError("this home cannot revoke itself: nobody could admit members any more")
    view = editor.admissions.revoke(editor.membership.roster, name, reason, now)
    keep(editor.membership, view, now)
    screen.result(
        {"name": name, "reason": reason, "version": view.version}, f"revoked {name} (roster version {view.version})"
    )
    return Exit.DONE


@app.command("roster")
def roster(
    home: HomeOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Show the members of this home's network."""
    from dim_pipelines.orchestrator.founding import open_editor

    screen, where = Screen(as_json, debug), _home(home)
    membership = open_editor(where, _now_ms()).membership
    view = membership.roster
    record = {
        "network": view.network,
        "name": membership.name,
        "version": view.version,
        "issued_ms": view.roster.issued_ms,
        "signed_until_ms": view.delegation.not_after_ms,
        "members": [_member_record(name, each) for name, each in view.members.items()],
        "revoked": [
            {"name": name, "reason": each.reason, "revoked_ms": each.revoked_ms} for name, each in view.revoked.items()
        ],
    }
    screen.say(f"network {view.network}")
    screen.say(f"roster version {view.version}; it may be edited until {_day(view.delegation.not_after_ms)}")
    rows: list[list[object]] = [
        [each.label + (" (this home)" if name == membership.name else ""), ",".join(each.roles), each.owner, name]
        for name, each in view.members.items()
    ]
    rows += [["", f"revoked: {each.reason}", "", name] for name, each in view.revoked.items()]
    screen.table(["LABEL", "ROLES", "OWNER", "NAME"], rows, record)
    return Exit.DONE


def _member_record(name: str, member: Member) -> dict[str, Any]:
    return {
        "name": name,
        "label": member.label,
        "roles": list(member.roles),
        "owner": member.owner,
        "limits": member.limits.model_dump(exclude_none=True),
        "addresses": list(member.addresses),
        "doors": list(member.doors),
        "admitted_ms": member.admitted_ms,
    }


def _roles(given: list[str]) -> tuple[Role, ...]:
    from dim_pipelines.domain.roster import ROLES
    from dim_pipelines.errors import ConfigurationError

    for each in given:
        if each not in ROLES:
            raise ConfigurationError(f"not a role: {each!r}", hint=f"it is one of {', '.join(ROLES)}")
    return tuple(dict.fromkeys(cast("list[Role]", given)))


def _public(text: str) -> bytes:
    from dim_pipelines.domain.ipns import public_of
    from dim_pipelines.identity.keys import PUBLIC_KEY_PREFIX, parse_public_key

    return parse_public_key(text) if text.startswith(PUBLIC_KEY_PREFIX) else public_of(text)


def _find(view: RosterView, text: str) -> str:
    """Give the name of the member that a person means.

    Raises:
        ConfigurationError: none is, or several are.
    """
    from dim_pipelines.domain.ipns import ipns_name
    from dim_pipelines.errors import ConfigurationError, DimError

    labelled = [name for name, each in view.members.items() if each.label == text]
    if len(labelled) == 1:
        return labelled[0]
    if labelled:
        raise ConfigurationError(
            f"{len(labelled)} members are called {text!r}", hint="say its name: dim network roster"
        )
    try:
        name = ipns_name(_public(text))
    except DimError:
        name = ""
    if name not in view.members:
        raise ConfigurationError(f"no member is called {text!r}", hint="see dim network roster")
    return name


def _home(given: Path | None) -> Home:
    from dim_pipelines.settings import Home

    return Home.at(given)


def _day(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
