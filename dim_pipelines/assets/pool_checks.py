"""The checks of `node_pool`: enough nodes can compute, and those that answer also keep their records fresh.

The sensor `ipns_nodes` evaluates them by itself when their answer changes, and with each snapshot; a person may run
them from the page at any time. Both ask the same functions.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import dagster as dg

from dim_pipelines.assets.nodes import SHOWN_NODES, count_states, is_available, node_pool
from dim_pipelines.discovery.node_table import NodeRow
from dim_pipelines.orchestrator.network_view import NetworkView

STALE_LEFT_MS: Final = 45_000
"""A record with less time than this has missed two renewals: it is valid for 180 s and renewed every 60 s."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        check: the check's name.
        passed: whether all is well.
        words: what was found, one line.
        severity: how bad a failure is.
        metadata: the figures behind it.
    """

    check: str
    passed: bool
    words: str
    severity: dg.AssetCheckSeverity
    metadata: Mapping[str, dg.MetadataValue]

    def evaluation(self) -> dg.AssetCheckEvaluation:
        """Give the event that the sensor reports, without a run."""
        return dg.AssetCheckEvaluation(
            asset_key=node_pool.key,
            check_name=self.check,
            passed=self.passed,
            description=self.words,
            severity=self.severity,
            metadata=self.metadata,
        )

    def result(self) -> dg.AssetCheckResult:
        """Give what the check answers when it is run."""
        return dg.AssetCheckResult(
            passed=self.passed, description=self.words, severity=self.severity, metadata=self.metadata
        )


def judge_quorum(rows: Sequence[NodeRow], wanted: int) -> Finding:
    """Find out whether at least `wanted` nodes take new work."""
    available = sum(map(is_available, rows))
    counts = count_states(rows)
    return Finding(
        check="quorum",
        passed=available >= wanted,
        words=f"{available} of {len(rows)} known nodes take work; at least {wanted} should",
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "available": dg.MetadataValue.int(available),
            "wanted": dg.MetadataValue.int(wanted),
            **{state.lower(): dg.MetadataValue.int(count) for state, count in counts.items() if count},
        },
    )


def judge_records(rows: Sequence[NodeRow], now_ms: int) -> Finding:
    """Find nodes that answer while their signed records run out: their publishing, or our hearing, is broken.

    Nodes that do not answer are left out: that they publish nothing is no news.
    """
    answering = [row for row in rows if row.state in ("VERIFIED", "ELIGIBLE")]
    stale = [row for row in answering if row.expires_ms - now_ms < STALE_LEFT_MS]
    return Finding(
        check="stale_records",
        passed=not stale,
        words=f"{len(stale)} of {len(answering)} answering nodes have missed two renewals of their record or more",
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "stale": dg.MetadataValue.int(len(stale)),
            "nodes": dg.MetadataValue.json(
                {row.label: f"{round((row.expires_ms - now_ms) / 1000)} s left" for row in stale[:SHOWN_NODES]}
            ),
        },
    )


@dg.asset_check(asset=node_pool.key, description="At least as many nodes take work as the network should have.")
def quorum(network: dg.ResourceParam[NetworkView]) -> dg.AssetCheckResult:
    """Look at the node table now."""
    return judge_quorum(network.table.rows(), network.quorum).result()


@dg.asset_check(asset=node_pool.key, description="Nodes that answer renew their signed records in time.")
def stale_records(network: dg.ResourceParam[NetworkView]) -> dg.AssetCheckResult:
    """Look at the node table now."""
    return judge_records(network.table.rows(), time.time_ns() // 1_000_000).result()
