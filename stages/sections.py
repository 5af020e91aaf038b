"""The sections of the report, from what a study holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from clip_mixtures.report import figures
from clip_mixtures.report.audits import audit_table, verification_table
from clip_mixtures.report.differences import difference_tables
from clip_mixtures.report.document import (
    Block,
    Document,
    Fold,
    Paragraph,
    Section,
    Table,
    text_table,
)
from clip_mixtures.report.drawings import Drawing
from clip_mixtures.report.held_out import class_accuracies, class_tables, example_tables
from clip_mixtures.report.interpolation import ALLOW, DOMAINS, interpolation_figure
from clip_mixtures.report.matrix import matrix_tables, summary_over_seeds
from clip_mixtures.report.provenance import provenance_blocks
from clip_mixtures.report.robustness import robustness_blocks
from clip_mixtures.report.robustness_figures import robustness_figure
from clip_mixtures.report.tables import counts_table, percent
from clip_mixtures.training.layout import FACTS
from evaluated import evaluation_of, training_of
from experiment import METRICS
from study import Study

# Of more cells than this the page does not hold the figures of each one, but links to them.
EMBEDDED_CELLS = 8
# Rows that a reader may be expected to want at once; longer tables are folded.
_OPEN_ROWS = 24

FIGURES = Path("figures")
IMAGES = Path("examples")


def study_drawings(study: Study) -> dict[str, list[Drawing]]:
    """Return the figures of the whole study, by the section that they belong to."""
    summary, settings = study.summary, study.experiment.evaluate
    found = {
        "accuracy": [
            Drawing(
                "held_out_accuracy",
                "Held-out and seen classes of the test domain",
                "Balanced accuracy of the last checkpoint, mean over seeds, with the intervals of "
                "the table; of CLIP, zero-shot.",
                partial(
                    figures.held_out_accuracy, summary_over_seeds(summary), classes=study.classes
                ),
                alt="Dots with intervals, a row a mixture: the accuracies of the table above.",
            )
        ],
        "robustness": [
            Drawing(
                "robustness",
                "Held-out accuracy against accuracy on natural images",
                "Every checkpoint's accuracy on held-out classes in the test domain against that "
                "on seen classes in natural images, on logit axes, and the line of the "
                "natural-only checkpoints. An accuracy of 0 has no place on such an axis and lies "
                "where half an image would be right.",
                partial(
                    robustness_figure,
                    study.robustness,
                    resamples=settings.resamples,
                    seed=settings.seed,
                ),
            )
        ],
        "training": [
            Drawing(
                "learning_curves",
                "Accuracy over training",
                "Balanced accuracy in the test domain of every checkpoint, epoch 0 first. The band "
                "is the 95 % interval of one seed, or reaches from the lowest of several to the "
                "highest.",
                partial(figures.learning_curves, study.histories, summary),
            ),
            Drawing(
                "training_loss",
                "Training loss",
                "Contrastive loss of CLIP, cross entropy of classifiers; smoothed.",
                partial(figures.training_loss, study.losses, summary),
            ),
        ],
        "data": [
            Drawing(
                "mixture_composition",
                "What the mixtures contain",
                "Training images by domain; hatched: the classes that are held out in the test "
                "domain.",
                partial(figures.mixture_composition, study.counts),
            )
        ],
    }
    headings = {
        ALLOW: "How much of what is held out a model must see",
        DOMAINS: "How accuracy grows with the domains",
    }
    found["interpolation"] = [
        Drawing(
            f"interpolation_{axis}",
            headings[axis],
            "Held-out classes in the test domain, by mixtures that differ in nothing else; with "
            "95 % intervals.",
            partial(interpolation_figure, study.interpolations, axis),
        )
        for axis in study.interpolations["axis"].unique()
    ]
    return found


def report_document(
    study: Study,
    drawings: Mapping[str, Sequence[Drawing]],
    explained: Mapping[str, Sequence[Drawing]],
    measures: Table | None,
) -> Document:
    """Put the report together.

    Args:
        study: what was found.
        drawings: of :func:`study_drawings`.
        explained: figures of the cells that were looked into, by part.
        measures: what was measured in them; None where none was looked into.
    """
    shown = {
        name: [drawing.illustration(FIGURES) for drawing in of_section]
        for name, of_section in drawings.items()
    }
    accuracies = class_accuracies(study.summary, study.class_tables, study.confusions)
    results = {
        cell.run: (evaluation_of(cell) / "metrics.json", training_of(cell) / FACTS)
        for cell in study.cells
    }
    where_from = provenance_blocks(
        study.data, study.definitions, study.trained, results, METRICS / "summary.json"
    )
    sections = [
        Section(
            "accuracy",
            "Accuracy",
            (*matrix_tables(study.averaged), _chance(study), *shown["accuracy"]),
        ),
        Section("differences", "Differences between mixtures", _differences(study)),
        Section("interpolation", "Between mixtures", tuple(shown["interpolation"])),
        Section(
            "robustness",
            "Effective robustness",
            (*shown["robustness"], *robustness_blocks(study.robustness)),
        ),
        Section(
            "held-out",
            "Held-out classes",
            (
                *_examples(study),
                *(_folded(table) for table in class_tables(accuracies)),
            ),
        ),
        Section("training", "Training", (*shown["training"], _folded(_training(study)))),
        *explained_sections(explained, measures),
        Section(
            "data",
            "Training images and audits",
            (
                *shown["data"],
                counts_table(study.counts),
                audit_table(study.audits),
                verification_table(study.verification),
            ),
        ),
        Section("provenance", "Where the numbers come from", where_from),
        Section("reading", "How to read this page", tuple(map(Paragraph, _NOTES))),
    ]
    return Document("Mixtures compared", _facts(study), tuple(sections))


_NOTES = (
    "Every class of the corpus competes for every image, held out or not. Held-out classes are "
    "those whose images in the test domain are in no training set, unless a mixture lets some of "
    "them in.",
    "Accuracies are averaged over classes. Intervals are 95 % intervals: of one run, bootstrap "
    "intervals over classes and test images, which say nothing of how another seed would do; of "
    "several seeds, Student's t over the seeds, which says nothing of other test images.",
    "Each interval stands for itself: of twenty that hold the truth with 95 %, one is expected to "
    "miss it.",
    "On the page, the bars under the numbers of a table share one scale, and a darker ground is a "
    "higher accuracy. Click a column's header to sort by it, or reach it by the Tab key and press "
    "Enter.",
)


def _facts(study: Study) -> tuple[tuple[str, str], ...]:
    cells, summary = study.cells, study.summary
    held_out = study.averaged[study.averaged["measure"].str.startswith("Held-out, ")]
    of_test_domain = held_out["measure"] == "Held-out, " + held_out["test_domain"]
    unseen = held_out[of_test_domain & ~held_out["mixture"].isin(study.informed)]
    # Of many that cannot be told from chance the highest says nothing.
    seeds = list(dict.fromkeys(str(cell.seed) for cell in cells))
    above = unseen[unseen["low"] > 1 / study.classes].sort_values("estimate", kind="stable")
    best = [
        f"{percent(row['estimate'])} % ({row['mixture']}, {row['model']})"
        for row in above.to_dict("records")
    ]
    return (
        ("Cells", str(len(cells))),
        ("Mixtures", str(len(study.mixtures))),
        ("Models", ", ".join(dict.fromkeys(cell.model for cell in cells))),
        ("Seeds", f"{len(seeds)} ({', '.join(seeds)})"),
        ("Test domain", ", ".join(dict.fromkeys(one["test_domain"] for one in summary))),
        ("Best held-out", best[-1] if best else "none surely above chance"),
        ("Data", str(study.data["md5"])[:10]),
    )


def _chance(study: Study) -> Paragraph:
    return Paragraph(
        f"Chance is {percent(1 / study.classes)} % ({study.classes} classes); CLIP is tested "
        "zero-shot."
    )


def _differences(study: Study) -> tuple[Block, ...]:
    if study.differences.empty:
        return ()
    return tuple(_folded(table) for table in difference_tables(study.differences))


def _examples(study: Study) -> Iterator[Block]:
    tables = list(example_tables(study.summary, study.examples, IMAGES))
    if tables:
        yield Paragraph(
            "The same test images for every run, one a class, chosen so that some are answered "
            "right and some wrong: they show what kinds of mistakes are made, not how many."
        )
    for number, table in enumerate(tables):
        yield table if number == 0 else Fold(table.title, (table,))


def _folded(table: Table) -> Block:
    return table if len(table.rows) <= _OPEN_ROWS else Fold(table.title, (table,))


def _training(study: Study) -> Table:
    keys = ("epochs", "steps", "images_seen", "global_batch_size", "learning_rate", "loss")
    header = ["Run", "Device", "Processes", *(key.replace("_", " ").capitalize() for key in keys)]
    rows = []
    for run, found in study.trained.items():
        known = {**found["recipe"], **found}
        rows.append([run, found["device"], found["processes"], *(known.get(key) for key in keys)])
    caption = "How each run was trained; the loss is that of the last steps."
    return text_table("Training by run", caption, header, rows)


def explained_sections(
    explained: Mapping[str, Sequence[Drawing]], measures: Table | None
) -> Iterator[Section]:
    """Return the sections about the cells that were looked into.

    Args:
        explained: figures, by part.
        measures: what was measured; None where no cell was looked into.
    """
    if measures is not None:
        yield Section("inside", "Inside the networks", (_folded(measures),))
    for name, drawings in explained.items():
        runs = list(dict.fromkeys(drawing.run for drawing in drawings if drawing.run))
        few = len(runs) <= EMBEDDED_CELLS
        blocks: list[Block] = [
            drawing.illustration(FIGURES)
            for drawing in drawings
            if drawing.run is None and not drawing.is_beside
        ]
        for run in reversed(runs):
            of_run = [drawing for drawing in drawings if drawing.run == run]
            # One cell is shown as an example; the others are there for those who look for them.
            if run == runs[-1]:
                blocks += [drawing.illustration(FIGURES) for drawing in of_run]
                continue
            inside = tuple(drawing.illustration(FIGURES, embedded=few) for drawing in of_run)
            blocks.append(Fold(f"The same of {run}", inside))
        beside = [drawing.illustration(FIGURES) for drawing in drawings if drawing.is_beside]
        if beside:
            blocks.append(Fold("More figures, beside this page", tuple(beside)))
        yield Section(name.lower().replace(" ", "-"), name, tuple(blocks))


def held_out_frame(study: Study) -> pd.DataFrame:
    """Return the one number a cell is about, and that of its seen classes, for ``dvc plots``.

    Returns:
        ``run``, ``held_out`` and ``seen``, in percent, in the order of params.yaml.
    """
    rows = [
        {
            "run": cell["run"],
            **{
                group: round(100 * found["balanced"]["estimate"], 2)
                for group, found in cell["accuracies"][cell["test_domain"]].items()
            },
        }
        for cell in study.summary
    ]
    return pd.DataFrame(rows).reindex(columns=["run", "held_out", "seen"])
