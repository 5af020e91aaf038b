"""A download ends as the published bytes or not at all, whatever happens on the way."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import lzma
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from clip_mixtures.corpora import download as module
from clip_mixtures.corpora.download import (
    Download,
    datasets,
    download_dataset,
    downloads,
    fetch,
)
from clip_mixtures.errors import UserError

CONTENT = random.Random(0).randbytes(300_000)
CUT = 100_000
ALWAYS = 1_000
NAME = "file.bin"


@dataclasses.dataclass
class Site:
    """A web server of one file, with switches for what goes wrong."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    obeys_if_range: bool = True
    # Cut the connection after so many bytes of a body, in so many answers.
    cut_after: int = CUT
    cuts: int = 0
    # Statuses to answer with before any file.
    refusals: list[int] = dataclasses.field(default_factory=list)
    redirect: str | None = None
    # What Content-Length says, where that is not the length; 0 leaves it out.
    length: int | None = None
    chunked: bool = False
    # A body longer than this many bytes waits there for `go`.
    stall_after: int | None = None
    go: threading.Event = dataclasses.field(default_factory=threading.Event)
    # What happened: path and headers of each request, bytes of each body.
    requests: list[tuple[str, dict[str, str]]] = dataclasses.field(default_factory=list)
    served: list[int] = dataclasses.field(default_factory=list)
    url: str = ""

    @property
    def asked_ranges(self) -> list[str | None]:
        return [headers.get("range") for _, headers in self.requests]

    def wrong_version(self, headers: dict[str, str]) -> bool:
        mark = headers.get("if-range")
        return self.obeys_if_range and mark is not None and mark != (self.etag or self.modified)


class Handler(BaseHTTPRequestHandler):
    site: Site

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        site = self.site
        headers = {name.lower(): value for name, value in self.headers.items()}
        site.requests.append((self.path, headers))
        if site.redirect is not None:
            target, site.redirect = site.redirect, None
            self.answer(302, {"Location": target}, b"")
        elif site.refusals:
            self.answer(site.refusals.pop(0), {}, b"<html>no</html>")
        elif site.ranges and "range" in headers and not site.wrong_version(headers):
            self.answer_range(int(headers["range"].removeprefix("bytes=").removesuffix("-")))
        else:
            self.answer(200, self.marks(), site.content)

    def answer_range(self, start: int) -> None:
        size = len(self.site.content)
        if start >= size:
            self.answer(416, {"Content-Range": f"bytes */{size}"}, b"")
        else:
            place = {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
            self.answer(206, self.marks() | place, self.site.content[start:])

    def marks(self) -> dict[str, str]:
        marks = {"ETag": self.site.etag, "Last-Modified": self.site.modified}
        return {name: value for name, value in marks.items() if value is not None}

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        site = self.site
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        claimed = len(body) if site.length is None or status >= 300 else site.length
        if site.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        elif claimed or not body:
            self.send_header("Content-Length", str(claimed))
        self.end_headers()
        if status < 300 and site.cuts:
            site.cuts -= 1
            body = body[: site.cut_after]
        site.served.append(len(body))
        # The client may have gone.
        with contextlib.suppress(OSError):
            if site.stall_after is not None and len(body) > site.stall_after:
                self.wfile.write(body[: site.stall_after])
                site.go.wait(20)
                body = body[site.stall_after :]
            self.wfile.write(body)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    site = Site()
    handler = type("SiteHandler", (Handler,), {"site": site})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        site.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield site
        finally:
            site.go.set()
            server.shutdown()
            thread.join()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def wanted(site: Site, **changes: Any) -> Download:
    known = Download("test", NAME, f"{site.url}/at/{NAME}", len(CONTENT), md5(CONTENT))
    return dataclasses.replace(known, **changes)


def get(download: Download, folder: Path, **options: Any) -> Path:
    return fetch(download, folder, **({"progress": False, "pause": 0} | options))


def refused(download: Download, folder: Path, **options: Any) -> str:
    """Return the one line that a fetch ends in."""
    with pytest.raises(UserError) as raised:
        get(download, folder, **options)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    return message


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupted(site: Site, folder: Path, **changes: Any) -> None:
    """Leave the first CUT bytes of a download in ``folder``."""
    site.cuts = 1

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        # It waits before it asks again.
        patch.setattr(time, "sleep", stop)
        with pytest.raises(KeyboardInterrupt):
            get(wanted(site, **changes), folder)
    assert names(folder) == [f"{NAME}.part", f"{NAME}.part.json"]
    assert (folder / f"{NAME}.part").read_bytes() == CONTENT[:CUT]
    site.requests.clear()
    site.served.clear()


# ---- a download that goes well


def test_fresh_download(site: Site, tmp_path: Path) -> None:
    path = get(wanted(site), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / NAME
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == [NAME]
    ((asked, headers),) = site.requests
    assert asked == f"/at/{NAME}"
    assert "range" not in headers
    assert headers["user-agent"].startswith("clip-mixtures/")


def test_permissions_follow_the_umask(site: Site, tmp_path: Path) -> None:
    path = get(wanted(site), tmp_path)
    (tmp_path / "other").write_text("")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("slash", ["", "/"])
def test_mirror_has_the_files_by_their_bare_names(site: Site, tmp_path: Path, slash: str) -> None:
    download = wanted(site, url="http://nowhere.invalid/at/file.bin")
    get(download, tmp_path, mirror=f"{site.url}/kept/here{slash}")
    assert [path for path, _ in site.requests] == [f"/kept/here/{NAME}"]


def test_unknown_size_and_hash_are_taken_as_they_come(site: Site, tmp_path: Path) -> None:
    site.length = 0
    assert get(wanted(site, size=None, md5=None), tmp_path).read_bytes() == CONTENT


def test_redirect_is_followed_with_the_range(site: Site, tmp_path: Path) -> None:
    interrupted(site, tmp_path)
    site.redirect = f"{site.url}/elsewhere"
    assert get(wanted(site), tmp_path).read_bytes() == CONTENT
    assert site.asked_ranges == [f"bytes={CUT}-"] * 2


def test_redirect_away_from_http_is_not(site: Site, tmp_path: Path) -> None:
    site.redirect = "ftp://127.0.0.1/file.bin"
    assert "unknown url type: ftp" in refused(wanted(site), tmp_path, attempts=1)


def test_redirect_to_no_address(site: Site, tmp_path: Path) -> None:
    site.redirect = f"{site.url}:port/{NAME}"
    assert "gave up after 1 attempts" in refused(wanted(site), tmp_path, attempts=1)


def test_finished_file_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    path = get(wanted(site), tmp_path)
    before = path.stat()
    site.requests.clear()
    assert get(wanted(site), tmp_path) == path
    assert site.requests == []
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar_starts_where_the_download_goes_on(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], progress: bool
) -> None:
    interrupted(site, tmp_path)
    get(wanted(site), tmp_path, progress=progress)
    said = capsys.readouterr()
    assert said.out == ""
    if not progress:
        assert said.err == ""
        return
    assert "33%" in said.err
    assert "97.7k/293k" in said.err
    assert "100%" in said.err
    assert " 0%" not in said.err.split("97.7k")[1].split("checking")[0]


# ---- going on


def test_goes_on_from_where_it_was(site: Site, tmp_path: Path) -> None:
    interrupted(site, tmp_path)
    path = get(wanted(site), tmp_path)
    assert path.read_bytes() == CONTENT
    ((_, headers),) = site.requests
    assert headers["range"] == f"bytes={CUT}-"
    assert headers["if-range"] == '"one"'
    assert site.served == [len(CONTENT) - CUT]
    assert names(tmp_path) == [NAME]


def test_server_that_ignores_ranges_starts_anew(site: Site, tmp_path: Path) -> None:
    interrupted(site, tmp_path)
    site.ranges = False
    assert get(wanted(site), tmp_path).read_bytes() == CONTENT
    assert site.asked_ranges == [f"bytes={CUT}-"]
    assert site.served == [len(CONTENT)]


@pytest.mark.parametrize("obeys_if_range", [True, False])
def test_changed_version_starts_anew(site: Site, tmp_path: Path, obeys_if_range: bool) -> None:
    interrupted(site, tmp_path)
    site.etag, site.content = '"two"', CONTENT[::-1]
    site.obeys_if_range = obeys_if_range
    new = wanted(site, md5=md5(CONTENT[::-1]))
    assert get(new, tmp_path).read_bytes() == CONTENT[::-1]
    assert site.served[-1] == len(CONTENT)


def test_date_marks_a_version_where_the_etag_is_weak(site: Site, tmp_path: Path) -> None:
    site.modified, site.etag = "Wed, 21 Oct 2015 07:28:00 GMT", None
    interrupted(site, tmp_path)
    assert json.loads((tmp_path / f"{NAME}.part.json").read_text()) == {
        "url": f"{site.url}/at/{NAME}",
        "validator": site.modified,
    }
    get(wanted(site), tmp_path)
    assert site.requests[0][1]["if-range"] == site.modified
    assert site.served == [len(CONTENT) - CUT]


def test_weak_etag_is_no_mark(site: Site, tmp_path: Path) -> None:
    site.etag = 'W/"one"'
    interrupted(site, tmp_path)
    assert json.loads((tmp_path / f"{NAME}.part.json").read_text())["validator"] is None


@pytest.mark.parametrize("known", [True, False])
def test_without_a_mark_only_a_known_hash_lets_it_go_on(
    site: Site, tmp_path: Path, known: bool
) -> None:
    site.etag = None
    changes = {} if known else {"md5": None}
    interrupted(site, tmp_path, **changes)
    assert get(wanted(site, **changes), tmp_path).read_bytes() == CONTENT
    assert site.asked_ranges == [f"bytes={CUT}-" if known else None]
    assert "if-range" not in site.requests[0][1]


@pytest.mark.parametrize("sidecar", [None, "{", "[]", '{"url": 1}', '{"url": "u", "validator": 5}'])
def test_part_of_unknown_origin_starts_anew(
    site: Site, tmp_path: Path, sidecar: str | None
) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(b"of another tool")
    if sidecar is not None:
        (tmp_path / f"{NAME}.part.json").write_text(sidecar)
    assert get(wanted(site), tmp_path).read_bytes() == CONTENT
    assert site.asked_ranges == [None]
    assert names(tmp_path) == [NAME]


def test_part_from_another_address_starts_anew(site: Site, tmp_path: Path) -> None:
    interrupted(site, tmp_path)
    assert get(wanted(site), tmp_path, mirror=site.url).read_bytes() == CONTENT
    assert site.asked_ranges == [None]


def test_mirror_that_is_down_costs_nothing_of_the_part(site: Site, tmp_path: Path) -> None:
    interrupted(site, tmp_path)
    site.refusals = [503, 503]
    message = refused(wanted(site), tmp_path, mirror=site.url, attempts=2)
    assert "503" in message
    assert "are kept" not in message
    site.requests.clear()
    get(wanted(site), tmp_path)
    assert site.asked_ranges == [f"bytes={CUT}-"]


def test_whole_part_only_wants_its_name(site: Site, tmp_path: Path) -> None:
    interrupted(site, tmp_path)
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    assert get(wanted(site), tmp_path).read_bytes() == CONTENT
    assert site.asked_ranges == [f"bytes={len(CONTENT)}-"]
    assert site.served == [0]


def test_part_longer_than_the_file_starts_anew(site: Site, tmp_path: Path) -> None:
    interrupted(site, tmp_path)
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT + b"more")
    assert get(wanted(site), tmp_path).read_bytes() == CONTENT
    assert site.asked_ranges == [f"bytes={len(CONTENT) + 4}-", None]


# ---- connections that break


@pytest.mark.parametrize("length", [None, 0])
def test_dropped_connection_is_taken_up_again(
    site: Site, tmp_path: Path, length: int | None
) -> None:
    # Without a Content-Length a cut looks like the end; the known size says it is none.
    site.length = length
    site.cuts = 2
    assert get(wanted(site), tmp_path, attempts=1).read_bytes() == CONTENT
    assert site.asked_ranges == [None, f"bytes={CUT}-", f"bytes={2 * CUT}-"]
    assert site.served == [CUT, CUT, CUT]


def test_cut_in_a_body_of_chunks_is_no_end(site: Site, tmp_path: Path) -> None:
    site.chunked, site.cuts = True, 1
    unknown = wanted(site, size=None, md5=None)
    assert get(unknown, tmp_path, attempts=1).read_bytes() == CONTENT
    assert len(site.requests) == 2
    assert site.asked_ranges[1] is not None


def test_progress_is_what_attempts_are_counted_from(site: Site, tmp_path: Path) -> None:
    site.cut_after, site.cuts = 20_000, ALWAYS
    assert get(wanted(site), tmp_path, attempts=1).read_bytes() == CONTENT
    assert len(site.requests) == 15


def test_gives_up_without_progress_and_keeps_the_part(site: Site, tmp_path: Path) -> None:
    interrupted(site, tmp_path)
    site.cut_after, site.cuts = 0, ALWAYS
    message = refused(wanted(site), tmp_path, attempts=3)
    assert len(site.requests) == 3
    assert message.startswith(
        f"{site.url}/at/{NAME}: the connection ended after 100,000 of 300,000"
    )
    assert f"gave up after 3 attempts without progress; 100,000 bytes are kept in {tmp_path}" in (
        message
    )
    site.cuts = 0
    assert get(wanted(site), tmp_path).read_bytes() == CONTENT
    assert site.asked_ranges[-1] == f"bytes={CUT}-"


def test_starting_anew_each_time_is_no_progress(site: Site, tmp_path: Path) -> None:
    site.ranges, site.cuts = False, ALWAYS
    assert "gave up after 3 attempts" in refused(wanted(site), tmp_path, attempts=3)
    assert site.served == [CUT] * 4


def test_pauses_grow_until_there_is_progress(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    site.refusals, site.cuts = [500, 502, 503], 1
    get(wanted(site), tmp_path, pause=1.0)
    assert pauses == [1.0, 2.0, 4.0, 1.0]
    assert len(site.requests) == 5


def test_server_that_falls_silent_is_left(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_SECONDS", 0.2)
    site.stall_after = 2 * CUT
    assert get(wanted(site), tmp_path).read_bytes() == CONTENT
    assert site.asked_ranges == [None, f"bytes={2 * CUT}-"]


def test_no_server(site: Site, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        free = server.server_port
    message = refused(wanted(site, url=f"http://127.0.0.1:{free}/{NAME}"), tmp_path, attempts=2)
    assert "Connection refused; gave up after 2 attempts" in message
    assert names(tmp_path) == []


# ---- servers that say no


@pytest.mark.parametrize("status", [403, 404, 410])
def test_refusal_is_not_asked_again(site: Site, tmp_path: Path, status: int) -> None:
    site.refusals = [status]
    message = refused(wanted(site), tmp_path)
    assert message.startswith(f"{site.url}/at/{NAME}: the server answers {status} (")
    assert f"put {NAME} into {tmp_path} yourself" in message
    assert len(site.requests) == 1
    assert names(tmp_path) == []


def test_refusal_keeps_the_part(site: Site, tmp_path: Path) -> None:
    interrupted(site, tmp_path)
    site.refusals = [404]
    refused(wanted(site), tmp_path)
    assert (tmp_path / f"{NAME}.part").read_bytes() == CONTENT[:CUT]


def test_error_of_the_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.refusals = [500, 503]
    assert get(wanted(site), tmp_path).read_bytes() == CONTENT
    assert len(site.requests) == 3


def test_answer_without_a_file(site: Site, tmp_path: Path) -> None:
    site.refusals = [202]
    assert "answers 202 (Accepted) and no file" in refused(wanted(site), tmp_path)


# ---- files that are not the right ones


def test_wrong_hash_is_refused_and_removed(site: Site, tmp_path: Path) -> None:
    site.content = CONTENT[::-1]
    message = refused(wanted(site), tmp_path)
    assert message.startswith(f"{site.url}/at/{NAME}: MD5 is {md5(CONTENT[::-1])}, not ")
    assert md5(CONTENT) in message
    assert names(tmp_path) == []
    site.content = CONTENT
    assert get(wanted(site), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("length", [None, 0])
def test_wrong_size_is_refused_and_removed(site: Site, tmp_path: Path, length: int | None) -> None:
    site.content, site.length = CONTENT + b"!", length
    message = refused(wanted(site), tmp_path)
    assert "300,001 bytes, not the 300,000 of the published file" in message
    assert names(tmp_path) == []


def test_part_of_a_file_of_wrong_size_is_removed(site: Site, tmp_path: Path) -> None:
    interrupted(site, tmp_path)
    site.content = CONTENT + b"!"
    assert "300,001" in refused(wanted(site), tmp_path)
    assert names(tmp_path) == []


def test_page_in_place_of_the_file_costs_nothing_of_the_part(site: Site, tmp_path: Path) -> None:
    interrupted(site, tmp_path)
    site.etag, site.content = None, b"<html>please log in</html>"
    site.ranges = False
    assert "26 bytes, not the 300,000" in refused(wanted(site), tmp_path)
    assert (tmp_path / f"{NAME}.part").read_bytes() == CONTENT[:CUT]


def test_content_length_too_long_is_a_cut(site: Site, tmp_path: Path) -> None:
    site.length = len(CONTENT) + 1
    site.ranges = False
    message = refused(wanted(site, size=None), tmp_path, attempts=2)
    assert "the connection ended after 300,000 of 300,001 bytes" in message


def test_content_length_too_short_is_found_by_the_hash(site: Site, tmp_path: Path) -> None:
    site.length = len(CONTENT) - 1
    assert "MD5" in refused(wanted(site, size=None), tmp_path)


@pytest.mark.parametrize("bad", [CONTENT[:-1], CONTENT[::-1]], ids=["short", "other"])
def test_finished_but_damaged_file_is_refused_and_untouched(
    site: Site, tmp_path: Path, bad: bytes
) -> None:
    (tmp_path / NAME).write_bytes(bad)
    message = refused(wanted(site), tmp_path)
    assert message.startswith(f"{tmp_path / NAME}: ")
    assert "move the file away" in message
    assert site.requests == []
    assert (tmp_path / NAME).read_bytes() == bad
    assert names(tmp_path) == [NAME]


def zip_of(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return packed.getvalue()


def test_zip_of_unknown_hash_must_open(site: Site, tmp_path: Path) -> None:
    site.content = b"<html>not here</html>"
    unhashed = wanted(site, file="a.zip", size=None, md5=None)
    assert "not a whole zip archive" in refused(unhashed, tmp_path)
    assert names(tmp_path) == []
    whole = zip_of(member=CONTENT)
    site.content = whole
    path = get(unhashed, tmp_path)
    assert path.read_bytes() == whole
    for bad in (whole[:-1], whole.replace(CONTENT[5:10], b"other")):
        path.write_bytes(bad)
        assert "zip archive" in refused(unhashed, tmp_path)
        assert path.read_bytes() == bad


# ---- this machine


def test_full_disk_is_told_before_writing(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9, 9, 250_000))
    message = refused(wanted(site, size=None), tmp_path)
    assert message.startswith(f"{tmp_path}: {NAME} needs 300,000 bytes and 250,000 are free;")
    assert names(tmp_path) == []
    # What is there already needs no more room.
    there = 200_000
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:there])
    origin = {"url": wanted(site).url, "validator": site.etag}
    (tmp_path / f"{NAME}.part.json").write_text(json.dumps(origin))
    get(wanted(site), tmp_path)


def test_disk_that_fills_while_writing(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_append", full)
    assert "No space left on device" in refused(wanted(site), tmp_path)
    assert len(site.requests) == 1


def test_folder_that_is_a_file(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "in"
    assert refused(wanted(site), folder).startswith(f"{folder}: Not a directory")


def test_second_process_is_told(site: Site, tmp_path: Path) -> None:
    part = tmp_path / f"{NAME}.part"
    with open(part, "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(b"bytes of the other")
        held.flush()
        message = refused(wanted(site), tmp_path)
    assert message == f"{part}: another process is fetching this file; wait for it to end"
    assert part.read_bytes() == b"bytes of the other"
    assert site.requests == []


def test_file_that_another_process_finishes_meanwhile(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, flock = tmp_path / f"{NAME}.part", fcntl.flock

    def finish_first(file: io.BufferedRandom, how: int) -> None:
        if not (tmp_path / NAME).exists():
            part.write_bytes(CONTENT)
            os.replace(part, tmp_path / NAME)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", finish_first)
    assert get(wanted(site), tmp_path).read_bytes() == CONTENT
    assert site.requests == []
    assert names(tmp_path) == [NAME]


@pytest.mark.parametrize(
    "mirror",
    [
        "ftp://host/folder",
        "file:///etc",
        "host/folder",
        "",
        "http://",
        "http://[host",
        "http://host:port",
        "http://host/a folder",
        "http://name:word@host",
        "http://host/?folder=a",
        "http://höst/",
    ],
)
def test_mirror_that_is_no_address(site: Site, tmp_path: Path, mirror: str) -> None:
    message = refused(wanted(site), tmp_path, mirror=mirror)
    assert message.startswith(f"mirror {mirror!r}: not an http or https address")


def test_killed_download_is_finished_to_the_same_bytes(site: Site, tmp_path: Path) -> None:
    site.stall_after = 2 * CUT
    code = (
        "import sys, pathlib\n"
        "from clip_mixtures.corpora.download import Download, fetch\n"
        f"fetch(Download('test', {NAME!r}, sys.argv[1], None, None), pathlib.Path(sys.argv[2]),\n"
        "      progress=False)\n"
    )
    command = [sys.executable, "-c", code, wanted(site).url, str(tmp_path)]
    part = tmp_path / f"{NAME}.part"
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 300
        while not (part.is_file() and part.stat().st_size > CUT):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert "another process" in refused(wanted(site), tmp_path)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    reached = part.stat().st_size
    assert CUT < reached <= 2 * CUT
    assert names(tmp_path) == [f"{NAME}.part", f"{NAME}.part.json"]
    site.stall_after = None
    assert get(wanted(site), tmp_path).read_bytes() == CONTENT
    assert site.asked_ranges == [None, f"bytes={reached}-"]
    assert site.served[-1] == len(CONTENT) - reached
    assert names(tmp_path) == [NAME]


# ---- whole corpora


@pytest.fixture
def captions(site: Site) -> bytes:
    site.content = zip_of(**{"imagenet_captions.json": b"[1, 2]", "__MACOSX__._x.json": b"x"})
    return b"[1, 2]"


def get_captions(site: Site, folder: Path) -> list[Path]:
    return download_dataset("imagenet-captions", folder, mirror=site.url, progress=False)


def test_captions_are_unpacked_beside_their_archive(
    site: Site, tmp_path: Path, captions: bytes
) -> None:
    assert get_captions(site, tmp_path) == [tmp_path / "imagenet_captions.zip"]
    unpacked = tmp_path / "imagenet_captions.json"
    assert unpacked.read_bytes() == captions
    assert names(tmp_path) == ["imagenet_captions.json", "imagenet_captions.zip"]
    before = unpacked.stat().st_ino
    get_captions(site, tmp_path)
    assert unpacked.stat().st_ino == before
    assert len(site.requests) == 1
    unpacked.unlink()
    get_captions(site, tmp_path)
    assert unpacked.read_bytes() == captions


def test_unpacked_file_that_was_changed_is_kept(
    site: Site, tmp_path: Path, captions: bytes
) -> None:
    unpacked = tmp_path / "imagenet_captions.json"
    unpacked.write_bytes(captions.upper().replace(b"1", b"3"))
    with pytest.raises(UserError, match=r"imagenet_captions\.json: differs"):
        get_captions(site, tmp_path)
    assert unpacked.read_bytes() == b"[3, 2]"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"..__imagenet_captions.json": b"[]"}, "points out of the archive"),
        ({"__etc__imagenet_captions.json": b"[]"}, "points out of the archive"),
        ({"other.json": b"[]"}, "has 0 members named imagenet_captions.json"),
        (
            {"a__imagenet_captions.json": b"[]", "b__imagenet_captions.json": b"[]"},
            "has 2 members named imagenet_captions.json",
        ),
    ],
)
def test_archive_without_a_safe_member_is_refused(
    site: Site, tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    site.content = zip_of(**members)
    with pytest.raises(UserError, match=message) as raised:
        get_captions(site, tmp_path / "inner")
    assert len(str(raised.value).splitlines()) == 1
    assert names(tmp_path) == ["inner"]
    assert names(tmp_path / "inner") == ["imagenet_captions.zip"]


def test_only_the_named_files_are_fetched(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = (len(CONTENT), md5(CONTENT))
    table = [Download("two", name, f"{site.url}/{name}", *facts) for name in ("a", "b", "c")]
    monkeypatch.setattr(module, "_table", lambda: table)
    assert download_dataset("two", tmp_path, only=["c", "a"], progress=False) == [
        tmp_path / "a",
        tmp_path / "c",
    ]
    assert [path for path, _ in site.requests] == ["/a", "/c"]


def test_unknown_names_are_refused_before_anything_is_fetched(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown dataset 'domainet'; did you mean 'domainnet'"):
        downloads("domainet")
    with pytest.raises(UserError) as raised:
        download_dataset("domainnet", tmp_path, only=["real.zip", "clpart.zip"], mirror=site.url)
    assert str(raised.value).startswith(
        "download domainnet: unknown file 'clpart.zip'; did you mean 'clipart.zip'?"
    )
    assert site.requests == []


# ---- the table that is shipped


def test_table_of_downloads() -> None:
    assert datasets() == ["domainnet", "imagenet-captions"]
    domainnet = downloads("domainnet")
    assert len(domainnet) == 18
    domains = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
    lists = [f"{domain}_{split}.txt" for split in ("train", "test") for domain in domains]
    assert [d.file for d in domainnet] == [f"{domain}.zip" for domain in domains] + lists
    assert all(re.fullmatch("[0-9a-f]{32}", d.md5 or "") for d in domainnet)
    (captions,) = downloads("imagenet-captions")
    assert list(module.UNPACKED) == [captions.file]
    assert (captions.size, captions.md5) == (None, None)
    for dataset in datasets():
        for download in downloads(dataset):
            assert download.dataset == dataset
            assert re.match("https?://[a-z]", download.url)
            assert download.url.endswith(f"/{download.file}")
    every = [download.url for dataset in datasets() for download in downloads(dataset)]
    assert len(set(every)) == len(every) == 19


def test_facts_of_the_lists_are_those_of_the_published_files(
    shared_file: Callable[[str], Path],
) -> None:
    # The known answers have stand-ins for these two lists, not the published files.
    stand_ins = {"quickdraw_train.txt", "real_train.txt"}
    lists = [d for d in downloads("domainnet") if d.file.endswith(".txt")]
    true = [d for d in lists if d.file not in stand_ins]
    assert len(true) == 10
    for download in true:
        data = lzma.decompress(shared_file(f"domainnet_lists/{download.file}.xz").read_bytes())
        assert (download.size, download.md5) == (len(data), md5(data))
    assert all(d.size is None for d in lists if d.file in stand_ins)
