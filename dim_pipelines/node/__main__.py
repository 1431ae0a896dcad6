"""`python -m dim_pipelines.node`: a daemon for machines; people use `dim node start`.

Prints one line of JSON when it serves, or one that says why it cannot: `{"error", "message", "hint"}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from dim_pipelines.errors import DimError  # gRPC reads its environment when it is imported
from dim_pipelines.node.daemon import NodeAddress, NodeConfig, serve
from dim_pipelines.node.networking import ROADS
from dim_pipelines.settings import Home
from dim_pipelines.telemetry.logging import set_up


def main() -> int:
    """Run a daemon; give its exit code: 0 drained, 1 could not start or failed."""
    parser = argparse.ArgumentParser(prog="python -m dim_pipelines.node", description=__doc__)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--name", default="")
    parser.add_argument("--listen", default="")
    parser.add_argument("--secure-listen", default="")
    parser.add_argument("--advertise", action="append")
    parser.add_argument("--ipfs", default="embedded")
    parser.add_argument("--public", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", action="append")
    parser.add_argument("--engine", action="append")
    parser.add_argument("--trust", action="append")
    parser.add_argument("--metrics-port", type=int, default=0)
    parser.add_argument("--cache-bytes", type=int, default=20 << 30)
    parser.add_argument("--device-bytes", type=int, default=0)
    parser.add_argument("--task-timeout", type=float, default=600.0)
    parser.add_argument("--road", action="append", choices=ROADS)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--log-level", default="info")
    given = parser.parse_args()
    set_up(given.log_level)

    def ready(address: NodeAddress) -> None:
        print(json.dumps(asdict(address)), flush=True)

    try:
        config = NodeConfig(
            home=Home.at(given.home),
            name=given.name,
            listen=given.listen,
            secure_listen=given.secure_listen,
            advertise=tuple(given.advertise or ()),
            ipfs=given.ipfs,
            public=given.public,
            engine_threads=given.threads,
            devices=tuple(given.device or ("cpu",)),
            engines=tuple(given.engine or ("torch", "echo")),
            trust=tuple(given.trust or ()),
            metrics_port=given.metrics_port,
            cache_bytes=given.cache_bytes,
            device_bytes=given.device_bytes,
            task_timeout_s=given.task_timeout,
            roads=tuple(given.road or ()),
            parent=given.parent,
        )
        asyncio.run(serve(config, ready=ready))
    except DimError as error:
        print(json.dumps({"error": error.code, "message": error.message, "hint": error.hint}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
