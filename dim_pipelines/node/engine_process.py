"""The process that runs models: shut in first, then it imports numpy, pyarrow and torch, then it serves.

The daemon spawns it as `python -I -c BOOT CONFIG`, because an isolated interpreter finds neither a checkout
nor a parent's `sys.path` by itself. It answers one request at a time over an inherited socketpair (see
`frames`): `load`, `warm`, `run`, `unload`. It holds no key, no environment and no way out but that socket.
"""

from __future__ import annotations

import importlib
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from dim_pipelines.errors import DimError, EngineFailed, InputError, ProtocolError
from dim_pipelines.node.confinement import Limits, confine, die_with_parent, limit_resources
from dim_pipelines.node.frames import FrameSocket

if TYPE_CHECKING:  # these import numpy and pyarrow, which may happen only once the process is shut in
    from dim_pipelines.domain.model import ModelDescription
    from dim_pipelines.node.engines.engine import Engine, LoadedModel

BOOT: Final = (
    "import sys, json; c = json.loads(sys.argv[1]); sys.path[:] = c['sys_path']; "
    "from dim_pipelines.node.engine_process import main; main(c)"
)

EngineFactory = Callable[[str, int], "Engine"]
"""(device, threads) → engine; imports its library when called."""


def main(config: Mapping[str, Any], factories: Mapping[str, EngineFactory] | None = None) -> None:
    """Be an engine process until the daemon closes the socket.

    Args:
        config: what `engine_host.EngineConfig.to_child` wrote.
        factories: engine name → how to make it; those of DIM when left out.
    """
    shut_in(config)
    connection = FrameSocket(socket.socket(fileno=config["socket"]))
    engines: dict[str, Engine] = {}
    missing: dict[str, str] = {}
    for name in config["engines"]:
        try:
            engines[name] = (factories or FACTORIES)[name](config["device"], config["threads"])
        except (ImportError, KeyError) as error:
            missing[name] = f"{type(error).__name__}: {error}"
    _settle_pyarrow()
    # Imported now, so that the first task need not wait for it.
    importlib.import_module("dim_pipelines.node.engines.shard_run")
    from dim_pipelines.content.transforms import transforms_class

    server = _Server(engines)
    connection.send(
        {
            "op": "hello",
            "confined": bool(config["confine"]),
            "numerics": {name: f"{engine.numerics()}/{transforms_class()}" for name, engine in engines.items()},
            "missing": missing,
            "memory": _device_memory(config["device"]),
            "device": _device_name(config["device"]),
        }
    )
    while (request := connection.receive()) is not None:
        header, payload = request
        reply(connection, *server.answer(header, payload))


def reply(connection: FrameSocket, answer: dict[str, Any], parts: Sequence[bytes]) -> None:
    """Send an answer; one that is too large for a frame becomes a failure, and the process goes on."""
    try:
        connection.send(answer, *parts)
    except ProtocolError as error:
        connection.send({"ok": False, **_told(error)})


class _NoPandas(MetaPathFinder):
    """Hides pandas while it stands in `sys.meta_path`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Refuse pandas, leave all else to the others."""
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is not used in an engine process", name=fullname)
        return None


def _settle_pyarrow() -> None:
    """Let pyarrow make its first array, with which it looks for pandas once and for all: it costs a second to import.

    Pandas is hidden for this moment only, because torch's tracer asks for it and takes an error amiss.
    """
    import pyarrow as pa

    hiding = _NoPandas()
    sys.meta_path.insert(0, hiding)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(hiding)


def shut_in(config: Mapping[str, Any]) -> None:
    """Bind this process to its parent's life, limit it and confine it; ends it where that fails."""
    die_with_parent(config["parent"])
    # The kernel, short of memory, should take the engine before the daemon (proc(5), oom_score_adj).
    Path("/proc/self/oom_score_adj").write_text("800")
    limit_resources(Limits(memory_bytes=config["memory_bytes"], file_bytes=config["file_bytes"]))
    if config["confine"]:
        confine(*([Path(path) for path in config[kind]] for kind in ("readable", "writable", "devices")))


def _echo(device: str, threads: int) -> Engine:
    from dim_pipelines.node.engines.echo import EchoEngine

    return EchoEngine()


def _torch(device: str, threads: int) -> Engine:
    from dim_pipelines.node.engines.torch import TorchEngine

    return TorchEngine(device, threads)


FACTORIES: Final[Mapping[str, EngineFactory]] = {"echo": _echo, "torch": _torch}


def _device_memory(device: str) -> int:
    """Give the device's memory in bytes; the machine's for `cpu` (proc(5), meminfo)."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _device_name(device: str) -> str:
    """Name the device as its maker does."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else "cpu"


class _Server:
    """The models that are loaded, and the four requests."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines
        self._loaded: dict[str, tuple[LoadedModel, ModelDescription, Engine]] = {}

    def answer(self, header: Mapping[str, Any], payload: memoryview) -> tuple[dict[str, Any], list[bytes]]:
        """Do what a request says; every error becomes an answer."""
        try:
            match header.get("op"):
                case "load":
                    return self._load(header), []
                case "run":
                    return self._run(header, payload)
                case "warm":
                    return self._warm(header), []
                case "unload":
                    self._unload(header["model"])
                    return {"ok": True}, []
            raise ProtocolError(f"unknown request {header.get('op')!r}")
        except Exception as error:  # the daemon gets every failure as an answer: this process must go on
            return {"ok": False, **_told(error)}, []

    def _load(self, header: Mapping[str, Any]) -> dict[str, Any]:
        from dim_pipelines.domain.model import ModelDescription
        from dim_pipelines.node.engines.memory import give_back

        description = ModelDescription.model_validate(header["description"])
        engine = self._engines.get(description.engine)
        if engine is None:
            raise EngineFailed(f"this node has no engine {description.engine!r}")
        give_back()
        begun, before = time.monotonic(), engine.resident_bytes()
        if header["model"] not in self._loaded:
            self._loaded[header["model"]] = (engine.load(Path(header["folder"]), description), description, engine)
        return {
            "ok": True,
            "resident": max(0, engine.resident_bytes() - before),
            "ms": int((time.monotonic() - begun) * 1000),
        }

    def _unload(self, name: str) -> None:
        from dim_pipelines.node.engines.memory import give_back

        loaded = self._loaded.pop(name, None)
        if loaded:
            loaded[0].close()
        del loaded
        give_back()

    def _warm(self, header: Mapping[str, Any]) -> dict[str, Any]:
        """Run a model once on zeros, to have its memory and its time measured; `failed` says when it dislikes them."""
        import numpy as np

        from dim_pipelines.content.tensors import DTYPES

        model, description, engine = self._loaded[header["model"]]
        before = engine.resident_bytes()
        zeros = {
            tensor.name: np.zeros(
                (header["batch_rows"], *(max(1, size) for size in tensor.shape)), DTYPES[tensor.datatype]
            )
            for tensor in description.inputs
        }
        failed, begun = "", time.perf_counter()
        try:
            model.run(zeros, {})
        except EngineFailed as error:
            failed = error.message
        spent_us = int((time.perf_counter() - begun) * 1e6)
        return {"ok": True, "peak": max(0, engine.peak_bytes() - before), "us": spent_us, "failed": failed}

    def _run(self, header: Mapping[str, Any], payload: memoryview) -> tuple[dict[str, Any], list[bytes]]:
        from dim_pipelines.node.engines.shard_run import run_shard

        loaded = self._loaded.get(header["model"])
        if loaded is None:
            raise EngineFailed("the model is not loaded")
        model, description, engine = loaded
        before = engine.resident_bytes()
        results: list[dict[str, Any]] = []
        parts: list[bytes] = []
        offset = 0
        for size in header["sizes"]:
            begun = time.perf_counter()
            try:
                data = bytes(payload[offset : offset + size])
                output = run_shard(model, description, data, header["batch_rows"], header["parameters"])
            except Exception as error:  # one shard's failure is its own, whatever it is
                results.append(_told(error))
            else:
                parts.append(output.data)
                results.append(
                    {
                        "size": len(output.data),
                        "rows": output.rows,
                        "errors": [(item.row, item.reason) for item in output.errors],
                        "us": int((time.perf_counter() - begun) * 1e6),
                    }
                )
            offset += size
        return {"ok": True, "results": results, "peak": max(0, engine.peak_bytes() - before)}, parts


def _told(error: Exception) -> dict[str, Any]:
    """Give an error as plain data; what is no DimError is the model's failure."""
    if isinstance(error, (EngineFailed, InputError)):
        return {"code": error.code, "message": error.message}
    if isinstance(error, DimError):
        return {"code": EngineFailed.code, "message": error.message}
    lines = str(error).strip().splitlines()
    return {"code": EngineFailed.code, "message": f"{type(error).__name__}: {lines[0][:300] if lines else ''}"}
