"""The tables of methods in `README.md` and `docs/`, and their papers in `CITATION.cff`.

    python docs/extensions/method_tables.py

What a method computes and the paper's address come from its docstring, its title from the heading of its
section on a page of `docs/methods/`, and the rest from `methods.yml`, which says what its fields are.
"""

import inspect
import re
from pathlib import Path
from typing import NamedTuple

import yaml

import optax_sam

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# The methods are the functions that have a file of their name in `optax_sam.methods`.
METHODS = [
    name
    for name in optax_sam.__all__
    if getattr(getattr(optax_sam, name), "__module__", "") == f"optax_sam.methods.{name}"
]

# On the front page.
FIRST = ("sam", "asam", "info_sam", "eigen_sam", "xsam", "momentum_sam")


class Section(NamedTuple):
    """What the section of a method says, and where it is."""

    page: str
    title: str
    price: str
    state: str
    published_values: str
    try_when: str


def described() -> dict[str, dict[str, str]]:
    """What `methods.yml` says of each method."""
    return yaml.safe_load((DOCS / "extensions" / "methods.yml").read_text(encoding="utf-8"))


def sections() -> dict[str, Section]:
    """Reads the pages of the methods: the section of each method, by its name.

    Raises:
        ValueError: if a method has no section, or what is said of it is incomplete.
    """
    found, said = {}, described()
    for path in sorted((DOCS / "methods").glob("*.md")):
        for part in re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            for name in re.findall(r"^\.\. autofunction:: optax_sam\.(\w+)$", part, re.MULTILINE):
                if set(said.get(name, {})) != set(Section._fields[2:]):
                    fields = ", ".join(Section._fields[2:])
                    raise ValueError(f"docs/extensions/methods.yml has {fields} of each method; see {name}")
                found[name] = Section(path.name, part.split("\n")[0], **said[name])
    for name in METHODS:
        if name not in found:
            raise ValueError(f"{name} has no section: write one in docs/methods/, as in balls.md")
    return found


def equation(name: str) -> str:
    """What a method computes: the first line of its docstring, after the name."""
    summary = inspect.getdoc(getattr(optax_sam, name)).split("\n\n")[0].replace("\n", " ")
    return summary.split(": ", 1)[-1].removesuffix(".")


class Paper(NamedTuple):
    """A paper in the references of a docstring: Foret et al., `Title <address>`_, 2021."""

    authors: str
    title: str
    address: str
    year: str


def papers(name: str) -> list[Paper]:
    """The papers of a method, its own first."""
    references = inspect.getdoc(getattr(optax_sam, name)).split("\nReferences:\n")[1]
    found = re.findall(r"([A-Z][^`]+), `([^`<]+) <(https://[^>]+)>`_, (\d{4})", " ".join(references.split()))
    return [Paper(*(part.strip() for part in match)) for match in found]


CITATION = """\
# The list of references is written by `python docs/extensions/method_tables.py`.
cff-version: 1.2.0
title: "optax_sam: sharpness-aware minimisation for JAX"
message: If a method helps your work, cite its paper, listed below; and this software, if it did.
type: software
authors:
  - name: The optax_sam authors
version: {version}
license: Apache-2.0
references:
"""


def citation() -> str:
    """The text of `CITATION.cff`."""
    every = {paper.address: paper for name in METHODS for paper in papers(name)}
    entries = [
        "  - type: article\n"
        f"    authors:\n      - name: {paper.authors}\n"
        f'    title: "{paper.title}"\n    year: {paper.year}\n    url: {paper.address}\n'
        for paper in every.values()
    ]
    return CITATION.format(version=optax_sam.__version__) + "".join(entries)


def tables(methods: str) -> dict[str, str]:
    """The tables, by name.

    Args:
        methods: the folder of the methods' pages, seen from the page that the table is for.
    """
    said = sections()
    anchor = lambda name: said[name].title.lower().replace(" ", "-")
    link = lambda name: f"[`{name}`]({methods}{said[name].page}#{anchor(name)})"
    row = lambda cells: [cell.replace("|", r"\|") for cell in cells]
    rows = [
        row(
            [
                f"[{said[name].title}]({papers(name)[0].address})",
                link(name),
                equation(name),
                said[name].price,
                said[name].state,
            ]
        )
        for name in METHODS
    ]
    reasons = [row([link(name), said[name].published_values, said[name].try_when]) for name in METHODS]
    titles = ["Method", "Alias", "What it computes", "Gradients per step", "Extra state"]
    return {
        "methods": table(titles, rows),
        "first": table(
            titles[:4], [cells[:4] for name, cells in zip(METHODS, rows, strict=True) if name in FIRST]
        ),
        "choose": table(["Alias", "Published values to start from", "Try it when"], reasons),
    }


def table(titles: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows))


def filled(page: str, name: str, text: str) -> str:
    """Puts a table between its marks."""
    before, after = re.escape(f"<!-- table: {name} -->\n"), re.escape("<!-- end -->")
    page, count = re.subn(f"({before}).*?({after})", lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the page has {count} places for the table {name!r}; it needs one")
    return page


# Page: the folder of the methods' pages seen from there, and its table.
PLACES = {
    "README.md": ("docs/methods/", "first"),
    "docs/methods/index.md": ("", "methods"),
    "docs/choose.md": ("methods/", "choose"),
}


def filled_pages() -> dict[Path, str]:
    """The text of `CITATION.cff` and of every page with a table of this file."""
    read = lambda path: path.read_text(encoding="utf-8")
    pages = {ROOT / "CITATION.cff": citation()}
    for page, (folder, name) in PLACES.items():
        pages[ROOT / page] = filled(read(ROOT / page), name, tables(folder)[name])
    return pages


def write_pages() -> None:
    """Writes them."""
    for path, text in filled_pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_pages()
