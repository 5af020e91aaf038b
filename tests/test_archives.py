"""Offsets point at exactly the members' bytes; a damaged archive is refused by name."""

from __future__ import annotations

import io
import os
import random
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from corpora_factory import tar_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.archives import Member, list_files, list_folder, list_members
from clip_mixtures.errors import UserError

name_parts = st.text("abcXYZ019_-. é漢", min_size=1, max_size=40).filter(
    lambda name: name.strip(". ") == name and not name.endswith(".tar")
)
names = st.lists(name_parts, min_size=1, max_size=3).map("/".join)
contents = st.dictionaries(names, st.binary(max_size=1500), min_size=1, max_size=5)
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def read_in_place(path: Path, member: Member) -> bytes:
    assert member.offset is not None
    assert member.length is not None
    data = path.read_bytes()[member.offset : member.offset + member.length]
    assert len(data) == member.length
    if member.compression is None:
        return data
    assert member.compression == "deflate"
    return zlib.decompress(data, wbits=-15)


def unpacked(path: Path) -> dict[str, bytes]:
    return {member.name: read_in_place(path, member) for member in list_members(path)}


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(members=contents, method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
def test_zip_members_are_read_in_place(
    tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes], method: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "members.zip"
    write_zip(path, members, method)
    assert unpacked(path) == members
    assert [member.name for member in list_members(path)] == list(members)


@settings(max_examples=40, deadline=None)
@given(
    members=contents,
    # A plain name follows from the letters it has; only PAX and GNU hold any name.
    form=st.sampled_from(FORMATS[1:]),
)
def test_tar_members_are_read_in_place(
    tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes], form: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "members.tar"
    path.write_bytes(tar_bytes(members, form))
    assert unpacked(path) == members
    assert [member.name for member in list_members(path)] == list(members)


@settings(max_examples=25, deadline=None)
@given(inner=st.lists(contents, min_size=1, max_size=3), form=st.sampled_from(FORMATS[1:]))
def test_members_of_a_tar_in_a_tar_are_read_in_place(
    tmp_path_factory: pytest.TempPathFactory, inner: list[dict[str, bytes]], form: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "nested.tar"
    packed = {f"n{number}.tar": tar_bytes(members, form) for number, members in enumerate(inner)}
    path.write_bytes(tar_bytes({**packed, "README": b"beside them"}, form))
    expected = {
        f"n{number}/{name}": data
        for number, members in enumerate(inner)
        for name, data in members.items()
    }
    assert unpacked(path) == {**expected, "README": b"beside them"}


def test_tars_nest_to_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes({"b.tar": tar_bytes({"c.tar": tar_bytes({"d.jpg": b"pixels"})})}))
    assert unpacked(path) == {"b/c/d.jpg": b"pixels"}


def test_ustar_members_are_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "plain.tar"
    members = {"n01/n01_1.JPEG": b"", "n01/n01_2.JPEG": b"x" * 512, "n01_3": b"y" * 513}
    path.write_bytes(tar_bytes(members, tarfile.USTAR_FORMAT))
    assert unpacked(path) == members


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def write_entries(
    path: Path,
    entries: Sequence[tuple[tarfile.TarInfo, bytes]],
    form: int = tarfile.USTAR_FORMAT,
) -> None:
    with tarfile.open(path, "w", format=form) as archive:
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_folders_are_no_members(tmp_path: Path) -> None:
    entries = [
        (entry("folder", tarfile.DIRTYPE), b""),
        (entry("folder/file"), b"x"),
        (entry("folder/deep", tarfile.DIRTYPE), b""),
        (entry("folder/deep/file"), b"y"),
    ]
    for form in FORMATS:
        write_entries(tmp_path / "a.tar", entries, form)
        assert unpacked(tmp_path / "a.tar") == {"folder/file": b"x", "folder/deep/file": b"y"}
    write_zip(tmp_path / "a.zip", {"folder/": b"", "folder/file": b"x"})
    assert unpacked(tmp_path / "a.zip") == {"folder/file": b"x"}


def test_tar_with_times_of_a_fraction_of_a_second(tmp_path: Path) -> None:
    # As WebDataset writes its shards: before every file an extended header with its time alone.
    entries = [(entry(f"{number:06}.jpg"), bytes(number * 100)) for number in range(20)]
    for info, _ in entries:
        info.mtime = 1700000000.25
    write_entries(tmp_path / "a.tar", entries, tarfile.PAX_FORMAT)
    assert b" mtime=1700000000.25" in (tmp_path / "a.tar").read_bytes()
    assert unpacked(tmp_path / "a.tar") == {info.name: data for info, data in entries}


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 511, 512, 513, 2000]), max_size=6),
    form=st.sampled_from(FORMATS),
    mtime=st.sampled_from([0.0, 1.5]),
    long=st.integers(0, 6),
    seed=st.integers(0, 2**32),
)
def test_tar_is_listed_as_the_standard_library_does(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    form: int,
    mtime: float,
    long: int,
    seed: int,
) -> None:
    # Entries of all kinds, so that plain ones lie before and behind others.
    stream = random.Random(seed)
    entries = []
    for number, size in enumerate(sizes):
        stem = "p" * 90 + "/" + "q" * 90 if number == long else stream.choice(["a", "b/é", "./c"])
        info = entry(f"{stem}{number}", stream.choice([tarfile.REGTYPE, tarfile.DIRTYPE]))
        info.mtime = mtime if form == tarfile.PAX_FORMAT else int(mtime)
        entries.append((info, stream.randbytes(size if info.isfile() else 0)))
    path = tmp_path_factory.getbasetemp() / "kinds.tar"
    write_entries(path, entries, form)
    with tarfile.open(path) as archive:
        expected = [
            Member(info.name, info.offset_data, info.size) for info in archive if info.isfile()
        ]
    assert list_members(path) == expected
    assert list(unpacked(path).values()) == [data for info, data in entries if info.isfile()]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["symbolic", "hard"])
def test_link_in_a_tar_is_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar"
    write_entries(path, [(entry("a.jpg"), b"x"), (entry("b.jpg", kind, "a.jpg"), b"")])
    with pytest.raises(UserError, match=rf"^{path}: b\.jpg is a link; pack the file itself$"):
        list_members(path)


def test_link_in_a_tar_in_a_tar_is_refused(tmp_path: Path) -> None:
    write_entries(tmp_path / "inner.tar", [(entry("b", tarfile.SYMTYPE, "/etc/passwd"), b"")])
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes({"n1.tar": (tmp_path / "inner.tar").read_bytes()}))
    with pytest.raises(UserError, match=f"^{path}: b is a link"):
        list_members(path)


def test_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    info = zipfile.ZipInfo("b.jpg")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match=rf"^{path}: b\.jpg is a link; pack the file itself$"):
        list_members(path)


OUTSIDE = ["/etc/passwd", "../a.jpg", "a/../../b.jpg", "a/..", "..", "a\\..\\b.jpg", "\\a.jpg"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("ending", ["zip", "tar", "in a tar"])
def test_name_that_leaves_the_archive_is_refused(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / ("a.zip" if ending == "zip" else "a.tar")
    members = {"first.jpg": b"x", name: b"y"}
    if ending == "zip":
        write_zip(path, members)
    else:
        data = tar_bytes(members)
        path.write_bytes(data if ending == "tar" else tar_bytes({"n1.tar": data}))
    with pytest.raises(UserError) as raised:
        list_members(path)
    assert str(raised.value).startswith(f"{path}: member {name!r} leaves the archive")


@pytest.mark.parametrize("form", FORMATS)
def test_dots_that_lead_nowhere_are_harmless(tmp_path: Path, form: int) -> None:
    members = {"a..b/..c.jpg": b"x", "./d.jpg": b"y", "...": b"z"}
    (tmp_path / "a.tar").write_bytes(tar_bytes(members, form))
    write_zip(tmp_path / "a.zip", members)
    assert unpacked(tmp_path / "a.tar") == unpacked(tmp_path / "a.zip") == members


@pytest.mark.parametrize("form", FORMATS)
def test_name_that_is_no_text_is_refused(tmp_path: Path, form: int) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
        archive.addfile(tarfile.TarInfo("\udcff.jpg"))
    with pytest.raises(UserError, match=rf"^{path}: the name '.udcff\.jpg' is not UTF-8; rename"):
        list_members(path)


@pytest.mark.parametrize("first", [tarfile.DIRTYPE, tarfile.FIFOTYPE], ids=["folder", "pipe"])
def test_size_of_a_folder_means_nothing(tmp_path: Path, first: bytes) -> None:
    path = tmp_path / "a.tar"
    folder, file = entry("folder", tarfile.DIRTYPE), entry("folder/file")
    folder.size, file.size = 1 << 20, 1
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(entry("first", first))
        archive.addfile(folder)
        archive.addfile(file, io.BytesIO(b"x"))
        archive.addfile(folder)
    assert unpacked(path) == {"folder/file": b"x"}


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, b"V"], ids=["file", "unknown"])
def test_tar_member_of_an_absurd_size_is_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar"
    info = entry("a.jpg", kind)
    info.size = 2**80
    path.write_bytes(tar_bytes({"b.jpg": b""})[:512] + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(UserError, match=f"^{path}: damaged or truncated"):
        list_members(path)


def test_zip_member_that_reaches_past_the_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    data = bytearray(write_zip(path, MEMBERS))
    # The third byte of the stored size, in the first entry of the central directory.
    data[data.index(b"PK\x01\x02") + 22] = 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"^{path}: .*m0.bin reaches past the end"):
        list_members(path)


def test_sparse_file_in_a_tar_is_refused(tmp_path: Path) -> None:
    # Its bytes do not lie there as they are.
    path = tmp_path / "a.tar"
    sparse = entry("b.jpg", tarfile.GNUTYPE_SPARSE)
    write_entries(path, [(entry("a.jpg"), b"x"), (sparse, b"")], tarfile.GNU_FORMAT)
    with pytest.raises(UserError, match=rf"^{path}: b\.jpg is a sparse file"):
        list_members(path)


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_files_of_a_folder_are_sorted_and_named_from_its_parent(tmp_path: Path) -> None:
    folder = tmp_path / "my images"
    make_files(folder, "b/2.jpg", "b.jpg", "a/é 1.jpg", "a/c/d/3.jpg", "B.jpg", ".hidden", "b-c/1")
    (folder / "empty").mkdir()
    names = [".hidden", "B.jpg", "a/c/d/3.jpg", "a/é 1.jpg", "b-c/1", "b.jpg", "b/2.jpg"]
    expected = [Member(f"my images/{name}") for name in names]
    assert list_folder(folder) == list_files(folder) == expected
    for member in expected:
        assert (tmp_path / member.name).is_file()


def test_files_of_an_archive_keep_its_order(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"b": b"1", "a": b"2"})
    assert [member.name for member in list_files(tmp_path / "a.zip")] == ["b", "a"]


def test_link_to_a_file_in_the_folder_is_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    make_files(folder, "a/1.jpg")
    (folder / "b").mkdir()
    (folder / "b" / "2.jpg").symlink_to("../a/1.jpg")
    (folder / "b" / "3.jpg").symlink_to(folder / "a" / "1.jpg")
    names = ["images/a/1.jpg", "images/b/2.jpg", "images/b/3.jpg"]
    assert [member.name for member in list_folder(folder)] == names


def test_folder_may_be_a_link_itself(tmp_path: Path) -> None:
    make_files(tmp_path / "elsewhere", "1.jpg")
    (tmp_path / "images").symlink_to("elsewhere")
    (tmp_path / "elsewhere" / "2.jpg").symlink_to("1.jpg")
    names = [member.name for member in list_folder(tmp_path / "images")]
    assert names == ["images/1.jpg", "images/2.jpg"]


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("../outside.jpg", id="file outside"),
        pytest.param("../images beside/1.jpg", id="folder of a longer name"),
        pytest.param("..", id="folder above"),
        pytest.param("a", id="folder inside"),
        pytest.param("absent.jpg", id="nothing"),
        pytest.param("link.jpg", id="itself"),
        pytest.param("/etc/passwd", id="absolute"),
    ],
)
def test_link_to_anything_but_a_file_in_the_folder_is_refused(tmp_path: Path, target: str) -> None:
    make_files(tmp_path, "outside.jpg", "images beside/1.jpg", "images/a/1.jpg")
    link = tmp_path / "images" / "link.jpg"
    link.symlink_to(target)
    with pytest.raises(UserError, match=f"^{link}: a link to .*; links are followed to files ins"):
        list_folder(tmp_path / "images")


def test_file_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"\xff.jpg")).touch()
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(UserError, match=f"^{tmp_path}: the name .* is not UTF-8; rename the file"):
        list_folder(tmp_path)


def test_absent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path / 'no'}: no such folder"):
        list_folder(tmp_path / "no")
    make_files(tmp_path, "file")
    with pytest.raises(UserError, match=f"^{tmp_path / 'file'}: no such folder"):
        list_folder(tmp_path / "file")


@pytest.mark.parametrize("folder", [".", ".."])
def test_folder_without_a_name_is_refused(folder: str) -> None:
    with pytest.raises(UserError, match="give the folder by its name"):
        list_folder(Path(folder))


def test_local_header_of_another_length_than_the_central_one(tmp_path: Path) -> None:
    # Zips of some packers carry extra fields in one of the two headers only.
    path = tmp_path / "a.zip"
    info = zipfile.ZipInfo("lion.png")
    with zipfile.ZipFile(path, "w") as archive:
        # Zip64 adds 20 bytes to the local header and nothing to the central one.
        with archive.open(info, "w", force_zip64=True) as member:
            member.write(b"lion")
        archive.writestr("ant.png", b"ant")
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("lion.png").extra == b""
    assert unpacked(path) == {"lion.png": b"lion", "ant.png": b"ant"}


def test_zip_behind_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"#!/bin/sh\n" * 9 + write_zip(path, {"ant.png": b"ant", "bee.png": b"bee"}))
    assert unpacked(path) == {"ant.png": b"ant", "bee.png": b"bee"}


MEMBERS = {f"m{number}.bin": bytes([number]) * 700 for number in range(4)}
# A tar member of 700 bytes: a header of 512 and the data, filled up to 1024.
STEP = 512 + 1024


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 0.999))
def test_truncated_zip_is_refused(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    path = tmp_path_factory.getbasetemp() / "truncated.zip"
    whole = write_zip(path, MEMBERS)
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=f"{path}: damaged or truncated"):
        list_members(path)


@settings(max_examples=40, deadline=None)
@given(number=st.integers(0, 3), kept=st.integers(0, 699))
def test_tar_truncated_inside_a_member_is_refused(
    tmp_path_factory: pytest.TempPathFactory, number: int, kept: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "truncated.tar"
    path.write_bytes(tar_bytes(MEMBERS)[: number * STEP + 512 + kept])
    with pytest.raises(UserError, match=f"{path}: damaged or truncated"):
        list_members(path)


@pytest.mark.parametrize("size", [0, 100, 511])
def test_tar_truncated_inside_its_first_header_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "truncated.tar"
    path.write_bytes(tar_bytes(MEMBERS)[:size])
    with pytest.raises(UserError, match=f"{path}: damaged or truncated"):
        list_members(path)


@pytest.mark.parametrize("kept", [0, 1, 256, 511])
def test_tar_truncated_inside_a_later_header_is_refused(tmp_path: Path, kept: int) -> None:
    # Nor may a cut between two members pass: a whole tar ends with a block of zeros.
    path = tmp_path / "truncated.tar"
    path.write_bytes(tar_bytes(MEMBERS)[: 2 * STEP + kept])
    with pytest.raises(UserError, match=f"{path}: damaged or truncated"):
        list_members(path)


def test_tar_with_a_damaged_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged.tar"
    data = bytearray(tar_bytes(MEMBERS))
    data[2 * STEP] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path}: damaged or truncated"):
        list_members(path)


@pytest.mark.parametrize("inside", [0, 1, 3])
def test_truncated_tar_in_a_tar_is_refused(tmp_path: Path, inside: int) -> None:
    path = tmp_path / "outer.tar"
    inner = tar_bytes(MEMBERS)[: inside * STEP + 512 + 350]
    path.write_bytes(tar_bytes({"whole.tar": tar_bytes(MEMBERS), "cut.tar": inner}))
    with pytest.raises(UserError, match=f"{path}: damaged or truncated"):
        list_members(path)


def test_outer_tar_truncated_inside_an_inner_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outer.tar"
    path.write_bytes(tar_bytes({"a.tar": tar_bytes(MEMBERS)})[: 512 + STEP + 700])
    with pytest.raises(UserError, match=f"{path}: damaged or truncated"):
        list_members(path)


def test_compressed_tar_is_refused(tmp_path: Path) -> None:
    # Its members have no place of their own in the file.
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("ant.png"))
    with pytest.raises(UserError, match=str(path)):
        list_members(path)


@pytest.mark.parametrize("name", ["absent.zip", "absent.tar"])
def test_absent_archive_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"{tmp_path / name}: no such archive"):
        list_members(tmp_path / name)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_method_without_reading_in_place_is_refused(tmp_path: Path, method: int) -> None:
    path = tmp_path / "packed.zip"
    write_zip(path, {"ant.png": b"ant"}, method)
    with pytest.raises(UserError, match=rf"{path}: ant.png is packed with zip method {method}"):
        list_members(path)


def test_zip_whose_local_header_is_overwritten_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged.zip"
    path.write_bytes(b"XXXX" + write_zip(path, MEMBERS)[4:])
    with pytest.raises(UserError, match=f"{path}: .*no local header for m0.bin"):
        list_members(path)


def test_zip_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "later.zip"
    data = bytearray(write_zip(path, MEMBERS))
    # "Version needed to extract", six bytes into the first entry of the central directory.
    data[data.index(b"PK\x01\x02") + 6] = 99
    path.write_bytes(data)
    with pytest.raises(UserError, match=str(path)):
        list_members(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), ending=st.sampled_from(["zip", "tar"]))
def test_damage_is_refused_or_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, ending: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"damage.{ending}"
    members = {f"{number}é.jpg": bytes(700) for number in range(3)}
    whole = write_zip(path, members) if ending == "zip" else tar_bytes(members)
    damaged = bytearray(whole)
    # The directory of a zip and the headers of a tar are what can mislead.
    starts = [whole.index(b"PK\x01\x02")] if ending == "zip" else [0, STEP, 2 * STEP]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(starts)) + data.draw(st.integers(0, 150))
        damaged[place] = data.draw(st.sampled_from([0, 1, 0x2F, 0x37, 0x80, 0xFF]))
    path.write_bytes(damaged)
    try:
        listed = list_members(path)
    except UserError:
        return
    for member in listed:
        assert member.offset is not None
        assert member.length is not None
        assert 0 <= member.offset <= member.offset + member.length <= len(damaged)
        member.name.encode()
