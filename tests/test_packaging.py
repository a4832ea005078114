"""What users install: a wheel and an sdist, with all of srjit, that work away from the checkout."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import srjit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FILES = {
    *(str(path.relative_to(ROOT)) for path in (ROOT / "srjit").rglob("*.py")),
    *(f"srjit/{path.relative_to(ROOT)}" for path in (ROOT / "passes").rglob("*.py")),
    "srjit/py.typed",
}


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def install(package: Path, target: Path) -> None:
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
        *("--no-build-isolation", "--target", target, package),
        cwd=target.parent,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel built from it, of a copy in which nothing was built before."""
    tmp = tmp_path_factory.mktemp("built")
    checkout, dist = tmp / "checkout", tmp / "dist"
    for folder in ("srjit", "passes"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, checkout / folder, symlinks=True, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, checkout)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, checkout, cwd=tmp)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def test_version_has_one_source():
    assert importlib.metadata.version("srjit") == PROJECT["version"]
    assert srjit.__version__ == PROJECT["version"]


def test_changelog_tells_of_this_version():
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_passes_are_the_files_of_the_folder_passes():
    link = ROOT / "srjit" / "passes"
    assert link.is_symlink()
    assert link.readlink() == Path("../passes")


@pytest.mark.slow
def test_wheel_and_sdist_hold_every_file_of_srjit(built: dict[str, Path]):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        in_wheel = set(wheel.namelist())
    with tarfile.open(built["sdist"]) as sdist:
        in_sdist = {name.partition("/")[2] for name in sdist.getnames()}
    assert FILES - in_wheel == set()
    assert FILES - in_sdist == set()
    # Nothing beside srjit: a top-level `tests` or `passes` would shadow other people's.
    assert {name.partition("/")[0] for name in in_wheel} == {
        "srjit",
        f"srjit-{PROJECT['version']}.dist-info",
    }


@pytest.mark.crossed(1, most=1)
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_an_installed_copy_works_away_from_the_checkout(
    kind: str, built: dict[str, Path], tmp_path: Path
):
    target = tmp_path / "target"
    install(built[kind], target)
    program = (
        "import srjit, srjit.passes, importlib.metadata as m;"
        "print(srjit.__file__, srjit.passes.__file__, srjit.__version__, sep='\\n')"
    )
    found = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(target)).split("\n")
    assert found[:3] == [
        str(target / "srjit" / "__init__.py"),
        str(target / "srjit" / "passes" / "__init__.py"),
        PROJECT["version"],
    ]
    for command in target.glob("bin/srjit-opt"):
        listed = run(command, "--list-passes", cwd=tmp_path, PYTHONPATH=str(target))
        assert "srjit-inline-calls" in listed
        break
    else:
        pytest.fail("no command srjit-opt was installed")


def test_importing_srjit_does_not_import_jax():
    program = (
        "import sys, srjit, srjit.passes; assert 'jax' not in sys.modules;"
        "from srjit import srjit as decorator, recipes, Recipe;"
        "assert srjit.srjit is decorator and srjit.recipes is recipes and callable(decorator);"
        "assert not set(srjit.__all__) - set(dir(srjit)) and '__version__' in dir(srjit);"
        "assert all(getattr(srjit, name) is not None for name in srjit.__all__)"
    )
    run(sys.executable, "-c", program, cwd=ROOT)


def test_an_unknown_name_of_srjit_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'srjit' has no attribute 'quantise'"):
        _ = srjit.quantise  # pyright: ignore
