from __future__ import annotations

from dim_pipelines.domain.node import numerics_class


def test_a_numerics_class_tells_machine_and_element_type_apart() -> None:
    names = {
        numerics_class(base, dtype) for base in ("torch-2.15/cpu/a", "torch-2.15/cpu/b") for dtype in ("FP32", "BF16")
    }
    assert len(names) == 4
