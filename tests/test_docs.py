"""What the documents say is true: their code runs, and every public name is documented."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import optax_sam
from docs.extensions import method_tables
from optax_sam import curvature, diagnostics, flax, sde
from optax_sam.diagnostics import plotting

ROOT = Path(__file__).parent.parent
SETUP = "docs/recipes/index.md"
PAGES = [
    "CONTRIBUTING.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
]


def python_blocks(document):
    """Returns (code, line) of every ```python block."""
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    blocks, language, start = [], None, 0
    for number, line in enumerate(lines, 1):
        if language is None and line.startswith("```"):
            language, start = line.removeprefix("```"), number
        elif language is not None and line == "```":
            if language == "python":
                blocks.append(("\n".join(lines[start : number - 1]), start))
            language = None
    assert language is None, f"{document}:{start}: the block is not closed"
    return blocks


def run(document, namespace, section=None):
    """Runs the blocks of a page, or of one of its sections, one after another, as a reader would."""
    for code, line in python_blocks(document):
        if section is not None and section_at(document, line) != section:
            continue
        # As many empty lines in front as there are in the document, so that tracebacks point into it.
        exec(compile("\n" * line + code, str(ROOT / document), "exec"), namespace)


def section_at(document, line):
    """Returns the heading of the second level under which a line is; of the whole page if above all."""
    above = (ROOT / document).read_text(encoding="utf-8").splitlines()[:line]
    return next((text.removeprefix("## ") for text in reversed(above) if text.startswith("## ")), "")


@pytest.fixture(scope="module")
def setup_namespace():
    """The names that recipes share, as a reader has them after the page with the setup."""
    namespace = {"__name__": "setup"}
    run(SETUP, namespace)
    return namespace


def starts_from_setup(document, what=""):
    """Whether a page tells its reader to start from the setup; with `what`, whether "each section" does."""
    text = (ROOT / document).read_text(encoding="utf-8")
    words = rf"{what} starts from the \[setup\]\((recipes/|\.\./recipes/)?index\.md#setup\)".strip()
    return re.search(words.replace(" ", r"\s+"), text) is not None


def programs():
    """The pages with code; of a page whose sections start from the setup, each section."""
    for page in PAGES:
        lines = [line for _, line in python_blocks(page)]
        if starts_from_setup(page, "Each section"):
            yield from ((page, name) for name in dict.fromkeys(section_at(page, line) for line in lines))
        elif lines:
            yield page, None


@pytest.mark.parametrize(("document", "section"), list(programs()))
def test_page_runs(document, section, setup_namespace):
    if document == SETUP:
        return  # The fixture has run it.
    run(document, dict(setup_namespace) if starts_from_setup(document) else {"__name__": "page"}, section)


FIRST_SCRIPT, _ = python_blocks("README.md")[0]


PRINTED = r"test accuracy (0\.\d\d), with noisy weights (0\.\d\d)"


def promised_accuracies():
    """What the text says that the script prints: with SAM, and without."""
    return [
        [*map(float, both)] for both in re.findall(f"`{PRINTED}`", (ROOT / "README.md").read_text("utf-8"))
    ]


def printed_accuracies(output):
    return [*map(float, re.fullmatch(PRINTED, output.strip()).groups())]


def test_first_script_is_short_and_runs_as_it_stands(tmp_path):
    assert len(python_blocks("README.md")) == 1
    assert len(FIRST_SCRIPT.splitlines()) <= 25
    script = tmp_path / "script.py"
    script.write_text(FIRST_SCRIPT, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False
    )
    assert result.returncode == 0, result.stderr
    sam, sgd = promised_accuracies()
    assert printed_accuracies(result.stdout) == pytest.approx(sam, abs=0.03)
    assert all(one > other for one, other in zip(sam, sgd, strict=True))


def test_first_script_without_perturbation_prints_what_the_text_says(capsys):
    assert FIRST_SCRIPT.count("rho=0.5") == 1
    exec(FIRST_SCRIPT.replace("rho=0.5", "rho=0.0"), {"__name__": "readme"})
    _, sgd = promised_accuracies()
    assert printed_accuracies(capsys.readouterr().out) == pytest.approx(sgd, abs=0.03)


def test_readme_fits_two_screens():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_tables_of_methods_are_those_of_the_methods():
    for path, text in method_tables.filled_pages().items():
        assert path.read_text("utf-8") == text, "run `python docs/extensions/method_tables.py`"


def test_every_method_has_one_section_with_its_docstring():
    pages = [path.read_text("utf-8") for path in (ROOT / "docs" / "methods").glob("*.md")]
    shown = [name for page in pages for name in re.findall(r"autofunction:: optax_sam\.(\w+)\n", page)]
    assert sorted(shown) == sorted(method_tables.METHODS)
    assert sorted(method_tables.described()) == sorted(method_tables.METHODS)


def links(document):
    """Returns the targets of a page's links and pictures that are files of this repository."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target.split("#")[0] for target in targets if not re.match(r"https?:|#", target)]


@pytest.mark.parametrize("document", ["README.md", "benchmarks/README.md", *PAGES])
def test_every_link_leads_to_a_file(document):
    for target in links(document):
        assert ((ROOT / document).parent / target).exists(), target


MODULES = [optax_sam, curvature, diagnostics, flax, plotting, sde]
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
    arguments = inspect.signature(PUBLIC[name]).parameters
    wanted = ["Args:"] * bool(arguments) + ["Returns:", "Example:"] + ["Cost:"] * ("plotting" not in name)
    for section in wanted:
        assert f"\n{section}" in doc, f"{name} has no section {section!r}"
    assert ">>>" in doc, f"the example of {name} is no code"
    if arguments:  # A line that begins as far to the left as a name would be shown as an argument.
        lines = doc.split("\nArgs:\n")[1].split("\n\n")[0].splitlines()
        names = [line for line in lines if re.match(r"\s{2}\S", line)]
        assert all(re.match(r"\s+\*{0,2}\w+: ", line) for line in names), names
    for argument in arguments:
        explained = re.search(rf"\nArgs:.*\n\s+\*{{0,2}}{argument}: .*\nReturns:", doc, re.DOTALL)
        assert explained, f"{name} does not explain {argument}"


@public_tuples
def test_public_tuple_explains_its_fields(name):
    for field in PUBLIC[name]._fields:
        assert re.search(rf"^\s+{field}: ", PUBLIC[name].__doc__, re.MULTILINE), (
            f"{name} does not explain {field}"
        )
