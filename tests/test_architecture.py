"""Data flows one way, and so do imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "clip_mixtures"
PACKAGES = {
    "corpora": set(),
    "mixtures": {"corpora"},
    "training": {"corpora", "mixtures"},
    "evaluation": {"corpora", "mixtures", "training"},
    "mechanisms": {"corpora", "mixtures", "training", "evaluation"},
    "report": {"corpora", "mixtures", "training", "evaluation", "mechanisms"},
    "scheduling": set[str](),
    "remotes": set[str](),
    "commands": {"corpora", "mixtures", "training", "report"},
}
FILES = sorted(SOURCE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(path: Path) -> str | None:
    first = path.relative_to(SOURCE).parts[0]
    return first if (SOURCE / first).is_dir() else None


def test_every_package_has_its_place() -> None:
    found = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    assert found == set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    if path.name == "__main__.py":
        return
    package = package_of(path)
    allowed = PACKAGES[package] | {package} if package else set()
    modules = [name.split(".") for name in imports(path) if name.startswith("clip_mixtures.")]
    used = {parts[1] for parts in modules if (SOURCE / parts[1]).is_dir()}
    assert used <= allowed, f"{path} imports from {used - allowed}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_the_library_knows_no_stage_and_no_parameter_file(path: Path) -> None:
    stages = {script.stem for script in (ROOT / "stages").glob("*.py")}
    assert not {name.split(".")[0] for name in imports(path)} & stages
    if package_of(path) in ("commands", "scheduling"):
        return
    texts = {
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert "params.yaml" not in texts


def test_reading_and_comparing_results_needs_no_torch() -> None:
    scripts = "compare, examples, figures, experiments, times"
    # A new process: this one has it already.
    code = f"import sys, {scripts}; print({{'torch', 'open_clip'}} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT / "stages", capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
