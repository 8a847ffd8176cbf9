"""From the docstrings of this project to what `sphinx.ext.napoleon` reads.

The docstrings have Google's sections, and beside them

    equations and code, indented by four columns: they become literal blocks;
    lists of names, indented by two columns: they become lists;
    paragraphs `Cost: ...`, `Symbols: ...`, `Deviations from ...: ...`: the word becomes bold;
    `Example: what it shows`, followed by the example.

In the text, `|` and `*` are what they look like: |w|, w*.
"""

import ast
import inspect
import pkgutil
import re
import textwrap
from itertools import groupby
from typing import Any

from sphinx.application import Sphinx

import optax_sam.ascent
import optax_sam.descent

SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Example:", "References:")


def escaped(text: str) -> str:
    """Escapes what reStructuredText would take for markup, outside of code."""
    parts = re.split(r"(`[^`]*`_?|(?<!\w)\*\w[\w ]*\*(?!\w))", text)  # Code and *emphasis* stay.
    parts[::2] = [re.sub(r"[|*]|(?<=\w)_(?=\W|$)", r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


def language(lines: list[str]) -> str:
    """Returns the language of a literal block, for its colours."""
    try:
        ast.parse(textwrap.dedent("\n".join(lines)))
    except SyntaxError:
        return "text"
    return "python"


def block(lines: list[str], *, in_section: bool) -> list[str]:
    """One block of lines without an empty line in it, as reStructuredText."""
    first = lines[0]
    indent = len(first) - len(first.lstrip())
    if any(line.lstrip().startswith(">>>") for line in lines):
        return lines
    if indent >= 4 and not in_section:
        return [f".. code-block:: {language(lines)}", "", *lines]
    if indent == 2 and not in_section and re.match(r"  \w+: ", first):
        marked = [re.sub(r"^  (?=\S)", "- ", line) if line[2] != " " else line[2:] for line in lines]
        return escaped("\n".join(re.sub(r"^- (\w+): ", r"- `\1`: ", line) for line in marked)).splitlines()
    text = "\n".join(lines)
    if match := re.match(r"(Cost|Symbols|Deviations[^:]*): ", text):
        words = re.sub(r"\n\s*", "\n", escaped(text[match.end() :]))
        return f"**{match[1]}:** {words}".splitlines()
    return escaped(text).splitlines()


def convert(lines: list[str]) -> list[str]:
    """Converts a docstring."""
    result, section = [], ""
    for empty, group in groupby(lines, key=lambda line: not line.strip()):
        body = list(group)
        if empty:
            result += body
            continue
        if body[0] and not body[0][0].isspace():
            section = ""
        if match := re.match(r"Example: (.*)", body[0]):
            example = next(i for i, line in enumerate(body) if line.lstrip().startswith(">>>"))
            body = ["Example:", f"  {escaped(match[1])}", *body[1:example], "", *body[example:]]
            result += body
            section = "Example:"
        elif body[0] in SECTIONS:
            section = body[0]
            text = "\n".join(body[1:])
            if section == "References:":  # One below the other.
                text = re.sub(r"(>`_, \d{4}.*)\n", r"\1\n\n", text)
            elif section != "Example:":
                text = escaped(text)
            result += [section, *text.splitlines()]
        else:
            result += block(body, in_section=bool(section))
    return result


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Replaces the lines of a docstring."""
    lines[:] = convert(lines)


def skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out the methods, which have pages of their own, and fields, which their class explains."""
    is_method = inspect.isfunction(obj) and obj.__module__ == f"optax_sam.methods.{obj.__name__}"
    is_field = type(obj).__name__ == "_tuplegetter"
    return True if is_method or is_field else None


def list_stage_files(app: Sphinx, page: str, content: list[str]) -> None:
    """Puts the docstring of every stage's file at the end of the page `api/stages`."""
    if page == "api/stages":
        for package in (optax_sam.ascent, optax_sam.descent):
            for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                content[0] += f"\n## {module.name}\n\n```{{eval-rst}}\n.. automodule:: {module.name}\n```\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers all of them; the first one before napoleon (500)."""
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("autodoc-skip-member", skip)
    app.connect("source-read", list_stage_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
