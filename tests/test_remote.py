"""Remotes in folders: what is missing or harmed is found and named, and mended only with proof."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dvc.exceptions import CheckoutError
from dvc.repo import Repo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import remote as script
from clip_mixtures.errors import UserError
from clip_mixtures.remotes import check as check_module
from clip_mixtures.remotes.check import Finding, Problem, Report, check, repair
from clip_mixtures.remotes.failures import explain
from clip_mixtures.remotes.records import Output, Project
from clip_mixtures.remotes.store import Store
from experiment import load_experiment
from mechanism_params import load_mechanisms
from work import stages_of

# DVC runs in this process, with what it has not kept up with.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")

ROOT = Path(__file__).parent.parent
PIPELINE = f"""stages:
  train:
    foreach: [one, two]
    do:
      cmd: {sys.executable} -SE train.py ${{item}}
      deps: [data, train.py]
      outs: ["out/${{item}}"]
  evaluate:
    cmd: {sys.executable} -SE -c "open('scores', 'w').write('0.5')"
    outs: [scores]
  late:
    cmd: "false"
    outs: [late]
  private:
    cmd: {sys.executable} -SE -c "open('private', 'w').write('secret'); open('free', 'w')"
    outs: [private: {{push: false}}, free: {{cache: false}}]
"""
# Both cells have a file with the same bytes, which is one object.
TRAIN = """import os, sys
name = sys.argv[1]
os.makedirs(f"out/{name}/deep", exist_ok=True)
for path, text in (("weights", name * 1000), ("deep/log", name), ("same", "shared")):
    open(f"out/{name}/{path}", "w").write(text)
"""
# data, two folders of two files of their own each, the file that they share, and the scores.
OBJECTS = 1 + 2 * 3 + 1 + 1


class Place:
    """A repository and the folder that is its remote."""

    def __init__(self, base: Path) -> None:
        self.root, self.remote = base / "main", base / "remote"

    def object(self, path: str) -> Path:
        """Return the object on the remote with the bytes of a file in the workspace."""
        return self.objects(self.remote) / _name((self.root / path).read_bytes())

    def cached(self, path: str) -> Path:
        return self.objects(self.root / ".dvc" / "cache") / _name((self.root / path).read_bytes())

    def folder(self, path: str, where: Path | None = None) -> Path:
        """Return the object that lists a folder."""
        lock = (self.root / "dvc.lock").read_text().splitlines()
        line = next(i for i, text in enumerate(lock) if text.endswith(f"path: {path}"))
        oid = next(text.split()[-1] for text in lock[line:] if "md5: " in text)
        assert oid.endswith(".dir")
        return self.objects(where or self.remote) / oid[:2] / oid[2:]

    def objects(self, where: Path) -> Path:
        return where / "files" / "md5"

    def check(self, *targets: str, **options: Any) -> Report:
        with Project(self.root) as project:
            outputs = project.records(targets).outputs
            return check(outputs, project.remote_store(), project.cache_store(), **options)

    def mend(self, *targets: str) -> Report:
        with Project(self.root) as project:
            outputs = project.records(targets).outputs
            remote, cache = project.remote_store(), project.cache_store()
            return repair(check(outputs, remote, cache), outputs, remote, cache)

    def without_cache(self) -> None:
        shutil.rmtree(self.root / ".dvc" / "cache")


def _name(content: bytes) -> str:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return f"{digest[:2]}/{digest[2:]}"


def overwrite(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A new file: objects are read-only, and the cache's are links to the workspace's.
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    path.chmod(0o444)


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("template")
    root = base / "main"
    root.mkdir()
    (base / "remote").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(base / "site"))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        patch.setenv("DVC_GLOBAL_CONFIG_DIR", str(base / "nothing"))
        patch.chdir(root)
        git(root, "init", "-q", "-b", "main")
        Repo.init(str(root)).close()
        (root / ".dvc" / "config").write_text(
            "[core]\n    remote = storage\n['remote \"storage\"']\n"
            "    url = ../../remote\n    verify = true\n"
        )
        (root / "dvc.yaml").write_text(PIPELINE)
        (root / "train.py").write_text(TRAIN)
        (root / "data").write_bytes(bytes(range(256)))
        with Repo(str(root)) as repo:
            repo.add("data")
            repo.reproduce(["train", "evaluate", "private"])
            repo.push()
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", "All")
    return base


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("main", "remote"):
        shutil.copytree(template / name, tmp_path / name, symlinks=True)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    found = Place(tmp_path)
    monkeypatch.chdir(found.root)
    return found


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run stages/remote.py in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["remote.py", *arguments])
    try:
        script.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


# What is found


def test_nothing_is_wrong_with_what_was_pushed(place: Place) -> None:
    report = place.check()
    assert report.is_clean
    assert report.findings == ()
    assert report.objects == OBJECTS
    stored = [path for path in place.objects(place.remote).glob("??/*") if path.is_file()]
    assert len(stored) == OBJECTS
    assert report.size == sum(path.stat().st_size for path in stored)


def test_it_does_not_need_the_cache(place: Place) -> None:
    place.without_cache()
    assert place.check().objects == OBJECTS
    assert not (place.root / ".dvc" / "cache" / "files" / "md5" / "00").exists()


def test_a_corrupted_object_is_named_with_its_file(place: Place) -> None:
    overwrite(place.object("out/one/weights"), b"one" * 999 + b"oNe")
    (finding,) = place.check().findings
    assert finding.problem is Problem.CORRUPTED
    assert finding.places == (("train@one", "out/one/weights"),)
    assert finding.oid == _name((place.root / "out/one/weights").read_bytes()).replace("/", "")


def test_a_missing_object_is_named_though_its_folder_is_there(place: Place) -> None:
    place.object("out/two/deep/log").unlink()
    (finding,) = place.check().findings
    assert finding.problem is Problem.MISSING
    assert finding.places == (("train@two", "out/two/deep/log"),)


def test_an_object_of_several_files_is_named_with_all_of_them(place: Place) -> None:
    overwrite(place.object("out/one/same"), b"shares")
    (finding,) = place.check().findings
    assert set(finding.places) == {("train@one", "out/one/same"), ("train@two", "out/two/same")}


def test_single_files_are_looked_for_as_well(place: Place) -> None:
    place.object("data").unlink()
    overwrite(place.object("scores"), b"0.6")
    found = {finding.places[0]: finding.problem for finding in place.check().findings}
    assert found == {
        ("data.dvc", "data"): Problem.MISSING,
        ("evaluate", "scores"): Problem.CORRUPTED,
    }


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_change_of_any_object_is_found_and_nothing_else(place: Place, data: Any) -> None:
    stored = sorted(path for path in place.objects(place.remote).glob("??/*") if path.is_file())
    path = data.draw(st.sampled_from(stored))
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "extend", "empty"]))
    bad = {
        "flip": good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :],
        "cut": good[:at],
        "extend": good + b"\0",
        "empty": b"",
    }[kind]
    overwrite(path, bad)
    try:
        (finding,) = place.check().findings
        assert finding.problem is Problem.CORRUPTED
        assert finding.oid == path.parent.name + path.name
        assert finding.places
    finally:
        overwrite(path, good)


def test_targets_are_looked_at_alone(place: Place) -> None:
    place.object("out/two/weights").unlink()
    assert place.check("train@one").is_clean
    assert place.check("train@one").objects == 4
    assert not place.check("train@two").is_clean
    assert not place.check("out/two").is_clean
    assert place.check("out/two/deep").is_clean
    # The list of the folder, and the one file.
    assert place.check("out/two/deep/log").objects == 2
    assert place.check("data.dvc").objects == 1


def test_a_harmed_list_of_files_does_not_hide_the_files(place: Place) -> None:
    overwrite(place.folder("out/one"), b"[]")
    place.object("out/one/weights").unlink()
    found = {finding.places[0][1]: finding.problem for finding in place.check().findings}
    assert found == {"out/one/": Problem.CORRUPTED, "out/one/weights": Problem.MISSING}


def test_a_list_that_is_nowhere_is_not_taken_for_an_empty_folder(place: Place) -> None:
    overwrite(place.folder("out/one"), b"[]")
    overwrite(place.folder("out/one", place.root / ".dvc" / "cache"), b"[]")
    report = place.mend()
    assert [output.path for output in report.unlisted] == ["out/one"]
    assert not report.is_clean
    (finding,) = report.findings
    assert finding.outcome == "corrupted in the cache, too"


def test_a_harmed_list_in_the_cache_is_not_believed(place: Place) -> None:
    overwrite(place.folder("out/one", place.root / ".dvc" / "cache"), b"[]")
    assert place.check().objects == OBJECTS


def test_earlier_commits_are_looked_at_when_asked(place: Place) -> None:
    place.object("scores").unlink()
    text = (place.root / "dvc.lock").read_text()
    new = hashlib.md5(b"0.7", usedforsecurity=False).hexdigest()
    old = hashlib.md5(b"0.5", usedforsecurity=False).hexdigest()
    assert old in text
    (place.root / "dvc.lock").write_text(text.replace(old, new))
    overwrite(place.objects(place.remote) / _name(b"0.7"), b"0.7")
    git(place.root, "commit", "-q", "-a", "-m", "Better scores")
    assert place.check().is_clean
    with Project(place.root) as project:
        for options in ({"all_commits": True}, {"revisions": ["HEAD~1"]}):
            outputs = project.records(**options).outputs
            report = check(outputs, project.remote_store(), project.cache_store())
            assert [finding.places for finding in report.findings] == [(("evaluate", "scores"),)]
        assert len(outputs) == 5


def test_a_commit_that_cannot_be_read_is_left_out_and_said(place: Place) -> None:
    good = (place.root / "dvc.yaml").read_text()
    (place.root / "dvc.yaml").write_text("stages: [")
    git(place.root, "commit", "-q", "-a", "-m", "Broken")
    (place.root / "dvc.yaml").write_text(good)
    git(place.root, "commit", "-q", "-a", "-m", "Mended")
    with Project(place.root) as project:
        records = project.records(all_commits=True)
    (remark,) = records.remarks
    assert "is left out" in remark
    assert len(records.outputs) == 4


def test_what_was_not_run_is_said_and_what_is_not_kept_there_is_not_looked_for(
    place: Place,
) -> None:
    with Project(place.root) as project:
        records = project.records()
    assert records.unrecorded == ("late: late",)
    assert {output.path for output in records.outputs} == {"data", "out/one", "out/two", "scores"}


def test_what_dvc_2_recorded_is_refused(place: Place) -> None:
    record = place.root / "data.dvc"
    record.write_text(record.read_text().replace("  hash: md5\n", ""))
    with Project(place.root) as project, pytest.raises(UserError, match="dvc cache migrate"):
        project.records()


# Mending


def test_what_is_wrong_is_mended_from_the_cache(place: Place) -> None:
    overwrite(place.object("out/one/weights"), b"no")
    overwrite(place.folder("out/two"), b"no")
    place.object("out/one/deep/log").unlink()
    place.folder("out/one").unlink()
    report = place.mend()
    assert report.is_clean
    outcomes = {finding.places[0][1]: finding.outcome for finding in report.findings}
    assert outcomes == {
        "out/one/weights": "replaced",
        "out/two/": "replaced",
        "out/one/deep/log": "pushed",
        "out/one/": "pushed",
    }
    assert place.check().is_clean
    # DVC takes a protected object for one that it has hashed.
    assert place.object("out/one/weights").stat().st_mode & 0o777 == 0o444


def test_mending_shares_no_file_with_the_cache(place: Place) -> None:
    place.object("out/one/weights").unlink()
    place.mend()
    assert not place.object("out/one/weights").samefile(place.cached("out/one/weights"))


def test_a_corrupted_cache_is_reported_and_never_pushed(place: Place) -> None:
    kept = b"harmed on the remote"
    target, source = place.object("out/one/weights"), place.cached("out/one/weights")
    overwrite(target, kept)
    overwrite(source, b"harmed in the cache")
    report = place.mend()
    assert not report.is_clean
    (finding,) = report.findings
    assert finding.outcome == "corrupted in the cache, too"
    assert target.read_bytes() == kept
    target.unlink()
    (finding,) = place.mend().findings
    assert (finding.problem, finding.is_mended) == (Problem.MISSING, False)
    assert not target.exists()


def test_without_the_object_in_the_cache_nothing_is_removed(place: Place) -> None:
    target = place.object("out/one/weights")
    overwrite(target, b"harmed")
    place.without_cache()
    (finding,) = place.mend().findings
    assert finding.outcome == "not in the cache"
    assert target.read_bytes() == b"harmed"


def test_a_list_is_not_pushed_before_its_files_are_there(place: Place) -> None:
    """DVC takes it for a sign that they are, and would never push them."""
    files = [place.object("out/one/weights"), place.cached("out/one/weights")]
    content = files[1].read_bytes()
    for path in (*files, place.folder("out/one")):
        path.unlink()
    report = place.mend()
    assert not report.is_clean
    assert not place.folder("out/one").exists()
    assert {finding.outcome for finding in report.findings} == {
        "not in the cache",
        "not pushed, as its files are not all known to be there",
    }
    overwrite(files[1], content)
    assert place.mend().is_clean
    assert place.check().is_clean


def test_a_list_is_not_pushed_when_only_a_part_was_looked_at(place: Place) -> None:
    place.folder("out/one").unlink()
    assert not place.mend("out/one/deep").is_clean
    assert not place.folder("out/one").exists()
    assert place.mend("out/one").is_clean


def test_dvc_pushes_again_what_was_found_missing(place: Place) -> None:
    """DVC keeps a list of what the remote has; a repair must not leave it as it is."""
    content = place.cached("out/one/weights").read_bytes()
    with Repo(str(place.root)) as repo:
        assert repo.push() == 0
    for path in list(place.objects(place.remote).glob("??/*")):
        path.unlink()
    place.cached("out/one/weights").unlink()
    assert not place.mend("out/one").is_clean
    overwrite(place.cached("out/one/weights"), content)
    with Repo(str(place.root)) as repo:
        assert repo.push() > 0
    assert place.check().is_clean


# The parts


class Fake(Store):
    """A remote that answers as it is told."""

    def __init__(self, answers: dict[str, list[str | Exception]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def sizes(self, prefix: str) -> dict[str, int]:
        return {oid: 1 for oid in self.answers if oid.startswith(prefix)}

    def digest(self, oid: str, tell: Callable[[int], object] | None = None) -> str:
        self.asked.append(oid)
        answer = self.answers[oid].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def listing(self, oid: str) -> bytes | None:
        return None


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "_pause_before", lambda _: None)


def oid_of(number: int) -> str:
    return f"{number:032x}"


def outputs_of(*numbers: int) -> list[Output]:
    return [Output(f"stage{number}", f"file{number}", oid_of(number)) for number in numbers]


def test_bytes_altered_on_the_way_are_read_again() -> None:
    answers: dict[str, list[str | Exception]] = {
        oid_of(1): ["wrong", oid_of(1)],
        oid_of(2): ["wrong", "wrong"],
        # Another machine replaces these meanwhile.
        oid_of(3): [UserError("broke"), oid_of(3)],
        oid_of(4): [FileNotFoundError(), oid_of(4)],
    }
    report = check(outputs_of(1, 2, 3, 4), Fake(answers), Fake({}))
    assert [finding.oid for finding in report.findings] == [oid_of(2)]
    assert report.reread == 3


def test_an_object_that_goes_while_it_is_looked_at_is_missing() -> None:
    report = check(outputs_of(1), Fake({oid_of(1): [FileNotFoundError()] * 2}), Fake({}))
    assert report.findings[0].problem is Problem.MISSING


def test_objects_that_cannot_be_read_are_no_corrupted_ones() -> None:
    answers: dict[str, list[str | Exception]] = {
        oid_of(number): [oid_of(number)] for number in range(1, 40)
    }
    answers[oid_of(7)] = [UserError("broke")] * 5
    outputs = outputs_of(*range(1, 40))
    remote = Fake(answers)
    report = check(outputs, remote, Fake({}))
    (finding,) = report.findings
    assert (finding.problem, finding.detail) == (Problem.UNREADABLE, "broke")
    assert not report.is_clean
    # A repair leaves it alone: the remote's bytes may well be right.
    cache = Fake({oid_of(7): [oid_of(7)]})
    remote.forget = lambda: None  # type: ignore[method-assign]
    mended = repair(report, outputs, remote, cache)
    assert mended.findings[0].outcome == "left as it is"
    assert not mended.is_clean
    answers[oid_of(7)] = [UserError("broke"), oid_of(7)]
    assert repair(report, outputs, remote, cache).is_clean
    assert cache.asked == []


def test_what_is_pushed_and_reads_back_otherwise_is_not_mended() -> None:
    answers: dict[str, list[str | Exception]] = {
        oid_of(1): ["wrong", "wrong", FileNotFoundError(), "wrong", UserError("broke")],
        oid_of(2): ["wrong", "wrong", FileNotFoundError(), oid_of(2)],
    }
    remote, outputs = Fake(answers), outputs_of(1, 2)
    remote.forget = lambda: None  # type: ignore[method-assign]
    remote.replace = lambda *_: None  # type: ignore[method-assign]
    cache = Fake({oid_of(1): [oid_of(1)], oid_of(2): [oid_of(2)]})
    report = repair(check(outputs, remote, Fake({})), outputs, remote, cache)
    assert [finding.outcome for finding in report.findings] == [
        "pushed, but reads back otherwise",
        "replaced",
    ]
    assert not report.is_clean


def test_a_lost_connection_ends_the_check_early() -> None:
    answers: dict[str, list[str | Exception]] = {
        oid_of(number): [UserError("gone")] * 2 for number in range(500)
    }
    remote = Fake(answers)
    with pytest.raises(UserError, match="gone"):
        check(outputs_of(*range(500)), remote, Fake({}), jobs=2)
    assert len(remote.asked) < 100


def test_few_items_are_in_hand_at_a_time() -> None:
    taken = 0
    gate = threading.Event()

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    def work(number: int) -> int:
        gate.wait(60)
        return number

    running = check_module._in_threads(work, items(), jobs=3)
    threading.Timer(0.2, gate.set).start()
    next(running)
    assert taken <= 4 * 3
    assert sorted([*running]) != []
    assert taken == 1000


def test_no_more_threads_than_asked_for() -> None:
    lock, at_once, most = threading.Lock(), 0, 0

    def work(_: int) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.002)
        with lock:
            at_once -= 1

    list(check_module._in_threads(work, range(60), jobs=4))
    assert 1 < most <= 4


def test_an_error_tells_those_that_run_to_stop() -> None:
    stop = threading.Event()

    def work(number: int) -> None:
        if number == 0:
            raise UserError("first")
        assert stop.wait(60)

    with pytest.raises(UserError, match="first"):
        list(check_module._in_threads(work, range(4), jobs=4, stop=stop))


def test_large_objects_are_read_in_pieces(place: Place) -> None:
    size = 64 << 20
    content = hashlib.md5(usedforsecurity=False)
    for _ in range(64):
        content.update(bytes(1 << 20))
    path = place.objects(place.remote) / content.hexdigest()[:2] / content.hexdigest()[2:]
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    told: list[int] = []
    with Project(place.root) as project:
        store = project.remote_store()
        tracemalloc.start()
        try:
            assert store.digest(content.hexdigest(), told.append) == content.hexdigest()
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()
    assert sum(told) == size


def test_no_jobs_is_misuse() -> None:
    with pytest.raises(ValueError, match="jobs 0"):
        check([], Fake({}), Fake({}), jobs=0)
    with pytest.raises(ValueError, match="jobs 0"):
        repair(Report(0, 0, (), (), 0), [], Fake({}), Fake({}), jobs=0)


# What is said


def test_errors_say_what_to_do(place: Place) -> None:
    with Project(place.root) as project, pytest.raises(UserError, match="nothing: 'nothing'"):
        project.records(["nothing"])
    with Project(place.root) as project, pytest.raises(UserError, match=r"--rev: .*'nowhen'"):
        project.records(revisions=["nowhen"])
    with pytest.raises(UserError, match="unknown remote 'stroage'; did you mean 'storage'"):
        Project(place.root, "stroage")
    shutil.rmtree(place.remote)
    with (
        Project(place.root) as project,
        pytest.raises(UserError, match="no such folder; mount the disk"),
    ):
        project.check_reachable()
    (place.root / ".dvc" / "config").write_text("")
    with pytest.raises(UserError, match="dvc remote add -d storage"):
        Project(place.root)
    with pytest.raises(UserError, match="not inside of a DVC repository"):
        Project(place.remote.parent)


def test_settings_that_are_dangerous_are_named(place: Place) -> None:
    with Project(place.root) as project:
        assert project.warnings() == []
    config = place.root / ".dvc" / "config"
    config.write_text(
        "[core]\n    remote = s\n['remote \"s\"']\n    url = s3://b/p\n"
        "    secret_access_key = hush\n"
    )
    with Project(place.root) as project:
        first, second = project.warnings()
    assert "dvc remote modify s verify true" in first
    assert "secret_access_key" in second
    assert "hush" not in second
    (place.root / ".dvc" / "config.local").write_text(
        "['remote \"s\"']\n    secret_access_key = hush\n    verify = true\n"
    )
    config.write_text("[core]\n    remote = s\n['remote \"s\"']\n    url = s3://b/p\n")
    with Project(place.root) as project:
        assert project.warnings() == []


def amid(*errors: BaseException) -> BaseException:
    """Chain errors as `raise ... from` does, the outermost first."""
    for outer, inner in itertools.pairwise(errors):
        outer.__cause__ = inner
    return errors[0]


def of_s3(code: str, status: int = 400) -> Exception:
    error = Exception("said by the server")
    error.response = {  # type: ignore[attr-defined]
        "Error": {"Code": code},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return error


def of_class(name: str) -> Exception:
    kind: type[Exception] = type(name, (Exception,), {})
    return kind("as its library says it")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (amid(PermissionError("no"), of_s3("SignatureDoesNotMatch")), "the secret key is wrong"),
        (amid(PermissionError("no"), of_s3("AccessDenied", 403)), "may not do that"),
        (amid(PermissionError("no"), of_s3("", 403)), "may not do that"),
        (amid(OSError("x"), OSError("y"), of_s3("SlowDown", 503)), "smaller --jobs"),
        (of_s3("NoSuchBucket", 404), "dvc remote modify mine url s3://BUCKET/PATH"),
        (of_s3("PermanentRedirect", 301), "dvc remote modify mine region REGION"),
        (of_class("EndpointConnectionError"), "nothing answers there"),
        (of_class("NoCredentialsError"), "AWS_ACCESS_KEY_ID"),
        (ConnectionResetError("reset"), "the connection broke"),
        (TimeoutError(), "the connection broke"),
        (amid(ValueError("x"), OSError(errno.ENOSPC, "full")), "no room left"),
        (ValueError("Invalid endpoint: x"), "dvc remote modify mine endpointurl URL"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "/a/b: Permission denied"),
        (of_class("Unheard"), "Unheard: as its library says it"),
    ],
)
def test_failures_have_meanings(error: BaseException, said: str) -> None:
    message = str(explain(error, "mine", "s3://b/p"))
    assert message.startswith("remote 'mine' (s3://b/p): ")
    assert said in message
    assert "\n" not in message
    assert "{" not in message


def test_causes_that_go_round_end() -> None:
    first, second = ValueError("one"), ValueError("two")
    first.__cause__, second.__cause__ = second, first
    assert "ValueError: one" in str(explain(first, None, "/cache"))
    assert str(explain(first, None, "/cache")).startswith("cache (/cache): ")


# The command


def test_verify_ends_with_a_table_and_a_status(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(monkeypatch, "verify") == 0
    said = capsys.readouterr()
    assert f"{OBJECTS} objects" in said.out
    assert "0 wrong, 0 mended" in said.out
    assert "late: late: not run yet" in said.err
    overwrite(place.object("out/one/same"), b"no")
    place.object("scores").unlink()
    assert run_script(monkeypatch, "verify", "--csv", "wrong.csv") == 1
    lines = capsys.readouterr().out.splitlines()
    same, scores = (
        _name(text).replace("/", "") for text in (b"shared", (place.root / "scores").read_bytes())
    )
    assert [line.split() for line in lines[:4]] == [
        ["problem", "outcome", "object", "belongs", "to"],
        ["corrupted", "-", same, "out/one/same", "(train@one)"],
        ["out/two/same", "(train@two)"],
        ["missing", "-", scores, "scores", "(evaluate)"],
    ]
    assert lines[2].index("out/two") == lines[1].index("out/one")
    assert "2 wrong, 0 mended" in lines[4]
    with open("wrong.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["problem"], row["stage"], row["path"]) for row in rows] == [
        ("corrupted", "train@one", "out/one/same"),
        ("corrupted", "train@two", "out/two/same"),
        ("missing", "evaluate", "scores"),
    ]
    assert run_script(monkeypatch, "verify", "--repair") == 0
    assert "0 wrong, 2 mended" in capsys.readouterr().out
    assert run_script(monkeypatch, "verify", "train@one", "data.dvc", "--jobs", "1") == 0


def test_verify_of_another_remote(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = place.root.parent / "other"
    other.mkdir()
    with (place.root / ".dvc" / "config").open("a") as file:
        file.write("['remote \"other\"']\n    url = ../../other\n")
    assert run_script(monkeypatch, "verify", "--remote", "other") == 1
    said = capsys.readouterr()
    assert f"{OBJECTS} wrong" in said.out
    assert "verify is off" in said.err
    assert run_script(monkeypatch, "verify", "--remote", "other", "--repair") == 0
    assert run_script(monkeypatch, "verify") == 0


def test_long_tables_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    places = tuple((f"stage{number}", f"file{number}") for number in range(5))
    findings = [Finding(oid_of(number), Problem.MISSING, places=places) for number in range(60)]
    lines = script._table(findings)
    assert len(lines) == 1 + 3 * 50 + 1
    assert [lines[row].split()[-2:] for row in (1, 2, 3)] == [
        ["file0", "(stage0)"],
        ["file1", "(stage1)"],
        ["3", "more"],
    ]
    assert lines[-1] == "... and 10 more; --csv FILE has all"


def test_mistakes_are_one_line_and_status_2(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_dvc(place.root.parent, monkeypatch, status=0)
    for arguments, said in (
        (("verify", "--jobs", "0"), "--jobs 0: allowed: 1 or more"),
        (("verify", "train@none"), "train@none"),
        (("push", "train@none"), "train@none"),
        (("verify", "--remote", "none"), "unknown remote 'none'"),
    ):
        assert run_script(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1
        assert error[0].startswith("error: ")
        assert said in error[0]


def test_nothing_recorded_is_a_mistake(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(monkeypatch, "verify", "late") == 2
    assert "`dvc repro` first" in capsys.readouterr().err


def test_a_cell_stands_for_its_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    experiment = load_experiment()
    mechanisms = load_mechanisms(experiment)
    for cell in experiment.cells:
        stages = stages_of(cell, mechanisms)
        key = f"{cell.mixture}-{cell.model}-{cell.seed}"
        assert stages[0] == f"train@{key}"
        assert script.expand([key]) == script.expand([cell.run]) == stages
        assert script.expand([key, cell.run, "data.dvc", stages[0]]) == [*stages, "data.dvc"]
    assert script.expand(["nothing", "data.dvc"]) == ["nothing", "data.dvc"]
    assert script.expand([]) == []


FAKE = """#!{python} -SE
import json, sys
json.dump(sys.argv[1:], open({calls!r}, "w"))
sys.exit({status})
"""


def fake_dvc(folder: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> Path:
    calls = folder / "calls"
    program = folder / "bin" / "dvc"
    program.parent.mkdir(exist_ok=True)
    program.write_text(FAKE.format(python=sys.executable, calls=str(calls), status=status))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(program.parent), os.environ["PATH"]]))
    return calls


def test_push_and_pull_are_dvcs(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = fake_dvc(place.root.parent, monkeypatch, status=0)
    assert run_script(monkeypatch, "push") == 0
    assert json.loads(calls.read_text()) == ["push"]
    options = ["--remote", "storage", "--jobs", "3", "--with-deps", "--run-cache"]
    assert run_script(monkeypatch, "pull", "train@one", "scores", *options) == 0
    assert json.loads(calls.read_text()) == ["pull", "train@one", "scores", *options]


KILLED = """import os, sys
from dvc.repo import Repo
from dvc_data.index import DataIndex
commit = DataIndex.commit
left = int(sys.argv[2])
def commit_and_die(self):
    global left
    commit(self)
    left -= 1
    if not left: os._exit(9)
DataIndex.commit = commit_and_die
getattr(Repo("."), sys.argv[1])()
"""


def kill_amid_plan(command: str, done: int) -> None:
    """Kill DVC when it has written down what so many outputs, and one, are to move."""
    killed = subprocess.run([sys.executable, "-c", KILLED, command, str(done + 2)], check=False)
    assert killed.returncode == 9


def test_a_push_that_was_killed_while_it_was_planned_is_completed(place: Place) -> None:
    data = place.object("data")
    for path in [path for path in place.objects(place.remote).glob("??/*") if path != data]:
        path.unlink()
    kill_amid_plan("push", 0)
    # What DVC does by itself, again and again; when this fails, there is no need of a cure.
    for _ in range(2):
        with Repo(str(place.root)) as repo:
            assert repo.push() == 0
    assert not place.check().is_clean
    with Project(place.root) as project:
        project.forget_plans()
    with Repo(str(place.root)) as repo:
        assert repo.push() == OBJECTS - 1
    assert place.check().is_clean


def test_a_pull_that_was_killed_while_it_was_planned_is_completed(place: Place) -> None:
    place.without_cache()
    shutil.rmtree(place.root / "out")
    kill_amid_plan("pull", 1)
    with Repo(str(place.root)) as repo, contextlib.suppress(CheckoutError):
        repo.pull()
    paths = [place.root / "out" / name / "same" for name in ("one", "two")]
    assert not all(path.is_file() for path in paths)
    with Project(place.root) as project:
        project.forget_plans()
    # The stage that was never run is what it complains of.
    with Repo(str(place.root)) as repo, contextlib.suppress(CheckoutError):
        repo.pull()
    assert all(path.is_file() for path in paths)


def test_plans_are_not_forgotten_while_dvc_is_at_work(place: Place) -> None:
    with (
        Repo(str(place.root)) as repo,
        repo.lock,
        Project(place.root) as project,
        pytest.raises(UserError, match="lock"),
    ):
        project.forget_plans()


def test_a_failed_transfer_says_what_tells_more(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = fake_dvc(place.root.parent, monkeypatch, status=1)
    assert run_script(monkeypatch, "pull", "train@one") == 2
    assert "`python stages/remote.py verify train@one`" in capsys.readouterr().err
    calls.unlink()
    shutil.rmtree(place.remote)
    assert run_script(monkeypatch, "push") == 2
    assert "mount the disk" in capsys.readouterr().err
    # Not asked at all: it would have made the folder.
    assert not calls.exists()


def test_a_push_without_dvc_on_the_path(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert run_script(monkeypatch, "push") == 2
    assert "no such program on PATH" in capsys.readouterr().err


def test_stopped_by_hand(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "check", interrupted)
    assert run_script(monkeypatch, "verify") == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_what_cannot_be_listed_is_refused() -> None:
    fs = SimpleNamespace(protocol="http", CAN_TRAVERSE=False)
    store = Store(SimpleNamespace(fs=fs), "https://x/y", "web")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot be listed"):
        store.check_reachable()
