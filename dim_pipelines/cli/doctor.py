"""`dim doctor`: what is wrong with this installation, a line per question, and what to do about it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen
from dim_pipelines.cli.doctor_findings import Finding, Verdict, ask_all
from dim_pipelines.cli.local import IpfsOption

if TYPE_CHECKING:
    from dim_pipelines.settings import Home

_SIGNS: Final[dict[Verdict, str]] = {"good": "ok", "warning": "!!", "bad": "XX", "unknown": "--"}


def doctor(
    home: Annotated[
        Path | None, typer.Option("--home", metavar="DIR", help="DIM_HOME to look at; $DIM_HOME when left out.")
    ] = None,
    ipfs: IpfsOption = "",
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Look at this home, at the node, the Kubo and the orchestrator that run here, and at the way to the network.

    It changes nothing and starts nothing. The exit code is 0 unless something is broken, and then 1.
    """
    from dim_pipelines.settings import Home

    screen = Screen(as_json, debug)
    place = Home.at(home)
    findings = asyncio.run(_examine(place, ipfs))
    counts = Counter(finding.verdict for finding in findings)
    record = {
        "home": str(place.root),
        "findings": [finding.record() for finding in findings],
        "broken": counts["bad"],
        "warnings": counts["warning"],
    }
    screen.result(record, "\n".join(_lines(place, findings)))
    return Exit.FAILED if counts["bad"] else Exit.DONE


def _lines(home: Home, findings: list[Finding]) -> list[str]:
    width = max(len(finding.name) for finding in findings)
    lines = [f"DIM at {home.root}"]
    for finding in findings:
        lines.append(f"{_SIGNS[finding.verdict]}  {finding.name.ljust(width)}  {finding.text}")
        lines += [f"    {' ' * width}  {detail}" for detail in finding.details]
        lines += [f"    {' ' * width}  → {finding.hint}"] if finding.hint else []
    return lines


async def _examine(home: Home, ipfs: str) -> list[Finding]:
    from dim_pipelines.cli import doctor_home, doctor_network
    from dim_pipelines.cli.doctor_node import NodeVisit

    network = doctor_network.questions(home)
    node = NodeVisit(home, ipfs).questions(member=len(network) > 1)
    return await ask_all({**doctor_home.questions(home), **node, **network})
