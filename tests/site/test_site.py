"""The site as `make docs` built it: every public name is there, links lead somewhere, nothing is fetched."""

import importlib
import json
import pkgutil
import subprocess
import sys
import zlib
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import optax_sam

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
PAGES = sorted(page.relative_to(SITE).as_posix() for page in SITE.rglob("*.html"))
every_page = pytest.mark.parametrize("page", PAGES)


class Page(HTMLParser):
    """What the tests look at: anchors, links, what the page loads, and its blocks of code."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loaded, self.code = {""}, [], [], []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors.update(filter(None, [values.get("id")]))
        if tag == "a":
            self.links += filter(None, [values.get("href")])
        elif tag == "link" and values.get("rel") in ("index", "search", "next", "prev"):
            self.links.append(values["href"])
        else:
            self.loaded += filter(None, [values.get("src"), values.get("href")])
        if tag == "pre":
            self.inside = True
            self.code.append("")

    def handle_endtag(self, tag):
        if tag == "pre":
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.code[-1] += data


@cache
def read(page):
    return Page((SITE / page).read_text("utf-8"))


def test_the_site_was_built():
    assert "index.html" in PAGES, "make docs"


@every_page
def test_every_link_leads_somewhere(page):
    for link in read(page).links:
        target = urlsplit(link)
        if target.scheme:
            continue
        path = (SITE / page).parent / unquote(target.path) if target.path else SITE / page
        assert path.exists(), link
        if path.suffix == ".html":
            name = path.resolve().relative_to(SITE.resolve()).as_posix()
            assert unquote(target.fragment) in read(name).anchors, link


@every_page
def test_a_page_loads_nothing_from_the_network(page):
    assert not [address for address in read(page).loaded if urlsplit(address).netloc]


def public_names():
    """The names in `__all__`, of every module that has one."""
    modules = [module.name for module in pkgutil.walk_packages(optax_sam.__path__, "optax_sam.")]
    for module in map(importlib.import_module, ["optax_sam", *modules]):
        for name in getattr(module, "__all__", []):
            yield f"{module.__name__}.{name}"


def test_every_public_name_is_in_the_reference():
    *_, listed = (SITE / "objects.inv").read_bytes().split(b"\n", 4)
    entries = zlib.decompress(listed).decode().splitlines()
    documented = {line.split(" ", 1)[0] for line in entries if " py:" in line}
    assert not set(public_names()) - documented, "write a page in docs/api/ or docs/methods/"


@pytest.mark.parametrize(
    "words",
    [
        *("mixed precision", "loss scaling", "gradient accumulation", "BatchNorm", "FSDP", "LoRA", "Keras 3"),
        *("Equinox", "Haiku", "NumPyro", "multi_transform", "flash attention", "custom gradients", "NaN"),
        *("memory", "no gain", "which rho", "how long to train", "checkpoints", "frozen weights"),
    ],
)
def test_the_search_finds_the_words_of_a_question_in_a_heading(words):
    index = (SITE / "searchindex.js").read_text("utf-8")
    headings = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))["alltitles"]
    assert any(words.lower() in heading.lower() for heading in headings)


def test_the_script_copied_from_the_first_page_runs(tmp_path):
    script = next(code for code in read("index.html").code if code.startswith("import "))
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("test accuracy 0.9")
