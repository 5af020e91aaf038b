"""The comparison as a stage: one cell and ninety, the same bytes twice, and what is missing."""

from __future__ import annotations

import csv
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from study_factory import HELD_OUT, MadeUp, copied, make_study

import compare
import examples
import explained
import figures
from clip_mixtures.report.document import Fold, Illustration
from clip_mixtures.report.drawings import Drawing
from sections import EMBEDDED_CELLS, explained_sections

PLAIN: dict[str, dict[str, Any]] = {
    "natural-only": {"kind": "natural_only"},
    "leave-out": {"kind": "leave_out_domain"},
    "cg-high": {"kind": "cg_high_diversity"},
}
# Bytes that a page of ninety cells may have, and seconds that it may take on a busy machine.
MOST_BYTES, PATIENCE = 2_000_000, 120


def run(study: MadeUp, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(study.folder)
    if not Path("build/examples").exists():
        examples.main()
    compare.main()
    return study.folder / "report"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    study = make_study(tmp_path_factory.mktemp("three") / "study", PLAIN, seeds=(0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(study.folder)
        examples.main()
    return study


def sections_of(page: str) -> list[str]:
    return re.findall(r'<section id="([^"]+)"', page)


def links_of(markdown: str) -> list[str]:
    return re.findall(r"\]\(<([^>]+)>\)", markdown)


def test_a_single_cell_is_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(make_study(tmp_path / "one", {"cg-high": PLAIN["cg-high"]}), monkeypatch)
    page = (report / "index.html").read_text()
    # There is nothing to take a difference from, no curve, and nothing was looked into.
    assert sections_of(page) == [
        "accuracy", "robustness", "held-out", "training", "data", "provenance", "reading",
    ]  # fmt: skip
    assert "No line: no checkpoint of a natural-only mixture" in page
    differences = (tmp_path / "one" / "metrics" / "differences.csv").read_text().splitlines()
    assert len(differences) == 1
    assert differences[0].startswith("test_domain,model,mixture_a,mixture_b,group,estimate")


def test_the_same_results_give_the_same_bytes(
    three: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("a", "b"):
        study = copied(three, tmp_path / name)
        run(study, monkeypatch)
        files = [
            path
            for part in ("report", "metrics", "build/examples")
            for path in sorted((study.folder / part).rglob("*"))
            if path.is_file()
        ]
        found.append(
            {path.relative_to(study.folder).as_posix(): path.read_bytes() for path in files}
        )
    assert found[0] == found[1]
    assert {"report/index.html", "report/report.md", "metrics/differences.csv"} <= found[0].keys()


def test_figures_can_be_had_by_name(
    three: MadeUp,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(copied(three, tmp_path / "study").folder)

    def drawn(*arguments: str) -> list[str]:
        monkeypatch.setattr("sys.argv", ["figures.py", *arguments])
        figures.main()
        return [line.split()[0] for line in capsys.readouterr().out.splitlines()]

    assert {"robustness", "learning_curves", "training_loss"} <= set(drawn())
    assert drawn("robustness", "robust*") == ["scratch/figures/robustness.pdf"]
    assert Path("scratch/figures/robustness.pdf").read_bytes().startswith(b"%PDF")
    two = ["out/learning_curves.png", "out/training_loss.png"]
    assert drawn("training_*", "learning_curves", "--format", "png", "--out", "out") == two
    for name, message in (
        ("robustnes", "figure 'robustnes'; did you mean 'robustness'"),
        ("x*", r"figure 'x\*': matches none"),
    ):
        with pytest.raises(SystemExit):
            drawn(name)
        assert re.search(message, capsys.readouterr().err)


def test_what_dvc_plots_reads_is_there(
    three: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = copied(three, tmp_path / "plots")
    report = run(study, monkeypatch)
    metrics = study.folder / "metrics"
    held_out = pd.read_csv(metrics / "held_out.csv")
    assert held_out.columns.tolist() == ["run", "held_out", "seen"]
    assert held_out["run"].tolist() == list(study.runs)
    evaluated = json.loads(
        (study.folder / f"build/evaluation/{study.runs[2]}/metrics.json").read_text()
    )
    last = evaluated["checkpoints"][-1]["accuracies"]["sketch"]
    wanted = round(100 * last["held_out"]["balanced"]["estimate"], 2)
    assert held_out["held_out"].iloc[2] == wanted
    differences = pd.read_csv(metrics / "differences.csv")
    assert differences["over"].unique().tolist() == ["seeds"]
    assert len(differences) == 2 * 3
    text = (report / "report.md").read_text()
    assert all((report / link).is_file() for link in links_of(text))
    assert "figures/held_out_accuracy.png" in links_of(text)


def test_examples_are_answers_that_were_given(
    three: MadeUp,
) -> None:
    study = three
    folder = study.folder / "build" / "examples"
    with (folder / "examples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["class_name"] for row in rows} == set(HELD_OUT)
    assert {row["run"] for row in rows} == set(study.runs)
    for row in rows[:: len(study.runs) + 1]:
        evaluation = study.folder / "build" / "evaluation" / row["run"]
        given = pd.read_parquet(evaluation / "predictions-domains.parquet")
        chosen = given[(given["row"] == int(row["row"])) & (given["epoch"] == given["epoch"].max())]
        answer = sorted(["ant", "bee", "cat", "dog", "eel", "fox"])[chosen["prediction"].iloc[0]]
        assert row["answer"] == answer
        assert chosen["domain"].iloc[0] == "sketch"
    for name in {row["file"] for row in rows}:
        with Image.open(folder / name) as image:
            assert image.format == "WEBP"
            assert image.size == (96, 96)


@pytest.mark.parametrize(
    "missing",
    [
        "build/evaluation/leave-out-rn-s1/metrics.json",
        "build/evaluation/leave-out-rn-s0/classes.parquet",
        "build/evaluation/cg-high-rn-s0/training/training.json",
        "build/mixtures/cg-high/audit.json",
        "build/examples/examples.csv",
    ],
)
def test_a_missing_result_is_named(
    three: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    study = copied(three, tmp_path / "missing")
    monkeypatch.chdir(study.folder)
    (study.folder / missing).unlink()
    with pytest.raises(SystemExit) as stopped:
        compare.main()
    assert stopped.value.code == 2
    assert f"error: {missing}: missing; `dvc repro` makes it" in capsys.readouterr().err
    assert not (study.folder / "report" / "index.html").exists()


def test_ninety_cells_are_a_page_that_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: dict[str, dict[str, Any]] = {
        f"allow-{n}": {"kind": "cg_high_diversity", "allow": n / 20} for n in range(1, 11)
    }
    lists: dict[str, dict[str, Any]] = {
        f"domains-{n}": {"kind": "domains", "domains": ["real", "sketch", "clipart"][: n + 1]}
        for n in (1, 2)
    }
    study = make_study(tmp_path / "ninety", PLAIN | shares | lists, ("rn", "vit"), (0, 1, 2), (2,))
    assert len(study.runs) == 90
    start = time.monotonic()
    report = run(study, monkeypatch)
    assert time.monotonic() - start < PATIENCE
    page = report / "index.html"
    assert page.stat().st_size < MOST_BYTES
    text = page.read_text()
    assert "interpolation" in sections_of(text)
    assert text.count("interpolation_") == 0  # figures are inside
    summary = json.loads((study.folder / "metrics" / "summary.json").read_text())
    assert [cell["run"] for cell in summary] == list(study.runs)
    # Every mixture and model is a row, its seeds averaged.
    averaged = re.findall(r'<th scope="row">(allow-\d+)</th>\s*<td>(rn|vit)</td>', text)
    assert len(set(averaged)) == 20
    assert len(pd.read_csv(study.folder / "metrics" / "differences.csv")) == 2 * 2 * (14 + 13)


def drawings_of(runs: int) -> dict[str, list[Drawing]]:
    def nothing() -> None:
        raise AssertionError("the sections draw nothing")

    about_runs = [
        Drawing(f"units_{number}", "Units", "", nothing, run=f"run-{number}")  # type: ignore[arg-type]
        for number in range(runs)
    ]
    study = Drawing("sharing", "Sharing", "", nothing)  # type: ignore[arg-type]
    beside = Drawing("more", "More", "", nothing, is_beside=True)  # type: ignore[arg-type]
    return {"Shared units": [study, *about_runs, beside]}


@pytest.mark.parametrize("runs", [EMBEDDED_CELLS, EMBEDDED_CELLS + 1])
def test_figures_of_many_cells_lie_beside_the_page(runs: int) -> None:
    (section,) = explained_sections(drawings_of(runs), None)
    assert section.anchor == "shared-units"
    shown = [block for block in section.blocks if isinstance(block, Illustration)]
    # That of the study, and the last run as an example.
    assert [block.path.name for block in shown] == ["sharing.png", f"units_{runs - 1}.png"]
    assert all(block.embedded for block in shown)
    folds = [block for block in section.blocks if isinstance(block, Fold)]
    assert len(folds) == runs - 1 + 1
    embedded = [
        inner.embedded
        for fold in folds[:-1]
        for inner in fold.blocks
        if isinstance(inner, Illustration)
    ]
    assert embedded == [runs <= EMBEDDED_CELLS] * (runs - 1)
    (last,) = folds[-1].blocks
    assert isinstance(last, Illustration)
    assert not last.embedded


def test_places_without_a_picture_are_not_shown() -> None:
    images = np.full((4, 2, 2, 3), 255, dtype=np.uint8)
    assert len(explained.pictures_there(images)) == 1
    images[1, 0, 0, 2] = 254
    assert len(explained.pictures_there(images)) == 2
    images[3] = 0
    assert len(explained.pictures_there(images)) == 4
