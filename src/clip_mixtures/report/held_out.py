"""What becomes of each held-out class: accuracy class by class, and a few images with answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from clip_mixtures.evaluation.accuracy import HELD_OUT
from clip_mixtures.report.document import MISSING, SHADES, Column, Entry, Table, Thumbnail
from clip_mixtures.report.tables import Summary, distinct

_GROUPS = ["test_domain", "model"]


def class_accuracies(
    summary: Summary, classes: Mapping[str, pd.DataFrame], confusions: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """Collect the accuracy of every held-out class in the test domain, averaged over seeds.

    Args:
        summary: the cells, see :mod:`clip_mixtures.report.tables`.
        classes: for each run the right answers of its checkpoints: columns epoch, domain,
            class_name, group, images, correct.
        confusions: for each run what its last checkpoint takes held-out classes for: columns
            domain, class_name, predicted, images.

    Returns:
        A row a class, mixture and model: ``test_domain``, ``model``, ``mixture``, ``class_name``,
        ``images`` (test images), ``accuracy`` (fraction, mean over seeds), ``mistaken_for`` (the
        most frequent wrong answer of all mixtures and seeds; None without any) and ``mistakes``
        (how often it was given).
    """
    parts, errors = [], []
    for cell in summary:
        facts = {name: cell[name] for name in ("test_domain", "model", "mixture")}
        found = classes[cell["run"]]
        domain = cell["test_domain"]
        chosen = (found["domain"] == domain) & (found["group"] == HELD_OUT)
        last = found[chosen & (found["epoch"] == found["epoch"].max())]
        parts.append(last[["class_name", "images", "correct"]].assign(**facts))
        wrong = confusions[cell["run"]]
        wrong = wrong[(wrong["domain"] == domain) & (wrong["class_name"] != wrong["predicted"])]
        errors.append(wrong[["class_name", "predicted", "images"]].assign(**facts))
    keys = ["test_domain", "model", "mixture", "class_name"]
    runs = pd.concat(parts, ignore_index=True)
    runs["accuracy"] = runs["correct"] / runs["images"]
    table = runs.groupby(keys, sort=False).agg(
        images=("images", "first"), accuracy=("accuracy", "mean")
    )
    of_all = ["test_domain", "model", "class_name"]
    counts = pd.concat(errors, ignore_index=True).groupby([*of_all, "predicted"])["images"].sum()
    # Of equally frequent answers the first by name, so that the order of runs does not matter.
    first = counts.rename("mistakes").reset_index().sort_values(
        ["mistakes", "predicted"], ascending=[False, True], kind="stable"
    )  # fmt: skip
    first = first.drop_duplicates(of_all).rename(columns={"predicted": "mistaken_for"})
    merged: pd.DataFrame = table.reset_index().merge(first, on=of_all, how="left")
    return merged


def class_tables(accuracies: pd.DataFrame) -> Iterator[Table]:
    """Tabulate held-out classes, a table for each test domain and model; the easiest come first.

    Args:
        accuracies: of :func:`class_accuracies`.
    """
    for (domain, model), part in accuracies.groupby(_GROUPS, sort=False):
        mixtures = distinct(part["mixture"])
        columns = (
            Column("Class", heads_row=True),
            Column("Test images", is_number=True),
            *(Column(mixture, is_number=True) for mixture in mixtures),
            Column("Mean", is_number=True),
            Column("Most often taken for"),
        )
        by_class = part.groupby("class_name")
        means = by_class["accuracy"].mean().reset_index()
        order = means.sort_values(["accuracy", "class_name"], ascending=[False, True])
        rows = []
        for name, mean in zip(order["class_name"], order["accuracy"], strict=True):
            found = by_class.get_group(name).set_index("mixture")
            images = int(found["images"].max())
            rows.append(
                (
                    Entry(str(name)),
                    Entry(f"{images:,}", float(images)),
                    *(_share(found["accuracy"].get(mixture)) for mixture in mixtures),
                    _share(mean),
                    _mistake(found),
                )
            )
        yield Table(
            f"Class by class: {model} in {domain}",
            f"Images of held-out classes in {domain} that {model} gets right, in percent, by "
            "mixture (mean over seeds); and the wrong answer given most often by all of them.",
            columns,
            tuple(rows),
        )


def _share(accuracy: float | None) -> Entry:
    if accuracy is None or math.isnan(accuracy):
        return Entry(MISSING)
    shade = math.ceil(float(accuracy) * (SHADES - 1))
    return Entry(f"{100 * accuracy:.0f}", round(100 * float(accuracy), 4), shade=shade)


def _mistake(found: pd.DataFrame) -> Entry:
    # The same for all mixtures.
    answers = found["mistaken_for"].dropna()
    return Entry(MISSING if answers.empty else str(answers.iloc[0]))


def example_tables(summary: Summary, examples: pd.DataFrame, folder: Path) -> Iterator[Table]:
    """Show a few images with the answer of each mixture, a table for each test domain and model.

    Args:
        summary: the cells; of several seeds the first is shown.
        examples: of :func:`clip_mixtures.report.examples.choose_examples`, with ``file`` (name of
            the thumbnail) and ``answer`` (class name).
        folder: of the thumbnails, relative to the report's.
    """
    for domain, model in distinct((cell["test_domain"], cell["model"]) for cell in summary):
        cells = {
            cell["mixture"]: cell
            for cell in reversed(summary)
            if (cell["test_domain"], cell["model"]) == (domain, model)
        }
        order = distinct(cell["mixture"] for cell in summary if cell["mixture"] in cells)
        columns = (
            Column("Image", heads_row=True),
            *(Column(mixture) for mixture in order),
        )
        rows = []
        of_domain = examples[examples["test_domain"] == domain]
        for file, found in of_domain.groupby("file", sort=False):
            name = str(found["class_name"].iloc[0])
            answers = found.set_index("run")["answer"]
            given = [str(answers[cells[mixture]["run"]]) for mixture in order]
            image = Thumbnail(folder / str(file), f"{domain} image of class {name}")
            rows.append(
                (
                    Entry(name, thumbnail=image),
                    *(Entry(one, mark="right" if one == name else "wrong") for one in given),
                )
            )
        if rows:
            seeds = {cell["seed"] for cell in summary}
            which = " (first seed)" if len(seeds) > 1 else ""
            yield Table(
                f"Answers of {model} in {domain}",
                f"Images of held-out classes in {domain} and what {model} takes them for, by "
                f"mixture{which}.",
                columns,
                tuple(rows),
                sortable=False,
            )
