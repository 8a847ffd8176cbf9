"""The package as others get it: built, installed where nothing else is, and used as the README says."""

import itertools
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import optax_sam
from tests.test_docs import FIRST_SCRIPT

ROOT = Path(__file__).parents[1]


def run(*command, **options):
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=1800, check=False, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The archive of sources and the wheel, which `build` makes from that archive."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--installer", "uv", "--outdir", folder, ROOT)
    (sources,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sources, wheel


def test_wheel_holds_the_package_and_nothing_else(built):
    _, wheel = built
    names = zipfile.ZipFile(wheel).namelist()
    info = f"optax_sam-{optax_sam.__version__}.dist-info/"
    assert {name.split("/")[0] + "/" for name in names} == {"optax_sam/", info}
    assert {"optax_sam/py.typed", f"{info}licenses/LICENSE"} <= set(names)
    package = {
        f"optax_sam/{path.relative_to(ROOT / 'optax_sam')}" for path in Path(ROOT, "optax_sam").rglob("*.py")
    }
    assert package <= set(names)


def test_sources_are_those_of_the_repository(built):
    sources, _ = built
    with tarfile.open(sources) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {
        "README.md",
        "LICENSE",
        "CITATION.cff",
        "pyproject.toml",
        "tests/test_package.py",
        ".ci/run",
    } <= names
    assert not [name for name in names if name.startswith((".venv", "runs", "data/", "docs/_build"))]


@pytest.mark.parametrize("archive", [0, 1], ids=["sources", "wheel"])
def test_first_script_runs_where_only_the_package_is_installed(archive, built, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    run("uv", "venv", "--quiet", "--python", sys.executable, tmp_path / "venv", env=UV)
    commands = [[built[archive]], ["flax", "scikit-learn"]]
    for packages in commands if archive == 0 else reversed(commands):  # A user may take either order.
        run("uv", "pip", "install", "--quiet", "--python", python, *packages, env=UV)
    run("uv", "pip", "check", "--python", python, env=UV)
    script = tmp_path / "script.py"
    script.write_text(FIRST_SCRIPT, encoding="utf-8")
    assert run(python, script, cwd=tmp_path).startswith("test accuracy 0.9")
    where = run(python, "-c", "import optax_sam; print(optax_sam.__file__)", cwd=tmp_path)
    assert Path(where).is_relative_to(tmp_path)


# The uv beside this Python.
UV = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


def test_one_import_is_enough_to_measure_and_needs_no_extra():
    """Docstrings and errors name `optax_sam.diagnostics.wiring_check` and the like."""
    script = """if True:
        import sys
        import optax_sam
        optax_sam.diagnostics.wiring_check()
        assert optax_sam.curvature.Batches is optax_sam.Batches
        assert callable(optax_sam.sde.drift)
        print(sorted({"flax", "matplotlib", "tqdm"} & set(sys.modules)))
    """
    assert run(sys.executable, "-c", script, cwd=ROOT).strip() == "[]"


@pytest.mark.parametrize("name", ["curvature", "diagnostics", "sde", "batches", "ascent.top_eigenvector"])
def test_each_module_can_be_imported_first(name):
    run(sys.executable, "-c", f"import optax_sam.{name}", cwd=ROOT)


def test_forge_tests_the_versions_that_the_metadata_and_the_documents_name():
    workflow = yaml.load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"), yaml.BaseLoader)
    assert "schedule" in workflow["on"]
    tested = {}
    for name, job in workflow["jobs"].items():
        _, python, command = job["steps"][:3]
        tested[command["run"].split(" PYTHON=")[0]] = python["with"]["python-version"]
        assert ("if" in job) == (name != "newest")  # which alone runs on the schedule too
    assert tested == {"make test-lowest": "3.11", ".ci/run": "3.11", "make test-newest": "3.13"}
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert metadata["requires-python"] == ">=3.11"
    classifiers = [name.split(" :: ")[-1] for name in metadata["classifiers"] if "Python :: 3." in name]
    assert classifiers == ["3.11", "3.12", "3.13"]
    bounds = metadata["dependencies"] + metadata["optional-dependencies"]["flax"]
    text = (ROOT / "README.md").read_text("utf-8")  # the one place that says it
    assert all(bound.split(">=")[1] in text for bound in bounds)
    assert all(f"Python {version}" in text for version in ("3.11", "3.13"))


def test_no_version_is_excluded_from_above():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    every = itertools.chain(metadata["dependencies"], *metadata["optional-dependencies"].values())
    assert not [requirement for requirement in every if re.search(r"<|==|~=", requirement)]
