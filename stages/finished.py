"""Let finished work go from scratch once DVC has it on record.

python stages/finished.py       # all of it; `evaluate`, `sharing` and `compare` do so on their way
"""

from __future__ import annotations

from pathlib import Path

from clip_mixtures.errors import reports_user_errors
from clip_mixtures.scheduling.finished import forget_recorded
from clip_mixtures.scheduling.snapshots import cache_folder
from clip_mixtures.training.layout import FACTS as TRAINING_FACTS
from experiment import BUILD, FACTS, MECHANISMS, no_arguments, scratch_root

# Folder in scratch to that of the results, and what finished work ends with.
_KINDS = {
    "runs": (BUILD / "runs", TRAINING_FACTS),
    "sae": (MECHANISMS / "sae", FACTS),
    "circuits": (MECHANISMS / "circuits", FACTS),
}


def forget_finished(*kinds: str) -> list[str]:
    """Remove the scratch folders of finished work that is on record; return the runs.

    Args:
        kinds: runs, sae, circuits; all of them by default.
    """
    locks = [*Path().glob("dvc.lock"), *sorted(Path("pipeline").glob("*/dvc.lock"))]
    gone: list[str] = []
    if not locks:
        return gone
    cache = cache_folder(Path())
    for kind in kinds or _KINDS:
        outs, facts = _KINDS[kind]
        gone += forget_recorded(scratch_root() / kind, outs, facts, locks, cache)
    return gone


@reports_user_errors
def main() -> None:
    """Remove all that is on record."""
    gone = forget_finished()
    print(f"{scratch_root()}: {len(gone)} finished folders removed", *gone)


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
