"""The wheel as others get it: one top-level name, everything inside, and nobody's own modules hidden.

The sdist is built from a copy of the tree and the wheel from the sdist, as a package index would have it. Nothing is
downloaded: the build and the libraries are those of the environment that runs the tests.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build sdist and wheel; gives the folder of the two files."""
    folder = tmp_path_factory.mktemp("dist")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("dim_pipelines", "resources", "sensors"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, tree / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "out"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out"


@pytest.fixture(scope="session")
def site(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    (wheel,) = dist.glob("*.whl")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*command, str(wheel)], check=True)
    return target


def source_files() -> set[str]:
    """Name every file of the package, those behind the two links included, as they lie in a wheel."""
    found = set()
    for folder, _, names in os.walk(ROOT / "dim_pipelines", followlinks=True):
        here = Path(folder).relative_to(ROOT)
        found |= {str(here / name) for name in names if "__pycache__" not in here.parts}
    return found


def run_python(program: str, *, site: Path, cwd: Path) -> dict[str, str]:
    """Run `program` against the installed wheel; it prints one JSON object."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    value: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return value


def test_the_wheel_has_one_top_level_name_and_every_file(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in package} == {"dim_pipelines"}
    assert package == source_files()
    for needed in ("resources/__init__.py", "sensors/__init__.py", "py.typed", "wire/v1/node.proto"):
        assert f"dim_pipelines/{needed}" in package
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_source_distribution_builds_the_same_package(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.split("/", 1)[1] for name in files.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "LICENSE", "dim_pipelines/resources/__init__.py"} <= names


def test_a_project_with_its_own_resources_and_sensors_keeps_them(site: Path, tmp_path: Path) -> None:
    for name in ("resources", "sensors"):
        (tmp_path / f"{name}.py").write_text(f"OWNER = 'the project, {name}'\n")
    program = (
        "import json, resources, sensors, dim_pipelines.resources as ours, dim_pipelines.sensors as theirs\n"
        "print(json.dumps({'resources': resources.OWNER, 'sensors': sensors.OWNER,"
        " 'ours': ours.__file__, 'theirs': theirs.__file__}))"
    )
    seen = run_python(program, site=site, cwd=tmp_path)
    assert (seen["resources"], seen["sensors"]) == ("the project, resources", "the project, sensors")
    assert Path(seen["ours"]).parents[1] == Path(seen["theirs"]).parents[1] == site / "dim_pipelines"


BLOCK = """
import importlib.abc, json, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Block())
import importlib
for name in {modules!r}:
    importlib.import_module(name)
print(json.dumps({{"file": importlib.import_module("dim_pipelines").__file__}}))
"""

DAGSTER = ("dagster", "dagster_webserver", "dagster_graphql", "dagster_shared", "dagster_pipes")
ENGINES = ("torch", "safetensors")
DEMO = ("sklearn", "matplotlib")


@pytest.mark.parametrize(
    ("modules", "blocked"),
    [
        pytest.param(("dim_pipelines.node.daemon",), (*DAGSTER, *ENGINES, *DEMO), id="the node's daemon"),
        pytest.param(
            ("dim_pipelines.dispatch.run", "dim_pipelines.content.ingest", "dim_pipelines.content.join"),
            (*DAGSTER, *ENGINES, *DEMO),
            id="a client that dispatches",
        ),
        pytest.param(
            ("dim_pipelines.cli", "dim_pipelines.cli.application", "dim_pipelines.cli.batch"),
            (*DAGSTER, *ENGINES, *DEMO),
            id="the command line",
        ),
        pytest.param(("dim_pipelines.orchestrator.batches",), (*DAGSTER, *ENGINES, *DEMO), id="the batches' table"),
        pytest.param(("dim_pipelines.definitions",), ENGINES, id="Dagster's definitions"),
    ],
)
def test_each_part_imports_without_the_extras_it_does_not_need(
    modules: tuple[str, ...], blocked: tuple[str, ...], site: Path, tmp_path: Path
) -> None:
    seen = run_python(BLOCK.format(modules=modules, blocked=blocked), site=site, cwd=tmp_path)
    assert Path(seen["file"]).is_relative_to(site)


def test_help_takes_less_than_half_a_second_of_processor_time(site: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dim_pipelines.cli", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    times = []
    for _ in range(4):  # the first one writes the byte code
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert "infer" in done.stdout
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5, f"dim --help took {min(times):.2f} s of processor time"
