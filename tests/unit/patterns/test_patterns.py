from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import pyarrow as pa
import pytest

from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import DAG_CBOR, RAW, Cid
from dim_pipelines.domain.dataset import Column, Dataset
from dim_pipelines.domain.model import ModelDescription, ModelInput
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.patterns import registry
from dim_pipelines.patterns.collaborative import Collaborative
from dim_pipelines.patterns.pattern import Pattern, make_plan
from dim_pipelines.patterns.registry import find_pattern

DATASET = Dataset(
    columns=(Column(name="row", type="int64"), Column(name="x", type="double")),
    rows=1,
    shards=1,
    shard_rows=1,
    pages=(),
)


@dataclass(frozen=True)
class Model:
    cid: Cid
    description: ModelDescription
    signatures: tuple[Cid, ...] = ()


def model(column: str = "x", most: int = 64) -> Model:
    description = ModelDescription(
        name="m",
        version="1",
        engine="echo",
        inputs=(ModelInput(name="x", datatype="FP32", shape=(), column=column),),
        max_batch_rows=most,
        licence="MIT",
    )
    return Model(Cid.of(RAW, b"model"), description, (Cid.of(DAG_CBOR, b"signature"),))


def spec(**changes: Any) -> BatchSpec:
    return BatchSpec.read(
        {"name": "b", "models": [{"model": "m", "parameters": {"t": 1}}], "input": "x.csv", **changes}
    )


def test_collaborative_is_one_step_with_the_parameters_and_the_grid_of_the_spec() -> None:
    planned = make_plan(
        find_pattern("collaborative"), spec(batch_rows=16), [model()], DATASET.cid(), DATASET, "class-1"
    )
    (step,) = planned.plan.steps
    assert (step.model, step.parameters, step.batch_rows) == (model().cid, {"t": 1}, 16)
    assert (step.columns, step.signatures) == (("x",), model().signatures)
    assert planned.plan.work == planned.work.cid()
    assert (planned.work.batch_rows, planned.work.columns) == (16, ("x",))
    assert (planned.work.numerics, planned.plan.numerics) == ("class-1", "class-1")
    assert planned.work.dataset == DATASET.cid()


def test_the_same_arguments_give_the_same_work() -> None:
    first, second = (
        make_plan(Collaborative(), spec(name=name), [model()], DATASET.cid(), DATASET, "any") for name in ("a", "b")
    )
    assert first.work.cid() == second.work.cid()


def test_signatures_are_no_part_of_the_work() -> None:
    unsigned = Model(model().cid, model().description)
    first, second = (
        make_plan(Collaborative(), spec(), [some], DATASET.cid(), DATASET, "any") for some in (model(), unsigned)
    )
    assert first.work == second.work
    assert first.plan != second.plan


def test_a_grid_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="batch_rows is 65, the model m takes at most 64"):
        Collaborative().steps(spec(batch_rows=65), [model()], DATASET)


def test_a_chosen_grid_is_one_that_the_model_takes() -> None:
    assert Collaborative().steps(spec(), [model(most=4)], DATASET)[0].batch_rows == 4


@pytest.mark.parametrize("count", [0, 2])
def test_collaborative_takes_one_model(count: int) -> None:
    with pytest.raises(ConfigurationError, match=f"takes one model, found {count}"):
        Collaborative().steps(spec(), [model()] * count, DATASET)


def test_a_column_that_the_dataset_lacks_is_named() -> None:
    with pytest.raises(ConfigurationError, match="lacks the column 'y'") as caught:
        make_plan(Collaborative(), spec(), [model("y")], DATASET.cid(), DATASET, "any")
    assert caught.value.hint == "it has row, x"


def test_collaborative_gives_the_output_of_its_step() -> None:
    rows = pa.record_batch({"row": [1], "y": [2]})
    assert Collaborative().reduce([rows]) is rows


@pytest.mark.parametrize(
    ("name", "hint"), [("colaborative", "did you mean 'collaborative'?"), ("zzz", "patterns: collaborative")]
)
def test_an_unknown_pattern_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_pattern(name)
    assert caught.value.hint == hint


class Offered(Collaborative):
    name = "offered"


class Broken:
    def __init__(self) -> None:
        raise RuntimeError("no licence")


class Nothing:
    pass


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(*, group: str) -> list[EntryPoint]:
        assert group == "dim_pipelines.patterns"
        return [EntryPoint(name, f"somewhere:{name}", group) for name in ("offered", "broken", "nothing")]

    kinds = {"offered": Offered, "broken": Broken, "nothing": Nothing}
    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(EntryPoint, "load", lambda self: kinds[self.name])


@pytest.mark.usefixtures("offer")
def test_another_package_offers_a_pattern_by_entry_point() -> None:
    found = find_pattern("offered")
    assert isinstance(found, Pattern)
    assert found.name == "offered"


@pytest.mark.usefixtures("offer")
def test_a_pattern_that_cannot_be_loaded_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="'broken' cannot be loaded: no licence"):
        find_pattern("broken")


@pytest.mark.usefixtures("offer")
def test_what_is_no_pattern_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="somewhere:nothing, offered as the pattern 'nothing', is no pattern"):
        find_pattern("nothing")
