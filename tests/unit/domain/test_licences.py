"""SPDX expressions against an owner's list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.domain.licences import permits


@pytest.mark.parametrize(
    ("expression", "allowed", "met"),
    [
        ("MIT", (), True),
        ("proprietary", (), True),
        ("MIT", ("MIT",), True),
        ("mit", ("MIT",), True),
        ("MIT", ("Apache-2.0",), False),
        ("MIT OR Apache-2.0", ("Apache-2.0",), True),
        ("MIT AND Apache-2.0", ("Apache-2.0",), False),
        ("MIT AND Apache-2.0", ("Apache-2.0", "MIT"), True),
        ("MIT OR GPL-3.0-only AND BSD-3-Clause", ("MIT",), True),
        ("(MIT OR GPL-3.0-only) AND BSD-3-Clause", ("MIT",), False),
        ("(MIT OR GPL-3.0-only) AND BSD-3-Clause", ("GPL-3.0-only", "BSD-3-Clause"), True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", ("GPL-2.0-only",), True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", ("Classpath-exception-2.0",), False),
        ("Our own licence, see LICENSE", ("MIT",), False),
        ("Our own licence, see LICENSE", ("Our own licence, see LICENSE",), True),
        ("MIT OR", ("MIT",), False),
        ("(MIT", ("MIT",), False),
        ("MIT MIT", ("MIT",), False),
        ("", ("MIT",), False),
        ("(" * 100_000, ("MIT",), False),
    ],
)
def test_an_expression_is_met_by_the_ids_that_are_allowed(expression: str, allowed: tuple[str, ...], met: bool) -> None:
    assert permits(expression, allowed) is met


@given(st.text(alphabet="MITAND OR()+.-WH", max_size=60))
def test_any_text_is_judged_and_none_is_an_error(text: str) -> None:
    assert permits(text, ("MIT",)) in (True, False)
    assert permits(text, ())


@given(st.recursive(st.sampled_from(["MIT", "Apache-2.0", "GPL-3.0-only"]), lambda inner: st.tuples(
    inner, st.sampled_from(["AND", "OR"]), inner
).map(lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"), max_leaves=8))  # fmt: skip
def test_more_allowed_ids_never_forbid_what_fewer_let_in(expression: str) -> None:
    if permits(expression, ("MIT",)):
        assert permits(expression, ("MIT", "Apache-2.0"))
    assert permits(expression, ("MIT", "Apache-2.0", "GPL-3.0-only"))
