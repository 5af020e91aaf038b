"""What was checked before anything was trained, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_mixtures.report.document import Table, text_table


def audit_table(audits: Mapping[str, Mapping[str, Any]]) -> Table:
    """Tabulate the audits of mixtures, see :mod:`clip_mixtures.mixtures.audit`.

    Args:
        audits: for each mixture its report.
    """
    header = [
        "Mixture",
        "Held-out pairs in training",
        "Exact duplicates of held-out test images",
        "Near duplicates of them",
        "Base captions that name a held-out class",
        "With the test domain",
        "Leaks",
    ]
    return text_table(
        "Audits",
        "The audit of every mixture, in training images. Held-out pairs are images of held-out "
        "classes in the test domain; upper bounds and mixtures that let some back in have them on "
        "purpose. A leak stops the pipeline.",
        header,
        [[key, *_audited(found)] for key, found in audits.items()],
    )


def _audited(found: Mapping[str, Any]) -> list[object]:
    duplicates = found["duplicates"]
    compared = duplicates["compared"]
    named = [one for base in found["captions"].values() for one in base["classes"].values()]
    return [
        found["held_out_pairs"]["images"],
        duplicates["exact_held_out"] if compared else None,
        duplicates["near_held_out"] if compared else None,
        sum(one["captions"] for one in named),
        sum(one["with_the_domain"] for one in named),
        "; ".join(map(str, found["leaks"])) or "none",
    ]


def verification_table(summary: Mapping[str, Mapping[str, Any]]) -> Table:
    """Tabulate what was found when every image was opened once.

    Args:
        summary: for each corpus ``images``, ``unreadable`` and ``remarks`` (name to number).
    """
    remarks = list(dict.fromkeys(name for found in summary.values() for name in found["remarks"]))
    header = ["Corpus", "Images", "Unreadable, left out", *(_words(name) for name in remarks)]
    rows = [
        [
            corpus,
            found["images"],
            found["unreadable"],
            *(found["remarks"].get(name, 0) for name in remarks),
        ]
        for corpus, found in summary.items()
    ]
    return text_table(
        "Images", "Every image was opened once; peculiar ones are counted.", header, rows
    )


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()
