"""Whatever of the test set is planted in a training set is found, and nothing else is."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora_factory import Corpora
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from clip_mixtures.errors import UserError
from clip_mixtures.index import Index, read_index, write_index
from clip_mixtures.mixtures.audit import audit, check_report, duplicate_rows, nearest_hashes
from clip_mixtures.mixtures.make import make_mixture
from clip_mixtures.mixtures.spec import DUPLICATE_POLICIES, Checks, Mixture
from clip_mixtures.mixtures.store import read_mixture
from clip_mixtures.verification import SCHEMA, read_verification

TESTED = "sketch/polar_bear/test_0.png"
SKETCH = "sketch/n01632458/n01632458_1.png"
# One place of each kind that a copy of a held-out test image can be in.
PLACES = {
    "another class of the test domain": "sketch/ant/train_1.png",
    "the same class of another domain": "painting/polar_bear/train_0.png",
    "another class of another domain": "real/bee/train_2.png",
    "the base set": "images/b1.png",
    "ImageNet-Sketch": SKETCH,
}


def paths_of(folder: Path) -> set[str]:
    """Return the paths of a mixture's training images."""
    stored = read_mixture(folder)
    return {
        path
        for name, rows in stored.rows("train").items()
        for path in read_index(stored.indices[name]).frame["path"].iloc[rows]
    }


def all_of(indices: Path, mixture: Mixture, verification: Path | None = None) -> dict[str, Any]:
    """Audit a training set of every training row there is."""
    files = {path.stem: path for path in indices.glob("*.parquet")}
    splits = {
        name: read_index(file, columns=["split"]).frame["split"] for name, file in files.items()
    }
    rows = {name: np.flatnonzero(split == "train") for name, split in splits.items()}
    return audit(mixture, files, rows, verification, Checks(near_bits=0))


# ---- exact duplicates


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_copy_of_a_held_out_test_image_is_a_leak_wherever_it_is(
    tmp_path: Path, place: str
) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    mixture = corpora.mixture(add_sketches=place == SKETCH, protocol="corrected")
    clean = make_mixture(indices, mixture, tmp_path / "clean", corpora.verify())
    assert clean.audit["leaks"] == []
    assert place in paths_of(tmp_path / "clean")

    corpora.file(place).write_bytes(corpora.file(TESTED).read_bytes())
    verification = corpora.verify()
    pair = {"train": place, "test": TESTED}
    message = f"mixtures.tested: 1 training images .* first '{place}' of '{TESTED}'; .* remove"
    with pytest.raises(UserError, match=message):
        make_mixture(indices, mixture, tmp_path / "error", verification)
    report = json.loads((tmp_path / "error" / "audit.json").read_text())
    assert report["duplicates"]["exact_held_out_examples"] == [pair]
    assert len(report["leaks"]) == 1
    assert [path.name for path in (tmp_path / "error").iterdir()] == ["audit.json"]

    kept = make_mixture(indices, mixture, tmp_path / "kept", verification, Checks("report"))
    assert kept.audit["duplicates"]["exact_held_out_examples"] == [pair]
    # An image with the same bytes looks the same, too; it is counted once.
    assert kept.audit["duplicates"]["near_held_out"] == 0
    assert kept.audit["leaks"] == []
    assert kept.dropped == {}
    assert paths_of(tmp_path / "kept") == paths_of(tmp_path / "clean")

    removed = make_mixture(indices, mixture, tmp_path / "removed", verification, Checks("remove"))
    assert removed.dropped == {"duplicates of held-out test images": 1}
    assert removed.audit["duplicates"]["exact_held_out"] == 0
    assert paths_of(tmp_path / "clean") - paths_of(tmp_path / "removed") == {place}
    assert sum(removed.counts["images"]) == sum(clean.counts["images"]) - 1
    facts = json.loads((tmp_path / "removed" / "mixture.json").read_text())
    assert facts["dropped"] == removed.audit["dropped"] == removed.dropped


@pytest.mark.parametrize("policy", DUPLICATE_POLICIES)
@pytest.mark.parametrize(
    "tested", ["sketch/ant/test_0.png", "real/polar_bear/test_1.png", "painting/bee/test_0.png"]
)
def test_a_copy_of_a_test_image_that_is_not_held_out_is_counted_and_stays(
    tmp_path: Path, tested: str, policy: str
) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    corpora.file("real/bee/train_0.png").write_bytes(corpora.file(tested).read_bytes())
    made = make_mixture(
        indices, corpora.mixture(), tmp_path / "made", corpora.verify(), Checks(policy)
    )
    found = made.audit["duplicates"]
    assert found["exact_examples"] == [{"train": "real/bee/train_0.png", "test": tested}]
    assert (found["exact"], found["exact_held_out"]) == (1, 0)
    assert made.audit["leaks"] == []
    assert "real/bee/train_0.png" in paths_of(tmp_path / "made")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpora, Path, Path]:
    """Corpora that no test changes, their indices and their verification."""
    corpora = Corpora(tmp_path_factory.mktemp("ground"))
    return corpora, corpora.index(), corpora.verify()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_planted_copy_is_found_and_nothing_else(
    ground: tuple[Corpora, Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    corpora, indices, verification = ground
    mixture = corpora.mixture()
    files = {path.stem: path for path in indices.glob("*.parquet")}
    frames = {name: read_index(file).frame for name, file in files.items()}
    tables = {
        name: read_verification(verification / f"{name}.parquet", len(frame))
        for name, frame in frames.items()
    }
    domains = frames["domains"]
    is_test = domains["split"] == "test"
    tested = data.draw(st.sampled_from(sorted(domains.index[is_test])), label="a test image")
    trained = [
        (name, row)
        for name, frame in frames.items()
        for row in frame.index[frame["split"] == "train"]
    ]
    # Copies of copies, one test image in many places, many in few: whatever is drawn.
    plants = data.draw(
        st.dictionaries(
            st.sampled_from(trained),
            st.just(tested) | st.sampled_from(sorted(domains.index[is_test])),
            max_size=12,
        ),
        label="copies",
    )
    digests = {name: table["digest"].to_numpy(dtype=object) for name, table in tables.items()}
    for (name, row), test in plants.items():
        digests[name][row] = digests["domains"][test]
    folder = tmp_path_factory.mktemp("planted")
    for name, table in tables.items():
        write_table(folder / f"{name}.parquet", table.assign(digest=digests[name]))
    held_out = (domains["domain"] == "sketch") & (domains["class_name"] == "polar bear")
    leaks = {place for place, test in plants.items() if held_out[test]}

    rows = {
        name: frame.index[frame["split"] == "train"].to_numpy() for name, frame in frames.items()
    }
    report = audit(mixture, files, rows, folder, Checks(near_bits=0))["duplicates"]
    assert report["exact"] == len(plants)
    assert report["exact_held_out"] == len(leaks)
    paths = {frames[name]["path"].iloc[row] for name, row in leaks}
    assert {pair["train"] for pair in report["exact_held_out_examples"]} == paths
    removed = duplicate_rows(mixture, files, rows, folder)
    assert {(name, row) for name, found in removed.items() for row in found} == leaks


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a verification table that was changed."""
    pq.write_table(pa.Table.from_pandas(table, schema=SCHEMA, preserve_index=False), path)


def test_images_that_are_not_there_are_no_copies_of_each_other(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    for path in (TESTED, "real/ant/train_0.png", "images/b0.png"):
        corpora.file(path).unlink()
    report = all_of(indices, corpora.mixture(), corpora.verify())
    assert (report["duplicates"]["exact"], report["duplicates"]["exact_held_out"]) == (0, 0)


def test_more_copies_than_a_report_names_are_all_counted(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path, captions=["x"] * 120)
    indices = corpora.index()
    data = corpora.file(TESTED).read_bytes()
    for number in range(120):
        corpora.file(f"images/b{number}.png").write_bytes(data)
    made = make_mixture(
        indices, corpora.mixture(), tmp_path / "made", corpora.verify(), Checks("report")
    )
    found = made.audit["duplicates"]
    assert found["exact_held_out"] == 120
    assert 0 < len(found["exact_held_out_examples"]) < 120


def test_without_verification_nothing_is_compared_and_the_report_says_so(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    corpora.file(PLACES["the base set"]).write_bytes(corpora.file(TESTED).read_bytes())
    made = make_mixture(indices, corpora.mixture(), tmp_path / "made")
    assert made.audit["duplicates"]["compared"] is False
    assert made.audit["duplicates"]["exact_held_out"] == 0
    verified = make_mixture(
        indices, corpora.mixture(), tmp_path / "made", corpora.verify(), Checks("report")
    )
    assert verified.audit["duplicates"]["compared"] is True
    assert verified.audit["duplicates"]["exact_held_out"] == 1


# ---- near duplicates


def smooth(seed: int) -> Image.Image:
    """Make a picture without fine detail, as photographs mostly are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)


def drawing(seed: int) -> Image.Image:
    """Make a drawing: dark lines on white."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (96, 96), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        left, top = (int(x) for x in rng.integers(0, 50, 2))
        width, height = (int(x) for x in rng.integers(20, 45, 2))
        draw.ellipse((left, top, left + width, top + height), outline="black", width=3)
        draw.line([int(x) for x in rng.integers(0, 96, 4)], fill="black", width=3)
    return image


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG": lambda image: encoded(image, "JPEG", quality=80),
    "half the size": lambda image: encoded(image.resize((48, 48), Image.Resampling.LANCZOS)),
    "twice the size": lambda image: encoded(image.resize((192, 192), Image.Resampling.BICUBIC)),
    "small JPEG": lambda image: encoded(image.resize((64, 64)), "JPEG", quality=60),
    "other compression": lambda image: encoded(image, compress_level=0),
}


def bits_between(verification: Path, indices: Path, first: str, second: str) -> int:
    """Return how far the hashes of two images of the domains are apart."""
    paths = read_index(indices / "domains.parquet").frame["path"]
    table = read_verification(verification / "domains.parquet", len(paths))
    hashes = dict(zip(paths, table["perceptual_hash"], strict=True))
    return bin(int(hashes[first]) ^ int(hashes[second])).count("1")


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", [smooth, drawing])
def test_near_duplicates_are_found_and_are_not_exact(
    tmp_path: Path, kind: Callable[[int], Image.Image], copy: Callable[[Image.Image], bytes]
) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    place = "real/ant/train_3.png"
    picture = kind(7)
    corpora.file(TESTED).write_bytes(encoded(picture))
    corpora.file(place).write_bytes(copy(picture))
    # Others of the same kind are no duplicates.
    for number in range(3):
        corpora.file(f"painting/bee/train_{number}.png").write_bytes(encoded(kind(100 + number)))
    verification = corpora.verify()
    made = make_mixture(indices, corpora.mixture(), tmp_path / "made", verification)
    found = made.audit["duplicates"]
    bits = bits_between(verification, indices, place, TESTED)
    assert bits <= 4
    assert found["near_held_out_examples"] == [{"bits": bits, "train": place, "test": TESTED}]
    assert found["near_held_out"] == 1
    assert (found["exact"], found["exact_held_out"]) == (0, 0)
    assert made.audit["leaks"] == []
    assert place in paths_of(tmp_path / "made")


def test_near_bits_is_the_largest_distance_that_counts(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    place = "real/ant/train_3.png"
    corpora.file(TESTED).write_bytes(encoded(drawing(7)))
    turned = drawing(7).rotate(4, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255))
    corpora.file(place).write_bytes(encoded(turned))
    verification = corpora.verify()
    bits = bits_between(verification, indices, place, TESTED)
    assert bits > 0
    for near_bits, near in ((bits, 1), (bits - 1, 0)):
        checks = Checks(near_bits=near_bits)
        made = make_mixture(indices, corpora.mixture(), tmp_path / "m", verification, checks)
        found = made.audit["duplicates"]
        trained = [pair["train"] for pair in found["near_held_out_examples"]]
        assert trained.count(place) == near
        assert found["near_bits"] == near_bits


def test_near_duplicates_are_found_in_every_corpus_and_nearest_first(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    corpora.file(TESTED).write_bytes(encoded(drawing(3)))
    coarse = encoded(drawing(3).resize((12, 12)).resize((96, 96), Image.Resampling.BICUBIC))
    for place in PLACES.values():
        corpora.file(place).write_bytes(coarse)
    corpora.file("real/bee/train_2.png").write_bytes(COPIES["other compression"](drawing(3)))
    mixture = corpora.mixture(add_sketches=True, protocol="corrected")
    made = make_mixture(indices, mixture, tmp_path / "made", corpora.verify())
    found = made.audit["duplicates"]
    examples = found["near_held_out_examples"]
    # Some of the domains' images made room for ImageNet-Sketch.
    trained = set(PLACES.values()) & paths_of(tmp_path / "made")
    assert {"images/b1.png", "real/bee/train_2.png", SKETCH} <= trained
    assert {pair["train"] for pair in examples} == trained
    assert found["near_held_out"] == len(trained)
    bits = {pair["train"]: pair["bits"] for pair in examples}
    assert bits["real/bee/train_2.png"] == 0
    assert 0 < bits["images/b1.png"] <= 4
    assert list(bits.values()) == sorted(bits.values())


def test_near_duplicates_of_other_test_images_are_not_reported(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    corpora.file("sketch/ant/test_0.png").write_bytes(encoded(drawing(3)))
    corpora.file("real/bee/train_2.png").write_bytes(COPIES["JPEG"](drawing(3)))
    made = make_mixture(indices, corpora.mixture(), tmp_path / "made", corpora.verify())
    assert made.audit["duplicates"]["near_held_out"] == 0


def test_an_exact_duplicate_is_not_counted_again_as_near(tmp_path: Path) -> None:
    # The first test image looks the same and has other bytes, so it is as near as the second.
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    place = "real/ant/train_3.png"
    picture = drawing(5)
    corpora.file("sketch/polar_bear/test_0.png").write_bytes(COPIES["other compression"](picture))
    corpora.file("sketch/polar_bear/test_1.png").write_bytes(encoded(picture))
    corpora.file(place).write_bytes(encoded(picture))
    made = make_mixture(
        indices, corpora.mixture(), tmp_path / "made", corpora.verify(), Checks("report")
    )
    found = made.audit["duplicates"]
    assert found["exact_held_out_examples"] == [
        {"train": place, "test": "sketch/polar_bear/test_1.png"}
    ]
    assert found["near_held_out_examples"] == []
    assert found["near_held_out"] == 0


hashes = st.integers(min_value=0, max_value=2**64 - 1)


@given(
    first=st.lists(hashes | st.sampled_from([0, 2**63, 2**64 - 1]), max_size=12),
    among=st.lists(hashes | st.sampled_from([0, 1, 2**63, 2**64 - 1]), min_size=1, max_size=12),
)
def test_nearest_hashes_are_those_of_a_count_bit_by_bit(first: list[int], among: list[int]) -> None:
    distances, nearest = nearest_hashes(
        np.array(first, dtype=np.uint64), np.array(among, dtype=np.uint64)
    )
    expected = [[bin(one ^ other).count("1") for other in among] for one in first]
    assert distances.tolist() == [min(counts) for counts in expected]
    assert nearest.tolist() == [counts.index(min(counts)) for counts in expected]


def test_nearest_hashes_of_more_pairs_than_are_compared_at_once() -> None:
    rng = np.random.default_rng(0)
    first, among = (rng.integers(0, 2**64, n, dtype=np.uint64) for n in (5000, 8192))
    where = rng.integers(0, len(among), len(first))
    # Each is one bit away from one of the others, and random hashes are far more.
    flipped = among[where] ^ (np.uint64(1) << rng.integers(0, 64, len(first), dtype=np.uint64))
    distances, nearest = nearest_hashes(flipped, among)
    assert (distances == 1).all()
    np.testing.assert_array_equal(nearest, where)
    assert nearest_hashes(first, among)[0].min() > 1


# ---- held-out pairs


def rewritten(indices: Path, row: Mapping[str, str], **changes: str) -> None:
    """Change a row of the domains' index, found by its values, as a fault in a list would."""
    index = read_index(indices / "domains.parquet")
    chosen = np.logical_and.reduce([index.frame[key] == value for key, value in row.items()])
    assert chosen.sum() == 1
    frame = index.frame.copy()
    for key, value in changes.items():
        frame.loc[chosen, key] = value
    write_index(indices / "domains.parquet", Index(frame, index.root))


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        pytest.param(
            "sketch/polar_bear/train_1.png",
            {"class_name": "ant", "class_id": 0},
            id="labelled as another class",
        ),
        pytest.param(
            "sketch/polar_bear/train_1.png", {"domain": "real"}, id="listed in another domain"
        ),
        pytest.param(
            "sketch/ant/train_1.png",
            {"path": "sketch/Polar_Bear/train_1.png"},
            id="other capitalisation",
        ),
        pytest.param(
            "sketch/ant/train_1.png",
            {"path": "sketch/polar bear/copy.png"},
            id="a space in the folder",
        ),
        pytest.param(
            "real/bee/train_0.png",
            {"path": "old/SKETCH/POLAR_BEAR/x.png"},
            id="below other folders",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["cg_high_diversity", "natural_only"])
def test_a_held_out_pair_that_a_list_hides_is_found_by_its_path(
    tmp_path: Path, row: str, changes: dict[str, Any], kind: str
) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    mixture = corpora.mixture(kind=kind)
    assert make_mixture(indices, mixture, tmp_path / "made").audit["leaks"] == []
    rewritten(indices, {"path": row}, **changes)
    chosen = read_index(indices / "domains.parquet").frame
    path = changes.get("path", row)
    domain = chosen.loc[chosen["path"] == path, "domain"].iloc[0]
    if domain not in mixture.domains:
        # Then it is not chosen, so it is no leak.
        assert make_mixture(indices, mixture, tmp_path / "made").audit["leaks"] == []
        return
    message = rf"1 training images show a held-out class in test domain 'sketch', first '{path}'"
    with pytest.raises(UserError, match=message):
        make_mixture(indices, mixture, tmp_path / "error")
    report = json.loads((tmp_path / "error" / "audit.json").read_text())
    assert report["held_out_pairs"] == {
        "images": 1, "by_label": 0, "by_path": 1, "examples": [path],
    }  # fmt: skip
    assert not (tmp_path / "error" / "mixture.json").exists()


def test_a_held_out_pair_is_found_by_its_label_whatever_the_path(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    rewritten(indices, {"path": "sketch/polar_bear/train_0.png"}, path="x/y/1.png")
    mixture = corpora.mixture()
    # Rows that no rule would choose: every training image.
    report = all_of(indices, mixture)
    assert report["held_out_pairs"]["images"] == report["held_out_pairs"]["by_label"] == 4
    assert report["held_out_pairs"]["by_path"] == 3
    assert "x/y/1.png" in report["held_out_pairs"]["examples"]
    with pytest.raises(UserError, match=r"mixtures\.tested: 4 training images"):
        check_report(report)


@pytest.mark.parametrize(
    "upper", [{"include_test_classes": True}, {"allow": 0.5, "subsample": True}]
)
def test_upper_bounds_may_contain_held_out_pairs_but_no_test_image(
    tmp_path: Path, upper: dict[str, Any]
) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    made = make_mixture(indices, corpora.mixture(**upper), tmp_path / "made", corpora.verify())
    assert made.audit["held_out_pairs"]["images"] > 0
    assert made.audit["leaks"] == []
    corpora.file("real/ant/train_0.png").write_bytes(corpora.file(TESTED).read_bytes())
    with pytest.raises(UserError, match="1 training images have the bytes of held-out test images"):
        make_mixture(indices, corpora.mixture(**upper), tmp_path / "made", corpora.verify())


pair_names = st.sampled_from(
    [
        *("polar bear", "Polar Bear", "POLAR_BEAR", "polar_bear", "polar  bear", "polarbear"),
        *("polar_bear_cub", "t.shirt", "t-shirt", "T.Shirt", "tXshirt", "ant", ""),
    ]
)
pair_domains = st.sampled_from(["sketch", "Sketch", "sketches", "mysketch", "real"])


@given(
    rows=st.lists(
        st.tuples(
            pair_domains, pair_names, pair_domains, pair_names, st.sampled_from(["", "a/b/"])
        ),
        min_size=1,
        max_size=8,
    )
)
def test_pairs_are_found_by_label_and_by_path_and_no_others(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str, str, str]]
) -> None:
    mixture = Mixture(
        "m", "domains", "sketch", ("polar bear", "t.shirt"), ("real", "sketch"), subsample=False
    )
    frame = pd.DataFrame(
        {
            "path": [f"{top}{d}/{n}/{i}.png" for i, (_, _, d, n, top) in enumerate(rows)],
            "corpus": "domainnet",
            "domain": [domain for domain, *_ in rows],
            "class_id": pd.array([1] * len(rows), dtype="Int32"),
            "class_name": [name for _, name, *_ in rows],
            "caption": "x",
            "aligned_caption": None,
            "split": "train",
            "archive": None,
            "offset": None,
            "length": None,
            "compression": None,
        }
    )
    names = {"polar bear", "t.shirt"}
    labels = [domain == "sketch" and name.lower() in names for domain, name, *_ in rows]
    paths = [
        domain.lower() == "sketch" and name.lower().replace("_", " ") in names
        for *_, domain, name, _ in rows
    ]
    index = tmp_path_factory.getbasetemp() / "pairs.parquet"
    write_index(index, Index(frame, Path("/corpus")))
    report = audit(mixture, {"domains": index}, {"domains": np.arange(len(rows))})
    found = report["held_out_pairs"]
    assert found["by_label"] == sum(labels)
    assert found["by_path"] == sum(paths)
    either = [label or path for label, path in zip(labels, paths, strict=True)]
    assert found["examples"] == list(frame["path"][either])
    assert bool(report["leaks"]) == any(either)


# ---- captions of the base set


@pytest.mark.parametrize(
    ("caption", "named", "with_the_domain"),
    [
        ("a bed", 1, 0),
        ("BED", 1, 0),
        ("Two Beds; hotel", 1, 0),
        ("bedroom", 0, 0),
        ("embed the bedding", 0, 0),
        ("a sketch of a bed", 1, 1),
        ("bed (drawing)", 1, 1),
        ("beds in sketches", 1, 1),
        ("bed, Drawings", 1, 1),
        ("a bed withdrawing", 1, 0),
        ("a bed and a sketchbook", 1, 0),
        ("a sketch of a bedroom", 0, 0),
        ("", 0, 0),
        ("NA", 0, 0),
        ("a polar bear", 0, 0),
    ],
)
def test_base_captions_that_name_a_held_out_class_are_counted(
    tmp_path: Path, caption: str, named: int, with_the_domain: int
) -> None:
    report = captions_report(tmp_path, [caption], ["bed"])
    assert report["terms"] == ["sketch", "drawing"]
    if not named:
        assert report["classes"] == {}
        return
    found = report["classes"]["bed"]
    assert (found["captions"], found["with_the_domain"]) == (named, with_the_domain)
    example = {"path": "images/b0.png", "caption": caption}
    assert found["examples"] == [example] * with_the_domain


def captions_report(
    tmp_path: Path, captions: list[str], held_out: list[str], **params: Any
) -> dict[str, Any]:
    corpora = Corpora(tmp_path, captions)
    mixture = dataclasses.replace(corpora.mixture(**params), held_out=tuple(held_out))
    files = {path.stem: path for path in corpora.index().glob("*.parquet")}
    rows = {"base-tiny": np.arange(len(captions)), "domains": np.arange(2)}
    files = {name: files[name] for name in rows}
    report = audit(mixture, files, rows)
    # Whatever a caption says, it is for a person to look at.
    assert report["leaks"] == []
    found: dict[str, Any] = report["captions"]["base-tiny"]
    return found


def test_captions_are_counted_for_each_class_and_some_are_shown(tmp_path: Path) -> None:
    captions = [*(f"polar bear sketch {n}" for n in range(9)), "Buses", "a bus and polar bears"]
    report = captions_report(tmp_path, captions, ["bus", "polar bear", "t-shirt"])
    assert set(report["classes"]) == {"bus", "polar bear"}
    assert report["classes"]["bus"] == {"captions": 2, "with_the_domain": 0, "examples": []}
    bears = report["classes"]["polar bear"]
    assert (bears["captions"], bears["with_the_domain"]) == (10, 9)
    assert 0 < len(bears["examples"]) < 9
    assert all("polar bear sketch" in example["caption"] for example in bears["examples"])


def test_a_domain_is_spoken_of_by_its_own_terms(tmp_path: Path) -> None:
    captions = ["a bed, sketch", "a bed, painting", "art with a bed", "bed article"]
    report = captions_report(tmp_path, captions, ["bed"], test_domain="painting")
    assert report["terms"] == ["painting", "art"]
    assert report["classes"]["bed"]["with_the_domain"] == 2


def test_only_captions_that_are_trained_on_count(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path, ["a bed", "a bed", "a bee"])
    indices = corpora.index()
    mixture = dataclasses.replace(corpora.mixture(), held_out=("bed",))
    files = {name: indices / f"{name}.parquet" for name in ("domains", "base-tiny")}
    rows = {"domains": np.arange(2), "base-tiny": np.array([1, 2])}
    report = audit(mixture, files, rows)
    assert report["captions"]["base-tiny"]["classes"]["bed"]["captions"] == 1
    assert report["train_images"] == {"domains": 2, "base-tiny": 2}
    # A set that gives no row has no captions.
    report = audit(mixture, files, {**rows, "base-tiny": np.empty(0, dtype=np.int64)})
    assert report["captions"]["base-tiny"]["classes"] == {}


def test_a_mixture_that_takes_no_row_of_a_set_can_be_audited_again(tmp_path: Path) -> None:
    # Of a stored mixture, such a set has an index and no rows.
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    for number in range(3):
        corpora.file(f"images/b{number}.png").write_bytes(b"")
    verification = corpora.verify()
    made = make_mixture(indices, corpora.mixture(), tmp_path / "made", verification)
    assert made.dropped == {"unreadable": 3}
    stored = read_mixture(tmp_path / "made")
    assert set(stored.indices) == {"base-tiny", "domains"}
    report = audit(stored.mixture, stored.indices, stored.rows("train"), verification)
    assert report["leaks"] == []
    assert report["duplicates"] == made.audit["duplicates"]


def test_a_report_is_json_and_the_same_each_time(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path, ["a polar bear drawing", "x", "y"])
    indices = corpora.index()
    corpora.file("images/b1.png").write_bytes(corpora.file(TESTED).read_bytes())
    corpora.file("images/b2.png").write_bytes(corpora.file("real/ant/test_0.png").read_bytes())
    verification = corpora.verify()
    reports = [
        make_mixture(
            indices, corpora.mixture(), tmp_path / name, verification, Checks("report")
        ).audit
        for name in ("one", "two")
    ]
    texts = [(tmp_path / name / "audit.json").read_bytes() for name in ("one", "two")]
    assert texts[0] == texts[1]
    assert json.loads(texts[0]) == reports[0]
