"""Offsets point at exactly the members' bytes; a damaged archive is refused by name."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from corpora_factory import tar_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.archives import Member, list_members
from clip_mixtures.errors import UserError

name_parts = st.text("abcXYZ019_-. é漢", min_size=1, max_size=40).filter(
    lambda name: name.strip(". ") == name and not name.endswith(".tar")
)
names = st.lists(name_parts, min_size=1, max_size=3).map("/".join)
contents = st.dictionaries(names, st.binary(max_size=1500), min_size=1, max_size=5)
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def read_in_place(path: Path, member: Member) -> bytes:
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


def test_folders_and_links_are_no_members(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "elsewhere"
            archive.addfile(info)
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    assert list_members(tmp_path / "a.tar") == []
    write_zip(tmp_path / "a.zip", {"folder/": b"", "folder/file": b"x"})
    assert unpacked(tmp_path / "a.zip") == {"folder/file": b"x"}


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
