"""Every metric of DIM, with its labels and meaning. One registry per process part, so that two in a test do not mix.

Names follow https://prometheus.io/docs/practices/naming/: base units, `_total` for counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from dim_pipelines.errors import ConfigurationError

_SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class RpcMetrics:
    """What a gRPC server counts.

    Attributes:
        requests: RPCs that ended. Labels: service, method, code (gRPC's status name).
        seconds: how long they took. Labels: service, method. Streams count with their whole life.
        open: RPCs under way. Labels: service, method.
        refusals: RPCs whose caller was not let in. Labels: service, method (both empty for an unknown method),
            reason (`unauthenticated` | `forbidden`).
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """Define the metrics in a registry."""
        names = ("service", "method")
        self.requests = Counter("dim_rpc_requests", "RPCs that ended", (*names, "code"), registry=registry)
        self.seconds = Histogram("dim_rpc_seconds", "Time of an RPC", names, buckets=_SECONDS, registry=registry)
        self.open = Gauge("dim_rpc_open", "RPCs under way", names, registry=registry)
        self.refusals = Counter(
            "dim_rpc_refusals", "RPCs whose caller was not let in", (*names, "reason"), registry=registry
        )


class NodeMetrics:
    """What a node counts.

    Attributes:
        tasks: tasks answered. Labels: outcome (`done`, or the code of the failure).
        rows: rows computed. Labels: device.
        engine_seconds: time of a shard in the engine. Labels: device, engine.
        bytes: shard bytes. Labels: direction (`in` | `out`).
        sessions: open work streams.
        queued: tasks received and not started. Labels: device.
        engine_starts: engine processes started, restarts included. Labels: device.
        device_bytes: device memory reserved for models. Labels: device.
        cache_bytes: bytes of models on the disk.
        blocks: blocks served. Labels: direction (`get` | `put`).
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """Define the metrics in a registry."""
        device = ("device",)
        self.tasks = Counter("dim_node_tasks", "Tasks answered", ("outcome",), registry=registry)
        self.rows = Counter("dim_node_rows", "Rows computed", device, registry=registry)
        self.engine_seconds = Histogram(
            "dim_node_engine_seconds", "Time of a shard in the engine", ("device", "engine"),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.bytes = Counter("dim_node_shard_bytes", "Bytes of shards", ("direction",), registry=registry)
        self.sessions = Gauge("dim_node_sessions", "Open work streams", registry=registry)
        self.queued = Gauge("dim_node_tasks_queued", "Tasks received and not started", device, registry=registry)
        self.engine_starts = Counter("dim_node_engine_starts", "Engine processes started", device, registry=registry)
        self.device_bytes = Gauge(
            "dim_node_device_reserved_bytes", "Device memory reserved for models", device, registry=registry
        )
        self.cache_bytes = Gauge("dim_node_model_cache_bytes", "Bytes of models on the disk", registry=registry)
        self.blocks = Counter("dim_node_blocks", "Blocks served", ("direction",), registry=registry)


class LinkMetrics:
    """What a relay to attached nodes counts.

    Attributes:
        attached: nodes that are attached.
        tunnels: tunnels that are asked for or open.
        bytes: bytes that went through tunnels, counted at their end. Labels: direction (`in` to a node | `out` of it).
        ended: streams that ended. Labels: method (`Attach` | `Dial` | `Connect`), code (`done`, or that of the error).
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """Define the metrics in a registry."""
        self.attached = Gauge("dim_link_attached_nodes", "Nodes that are attached", registry=registry)
        self.tunnels = Gauge("dim_link_tunnels", "Tunnels that are asked for or open", registry=registry)
        self.bytes = Counter("dim_link_bytes", "Bytes that went through tunnels", ("direction",), registry=registry)
        self.ended = Counter("dim_link_streams_ended", "Streams that ended", ("method", "code"), registry=registry)


class OrchestratorMetrics(Collector):
    """What an orchestrator counts, read from where it is counted anyway when somebody asks.

    Metrics:
        dim_orchestrator_records: records of nodes that were offered. Labels: road (`announce` | `bus` | `ipns` |
            `peer`), outcome (`new`, `duplicate`, or the code of the refusal).
        dim_orchestrator_joins: requests at the door. Labels: outcome (`admitted`, `renewed`, or the code of the
            refusal).
        dim_orchestrator_nodes: nodes in the table. Labels: state.
        dim_orchestrator_roster_version: version of the newest roster.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        records: Callable[[], Mapping[tuple[str, str], int]],
        joins: Callable[[], Mapping[str, int]],
        nodes: Callable[[], Mapping[str, int]],
        roster_version: Callable[[], int],
    ) -> None:
        """Define the metrics in a registry; the callables are asked in the thread that serves `/metrics`."""
        self._records, self._joins, self._nodes, self._version = records, joins, nodes, roster_version
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: asking at the registration would ask a table that is not open yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Give the metrics."""
        records = CounterMetricFamily("dim_orchestrator_records", "Records of nodes", labels=("road", "outcome"))
        for (road, outcome), count in dict(self._records()).items():
            records.add_metric((road, outcome), count)
        joins = CounterMetricFamily("dim_orchestrator_joins", "Requests at the door", labels=("outcome",))
        for outcome, count in dict(self._joins()).items():
            joins.add_metric((outcome,), count)
        nodes = GaugeMetricFamily("dim_orchestrator_nodes", "Nodes in the table", labels=("state",))
        for state, count in self._nodes().items():
            nodes.add_metric((state,), count)
        version = GaugeMetricFamily(
            "dim_orchestrator_roster_version", "Version of the newest roster", value=self._version()
        )
        return (records, joins, nodes, version)


class MetricsServer:
    """Serves `/metrics` of one registry on loopback until it is closed."""

    def __init__(self, registry: CollectorRegistry, port: int = 0) -> None:
        """Bind and serve in a thread of its own.

        Args:
            registry: what to show.
            port: TCP port on 127.0.0.1; 0 takes a free one.

        Raises:
            ConfigurationError: the port is in use.
        """
        try:
            self._server, self._thread = start_http_server(port, addr="127.0.0.1", registry=registry)
        except OSError as error:
            raise ConfigurationError(
                f"cannot serve metrics on 127.0.0.1:{port}: {error.strerror}", hint="choose another metrics port"
            ) from error
        self.address = f"http://127.0.0.1:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=2.0)
