"""The engine `torch`: programs exported with `torch.export` (`.pt2`).

Such a file is a program: reading it can run code. The daemon has checked the signature of a trusted
publisher before a byte of it came here, and this process is confined all the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dim_pipelines.domain.model import ModelDescription
from dim_pipelines.errors import EngineFailed
from dim_pipelines.node.engines.engine import Tensors
from dim_pipelines.node.engines.memory import ProcessMemory

VERSION = 1
# The flags by which oneDNN, MKL and OpenBLAS choose their kernels.
_KERNEL_FLAGS = ("fma", "avx", "f16c", "sse4", "asimd", "sve", "sme", "bf16", "i8mm", "amx", "fp16")


class TorchModel:
    """A loaded program."""

    def __init__(self, module: torch.nn.Module, description: ModelDescription, device: torch.device) -> None:
        """Keep the module on its device."""
        self._module: torch.nn.Module | None = module
        self._inputs = [tensor.name for tensor in description.inputs]
        self._outputs = [tensor.name for tensor in description.outputs]
        self._device = device

    def run(self, inputs: Tensors, parameters: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Run one micro-batch: inputs in the description's order, outputs likewise."""
        module = self._module
        if module is None:
            raise EngineFailed("the model was unloaded")
        try:
            with torch.inference_mode():
                tensors = [torch.from_numpy(np.require(inputs[name], requirements=("C", "W"))) for name in self._inputs]
                answer = module(*(tensor.to(self._device) for tensor in tensors), **parameters)
                found = self._named(answer)
                return {name: found[name].detach().to("cpu").contiguous().numpy() for name in self._outputs}
        except EngineFailed:
            raise
        except MemoryError:
            raise
        except Exception as error:
            raise EngineFailed(f"the model failed: {_first_line(error)}") from error

    def close(self) -> None:
        """Drop the weights."""
        self._module = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _named(self, answer: object) -> dict[str, torch.Tensor]:
        if isinstance(answer, torch.Tensor):
            values: list[object] = [answer]
        elif isinstance(answer, Mapping):
            values = [answer.get(name) for name in self._outputs]
        elif isinstance(answer, (tuple, list)):
            values = list(answer)
        else:
            raise EngineFailed(f"the model returned a {type(answer).__name__}, expected tensors")
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        if len(tensors) != len(values) or len(values) != len(self._outputs):
            raise EngineFailed(
                f"the model returned {len(tensors)} tensors, its description names {len(self._outputs)} outputs"
            )
        return dict(zip(self._outputs, tensors, strict=True))


class TorchEngine(ProcessMemory):
    """Runs programs on `cpu` or `cuda:N` with a fixed number of threads."""

    name = "torch"

    def __init__(self, device: str, threads: int) -> None:
        """Set the threads and the settings that make runs repeatable."""
        super().__init__()
        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        torch.set_grad_enabled(False)
        self._threads = threads
        self._device = torch.device(device)
        if self._device.type == "cuda":
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
            torch.cuda.set_device(self._device)

    def numerics(self) -> str:
        """Name the class: engine, torch, device class, threads, and a hash of the build and the processor's kernels."""
        if self._device.type == "cuda":
            name = torch.cuda.get_device_name(self._device).replace(" ", "-").replace("/", "-")
            major, minor = torch.cuda.get_device_capability(self._device)
            where = f"cuda-{name}-sm{major}{minor}"
            kernels = f"{torch.version.cuda} {_cudnn()}"
        else:
            where = f"cpu-{torch.backends.cpu.get_cpu_capability()}-t{self._threads}"
            kernels = _processor()
        build = hashlib.sha256(f"{torch.__config__.show()}\n{kernels}".encode()).hexdigest()[:12]
        return f"torch-{VERSION}-{torch.__version__}/{where}/{build}"

    def load(self, folder: Path, description: ModelDescription) -> TorchModel:
        """Load the file named by the role `program`."""
        name = description.files.get("program")
        if not name:
            raise EngineFailed("the package names no file with the role 'program'")
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise EngineFailed(f"the program {name!r} does not lie in the package")
        try:
            with (folder / name).open("rb") as file:
                module = torch.export.load(file).module()
            module.to(self._device)
        except MemoryError:
            raise
        except Exception as error:
            raise EngineFailed(f"{name} cannot be loaded: {_first_line(error)}") from error
        return TorchModel(module, description, self._device)

    def resident_bytes(self) -> int:
        """Give the device memory in use: torch's allocator on CUDA, the process on CPU."""
        if self._device.type == "cuda":
            return int(torch.cuda.memory_allocated(self._device))
        return super().resident_bytes()

    def peak_bytes(self) -> int:
        """Give the peak since the last call on CUDA, of the process's life on CPU."""
        if self._device.type == "cuda":
            peak = int(torch.cuda.max_memory_allocated(self._device))
            torch.cuda.reset_peak_memory_stats(self._device)
            return peak
        return super().peak_bytes()


def _cudnn() -> str:
    version: Callable[[], int | None] = torch.backends.cudnn.version
    return str(version())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _processor() -> str:
    """What kernel libraries look at: vendor and vector instructions, from /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return os.uname().machine
    facts: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip().lower(), value.strip())
    flags = facts.get("flags") or facts.get("features") or ""
    wanted = sorted(flag for flag in flags.split() if any(part in flag for part in _KERNEL_FLAGS))
    return " ".join([os.uname().machine, facts.get("vendor_id") or facts.get("cpu implementer") or "", *wanted])
