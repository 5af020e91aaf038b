"""Write which code every stage runs, so that an edit re-runs what it can change and nothing else.

python stages/code_versions.py

build/code/<stage>.txt names every source file that the stage's script imports, with a digest of
what it does; comments and docstrings do not count. A stage depends on its file, and so re-runs if
that has changed. Written out in dvc.yaml, the same lists would have to be kept in step by hand, and
made DVC's lock files several times as long.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from clip_mixtures.code_versions import digest, imported_files
from clip_mixtures.errors import reports_user_errors
from clip_mixtures.files import atomic_write_text
from experiment import BUILD, no_arguments

CODE = BUILD / "code"
STAGES, SOURCE = Path("stages"), Path("src")
SCRIPTS = {
    "corpus": "corpus.py",
    "verify": "verify.py",
    "mixture": "mixture.py",
    "train": "train_clip.py",
    "evaluate": "evaluate.py",
    "examples": "examples.py",
    "compare": "compare.py",
    "activations": "activations.py",
    "representation": "representation.py",
    "sae": "sae.py",
    "sharing": "sharing.py",
    "circuits": "circuits.py",
}


def code_of(
    scripts: Mapping[str, Path], roots: Sequence[Path] = (SOURCE, STAGES)
) -> dict[str, dict[str, str]]:
    """Return of each stage the files that its script imports, itself included, and their digests.

    Args:
        scripts: stage to script.
        roots: folders that modules are looked for in.
    """
    files = {stage: imported_files(script, roots) for stage, script in scripts.items()}
    digests = {path: digest(path) for path in sorted(set(itertools.chain(*files.values())))}
    return {
        stage: {path.as_posix(): digests[path] for path in paths} for stage, paths in files.items()
    }


def code_lines(stage: str) -> list[str]:
    """Return the lines of a stage's file in build/code/, as they should be now."""
    versions = code_of({stage: STAGES / SCRIPTS[stage]})[stage]
    return [f"{version}  {path}" for path, version in versions.items()]


@reports_user_errors
def main() -> None:
    """Write build/code/."""
    scripts = {stage: STAGES / name for stage, name in SCRIPTS.items()}
    for stage, versions in code_of(scripts).items():
        lines = [f"{version}  {path}\n" for path, version in versions.items()]
        atomic_write_text(CODE / f"{stage}.txt", "".join(lines))
    print(f"{CODE}: the code of {len(SCRIPTS)} stages")


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
