"""The material of `dim bench pipeline`: a text encoder of MiniLM's shape with seeded weights, and the raw loop.

The shape is that of all-MiniLM-L6-v2 (6 layers, width 384, 12 heads, feed-forward 1,536, 30,522 tokens); random
weights compute exactly as fast as trained ones. All of torch's part runs in a process of its own, so that the
benchmark's process stays a client without torch:

`python -m dim_pipelines.cli.bench_encoder FOLDER ROWS BATCH_ROWS LAYERS` writes the model package into FOLDER, loads
the very program that the nodes load, with one thread, says `ready`, and for every line on its standard input runs
over all rows and writes the seconds.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from dim_pipelines.domain.model import DESCRIPTION_FILE, ModelDescription

if TYPE_CHECKING:
    import pyarrow as pa

MODEL_NAME: Final = "bench-encoder"
WIDTH: Final = 384
HEADS: Final = 12
FEED_FORWARD: Final = 1536
TOKENS: Final = 30522
LENGTH: Final = 64
"""Tokens of a row."""
_SEED: Final = 20


def token_rows(rows: int) -> npt.NDArray[np.int64]:
    """Draw int64 [rows, 64] of token numbers, the same each time."""
    return np.random.default_rng(_SEED).integers(0, TOKENS, size=(rows, LENGTH), dtype=np.int64)


def token_table(rows: int) -> pa.Table:
    """Give the same rows as a table of one column `tokens` (fixed-size list of int64)."""
    import pyarrow as pa

    flat = pa.array(token_rows(rows).reshape(-1), pa.int64())
    return pa.table({"tokens": pa.FixedSizeListArray.from_arrays(flat, LENGTH)})


def write_package(folder: Path, batch_rows: int, layers: int) -> Path:
    """Write the model package into `folder`; its program takes exactly `batch_rows` rows at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.pt2").write_bytes(_export(batch_rows, layers))
    description = ModelDescription.model_validate(
        {
            "name": MODEL_NAME,
            "version": "1",
            "engine": "torch",
            "files": {"program": "model.pt2"},
            "inputs": [{"name": "tokens", "datatype": "INT64", "shape": [LENGTH]}],
            "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [WIDTH]}],
            "max_batch_rows": batch_rows,
            "licence": "Apache-2.0",
        }
    )
    (folder / DESCRIPTION_FILE).write_bytes(description.to_json())
    return folder


def _encoder(layers: int) -> Any:
    import torch
    from torch import nn

    class Layer(nn.Module):
        """One block, with its normalisation after each half as in BERT."""

        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
            self.out = nn.Linear(WIDTH, WIDTH)
            self.first = nn.LayerNorm(WIDTH)
            self.up = nn.Linear(WIDTH, FEED_FORWARD)
            self.down = nn.Linear(FEED_FORWARD, WIDTH)
            self.second = nn.LayerNorm(WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows, length, _ = x.shape
            split = self.qkv(x).view(rows, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(split[0], split[1], split[2])
            x = self.first(x + self.out(mixed.transpose(1, 2).reshape(rows, length, WIDTH)))
            halved: torch.Tensor = self.second(x + self.down(nn.functional.gelu(self.up(x))))
            return halved

    class Encoder(nn.Module):
        """Token and position embeddings, the blocks, and the mean over the tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(TOKENS, WIDTH)
            self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH))
            self.layers = nn.ModuleList(Layer() for _ in range(layers))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.tokens(tokens) + self.positions
            for layer in self.layers:
                x = layer(x)
            pooled: torch.Tensor = x.mean(dim=1)
            return pooled

    torch.manual_seed(_SEED)
    return Encoder().eval()


def _export(batch_rows: int, layers: int) -> bytes:
    import torch

    example = torch.from_numpy(token_rows(batch_rows))
    with torch.no_grad():
        program = torch.export.export(_encoder(layers), (example,))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def raw_loop(program: Path, rows: int, batch_rows: int) -> None:
    """Load and warm the program, then run it over all rows for every line on standard input."""
    import torch

    torch.set_num_threads(1)
    module: Any = torch.export.load(program).module()
    tokens: Any = torch.from_numpy(token_rows(rows))
    batches = tokens.split(batch_rows)
    with torch.inference_mode():
        for batch in batches[:2]:
            module(batch)
        print("ready", flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            outputs = [module(batch).numpy() for batch in batches]
            print(f"{time.perf_counter() - start:.6f} {sum(len(output) for output in outputs)}", flush=True)


if __name__ == "__main__":
    given_rows, given_batch_rows, given_layers = (int(word) for word in sys.argv[2:])
    package = write_package(Path(sys.argv[1]), given_batch_rows, given_layers)
    raw_loop(package / "model.pt2", given_rows, given_batch_rows)
