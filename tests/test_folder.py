"""Any tree of domains and classes becomes split lists; the split of an image is its own."""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from corpora_factory import make_domainnet, tiny_image
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.corpora.domainnet import index_lists
from clip_mixtures.corpora.folder import lists_from_folders
from clip_mixtures.corpora.png import encode_png
from clip_mixtures.errors import UserError
from clip_mixtures.images import pack
from clip_mixtures.index import check

Lists = dict[tuple[str, str], list[str]]


def write(root: Path, names: Iterable[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write_zip(path: Path, names: Iterable[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")


def many(domain: str, name: str, count: int = 20) -> list[str]:
    return [f"{domain}/{name}/{number:03}.jpg" for number in range(count)]


def number_of(path: str) -> int:
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")


def paths(lists: Lists) -> dict[str, str]:
    """Map each path to its split."""
    return {line.rsplit(" ", 1)[0]: split for (_, split), lines in lists.items() for line in lines}


def test_lists_are_those_of_the_tree(tmp_path: Path) -> None:
    # In the order of the class names, where "tea cup" goes before "teaCup".
    names = ["Zebra", "ant", "polar bear", "tea_cup", "teaCup"]
    expected = [
        path
        for domain in ("sketch", "real", "other")
        for name in names
        for path in many(domain, name)
    ]
    lists = lists_from_folders(write(tmp_path, expected))
    domains = ("real", "sketch", "other")
    assert list(lists) == [(domain, split) for domain in domains for split in ("train", "test")]
    assert sorted(paths(lists)) == sorted(expected)
    for (domain, _), lines in lists.items():
        pairs = [line.rsplit(" ", 1) for line in lines]
        assert pairs == sorted(pairs, key=lambda pair: (int(pair[1]), pair[0]))
        # Capital letters go before small ones, as in any sorting by code point.
        for path, label in pairs:
            assert path.split("/")[:2] == [domain, names[int(label)]]


@pytest.mark.parametrize(("share", "tests"), [(0.1, 1), (0.25, 2), (0.3, 2), (0.9, 5), (0.5, 3)])
def test_the_share_of_every_class_tests_by_the_hash_of_the_path(
    tmp_path: Path, share: float, tests: int
) -> None:
    of_tree = [path for domain in ("a", "b") for path in many(domain, "ant", 6)]
    splits = paths(lists_from_folders(write(tmp_path, of_tree), test_share=share))
    for domain in ("a", "b"):
        of_domain = sorted((p for p in splits if p.startswith(domain)), key=number_of)
        found = [splits[path] for path in of_domain]
        assert found == ["test"] * tests + ["train"] * (6 - tests)


def test_index_of_the_lists_finds_the_images(tmp_path: Path) -> None:
    images = make_domainnet(tmp_path, ["real", "sketch"], ["ant", "polar bear"], test=4)
    images |= {path: tiny_image(path) for path in ("art/polar_bear/é 1.PNG", "art/ant/2.png")}
    for path in images:
        if path.startswith("art/"):
            write(tmp_path, [path])
            (tmp_path / path).write_bytes(encode_png(images[path]))
    lists = lists_from_folders(tmp_path)
    index = index_lists(tmp_path, lists)
    frame = index.frame
    assert index.class_names() == ["ant", "polar bear"]
    assert index.domains() == ["real", "sketch", "art"]
    assert dict(zip(frame["path"], frame["split"], strict=True)) == paths(lists)
    check(frame)
    assert len(index) == len(images)
    for path, pixels in zip(frame["path"], pack(frame, tmp_path, 16), strict=True):
        np.testing.assert_array_equal(pixels, images[path], err_msg=path)


def test_class_folder_with_spaces_is_indexed(tmp_path: Path) -> None:
    lists = lists_from_folders(
        write(tmp_path, many("a", "polar bear", 5) + many("b", "polar bear", 5))
    )
    index = index_lists(tmp_path, lists)
    assert index.class_names() == ["polar bear"]
    assert all("polar bear" in path for path in index.frame["path"])


def test_folder_and_archive_give_the_same_lists(tmp_path: Path) -> None:
    names = many("real", "ant") + many("real", "bee")
    write(tmp_path / "folder", names + many("art", "ant"))
    write(tmp_path / "zip", many("art", "ant"))
    write_zip(tmp_path / "zip" / "real.zip", reversed(names))
    assert lists_from_folders(tmp_path / "folder") == lists_from_folders(tmp_path / "zip")


def test_archive_goes_before_the_folder_of_the_same_name(tmp_path: Path) -> None:
    # As the reader of the lists does.
    write(tmp_path, many("real", "ant") + many("art", "ant"))
    write_zip(tmp_path / "real.zip", many("real", "bee"))
    lists = lists_from_folders(tmp_path)
    assert {path.split("/")[1] for path in paths(lists) if path.startswith("real")} == {"bee"}


def test_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    images = [
        f"{domain}/ant/{name}"
        for domain in ("real", "art")
        for name in ("1.jpg", "2.JPEG", "3.Png", "4.webp", "5.GIF", "6.bmp", "7.tif", "8.TIFF")
    ]
    others = [
        "README.md",
        "real/LICENCE",
        "real/ant/notes.txt",
        "real/ant/jpg",
        "real/ant/deeper/notes.txt",
        "real/ant/._1.jpg",
        "real/.cache/1.jpg",
        "real/__MACOSX/ant/1.jpg",
        ".git/ant/1.jpg",
        "__MACOSX/ant/1.jpg",
    ]
    write(tmp_path, images + others)
    write_zip(tmp_path / ".hidden.zip", ["a/b/1.jpg"])
    lists = lists_from_folders(tmp_path)
    assert sorted(paths(lists)) == sorted(images)
    write_zip(tmp_path / "art.zip", [*images[8:], "__MACOSX/art/ant/._1.jpg", "art/README"])
    assert lists_from_folders(tmp_path) == lists


trees = st.dictionaries(
    st.sampled_from(["ant", "bee", "polar bear"]),
    st.sets(st.integers(0, 60), min_size=1, max_size=12),
    min_size=1,
)


@settings(max_examples=50, deadline=None)
@given(tree=trees, more=trees, share=st.sampled_from([0.01, 0.3, 0.5, 0.99]))
def test_split_is_stable_and_both_sides_have_every_class(
    tmp_path_factory: pytest.TempPathFactory,
    tree: dict[str, set[int]],
    more: dict[str, set[int]],
    share: float,
) -> None:
    def splits(name: str, *trees: dict[str, set[int]]) -> dict[str, str]:
        names = {f"a/{c}/é {n}.jpg" for tree in trees for c, ns in tree.items() for n in ns}
        root = tmp_path_factory.mktemp(name)
        write_zip(root / "a.zip", names)
        return paths(lists_from_folders(root, ["a"], share))

    first, second = splits("first", tree), splits("second", tree, more)
    for result in (first, second):
        for folder in {path.split("/")[1] for path in result}:
            of_class = {path: s for path, s in result.items() if f"/{folder}/" in path}
            count = len(of_class)
            tests = list(of_class.values()).count("test")
            # Halves go up.
            wanted = math.floor(share * count + 0.5)
            assert tests == (min(max(wanted, 1), count - 1) if count > 1 else wanted)
            by_hash = sorted(of_class, key=number_of)
            assert {of_class[path] for path in by_hash[:tests]} <= {"test"}
    # A file that is added moves at most one other, of its own class.
    for folder, numbers in tree.items():
        moved = [p for p in first if f"/{folder}/" in p and first[p] != second[p]]
        assert len(moved) <= len(more.get(folder, set()) - numbers)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("real/1.jpg", id="no class"),
        pytest.param("real/ant/deeper/1.jpg", id="too deep"),
    ],
)
def test_image_at_another_depth_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, [*many("real", "ant"), *many("art", "ant"), name])
    with pytest.raises(UserError, match=f"^{tmp_path / 'real'}: {name!r} is not at 'real/<class>"):
        lists_from_folders(tmp_path)


def test_archive_without_the_domain_in_its_names_is_refused(tmp_path: Path) -> None:
    write(tmp_path, many("art", "ant"))
    for names in (["ant/1.jpg"], ["other/ant/1.jpg"]):
        write_zip(tmp_path / "real.zip", names)
        with pytest.raises(UserError, match=rf"real\.zip: {names[0]!r} is not at 'real/<class>/"):
            lists_from_folders(tmp_path)


@pytest.mark.parametrize(
    ("folders", "name"),
    [
        pytest.param(["real/polar bear", "real/polar_bear"], "polar bear", id="one domain"),
        pytest.param(["real/a_b_c", "art/a_b c"], "a b c", id="two domains"),
    ],
)
def test_two_folders_of_one_class_name_are_refused(
    tmp_path: Path, folders: list[str], name: str
) -> None:
    write(tmp_path, [f"{folder}/1.jpg" for folder in [*folders, "art/ant", "real/ant"]])
    with pytest.raises(UserError, match=f"^{tmp_path}: the folders .* class name {name!r}; rename"):
        lists_from_folders(tmp_path)


def test_class_names_that_differ_in_case_are_two(tmp_path: Path) -> None:
    write(tmp_path, ["real/Ant/1.jpg", "real/ant/1.jpg", "art/bee/1.jpg"])
    lists = lists_from_folders(tmp_path)
    assert {line for lines in lists.values() for line in lines} == {
        "real/Ant/1.jpg 0",
        "real/ant/1.jpg 1",
        "art/bee/1.jpg 2",
    }


@pytest.mark.parametrize("name", ["real/ant/1\n.jpg", "real/a\nnt/1.jpg"])
@pytest.mark.parametrize("archive", [False, True], ids=["folder", "archive"])
def test_line_break_in_a_name_is_refused(tmp_path: Path, name: str, archive: bool) -> None:
    write(tmp_path, many("art", "ant"))
    if archive:
        write_zip(tmp_path / "real.zip", [name])
    else:
        write(tmp_path, [name])
    with pytest.raises(UserError, match="has a line break in its name") as raised:
        lists_from_folders(tmp_path)
    assert "\n" not in str(raised.value)


def test_domain_without_images_is_named(tmp_path: Path) -> None:
    write(tmp_path, [*many("art", "ant"), "real/ant/1.txt"])
    with pytest.raises(UserError, match=f"^{tmp_path / 'real'}: holds no images"):
        lists_from_folders(tmp_path)


def test_fewer_than_two_domains_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}: holds 0 domains \(none\)"):
        lists_from_folders(tmp_path)
    write(tmp_path, many("real", "ant"))
    with pytest.raises(UserError, match=rf"^{tmp_path}: holds 1 domains \(real\)"):
        lists_from_folders(tmp_path)
    # Who names one means one.
    assert len(paths(lists_from_folders(tmp_path, ["real"]))) == 20


def test_chosen_domains_alone_are_read(tmp_path: Path) -> None:
    write(tmp_path, [*many("real", "ant"), *many("art", "bee"), "broken/1.jpg"])
    lists = lists_from_folders(tmp_path, ["art", "real", "art"])
    assert list(lists) == [(d, split) for d in ("real", "art") for split in ("train", "test")]
    # Labels count the classes of the chosen domains only.
    assert {line[-1] for line in lists["art", "train"]} == {"1"}


def test_unknown_and_absent_domains_are_named(tmp_path: Path) -> None:
    write(tmp_path, many("real", "ant") + many("art", "ant"))
    with pytest.raises(UserError, match=rf"^{tmp_path}: unknown domain 'rael'; did you mean 'real"):
        lists_from_folders(tmp_path, ["art", "rael"])
    with pytest.raises(UserError, match=r"unknown domain '\.\./art'"):
        lists_from_folders(tmp_path / "real", ["../art"])
    with pytest.raises(UserError, match="no domains asked for"):
        lists_from_folders(tmp_path, [])
    with pytest.raises(UserError, match=f"^{tmp_path / 'none'}: no such folder"):
        lists_from_folders(tmp_path / "none")


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_share_out_of_range_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(UserError, match=r"test_share is .*; it lies between 0 and 1"):
        lists_from_folders(tmp_path, test_share=share)


def test_link_out_of_the_corpus_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "corpus", many("real", "ant") + many("art", "ant"))
    write(tmp_path, ["elsewhere/1.jpg"])
    os.symlink(tmp_path / "elsewhere" / "1.jpg", tmp_path / "corpus" / "real" / "ant" / "x.jpg")
    with pytest.raises(UserError, match=r"x\.jpg: a link to .*elsewhere/1\.jpg"):
        lists_from_folders(tmp_path / "corpus")


def test_damaged_archive_is_named(tmp_path: Path) -> None:
    write(tmp_path, [*many("art", "ant"), "real.zip"])
    with pytest.raises(UserError, match=f"^{tmp_path / 'real.zip'}: damaged or truncated"):
        lists_from_folders(tmp_path)
