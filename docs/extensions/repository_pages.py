"""Pages of the site whose text lies elsewhere in the repository, and links to them.

In the repository all links are relative paths, so that they work on a forge and in an editor. On the site
those between documents become links between pages. Those to other files, such as sources, become plain text,
because the site does not have these files.
"""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
# The page of the site: where its text is. What the page's own file says (the tables of contents) follows it.
ELSEWHERE = {
    "index": "README.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "benchmarks": "benchmarks/README.md",
}
PAGE_OF = {source: page for page, source in ELSEWHERE.items()}


def on_the_site(file: str) -> str | None:
    """Returns where a file of the repository is in the site's folder, or None if it is not there."""
    if file in PAGE_OF:
        return f"{PAGE_OF[file]}.md"
    if match := re.fullmatch(r"notebooks/(\w+)\.py", file):
        return f"notebooks/{match[1]}.ipynb"
    return file.removeprefix("docs/") if file.startswith("docs/") and Path(ROOT, file).is_file() else None


def with_links(text: str, source: str, page: str) -> str:
    """Returns a document's text with the links of a page.

    Args:
        text: the document.
        source: its file in the repository.
        page: its page on the site.
    """

    def link(match: re.Match[str]) -> str:
        picture, words, target, heading = match.groups(default="")
        if re.match(r"\w+:", target) or not target:
            return match[0]
        file = os.path.normpath(Path(source).parent / target)
        if not Path(ROOT, file).exists():  # Not a link, but code that looks like one.
            return match[0]
        place = on_the_site(file)
        if place is None:
            return words
        return f"{picture}[{words}]({os.path.relpath(place, Path(page).parent)}{heading})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)", lambda m: link(m), text)


def read(app: Sphinx, page: str, content: list[str]) -> None:
    """Puts the text of a page in its place."""
    if page.startswith("notebooks/") and page != "notebooks/index":
        return
    source = ELSEWHERE.get(page, f"docs/{page}.md")
    text = content[0]
    if page in ELSEWHERE:
        app.env.note_dependency(str(ROOT / source))
        text = Path(ROOT, source).read_text(encoding="utf-8") + "\n" + text
    content[0] = with_links(text, source, page)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the hook."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
