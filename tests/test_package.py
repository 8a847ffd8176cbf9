"""The package as others get it: built, installed where nothing else is, and used as the README says."""

import os
import subprocess
import sys
import tarfile
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
    run("uv", "pip", "install", "--quiet", "--python", python, built[archive], "flax", "scikit-learn", env=UV)
    script = tmp_path / "script.py"
    script.write_text(FIRST_SCRIPT, encoding="utf-8")
    assert run(python, script, cwd=tmp_path).startswith("test accuracy 0.8")
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


def test_forge_runs_both_ends_of_the_range_of_versions():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert {".ci/run", "make test-lowest"} <= set(commands)
    versions = [str(version) for version in workflow["jobs"]["newest"]["strategy"]["matrix"]["python"]]
    assert versions[0] == workflow["jobs"]["lowest"]["steps"][1]["with"]["python-version"] == "3.11"
