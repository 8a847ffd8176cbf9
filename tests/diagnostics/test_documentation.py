"""Every public name says what it computes, what it takes, returns and costs, and shows an example."""

import inspect
import re

import pytest

from optax_sam import diagnostics

FUNCTIONS = [name for name in diagnostics.__all__ if inspect.isfunction(getattr(diagnostics, name))]
RESULTS = [name for name in diagnostics.__all__ if name not in FUNCTIONS]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_has_every_section(name):
    function = getattr(diagnostics, name)
    doc = inspect.getdoc(function)
    for section in ("Args:", "Returns:", "Cost:", "Example:"):
        assert f"\n{section}" in doc, f"{name} has no section {section!r}"
    assert ">>>" in doc, f"the example of {name} is no code"
    arguments = doc.split("\nArgs:")[1].split("\nReturns:")[0]
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^\s+{argument}: ", arguments, re.MULTILINE), f"{name} does not explain {argument}"


@pytest.mark.parametrize("name", RESULTS)
def test_result_explains_its_fields(name):
    result = getattr(diagnostics, name)
    for field in result._fields:
        assert re.search(rf"^\s+{field}: ", result.__doc__, re.MULTILINE), f"{name} does not explain {field}"
