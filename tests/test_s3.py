"""Remotes on a real S3 server: travel there and back, every failure, and what a user sees of it.

A pipeline of two stages stands in for the real one; it notes every execution, so that "nothing was
trained again" is a number. Not part of `make test`: `make test-remote`.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3_server
import s3fs  # type: ignore[import-untyped]
from fault_proxy import Fault, FaultProxy
from s3_server import Server

pytestmark = pytest.mark.s3

REMOTE = Path(__file__).parent.parent / "stages" / "remote.py"
KILLS = 20
# So many that killed transfers, each of which gets some across, have still something to do.
MANY = 200
_PATIENCE_SECONDS = 600.0

# A stage's program is one line: it notes that it ran, and makes what is different for each cell.
TRAIN = """import pathlib, sys
name, count = sys.argv[1], int(sys.argv[2])
open("executions", "a").write(f"train {name}\\n")
out = pathlib.Path("out", name)
out.mkdir(parents=True, exist_ok=True)
for number in range(count):
    content = f"{name} {number} ".encode() * 2000 + open("data", "rb").read()
    (out / f"{number:03}").write_bytes(content)
"""
EVALUATE = """import hashlib, pathlib, sys
name = sys.argv[1]
open("executions", "a").write(f"evaluate {name}\\n")
weights = b"".join(path.read_bytes() for path in sorted(pathlib.Path("out", name).iterdir()))
pathlib.Path(f"{name}.txt").write_text(hashlib.sha256(weights).hexdigest())
"""
PIPELINE = """stages:
  train:
    foreach: [one, two]
    do:
      cmd: {python} train.py ${{item}} {count}
      deps: [data, train.py]
      params: [{{salt.yaml: [salt]}}]
      outs: ["out/${{item}}"]
  evaluate:
    foreach: [one, two]
    do:
      cmd: {python} evaluate.py ${{item}}
      deps: ["out/${{item}}", evaluate.py]
      outs: ["${{item}}.txt"]
"""
CELLS = ("one", "two")
FILES = 3
# Two data sets, two folders and two texts: the objects of a pushed repository.
OBJECTS = 1 + 2 * (FILES + 1) + 2


class Repository:
    """A clone with a DVC pipeline, on a machine of its own as far as DVC can tell."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(root.parent / f"{root.name}-home"),
            "AWS_ACCESS_KEY_ID": s3_server.ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": s3_server.SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(root.parent / f"{root.name}-site"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "NO_COLOR": "1",
            **{
                f"GIT_{who}_{what}": value
                for who in ("AUTHOR", "COMMITTER")
                for what, value in (("NAME", "Test"), ("EMAIL", "test@example.com"))
            },
        }
        if "PYTHONPATH" in os.environ:
            self.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]

    def try_(self, *command: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
        """Run a command; a variable that is None is taken away."""
        wanted = {**self.environment, **environment}
        return subprocess.run(
            command,
            cwd=self.root,
            env={name: value for name, value in wanted.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )

    def run(self, *command: str) -> str:
        answer = self.try_(*command)
        assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
        return answer.stdout

    def dvc(self, *arguments: str) -> str:
        return self.run("dvc", *arguments)

    def remote(
        self, *arguments: str, **environment: str | None
    ) -> subprocess.CompletedProcess[str]:
        return self.try_(sys.executable, str(REMOTE), *arguments, **environment)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own."""
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def clone(self, name: str) -> Repository:
        """Clone what git has: a machine that has neither cache nor data."""
        other = Repository(self.root.parent / name)
        self.run("git", "clone", "-q", str(self.root), str(other.root))
        return other

    def executions(self) -> list[str]:
        path = self.root / "executions"
        return path.read_text().splitlines() if path.exists() else []

    def tracked(self) -> dict[str, str]:
        """Return the SHA-256 of all that the remote keeps, of what is in the workspace."""
        paths = [self.root / "data", *self.root.glob("out/*/*"), *self.root.glob("*.txt")]
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(paths)
            if path.is_file() and path.name != ".gitignore"
        }

    def use(self, url: str) -> None:
        """Go to the server by another address."""
        self.dvc("remote", "modify", "--local", "storage", "endpointurl", url)

    def drop_cache(self) -> None:
        """Lose the cache and what it was for; git's files stay."""
        shutil.rmtree(self.root / ".dvc" / "cache", ignore_errors=True)
        shutil.rmtree(self.root / "out", ignore_errors=True)
        for path in (self.root / "data", *self.root.glob("*.txt")):
            path.unlink(missing_ok=True)


def make_repository(root: Path, place: str, url: str, count: int = FILES) -> Repository:
    root.mkdir(parents=True)
    made = Repository(root)
    made.run("git", "init", "-q", "-b", "main")
    made.dvc("init", "-q")
    (root / "train.py").write_text(TRAIN)
    (root / "evaluate.py").write_text(EVALUATE)
    (root / "dvc.yaml").write_text(PIPELINE.format(python=sys.executable, count=count))
    (root / "salt.yaml").write_text("salt: 0\n")
    (root / ".gitignore").write_text("executions\n")
    (root / "data").write_bytes(bytes(range(256)) * 4096)
    made.dvc("add", "-q", "data")
    # The lines of docs/remotes.md.
    made.dvc("remote", "add", "-d", "storage", f"s3://{place}")
    made.dvc("remote", "modify", "storage", "endpointurl", url)
    made.dvc("remote", "modify", "storage", "verify", "true")
    made.dvc("repro", "-q")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-q", "-m", "All of it")
    return made


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server.running(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="session")
def files(server: Server) -> s3fs.S3FileSystem:
    return server.files()


@pytest.fixture(scope="session")
def template(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that was run and not pushed; the remote's folder is a name to be replaced."""
    root = tmp_path_factory.mktemp("template") / "main"
    return make_repository(root, "PLACE", server.url).root


@pytest.fixture
def place(request: pytest.FixtureRequest) -> str:
    """Return a folder of its own; the server has room for few buckets."""
    return f"{s3_server.BUCKET}/{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}"


@pytest.fixture
def repository(template: Path, place: str, tmp_path: Path) -> Repository:
    """A repository that was run and not pushed, with a folder of its own on the server."""
    shutil.copytree(template, tmp_path / "main", symlinks=True)
    found = Repository(tmp_path / "main")
    config = found.root / ".dvc" / "config"
    config.write_text(config.read_text().replace("PLACE", place))
    found.run("git", "commit", "-q", "-a", "-m", "Its own folder")
    return found


@pytest.fixture
def pushed(repository: Repository) -> Repository:
    repository.dvc("push", "-q")
    return repository


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(server.port) as running:
        yield running


def objects_of(files: s3fs.S3FileSystem, place: str) -> list[str]:
    found: list[str] = sorted(files.find(f"{place}/files/md5"))
    return found


def object_with(files: s3fs.S3FileSystem, place: str, content: bytes) -> str:
    """Return the key of the object with these bytes."""
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    path = f"{place}/files/md5/{digest[:2]}/{digest[2:]}"
    assert files.exists(path)
    return path


def corrupt(files: s3fs.S3FileSystem, path: str) -> None:
    content = bytearray(files.cat_file(path))
    content[len(content) // 2] ^= 1
    files.pipe_file(path, bytes(content))


def weights(repository: Repository) -> bytes:
    return (repository.root / "out" / "one" / "001").read_bytes()


def is_clean(repository: Repository, objects: int = OBJECTS) -> None:
    answer = repository.remote("verify")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f": {objects} objects," in answer.stdout
    assert "0 wrong, 0 mended" in answer.stdout


# Travel


def test_all_travels_and_nothing_is_trained_again(pushed: Repository) -> None:
    assert len(pushed.executions()) == 4
    other = pushed.clone("other")
    other.dvc("pull")
    assert other.tracked() == pushed.tracked()
    assert len(other.tracked()) == 1 + 2 * FILES + 2
    other.dvc("repro")
    assert other.executions() == []
    assert "up to date" in other.dvc("status")
    is_clean(other)


def test_one_cell_travels_alone(repository: Repository) -> None:
    stages = ("train@one", "evaluate@one")
    repository.dvc("push", *stages)
    other = repository.clone("other")
    other.dvc("pull", *stages)
    mine = {name for name in repository.tracked() if name.startswith(("out/one/", "one."))}
    assert set(other.tracked()) == mine
    assert other.remote("verify", *stages).returncode == 0
    answer = other.remote("verify")
    assert answer.returncode == 1
    assert "(train@two)" in answer.stdout


def test_remote_py_pushes_and_pulls_as_dvc_does(repository: Repository) -> None:
    answer = repository.remote("push", "evaluate@two", "--with-deps", "--jobs", "2")
    assert answer.returncode == 0, answer.stderr
    other = repository.clone("other")
    assert other.remote("pull", "evaluate@two").returncode == 0
    assert set(other.tracked()) == {"two.txt"}
    # What comes before it went along with the dependencies.
    assert other.remote("pull", "train@two", "data.dvc").returncode == 0
    assert "data" in other.tracked()


def test_repro_pull_assembles_without_training(pushed: Repository) -> None:
    pushed.dvc("push", "--run-cache")
    other = pushed.clone("other")
    other.dvc("repro", "--pull")
    assert other.executions() == []
    assert other.tracked() == pushed.tracked()


def test_the_run_cache_brings_a_cell_that_no_commit_has(
    repository: Repository, tmp_path: Path
) -> None:
    """A worker trains with other parameters and commits nothing; records and objects travel."""
    worker = Repository(tmp_path / "worker")
    shutil.copytree(repository.root, worker.root, symlinks=True)
    for each in (worker, repository):
        (each.root / "salt.yaml").write_text("salt: 1\n")
    worker.dvc("repro", "-q")
    assert len(worker.executions()) == 4 + 2
    worker.dvc("push", "--run-cache")
    repository.dvc("repro", "--pull")
    assert len(repository.executions()) == 4
    assert "up to date" in repository.dvc("status")


def test_pull_of_the_run_cache_alone_trains_again(repository: Repository, tmp_path: Path) -> None:
    """What docs/remotes.md warns of: records come without objects."""
    worker = repository.clone("worker")
    worker.run("git", "reset", "-q", "--hard")
    shutil.copyfile(repository.root / "data", worker.root / "data")
    (worker.root / "salt.yaml").write_text("salt: 2\n")
    worker.dvc("repro", "-q")
    worker.dvc("push", "--run-cache")
    other = repository.clone("other")
    shutil.copyfile(repository.root / "data", other.root / "data")
    (other.root / "salt.yaml").write_text("salt: 2\n")
    other.dvc("fetch", "--run-cache", "data.dvc")
    other.dvc("repro", "-q")
    assert [line for line in other.executions() if line.startswith("train")] != []


def test_an_experiment_travels(pushed: Repository, tmp_path: Path) -> None:
    origin = tmp_path / "origin.git"
    pushed.run("git", "init", "-q", "--bare", "-b", "main", str(origin))
    pushed.run("git", "remote", "add", "origin", str(origin))
    pushed.run("git", "push", "-q", "origin", "main")
    pushed.dvc("exp", "run", "-q", "-n", "salted", "-S", "salt.yaml:salt=3")
    pushed.dvc("exp", "push", "origin", "salted")
    other = Repository(tmp_path / "other")
    pushed.run("git", "clone", "-q", str(origin), str(other.root))
    other.dvc("exp", "pull", "origin", "salted")
    other.dvc("exp", "apply", "salted")
    other.dvc("pull")
    other.dvc("repro")
    assert other.executions() == []
    assert (other.root / "salt.yaml").read_text() == "salt: 3\n"
    answer = other.remote("verify", "--rev", "salted", "--all-commits")
    assert answer.returncode == 0, answer.stdout + answer.stderr


# Failures


def test_unreachable(pushed: Repository) -> None:
    with FaultProxy(1) as gone:
        url = gone.url
    pushed.use(url)
    for command in ("verify", "pull"):
        answer = pushed.remote(command)
        assert answer.returncode == 2, answer.stderr
        assert answer.stderr.count("\n") == 1, answer.stderr
        assert "nothing answers there" in answer.stderr
        assert "dvc remote modify storage endpointurl URL" in answer.stderr
    assert pushed.try_("dvc", "pull").returncode == 1


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "InvalidAccessKeyId"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "NoCredentialsError"),
        ({"AWS_PROFILE": "nobody"}, "ProfileNotFound"),
    ],
)
def test_wrong_credentials(
    pushed: Repository, environment: dict[str, str | None], said: str
) -> None:
    for command in ("verify", "push"):
        answer = pushed.remote(command, **environment)
        assert answer.returncode == 2
        assert answer.stderr.startswith("error: remote 'storage' (s3://"), answer.stderr
        assert said in answer.stderr
        assert "Traceback" not in answer.stderr


def test_credentials_of_the_local_file_serve(pushed: Repository) -> None:
    for key, value in (
        ("access_key_id", s3_server.ACCESS_KEY),
        ("secret_access_key", s3_server.SECRET_KEY),
    ):
        pushed.dvc("remote", "modify", "--local", "storage", key, value)
    nothing = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
    answer = pushed.remote("verify", **nothing)
    assert answer.returncode == 0, answer.stderr
    assert "warning" not in answer.stderr
    assert s3_server.SECRET_KEY not in (pushed.root / ".dvc" / "config").read_text()
    assert "config.local" not in pushed.run("git", "status", "--short")


def test_no_such_bucket(repository: Repository) -> None:
    repository.dvc("remote", "modify", "--local", "storage", "url", "s3://there-is-none/project")
    for command in ("verify", "push", "pull"):
        answer = repository.remote(command)
        assert answer.returncode == 2
        assert "NoSuchBucket" in answer.stderr
        assert "dvc remote modify storage url" in answer.stderr


def test_a_corrupted_object_is_noticed_and_mended(
    pushed: Repository, files: s3fs.S3FileSystem, place: str
) -> None:
    path = object_with(files, place, weights(pushed))
    corrupt(files, path)
    other = pushed.clone("other")
    # verify = true: nothing harmed reaches the workspace.
    assert other.try_("dvc", "pull").returncode == 1
    assert not (other.root / "out" / "one" / "001").exists()
    answer = other.remote("pull", "train@one")
    assert answer.returncode == 2
    assert "remote.py verify train@one" in answer.stderr
    answer = other.remote("verify", "--repair")
    assert answer.returncode == 1
    assert "out/one/001 (train@one)" in answer.stdout
    assert "corrupted  not in the cache" in answer.stdout
    # Plain DVC does not mend it; this is why there is a command that does.
    pushed.dvc("push")
    assert files.cat_file(path) != weights(pushed)
    answer = pushed.remote("verify", "--repair")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "corrupted  replaced" in answer.stdout
    assert "0 wrong, 1 mended" in answer.stdout
    assert files.cat_file(path) == weights(pushed)
    other.dvc("pull")
    assert other.tracked() == pushed.tracked()
    is_clean(other)


def test_a_missing_object_is_noticed_and_mended(
    pushed: Repository, files: s3fs.S3FileSystem, place: str
) -> None:
    path = object_with(files, place, weights(pushed))
    files.rm_file(path)
    # As long as the folder's list is there, plain DVC takes the folder for complete.
    pushed.dvc("push")
    assert not files.exists(path)
    answer = pushed.remote("verify")
    assert answer.returncode == 1
    assert "out/one/001 (train@one)" in answer.stdout
    assert pushed.remote("verify", "--repair").returncode == 0
    assert files.cat_file(path) == weights(pushed)
    other = pushed.clone("other")
    other.dvc("pull")
    assert other.tracked() == pushed.tracked()


def test_every_object_is_lost_and_pushed_again(
    pushed: Repository, files: s3fs.S3FileSystem, place: str
) -> None:
    for path in objects_of(files, place):
        files.rm_file(path)
    answer = pushed.remote("verify")
    assert answer.returncode == 1
    assert f"{OBJECTS} wrong" in answer.stdout
    pushed.dvc("push")
    is_clean(pushed)


@pytest.mark.parametrize("kind", ["drop", "error", "reset", "truncate"])
def test_what_breaks_a_few_times_is_tried_again(
    pushed: Repository, proxy: FaultProxy, kind: str
) -> None:
    other = pushed.clone("other")
    other.use(proxy.url)
    with proxy.injecting(Fault(kind, left=3)):  # type: ignore[arg-type]
        other.dvc("pull")
        assert proxy.faults[0].done == 3
    assert other.tracked() == pushed.tracked()
    with proxy.injecting(Fault(kind, left=3)):  # type: ignore[arg-type]
        is_clean(other)
        assert proxy.faults[0].done == 3


@pytest.mark.parametrize("kind", ["drop", "error", "reset", "truncate"])
def test_a_push_that_breaks_is_completed_by_the_next(
    repository: Repository, proxy: FaultProxy, kind: str
) -> None:
    repository.use(proxy.url)
    with proxy.injecting(Fault(kind, "PUT", left=4)):  # type: ignore[arg-type]
        repository.try_("dvc", "push")
        assert proxy.faults[0].done == 4
    repository.dvc("push")
    is_clean(repository)


def test_a_server_that_fails_on_and_on_is_an_error_that_says_so(
    pushed: Repository, proxy: FaultProxy
) -> None:
    pushed.use(proxy.url)
    with proxy.injecting(Fault("error", path="/files/md5/../", left=10**6)):
        answer = pushed.remote("verify", "--jobs", "16")
    assert answer.returncode == 1 or "the server failed" in answer.stderr
    assert "unreadable" in answer.stdout or "the server failed" in answer.stderr
    with proxy.injecting(Fault("error", path=".", left=10**6)):
        answer = pushed.remote("push")
    assert answer.returncode == 2
    assert "the server failed" in answer.stderr
    is_clean(pushed)


def test_bytes_altered_on_the_way_are_no_corruption(pushed: Repository, proxy: FaultProxy) -> None:
    other = pushed.clone("other")
    other.use(proxy.url)
    with proxy.injecting(Fault("alter", left=1)):
        answer = other.remote("verify", "--jobs", "1")
        assert proxy.faults[0].done == 1
    assert answer.returncode == 0, answer.stdout
    # With verify = true a pull notices; the next one has all.
    with proxy.injecting(Fault("alter", path=object_path(weights(pushed)), left=1)):
        assert other.try_("dvc", "pull").returncode != 0
        assert proxy.faults[0].done == 1
    other.dvc("pull")
    assert other.tracked() == pushed.tracked()


def object_path(content: bytes) -> str:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return f"{digest[:2]}/{digest[2:]}"


def test_a_slow_server_is_waited_for(pushed: Repository, proxy: FaultProxy) -> None:
    pushed.use(proxy.url)
    with proxy.injecting(Fault("slow", left=5, seconds=2.0)):
        is_clean(pushed)
        assert proxy.faults[0].done == 5


# Kills


@pytest.fixture
def large(server: Server, place: str, tmp_path: Path) -> Repository:
    """A repository with so many objects that transfers last."""
    return make_repository(tmp_path / "main", place, server.url, count=MANY)


def kill_amid(
    repository: Repository, proxy: FaultProxy, command: str, method: str, moment: int
) -> None:
    """Start a transfer and kill it when so many of its requests have come."""
    before = proxy.count(method)
    process = repository.start("dvc", command, "--jobs", "4")
    end = time.monotonic() + _PATIENCE_SECONDS
    while proxy.count(method) - before < moment:
        assert process.poll() is None, f"{command} ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_push_is_killed_twenty_times(large: Repository, proxy: FaultProxy) -> None:
    large.use(proxy.url)
    chance = random.Random(1)
    with proxy.injecting(Fault("slow", "PUT", left=10**6, seconds=0.05)):
        for _ in range(KILLS):
            kill_amid(large, proxy, "push", "PUT", chance.randint(1, 10))
        assert large.remote("verify").returncode == 1
    # Not `dvc push`, which may take half a plan of a killed one for the whole: docs/remotes.md.
    answer = large.remote("push")
    assert answer.returncode == 0, answer.stderr
    is_clean(large, objects=1 + 2 * (MANY + 1) + 2)


def test_a_pull_is_killed_twenty_times(large: Repository, proxy: FaultProxy) -> None:
    large.dvc("push", "-q")
    wanted = large.tracked()
    other = large.clone("other")
    other.use(proxy.url)
    chance = random.Random(2)
    with proxy.injecting(Fault("slow", "GET", left=10**6, seconds=0.05)):
        for _ in range(KILLS):
            kill_amid(other, proxy, "pull", "GET", chance.randint(1, 10))
    answer = other.remote("pull")
    assert answer.returncode == 0, answer.stderr
    assert other.tracked() == wanted
    other.dvc("repro")
    assert other.executions() == []


def test_remote_py_takes_dvc_along_when_it_is_killed(large: Repository, proxy: FaultProxy) -> None:
    large.use(proxy.url)
    with proxy.injecting(Fault("slow", "PUT", left=10**6, seconds=0.2)):
        process = large.start(sys.executable, str(REMOTE), "push", "--jobs", "2")
        wait_until(lambda: proxy.count("PUT") > 2)
        process.kill()
        process.wait()

        def is_quiet() -> bool:
            before = proxy.count("PUT")
            time.sleep(2.0)
            return proxy.count("PUT") == before

        wait_until(is_quiet)
        assert proxy.count("PUT") < 2 * MANY
    assert large.remote("push").returncode == 0
    is_clean(large, objects=1 + 2 * (MANY + 1) + 2)


def wait_until(happens: Callable[[], object]) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while not happens():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_two_workers_push_at_once(large: Repository, tmp_path: Path) -> None:
    worker = Repository(tmp_path / "worker")
    shutil.copytree(large.root, worker.root, symlinks=True)
    processes = [each.start("dvc", "push", "--jobs", "4") for each in (large, worker)]
    assert [process.wait(timeout=_PATIENCE_SECONDS) for process in processes] == [0, 0]
    is_clean(large, objects=1 + 2 * (MANY + 1) + 2)


def test_two_workers_repair_at_once(
    large: Repository, files: s3fs.S3FileSystem, place: str, tmp_path: Path
) -> None:
    large.dvc("push", "-q")
    for path in objects_of(files, place)[::10]:
        corrupt(files, path)
    worker = Repository(tmp_path / "worker")
    shutil.copytree(large.root, worker.root, symlinks=True)
    command = (sys.executable, str(REMOTE), "verify", "--repair")
    processes = [each.start(*command) for each in (large, worker)]
    assert [process.wait(timeout=_PATIENCE_SECONDS) for process in processes] == [0, 0]
    is_clean(large, objects=1 + 2 * (MANY + 1) + 2)


# A full disk


def test_no_room_for_what_is_pulled(pushed: Repository) -> None:
    """A file may have half the size of the largest one: data has 1 MB."""
    other = pushed.clone("other")
    half = 1 << 19
    limited = subprocess.run(
        [sys.executable, str(REMOTE), "pull"],
        cwd=other.root,
        env=other.environment,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (half, half)),
    )
    assert limited.returncode == 2, limited.stderr
    assert "File too large" in limited.stderr
    assert not (other.root / "data").exists()
    other.dvc("pull")
    assert other.tracked() == pushed.tracked()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB, where the user may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can make a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(pushed: Repository, small_disk: Path) -> None:
    other = pushed.clone("other")
    cache = other.root / ".dvc" / "cache"
    cache.symlink_to(small_disk)
    answer = other.remote("pull")
    assert answer.returncode == 2, answer.stderr
    assert "No space left on device" in answer.stderr
    assert "the same command goes on" in answer.stderr
    cache.unlink()
    # On a disk with room, with what had got across.
    shutil.copytree(small_disk, cache)
    assert other.remote("pull").returncode == 0
    assert other.tracked() == pushed.tracked()
