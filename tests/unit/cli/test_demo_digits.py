from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dim_pipelines.cli import demo_digits
from dim_pipelines.domain.model import DESCRIPTION_FILE, ModelDescription


@pytest.fixture(scope="module")
def digits() -> demo_digits.Digits:
    return demo_digits.load_digits()


def test_900_of_1797_are_trained_on(digits: demo_digits.Digits) -> None:
    assert len(digits.labels) == 1797
    assert digits.trained.sum() == 900


def test_the_images_hold_the_pixels_and_the_table_the_labels(digits: demo_digits.Digits, tmp_path: Path) -> None:
    images, labels = demo_digits.write_images(digits, tmp_path)
    names = sorted(path.name for path in images.iterdir())
    assert len(names) == 1797 and names[:2] == ["0000.png", "0001.png"]
    for position in (0, 1000, 1796):
        with Image.open(images / names[position]) as image:
            assert np.array_equal(np.asarray(image) // 15, digits.pixels[position])
    with labels.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == digits.labels.tolist()
    assert sum(row["set"] == "unseen" for row in rows) == 897


def test_the_images_bytes_are_always_the_same(digits: demo_digits.Digits, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        images, _ = demo_digits.write_images(digits, folder)
        return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(images.iterdir()))).hexdigest()

    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_the_description_reads_back() -> None:
    described = demo_digits.describe()
    assert ModelDescription.from_json(described.to_json()) == described
    assert described.columns == ("image",)
    assert described.files == {"program": "model.pt2"}
    assert DESCRIPTION_FILE == "dim-model.json"


def test_accuracy_counts_the_unseen_only(digits: demo_digits.Digits) -> None:
    right = {demo_digits.image_name(at): int(label) for at, label in enumerate(digits.labels)}
    assert demo_digits.accuracy(digits, right) == 1.0
    wrong_on_trained = {
        name: label if not digits.trained[int(name[:4])] else (label + 1) % 10 for name, label in right.items()
    }
    assert demo_digits.accuracy(digits, wrong_on_trained) == 1.0
    assert demo_digits.accuracy(digits, {}) == 0.0
