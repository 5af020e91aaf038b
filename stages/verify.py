"""Open every image once and list those that cannot be read.

python stages/verify.py
"""

from __future__ import annotations

import pandas as pd

from clip_mixtures.errors import reports_user_errors
from clip_mixtures.files import atomic_write_json, atomic_write_text, sha256_file
from clip_mixtures.index import read_index
from clip_mixtures.verification import check_share, quarantine, remarks, write_verification
from experiment import INDEX, VERIFICATION, load_experiment, no_arguments, scratch_root
from steady import steady
from timed import timed


@reports_user_errors
@steady
@timed
def main() -> None:
    """Write build/verification/: a table for each index, quarantine.csv and summary.json."""
    allowed = load_experiment().unreadable_share
    scratch = scratch_root() / "verification"
    summary, lists = {}, []
    for path in sorted(INDEX.glob("*.parquet")):
        index = read_index(path)
        table = write_verification(
            index,
            VERIFICATION / path.name,
            scratch,
            progress=f"verifying {path.stem}",
            index_hash=sha256_file(path),
        )
        unreadable = quarantine(table, index)
        lists.append(unreadable.assign(index=path.stem))
        summary[path.stem] = {
            "images": len(table),
            "unreadable": len(unreadable),
            "remarks": remarks(table),
        }
        print(f"{path.stem}: {summary[path.stem]}")
        # Written before the share is checked: whoever must mend the corpus needs the list.
        listed = pd.concat(lists, ignore_index=True)
        text = listed.to_csv(index=False, lineterminator="\n")
        atomic_write_text(VERIFICATION / "quarantine.csv", text)
        atomic_write_json(VERIFICATION / "summary.json", summary)
        check_share(table, allowed, f"{VERIFICATION / 'quarantine.csv'}: {path.stem}")


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
