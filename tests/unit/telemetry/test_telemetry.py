from __future__ import annotations

import json
import logging
import socket
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.telemetry.logging import REQUEST_ID, JsonFormatter, set_up
from dim_pipelines.telemetry.metrics import LinkMetrics, MetricsServer, NodeMetrics, OrchestratorMetrics, RpcMetrics


@pytest.fixture(autouse=True)
def kept_handlers() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = handlers, level


def test_every_metric_is_shown_with_its_labels_on_loopback() -> None:
    registry = CollectorRegistry()
    node, rpc = NodeMetrics(registry), RpcMetrics(registry)
    node.tasks.labels("done").inc(3)
    rpc.requests.labels("s", "m", "OK").inc()
    server = MetricsServer(registry)
    with urllib.request.urlopen(server.address, timeout=5) as answer:
        text = answer.read().decode()
    server.close()
    assert 'dim_node_tasks_total{outcome="done"} 3.0' in text
    assert server.address.startswith("http://127.0.0.1:")
    documented = f"{NodeMetrics.__doc__}{RpcMetrics.__doc__}"
    assert all(name in documented for name in (*vars(node), *vars(rpc)))


def test_a_metrics_port_in_use_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match="cannot serve metrics"):
            MetricsServer(CollectorRegistry(), taken.getsockname()[1])


def test_json_lines_carry_the_request_and_what_was_given(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "x.log"
    set_up("info", as_json=True, file=path)
    token = REQUEST_ID.set("r1")
    logging.getLogger("dim.test").info("moved %d", 3, extra={"shard": 7})
    REQUEST_ID.reset(token)
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("dim.test").exception("failed")
    logging.getLogger("dim.test").debug("unseen")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["message"] for line in lines] == ["moved 3", "failed"]
    assert lines[0]["request"] == "r1" and lines[0]["shard"] == 7 and lines[0]["level"] == "info"
    assert "request" not in lines[1] and "ValueError: odd" in lines[1]["traceback"]


def test_a_second_set_up_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("warning")
    set_up("warning")
    logging.getLogger("dim.test").warning("once")
    assert capsys.readouterr().err.count("once") == 1
    assert isinstance(JsonFormatter(), logging.Formatter)


def test_an_orchestrators_metrics_are_read_when_they_are_asked_for() -> None:
    registry = CollectorRegistry()
    records, joins, nodes = Counter({("bus", "new"): 2}), Counter({"admitted": 1}), {"ELIGIBLE": 3}
    OrchestratorMetrics(
        registry, records=lambda: records, joins=lambda: joins, nodes=lambda: nodes, roster_version=lambda: 7
    )
    records["announce", "rolled_back"] += 1
    shown = generate_latest(registry).decode()
    assert 'dim_orchestrator_records_total{outcome="new",road="bus"} 2.0' in shown
    assert 'dim_orchestrator_records_total{outcome="rolled_back",road="announce"} 1.0' in shown
    assert 'dim_orchestrator_joins_total{outcome="admitted"} 1.0' in shown
    assert 'dim_orchestrator_nodes{state="ELIGIBLE"} 3.0' in shown
    assert "dim_orchestrator_roster_version 7.0" in shown


def test_a_relays_metrics_are_in_its_registry() -> None:
    registry = CollectorRegistry()
    metrics = LinkMetrics(registry)
    metrics.attached.set(2)
    metrics.tunnels.inc()
    metrics.bytes.labels("in").inc(10)
    metrics.ended.labels("Dial", "done").inc()
    shown = generate_latest(registry).decode()
    assert "dim_link_attached_nodes 2.0" in shown and "dim_link_tunnels 1.0" in shown
    assert 'dim_link_bytes_total{direction="in"} 10.0' in shown
    assert 'dim_link_streams_ended_total{code="done",method="Dial"} 1.0' in shown
