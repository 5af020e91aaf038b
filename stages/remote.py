"""Push and pull cells of the experiment, and make sure that a remote has all of it, unharmed.

python stages/remote.py push                            # everything; or a cell:
python stages/remote.py pull cg-low-sample-rn-0         # training, evaluation, every analysis
python stages/remote.py verify                          # read and hash every object on the remote
python stages/remote.py verify --repair                 # replace what is wrong from the cache

Without cells, everything. Stages, outputs and .dvc files may stand beside cells, as for DVC. What
is to be said of a remote itself, `dvc remote` says: docs/remotes.md.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from clip_mixtures.errors import UserError, reports_user_errors
from clip_mixtures.files import atomic_write_text
from clip_mixtures.remotes.check import DEFAULT_JOBS, Finding, Report, check, repair
from clip_mixtures.remotes.records import Project
from clip_mixtures.scheduling.leash import Leash
from experiment import PARAMS, load_experiment
from mechanism_params import load_mechanisms
from work import INTERRUPTED, stages_of

_ROOT = Path()
_MOST_ROWS = 50
_MOST_PLACES = 3


def expand(targets: Sequence[str]) -> list[str]:
    """Return targets with the stages of a cell in place of its name.

    Args:
        targets: cells as DVC has them (``cg-low-rn-0``) or their folders (``cg-low-rn-s0``), and
            whatever else DVC takes.

    Raises:
        UserError: when params.yaml, which names the cells, is wrong.
    """
    if not targets or not PARAMS.is_file():
        return list(targets)
    experiment = load_experiment()
    mechanisms = load_mechanisms(experiment)
    stages: dict[str, list[str]] = {}
    for cell in experiment.cells:
        names = stages_of(cell, mechanisms)
        stages[cell.run] = stages[names[0].partition("@")[2]] = names
    expanded = [name for target in targets for name in stages.get(target, [target])]
    return list(dict.fromkeys(expanded))


def _transfer(args: argparse.Namespace) -> None:
    """Run `dvc push` or `dvc pull`; say first what it would say badly."""
    if shutil.which("dvc") is None:
        raise UserError("dvc: no such program on PATH; `. .venv/bin/activate` first")
    targets = expand(args.targets)
    with Project(_ROOT, args.remote) as project:
        _warn(project.warnings())
        project.records(targets)
        project.check_reachable()
        project.forget_plans()
    command = ["dvc", args.command, *targets]
    command += ["--remote", args.remote] if args.remote else []
    command += ["--jobs", str(args.jobs)] if args.jobs else []
    command += ["--with-deps"] if args.with_deps else []
    command += ["--run-cache"] if args.run_cache else []
    with Leash(command) as leash:
        code = leash.wait()
    if not code:
        return
    # It may have gone away on the way; then that is what to say.
    with Project(_ROOT, args.remote) as project:
        project.check_reachable()
    verify = " ".join(["python stages/remote.py verify", *args.targets])
    raise UserError(
        f"dvc {args.command}: not everything came through (what it says is above); the same "
        f"command goes on, and `{verify}` tells what is missing or corrupted on the remote"
    )


def _verify(args: argparse.Namespace) -> None:
    with Project(_ROOT, args.remote) as project:
        _warn(project.warnings())
        records = project.records(expand(args.targets), args.rev, args.all_commits)
        _warn(records.remarks)
        _warn(f"{name}: not run yet, so nothing to look for" for name in records.unrecorded)
        if not records.outputs:
            raise UserError("dvc.lock: records nothing that a remote keeps; `dvc repro` first")
        project.check_reachable()
        remote, cache = project.remote_store(), project.cache_store()
        jobs = args.jobs or DEFAULT_JOBS
        report = check(records.outputs, remote, cache, jobs, "read")
        if args.repair and report.findings:
            report = repair(report, records.outputs, remote, cache, jobs, "repair")
        _say(report, f"{project.remote} ({project.url})")
    if args.csv:
        atomic_write_text(args.csv, _csv(report))
    if not report.is_clean:
        if not args.repair:
            print("--repair mends from the cache of a machine that has them", file=sys.stderr)
        sys.exit(1)


def _say(report: Report, remote: str) -> None:
    wrong = sum(not finding.is_mended for finding in report.findings)
    for row in _table(report.findings):
        print(row)
    for output in report.unlisted:
        print(f"{output.path}/: its list of files is nowhere, so they were not looked for")
    if report.reread:
        print(f"{report.reread} objects were not right at first, but were when read again")
    mended = len(report.findings) - wrong
    print(
        f"{remote}: {report.objects:,} objects, {report.size / 1e6:,.1f} MB read; "
        f"{wrong} wrong, {mended} mended"
    )


def _table(findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return []
    rows = [("problem", "outcome", "object", "belongs to")]
    for finding in findings[:_MOST_ROWS]:
        places = [f"{path} ({stage})" for stage, path in finding.places]
        if len(places) > _MOST_PLACES:
            places[_MOST_PLACES - 1 :] = [f"{len(places) - _MOST_PLACES + 1} more"]
        first, *others = places or [""]
        rows.append((finding.problem, finding.outcome or "-", finding.oid, first))
        rows += [("", "", "", place) for place in others]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += [finding.detail for finding in findings if finding.detail][:1]
    if len(findings) > _MOST_ROWS:
        lines.append(f"... and {len(findings) - _MOST_ROWS:,} more; --csv FILE has all")
    return lines


def _csv(report: Report) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("problem", "stage", "path", "object", "detail", "outcome"))
    for finding in report.findings:
        for stage, path in finding.places:
            writer.writerow(
                (finding.problem, stage, path, finding.oid, finding.detail, finding.outcome)
            )
    return text.getvalue()


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("push", "send what the cache has to the remote"),
        ("pull", "fetch what the lock files record into the workspace"),
        ("verify", "hash every object on the remote"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "targets", nargs="*", metavar="TARGET", help="cell, stage, output or .dvc file"
        )
        command.add_argument("--remote", metavar="NAME", help="another one than the default")
        usual = str(DEFAULT_JOBS) if name == "verify" else "DVC's own default"
        command.add_argument("--jobs", type=int, metavar="N", help=f"objects at a time ({usual})")
        if name == "verify":
            command.add_argument(
                "--repair", action="store_true", help="mend from the cache of this machine"
            )
            command.add_argument(
                "--rev",
                action="append",
                default=[],
                help="also what this revision or experiment records; may be repeated",
            )
            command.add_argument(
                "--all-commits", action="store_true", help="also what any commit records"
            )
            command.add_argument("--csv", type=Path, metavar="FILE", help="write all that is wrong")
        else:
            command.add_argument(
                "--with-deps", action="store_true", help="and of all stages before them"
            )
            command.add_argument(
                "--run-cache", action="store_true", help="and the records of every run"
            )
    return parser


@reports_user_errors
def main() -> None:
    """Push, pull or verify."""
    args = _parser().parse_args()
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: allowed: 1 or more")
    try:
        (_verify if args.command == "verify" else _transfer)(args)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
