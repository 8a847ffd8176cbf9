"""What the documents say is true: their code runs, and every public name is documented."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import optax_sam
from optax_sam import curvature, diagnostics, sde
from optax_sam.diagnostics import plotting

ROOT = Path(__file__).parent.parent
SETUP = "Setup: plain JAX"


def python_blocks(document):
    """Returns (heading, code, line) of every ```python block."""
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    blocks, heading, language, start = [], "", None, 0
    for number, line in enumerate(lines, 1):
        if language is None and (match := re.match(r"#+ (.*)", line)):
            heading = match[1]
        elif language is None and line.startswith("```"):
            language, start = line.removeprefix("```"), number
        elif language is not None and line == "```":
            if language == "python":
                blocks.append((heading, "\n".join(lines[start : number - 1]), start))
            language = None
    assert language is None, f"{document}:{start}: the block is not closed"
    return blocks


def run(document, code, line, namespace):
    # As many empty lines in front as there are in the document, so that tracebacks point into it.
    exec(compile("\n" * line + code, str(ROOT / document), "exec"), namespace)


README = python_blocks("README.md")
FIRST_SCRIPT = README[0][1]
SETUP_BLOCK = next(block for block in README if block[0] == SETUP)
BLOCKS = [("README.md", *block) for block in README[1:]] + [
    ("CONTRIBUTING.md", *block) for block in python_blocks("CONTRIBUTING.md")
]
FUNCTIONS = [name for name in optax_sam.__all__ if inspect.isfunction(getattr(optax_sam, name))]
# The methods are the functions of this module; the stages are all others.
METHODS = [name for name in FUNCTIONS if getattr(optax_sam, name).__module__.startswith("optax_sam.methods.")]


@pytest.fixture(scope="module")
def setup_namespace():
    """The names that the README's recipes share, as a reader has them after the setup block."""
    namespace = {"__name__": "readme"}
    run("README.md", *SETUP_BLOCK[1:], namespace)
    return namespace


def block_id(block):
    document, heading, _, line = block
    return f"{document}:{line}-{re.sub(r'[^a-z0-9]+', '-', heading.lower()).strip('-')}"


@pytest.mark.parametrize("block", BLOCKS, ids=block_id)
def test_block_runs(block, setup_namespace):
    document, heading, code, line = block
    if heading == SETUP:
        return  # The fixture has run it.
    run(document, code, line, dict(setup_namespace) if document == "README.md" else {"__name__": "example"})


def promised_accuracies():
    return map(float, re.findall(r"`test accuracy (0\.\d\d)`", (ROOT / "README.md").read_text("utf-8")))


def test_first_script_is_short_and_runs_as_it_stands(tmp_path):
    assert len(FIRST_SCRIPT.splitlines()) <= 25
    script = tmp_path / "script.py"
    script.write_text(FIRST_SCRIPT, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False
    )
    assert result.returncode == 0, result.stderr
    sam, sgd = promised_accuracies()
    assert float(result.stdout.removeprefix("test accuracy ")) == pytest.approx(sam, abs=0.04)
    assert sam > sgd


def test_first_script_without_perturbation_prints_what_the_text_says(capsys):
    assert FIRST_SCRIPT.count("rho=0.2") == 1
    exec(FIRST_SCRIPT.replace("rho=0.2", "rho=0.0"), {"__name__": "readme"})
    _, sgd = promised_accuracies()
    assert float(capsys.readouterr().out.removeprefix("test accuracy ")) == pytest.approx(sgd, abs=0.04)


def test_every_alias_is_in_the_table_of_methods():
    section = (ROOT / "README.md").read_text("utf-8").split("\n## Methods\n")[1].split("\n## ")[0]
    table = section.strip().split("\n\n")[0].splitlines()
    assert table[0].startswith("| Method | Alias |")
    assert sorted(row.split("|")[2].strip(" `") for row in table[2:]) == sorted(METHODS)


MODULES = [optax_sam, curvature, diagnostics, plotting, sde]
PUBLIC = {f"{module.__name__}.{name}": getattr(module, name) for module in MODULES for name in module.__all__}
public_functions = pytest.mark.parametrize("name", [n for n in PUBLIC if inspect.isfunction(PUBLIC[n])])
public_tuples = pytest.mark.parametrize("name", [n for n in PUBLIC if hasattr(PUBLIC[n], "_fields")])


@pytest.mark.parametrize("name", PUBLIC)
def test_public_symbol_is_documented(name):
    # A module is not documented here: some define a function of their own name, which hides them.
    assert not inspect.ismodule(PUBLIC[name])
    assert PUBLIC[name].__doc__


@public_functions
def test_public_function_has_every_section(name):
    doc = inspect.getdoc(PUBLIC[name])
    for section in ("Args:", "Returns:", "Example:") + (() if "plotting" in name else ("Cost:",)):
        assert f"\n{section}" in doc, f"{name} has no section {section!r}"
    assert ">>>" in doc, f"the example of {name} is no code"
    arguments = doc.split("\nArgs:")[1].split("\nReturns:")[0]
    for argument in inspect.signature(PUBLIC[name]).parameters:
        assert re.search(rf"^\s+{argument}: ", arguments, re.MULTILINE), f"{name} does not explain {argument}"


@public_tuples
def test_public_tuple_explains_its_fields(name):
    for field in PUBLIC[name]._fields:
        assert re.search(rf"^\s+{field}: ", PUBLIC[name].__doc__, re.MULTILINE), (
            f"{name} does not explain {field}"
        )
