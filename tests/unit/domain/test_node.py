from __future__ import annotations

from dim_pipelines.domain.advertisement import AdvertisedDevice, Advertisement
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.node import Device, describe_advertised, numerics_class


def test_a_numerics_class_tells_machine_and_element_type_apart() -> None:
    names = {
        numerics_class(base, dtype) for base in ("torch-2.15/cpu/a", "torch-2.15/cpu/b") for dtype in ("FP32", "BF16")
    }
    assert len(names) == 4


def test_what_a_node_advertises_is_what_the_scheduler_sees() -> None:
    model = Cid.of(RAW, b"model")
    said = Advertisement(
        label="attic", version="1", devices=(AdvertisedDevice(id="cpu", kind="cpu", name="A", memory_bytes=9),),
        numerics={"echo": "e/1"}, models=(model,), max_input_bytes=5, max_sessions=2, price=3, labels={"room": "attic"},
        owners=("ada",), licences=("MIT",), swarm="s", paused=True, draining=True,
    )  # fmt: skip
    seen = describe_advertised("k51", bytes(32), "grace", said)
    assert (seen.id, seen.key, seen.owner, seen.name) == ("k51", bytes(32), "grace", "attic")
    assert seen.devices == (Device("cpu", "cpu", "A", 9),) and seen.models == {model}
    for name in ("version", "numerics", "max_input_bytes", "max_sessions", "price", "labels", "owners", "licences"):
        assert getattr(seen, name) == getattr(said, name)
    assert (seen.swarm, seen.paused, seen.draining) == ("s", True, True)
