"""The material of `dim demo digits`: real images, and a small network trained on half of them.

The 1,797 handwritten digits of scikit-learn (UCI ML "Optical Recognition of Handwritten Digits", 8x8
pixels, values 0 to 16) become a folder of PNGs and a table of labels; 900 of them, drawn with a seed,
train a CNN of 32 and 64 channels, which is written out as a model package. torch, scikit-learn and Pillow
are imported by the functions that need them.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dim_pipelines.domain.model import DESCRIPTION_FILE, ModelDescription
from dim_pipelines.errors import ConfigurationError

MODEL_NAME: Final = "digits-cnn"
IMAGES: Final = 1797
TRAINED_ON: Final = 900
SHARD_ROWS: Final = 16
"""113 shards: enough that each of two nodes takes its part, though one may begin half a second after the other."""
BATCH_ROWS: Final = 16
_SEED: Final = 20
_EPOCHS: Final = 20
_LEARNING_BATCH: Final = 50
_GREY: Final = 15
"""A pixel's value 0..16 times this is its grey 0..240 in the PNG, exactly invertible."""


@dataclass(frozen=True, slots=True)
class Digits:
    """The digits and who trains on what.

    Attributes:
        pixels: uint8 [1797, 8, 8], values 0 to 16.
        labels: int64 [1797], 0 to 9.
        trained: bool [1797], true for the 900 images the network is trained on.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    trained: npt.NDArray[np.bool_]


def load_digits() -> Digits:
    """Read the digits from scikit-learn and draw the 900 to train on.

    Raises:
        ConfigurationError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise _missing("scikit-learn") from error
    bunch: Any = load()
    trained = np.zeros(IMAGES, dtype=np.bool_)
    trained[np.random.default_rng(_SEED).permutation(IMAGES)[:TRAINED_ON]] = True
    return Digits(bunch.images.astype(np.uint8), bunch.target.astype(np.int64), trained)


def write_images(digits: Digits, folder: Path) -> tuple[Path, Path]:
    """Write `folder/images/0000.png …` and `folder/labels.csv` (file, label, set); give both paths."""
    from PIL import Image

    images, labels = folder / "images", folder / "labels.csv"
    images.mkdir(parents=True, exist_ok=True)
    for position, pixels in enumerate(digits.pixels):
        Image.fromarray(pixels * np.uint8(_GREY), mode="L").save(images / image_name(position), optimize=False)
    with labels.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "label", "set"))
        for position, label in enumerate(digits.labels):
            writer.writerow((image_name(position), int(label), "trained" if digits.trained[position] else "unseen"))
    return images, labels


def image_name(position: int) -> str:
    """Name the file of the image at a position."""
    return f"{position:04d}.png"


def write_package(digits: Digits, folder: Path) -> Path:
    """Train the network (one thread, seeded, about 3 s) and write the model package into `folder`.

    Raises:
        ConfigurationError: torch is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.pt2").write_bytes(_train(digits))
    (folder / DESCRIPTION_FILE).write_bytes(describe().to_json())
    return folder


def describe() -> ModelDescription:
    """Say what `dim-model.json` says of the network."""
    return ModelDescription.model_validate(
        {
            "name": MODEL_NAME,
            "version": "1",
            "engine": "torch",
            "files": {"program": "model.pt2"},
            "inputs": [
                {
                    "name": "pixels",
                    "column": "image",
                    "datatype": "FP32",
                    "shape": [1, 8, 8],
                    "preprocess": [
                        {"op": "decode_image", "mode": "L", "size": [8, 8]},
                        {"op": "scale", "factor": 1 / (_GREY * 16)},
                    ],
                }
            ],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [10]}],
            "postprocess": [
                {"op": "argmax", "input": "logits", "output": "digit"},
                {"op": "softmax_max", "input": "logits", "output": "confidence"},
            ],
            "dtype": "FP32",
            "max_batch_rows": 1024,
            "licence": "Apache-2.0",
        }
    )


def _train(digits: Digits) -> bytes:
    try:
        import torch
    except ImportError as error:
        raise _missing("torch") from error
    from torch import nn

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(_SEED)
        network = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 2 * 2, 10),
        )
        # The grey values as the preprocessing gives them: what is trained is what is served.
        grey = digits.pixels[digits.trained][:, None].astype(np.float32) * np.float32(_GREY)
        pixels = torch.from_numpy(grey * np.float32(1 / (_GREY * 16)))
        labels = torch.from_numpy(digits.labels[digits.trained])
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        loss = nn.CrossEntropyLoss()
        for _ in range(_EPOCHS):
            for chosen in torch.split(torch.randperm(len(labels)), _LEARNING_BATCH):
                optimizer.zero_grad()
                loss(network(pixels[chosen]), labels[chosen]).backward()
                optimizer.step()
        network.eval()
        rows = torch.export.Dim("rows", min=1, max=1024)
        program = torch.export.export(network, (pixels[:2],), dynamic_shapes=({0: rows},))
    finally:
        torch.set_num_threads(threads)
    # Saved to a path, the archive would hold the file's name and the model's CID would depend on it.
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def accuracy(digits: Digits, predicted: dict[str, int]) -> float:
    """Give the share of right answers over the unseen images.

    Args:
        digits: the digits.
        predicted: file name → digit.
    """
    unseen = np.flatnonzero(~digits.trained)
    right = sum(predicted.get(image_name(position)) == int(digits.labels[position]) for position in unseen.tolist())
    return right / len(unseen)


def _missing(package: str) -> ConfigurationError:
    return ConfigurationError(f"the demo needs {package}", hint="pip install 'dim-pipelines[demo]'")
