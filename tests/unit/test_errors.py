"""Every error of the tree: its code is its own, its docstring is its message, and its hint can be given."""

from __future__ import annotations

import inspect

import pytest

from dim_pipelines import errors
from dim_pipelines.errors import DimError, NoFeasibleNode

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, DimError)]


def test_each_error_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in CLASSES]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("kind", CLASSES)
def test_the_docstring_is_the_default_message(kind: type[DimError]) -> None:
    error = kind()
    assert error.message == str(error) == (inspect.getdoc(kind) or "")
    assert "\n" not in error.message
    assert error.hint == kind.default_hint


@pytest.mark.parametrize("kind", CLASSES)
def test_message_and_hint_can_be_given(kind: type[DimError]) -> None:
    error = kind("row 3 is wrong", hint="mend it")
    assert (str(error), error.hint) == ("row 3 is wrong", "mend it")


@pytest.mark.parametrize("kind", CLASSES)
def test_the_tree_in_the_module_names_each_error(kind: type[DimError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")


def test_no_feasible_node_tells_each_nodes_reason() -> None:
    error = NoFeasibleNode(reasons={"b": "too small", "a": "draining"})
    assert str(error) == "no node can take this work (a: draining; b: too small)"
    assert error.reasons == {"a": "draining", "b": "too small"}
    assert str(NoFeasibleNode("none", reasons={"a": "x"})) == "none"
