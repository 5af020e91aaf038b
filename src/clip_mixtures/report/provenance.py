"""Where the numbers of a report come from, said by content.

A page that is an output of the pipeline cannot name the commit that it belongs to: that commit is
made later, with the page's hash in dvc.lock. Nor may it say whether the tree was dirty, or when it
was made: it would never be the same twice. So it says what it was made of, by hashes, and git finds
the commit by the metrics beside it.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import clip_mixtures
from clip_mixtures.errors import UserError
from clip_mixtures.report.document import Block, Command, Fold, Paragraph, text_table

_PINNED = ("md5", "size", "nfiles", "path")
_PACKAGES = ("matplotlib", "numpy", "pandas", "pillow", "jinja2")


def md5_of(path: Path) -> str:
    """Return the MD5 of a file: DVC's name for it, no protection against anybody.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; `dvc repro` makes it") from error


def git_blob(path: Path) -> str:
    """Return the name that git has for a file's content.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; `dvc repro` makes it") from error
    header = f"blob {len(data)}\0".encode()
    return hashlib.sha1(header + data, usedforsecurity=False).hexdigest()


def pinned_data(pin: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what a .dvc file pins.

    Args:
        pin: the file's content.
        where: its name.

    Returns:
        ``md5``, ``size`` (bytes), ``nfiles`` and ``path`` of its first output, as far as given.

    Raises:
        UserError: it pins nothing.
    """
    outs = pin.get("outs")
    if not isinstance(outs, Sequence) or not outs or "md5" not in outs[0]:
        raise UserError(f"{where}: pins no data; `dvc add data` writes it")
    return {key: outs[0][key] for key in _PINNED if key in outs[0]}


def provenance_blocks(
    data: Mapping[str, Any],
    definitions: Mapping[str, Mapping[str, Any]],
    training: Mapping[str, Mapping[str, Any]],
    results: Mapping[str, Sequence[Path]],
    metrics: Path,
) -> tuple[Block, ...]:
    """Say what a report was made of.

    Args:
        data: of :func:`pinned_data`.
        definitions: for each mixture its mixture.json.
        training: for each run its training.json.
        results: for each run the files of its results.
        metrics: a file that is in git and says what the report says.

    Raises:
        UserError: a file cannot be read.
    """
    hashes = {run: {path.name: md5_of(path) for path in paths} for run, paths in results.items()}
    names = list(dict.fromkeys(name for found in hashes.values() for name in found))
    indices = {
        name: one["sha256"]
        for found in definitions.values()
        for name, one in found["indices"].items()
    }
    made_of = [[f"{data['path']}/", "MD5", data["md5"]]]
    made_of += [[f"index of {name}", "SHA-256", sha] for name, sha in indices.items()]
    made_with: list[list[str]] = [
        ["clip-mixtures", clip_mixtures.__version__],
        ["Python", platform.python_version()],
        *([name, version(name)] for name in _PACKAGES),
    ]
    return (
        text_table(
            "Data",
            f"The data: {data.get('nfiles', 1):,} files, {data.get('size', 0):,} bytes.",
            ["What", "Hash", "Value"],
            made_of,
        ),
        Paragraph(
            f"The numbers are in git beside the page, in {metrics.parent}/, so git knows the "
            "commit that they belong to, with the code and the parameters that they were made by:"
        ),
        Command(f"git log --oneline --find-object={git_blob(metrics)} -- {metrics.as_posix()}"),
        Fold(
            "Hashes of the results, by run",
            (
                text_table(
                    "Results",
                    "MD5 of each file.",
                    ["Run", *names],
                    [[run, *(found.get(name) for name in names)] for run, found in hashes.items()],
                ),
            ),
        ),
        Fold("Definitions of the mixtures", (_definitions(definitions),)),
        Fold("Recipes, as each run was trained", (_recipes(training),)),
        Fold("What each run was trained with", (_trained_with(training),)),
        Fold(
            "Versions this page was made with",
            (text_table("Versions", "Packages.", ["Package", "Version"], made_with),),
        ),
        Paragraph(
            "How long each stage took is no part of a result, and so not of this page; where the "
            "stages ran, this tells it, and what their GPUs cost:"
        ),
        Command("python stages/times.py"),
    )


def _definitions(definitions: Mapping[str, Mapping[str, Any]]) -> Block:
    found = {key: one["mixture"] for key, one in definitions.items()}
    keys = list(dict.fromkeys(key for one in found.values() for key in one if key != "key"))
    rows = [[key, *(_plain(one.get(key)) for one in found.values())] for key in keys]
    return text_table("Mixtures", "What each mixture is made by.", ["", *found], rows)


def _recipes(training: Mapping[str, Mapping[str, Any]]) -> Block:
    """Tabulate recipes; runs of a model that were trained alike share a column."""
    columns: dict[tuple[str, ...], tuple[str, dict[str, Any]]] = {}
    for found in training.values():
        recipe = found["recipe"]
        name = (found["model"], *(f"{key}={value}" for key, value in recipe.items()))
        columns.setdefault(name, (found["model"], recipe))
    keys = list(dict.fromkeys(key for _, recipe in columns.values() for key in recipe))
    rows = [[key, *(_plain(recipe.get(key)) for _, recipe in columns.values())] for key in keys]
    return text_table(
        "Recipes", "Settings of the training.", ["", *(name for name, _ in columns.values())], rows
    )


def _trained_with(training: Mapping[str, Mapping[str, Any]]) -> Block:
    """Tabulate devices and versions; a run that went on elsewhere has a row for each place."""
    places = [
        (run, place) for run, found in training.items() for place in found.get("attempts", [found])
    ]
    keys = ("processes", "device", "device_batch")
    versions = list(dict.fromkeys(name for _, place in places for name in place["versions"]))
    rows = [
        [run, *(_plain(place[key]) for key in keys), *(place["versions"].get(v) for v in versions)]
        for run, place in places
    ]
    header = ["Run", "Processes", "Device", "Images at a time", *versions]
    return text_table("Training environments", "Devices and versions.", header, rows)


def _plain(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
