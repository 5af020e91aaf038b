"""Every command does what the library does, and answers a mistake in one line with status 2."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from corpora_factory import (
    Corpora,
    make_base,
    make_domainnet,
    make_imagenet,
    make_tsv_base,
    tar_bytes,
    tiny_image,
)
from ruamel.yaml import YAML

from clip_mixtures.__main__ import main
from clip_mixtures.corpora.captions import DOMAIN_ORDER, published_captions
from clip_mixtures.corpora.classes import published_held_out
from clip_mixtures.corpora.domainnet import read_lists
from clip_mixtures.corpora.png import encode_png
from clip_mixtures.index import read_index
from clip_mixtures.mixtures.published import identifier_of, published_settings
from clip_mixtures.mixtures.spec import mixture_from_params
from clip_mixtures.mixtures.store import read_mixture
from clip_mixtures.verification import read_verification

COMMANDS = (
    "sample", "contact-sheet", "preset", "download", "index", "verify",
    "mixtures", "mixture", "audit", "export", "import-checkpoint", "export-checkpoint",
)  # fmt: skip
# As Python runs where nobody asked for anything else.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
CLASSES = ("ant", "bee", "polar bear")

Say = Callable[..., str]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No params.yaml, and nothing is written into the checkout.
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command that succeeds; return what it prints."""

    def run(*words: object) -> str:
        main([str(word) for word in words])
        return capsys.readouterr().out

    return run


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command that is refused; return its one line, without "error: "."""

    def run(*words: object) -> str:
        with pytest.raises(SystemExit) as raised:
            main([str(word) for word in words])
        assert raised.value.code == 2
        # Progress bars are drawn over and over in one place.
        lines = capsys.readouterr().err.splitlines()
        (line,) = [line for line in lines if line and "%|" not in line]
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return run


# ---- all of them


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([command, "--help"])
    assert raised.value.code == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"usage: python -m clip_mixtures {command} ")
    assert said.err == ""


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    assert raised.value.code == 0
    said = capsys.readouterr().out
    assert "{" + ",".join(COMMANDS) + "}" in "".join(said.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: command"),
        (["mixtrue"], "invalid choice: 'mixtrue'"),
        (["download", "domainnett", "--out", "x"], "invalid choice: 'domainnett'"),
        (["download", "domainnet"], "required: --out"),
        (["export", "--mixture", "x", "--split", "test", "--out", "y"], "invalid choice: 'test'"),
        (["audit", "--mixture", "x", "--duplicates", "keep"], "invalid choice: 'keep'"),
        (["audit", "--mixture", "x", "--near-bits", "few"], "invalid int value: 'few'"),
    ],
)
def test_words_that_are_none_are_refused_before_anything_is_done(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(words)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_whoever_stops_reading_sees_no_traceback() -> None:
    command = f"'{sys.executable}' -m clip_mixtures mixtures --published | head -1"
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env=BUFFERED, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout == "identifier\tgroup\toptions\n"
    assert result.stderr == ""
    assert result.returncode == 0


def test_whoever_does_not_read_at_all_sees_no_traceback(tmp_path: Path) -> None:
    # What is short enough leaves the buffer only when Python ends.
    params = tmp_path / "params.yaml"
    params.write_text("mixtures: {m: {kind: natural_only}}")
    unread, written = os.pipe()
    os.close(unread)
    command = [sys.executable, "-m", "clip_mixtures", "mixtures", "--params", str(params)]
    try:
        result = subprocess.run(
            command, env=BUFFERED, stdout=written, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(written)
    assert (result.stderr, result.returncode) == ("", 0)


# ---- index


def domainnet(tmp_path: Path, domains: Sequence[str] = ("real", "sketch")) -> Path:
    make_domainnet(tmp_path / "domainnet", domains, CLASSES)
    return tmp_path / "domainnet"


def indexed(folder: Path) -> dict[str, int]:
    return {path.stem: len(read_index(path)) for path in sorted(folder.glob("*"))}


def test_index_finds_the_images_of_domainnet(tmp_path: Path, say: Say) -> None:
    root = domainnet(tmp_path)
    said = say("index", "--domainnet", root, "--domains", "sketch", "real", "--out", tmp_path / "i")
    assert said == "domains: 36 images, 3 classes in 2 domains\n"
    index = read_index(tmp_path / "i" / "domains.parquet")
    assert index.domains() == ["real", "sketch"]
    assert index.frame[["archive", "offset", "length"]].notna().all(axis=None)


def test_index_takes_all_six_domains_unless_told(tmp_path: Path, say: Say, mistake: Say) -> None:
    root = domainnet(tmp_path, DOMAIN_ORDER)
    say("index", "--domainnet", root, "--out", tmp_path / "i")
    assert tuple(read_index(tmp_path / "i" / "domains.parquet").domains()) == DOMAIN_ORDER
    (root / "painting_test.txt").unlink()
    line = mistake("index", "--domainnet", root, "--out", tmp_path / "j")
    assert "painting_test.txt: no such list" in line


def test_index_takes_lists_without_images_when_told(tmp_path: Path, say: Say, mistake: Say) -> None:
    root = domainnet(tmp_path)
    for archive in root.glob("*.zip"):
        archive.unlink()
    words = ["index", "--domainnet", root, "--domains", "real", "sketch", "--out", tmp_path / "i"]
    assert "neither real.zip nor a folder real/" in mistake(*words)
    assert say(*words, "--no-images").startswith("domains: 36 images")
    assert read_index(tmp_path / "i" / "domains.parquet").frame["archive"].isna().all()


def folders(tmp_path: Path, each: int = 10) -> Path:
    for domain in ("photo", "real", "sketch"):
        for name in ("ant", "bee"):
            for number in range(each):
                path = tmp_path / "mine" / domain / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_png(tiny_image(str(path), 4)))
    return tmp_path / "mine"


def test_index_splits_folders_itself(tmp_path: Path, say: Say, mistake: Say) -> None:
    root = folders(tmp_path)
    words = ["index", "--folders", root, "--out", tmp_path / "i"]
    assert say(*words) == "domains: 60 images, 2 classes in 3 domains\n"
    of_default = read_index(tmp_path / "i" / "domains.parquet").frame
    assert 0 < (of_default["split"] == "test").mean() < 0.5
    assert "40 images" in say(*words, "--domains", "real", "sketch", "--test-share", "0.9")
    frame = read_index(tmp_path / "i" / "domains.parquet").frame
    assert (frame["split"] == "test").mean() > 0.6
    for share in ("0", "1", "-0.5", "nan"):
        assert "test_share" in mistake(*words, f"--test-share={share}")
    assert "'skech'; did you mean 'sketch'" in mistake(*words, "--domains", "real", "skech")


def test_index_counts_what_a_list_of_captions_lacks(tmp_path: Path, say: Say) -> None:
    make_tsv_base(tmp_path / "cc", ["one", "NA", "", "four"])
    (tmp_path / "cc" / "images" / "b3.png").unlink()
    (tmp_path / "cc" / "val.tsv").write_text('filepath\ttitle\nimages/v.png\ta "word"\n')
    (tmp_path / "cc" / "images" / "v.png").write_bytes(b"")
    words = ["index", "--tsv", "cc3m", tmp_path / "cc" / "captions.tsv", "--out", tmp_path / "i"]
    said = say(
        *words, "--tsv-images", tmp_path / "cc" / "images",
        "--tsv-validation", tmp_path / "cc" / "val.tsv",
    )  # fmt: skip
    assert said == (
        "base-cc3m: 4 images, 1 of them with an empty caption, 1 left out without an image\n"
    )
    frame = read_index(tmp_path / "i" / "base-cc3m.parquet").frame
    assert list(frame["caption"]) == ["one", "NA", "", 'a "word"']
    assert list(frame["split"]) == ["train", "train", "train", "test"]


def test_index_reads_quoted_lists_when_told(tmp_path: Path, say: Say) -> None:
    path = tmp_path / "captions.tsv"
    path.write_text('filepath\ttitle\na.jpg\t"a ""word"""\n')
    words = ["index", "--tsv", "cc", path, "--out", tmp_path / "i"]
    for flags, caption in (([], '"a ""word"""'), (["--quoted"], 'a "word"')):
        say(*words, *flags)
        assert list(read_index(tmp_path / "i" / "base-cc.parquet").frame["caption"]) == [caption]


def shards(folder: Path, count: int = 12) -> Path:
    samples = {}
    for number in range(count):
        samples[f"{number:04}.jpg"] = encode_png(tiny_image(str(number), 4))
        samples[f"{number:04}.txt"] = f"caption {number}".encode()
    folder.mkdir(parents=True)
    (folder / "00000.tar").write_bytes(tar_bytes(samples))
    return folder


def test_index_reads_shards(tmp_path: Path, say: Say, mistake: Say) -> None:
    words = ["index", "--webdataset", "cc12m", shards(tmp_path / "cc12m"), "--out", tmp_path / "i"]
    assert say(*words) == "base-cc12m: 12 images\n"
    frame = read_index(tmp_path / "i" / "base-cc12m.parquet").frame
    assert set(frame["split"]) == {"train"}
    say(*words, "--validation-per-mille", "500")
    frame = read_index(tmp_path / "i" / "base-cc12m.parquet").frame
    assert set(frame["split"]) == {"train", "test"}
    assert "validation_per_mille is 1000" in mistake(*words, "--validation-per-mille", "1000")


def test_index_reads_every_corpus_at_once(tmp_path: Path, say: Say) -> None:
    make_base(tmp_path / "in", images=6)
    names = [entry["filename"] for entry in json.loads((tmp_path / "in/captions.json").read_text())]
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": names[:3], "val": names[3:5]}))
    make_tsv_base(tmp_path / "one", ["one"])
    make_tsv_base(tmp_path / "two", ["one", "two"])
    synsets = ["n01629819", "n02119022"]
    for folder in ("sketch", "train", "val"):
        make_imagenet(tmp_path / "imagenet" / folder, synsets, each=1)
    said = say(
        "index", "--out", tmp_path / "i",
        "--domainnet", domainnet(tmp_path), "--domains", "real", "sketch",
        "--imagenet-captions", tmp_path / "in" / "captions.json",
        "--imagenet-images", tmp_path / "in" / "images.tar", "--split-file", split,
        "--tsv", "one", tmp_path / "one" / "captions.tsv",
        "--tsv", "two", tmp_path / "two" / "captions.tsv",
        "--webdataset", "cc12m", shards(tmp_path / "cc12m"),
        "--imagenet-sketch", tmp_path / "imagenet" / "sketch",
        "--imagenet-train", tmp_path / "imagenet" / "train",
        "--imagenet-validation", tmp_path / "imagenet" / "val",
    )  # fmt: skip
    assert said.splitlines() == [
        "domains: 36 images, 3 classes in 2 domains",
        "base-imagenet-captions: 5 images, 1 left out in no split",
        "base-one: 1 images",
        "base-two: 2 images",
        "base-cc12m: 12 images",
        "imagenet_sketch: 2 images",
        "imagenet_train: 2 images",
        "imagenet_validation: 2 images",
    ]
    assert indexed(tmp_path / "i") == {
        line.partition(":")[0]: int(line.split()[1]) for line in said.splitlines()
    }


def test_index_reads_the_labels_of_a_flat_validation_set(tmp_path: Path, say: Say) -> None:
    (tmp_path / "val").mkdir()
    for number in (1, 2):
        (tmp_path / "val" / f"ILSVRC2012_val_0000000{number}.JPEG").write_bytes(b"x")
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00000001,n02119022 1 2 3 4\nILSVRC2012_val_00000002,n01629819 1 2 3 4\n"
    )
    words = ["--imagenet-validation", tmp_path / "val", "--imagenet-labels", labels]
    assert say("index", *words, "--out", tmp_path / "i") == "imagenet_validation: 2 images\n"
    frame = read_index(tmp_path / "i" / "imagenet_validation.parquet").frame
    assert list(frame["class_name"]) == ["fire salamander", "red fox"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--domainnet", "a", "--folders", "b"], "--domainnet and --folders: both make domains"),
        (["--folders", "a", "--no-images"], "--no-images: with --folders the images are the lists"),
        ([], "nothing to index"),
        (["--domainnet", "absent"], "no such list"),
        (["--folders", "absent"], "absent: no such folder"),
        (["--tsv", "x", "absent.tsv"], "absent.tsv: No such file"),
        (["--webdataset", "x", "absent"], "absent: no such folder of shards"),
        (["--imagenet-captions", "absent.json"], "absent.json: No such file"),
        (["--imagenet-sketch", "absent"], "absent: no such"),
        (["--imagenet-train", "absent"], "absent: no such"),
        (["--imagenet-validation", "absent"], "absent: no such"),
    ],
)
def test_index_refuses_what_it_cannot_do(mistake: Say, words: list[str], message: str) -> None:
    assert message in mistake("index", *words, "--out", "indices")
    assert not Path("indices").exists()


def test_index_refuses_two_base_sets_of_one_name(tmp_path: Path, mistake: Say) -> None:
    for name in ("one", "two"):
        make_tsv_base(tmp_path / name, [name])
    lists = [tmp_path / name / "captions.tsv" for name in ("one", "two")]
    words = ["--tsv", "cc", lists[0], "--tsv", "cc", lists[1], "--out", "indices"]
    assert "cc" in mistake("index", *words)


@pytest.mark.parametrize("name", ["a/b", "../x", "", "none"])
def test_index_refuses_a_name_that_no_mixture_could_use(
    tmp_path: Path, mistake: Say, name: str
) -> None:
    make_tsv_base(tmp_path / "one", ["one"])
    words = ["--tsv", name, tmp_path / "one" / "captions.tsv", "--out", tmp_path / "indices"]
    assert f"base set: {name!r}" in mistake("index", *words)


# ---- verify


def test_verify_says_what_there_is_and_what_cannot_be_read(
    tmp_path: Path, say: Say, mistake: Say
) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    scratch = ["--scratch", tmp_path / "scratch", "--workers", "1"]
    words = ["verify", "--index", indices, "--out", tmp_path / "v", *scratch]
    said = say(*words).splitlines()
    assert [line.partition(",")[0] for line in said] == [
        "base-tiny: 3 images", "domains: 54 images", "imagenet_sketch: 4 images",
    ]  # fmt: skip
    assert all(" 0 unreadable" in line for line in said)
    corpora.file("real/ant/test_1.png").write_bytes(b"")
    assert mistake(*words).startswith("domains: 1 of 54 images (1.85 %) cannot be read")
    said = say(*words, "--unreadable-share", "0.02").splitlines()
    assert "domains: 54 images, 1 unreadable" in said[1]
    assert said[2] == "  zero_byte (the file is there and empty): real/ant/test_1.png"
    assert "zero_byte" in (tmp_path / "v" / "quarantine.csv").read_text()
    assert read_verification(tmp_path / "v" / "domains.parquet", 54)["readable"].sum() == 53


def test_verify_takes_one_index(tmp_path: Path, say: Say, mistake: Say) -> None:
    indices = Corpora(tmp_path).index()
    (tmp_path / "empty").mkdir()
    words = ["--out", tmp_path / "v", "--scratch", tmp_path / "scratch", "--workers", "1"]
    assert say("verify", "--index", indices / "base-tiny.parquet", *words).startswith("base-tiny:")
    found = sorted(path.name for path in (tmp_path / "v").iterdir())
    assert found == ["base-tiny.parquet", "quarantine.csv"]
    assert "empty: no index in it" in mistake("verify", "--index", tmp_path / "empty", *words)
    assert "absent: no such index" in mistake("verify", "--index", tmp_path / "absent", *words)


@pytest.mark.parametrize("workers", [0, -1])
def test_verify_refuses_to_work_with_nobody(tmp_path: Path, mistake: Say, workers: int) -> None:
    indices = Corpora(tmp_path).index()
    words = ["--out", tmp_path / "v", "--scratch", tmp_path / "scratch"]
    assert "--workers" in mistake("verify", "--index", indices, *words, f"--workers={workers}")


# ---- mixtures


def rows_of(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def test_mixtures_lists_the_published_settings_as_parameters(say: Say) -> None:
    header, *rows = rows_of(say("mixtures", "--published"))
    assert header == ["identifier", "group", "options"]
    assert len(rows) == 105
    defaults = {"test_domain": "sketch", "held_out": "published"}
    for identifier, group, options in rows:
        params = YAML(typ="safe").load(options)
        mixture = mixture_from_params("m", params, defaults, DOMAIN_ORDER)
        assert identifier_of(mixture) == identifier
        assert group in {"default", "upper-bound interpolation", "domain interpolation"}
    settings = [(setting.identifier, setting.group) for setting in published_settings()]
    assert [(identifier, group) for identifier, group, _ in rows] == settings


def test_mixtures_lists_those_of_a_parameter_file(
    tmp_path: Path, say: Say, mistake: Say, repository: Path
) -> None:
    params = repository / "params.yaml"
    listed = rows_of(say("mixtures", "--params", params))
    stored = YAML(typ="safe").load(params)["mixtures"]
    assert {key: YAML(typ="safe").load(options) for key, options in listed} == stored
    assert mistake("mixtures") == "params.yaml: No such file or directory"
    (tmp_path / "no.yaml").write_text("test: {}")
    assert "has no mapping `mixtures`" in mistake("mixtures", "--params", tmp_path / "no.yaml")


# ---- mixture


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Indices with the study's classes in its domains, and a base set with awkward captions."""
    folder = tmp_path_factory.mktemp("published")
    domains = list(DOMAIN_ORDER)
    classes = [*published_held_out(), "The Eiffel Tower", "zebra"]
    make_domainnet(folder / "domainnet", domains, classes, train=3, test=1, size=1)
    make_tsv_base(folder / "cc", ["plain", 'a "word"', "a\ttab", "NA", ""], size=1)
    words = ["--domainnet", folder / "domainnet", "--domains", *domains, "--no-images"]
    base = ["--tsv", "cc", folder / "cc" / "captions.tsv"]
    main(["index", *map(str, [*words, *base, "--out", folder / "indices"])])
    return folder


def test_mixture_takes_a_published_identifier(tmp_path: Path, say: Say, published: Path) -> None:
    words = ["mixture", "--index", published / "indices", "--out", tmp_path / "m"]
    said = say(*words, "--mixture", "lso-rs-nosketchclasses")
    # Of real 17 classes, of sketch the two that are not held out, 3 images each; and the base set.
    assert said.splitlines()[-1] == f"{tmp_path / 'm'}: {17 * 3 + 2 * 3 + 5} training images"
    stored = read_mixture(tmp_path / "m")
    assert identifier_of(stored.mixture) == "lso-rs-nosketchclasses"
    assert stored.mixture.held_out == published_held_out()
    assert (tmp_path / "m" / "audit.json").is_file()


def test_mixture_takes_a_key_of_a_parameter_file(tmp_path: Path, say: Say, published: Path) -> None:
    both = tmp_path / "both.yaml"
    both.write_text(
        "test: {test_domain: clipart, held_out: [axe, bed]}\n"
        "mixtures:\n  low: {kind: cg_low_diversity, base: none}\n"
    )
    alone = tmp_path / "alone.yaml"
    alone.write_text(
        "mixtures:\n  low: {kind: cg_low_diversity, test_domain: clipart, held_out: [axe, bed],"
        " base: none}\n"
    )
    words = ["mixture", "--index", published / "indices", "--mixture", "low"]
    for name, params in (("one", both), ("two", alone)):
        say(*words, "--params", params, "--out", tmp_path / name)
        stored = read_mixture(tmp_path / name)
        assert (stored.mixture.test_domain, stored.mixture.held_out) == ("clipart", ("axe", "bed"))
        assert len(stored.rows("train")["domains"]) == 2 * 17 * 3 - 2 * 3
    assert (tmp_path / "one/train.parquet").read_bytes() == (
        tmp_path / "two/train.parquet"
    ).read_bytes()
    # A params.yaml in the folder is read without being named.
    Path("params.yaml").write_text(both.read_text())
    say(*words, "--out", tmp_path / "three")
    assert read_mixture(tmp_path / "three").mixture == read_mixture(tmp_path / "one").mixture
    # What it does not have may still be a published name.
    published_name = ["--mixture", "lso-real-only", "--out", tmp_path / "four"]
    say("mixture", "--index", published / "indices", *published_name)


@pytest.mark.parametrize(
    ("params", "key", "message"),
    [
        (None, "cg-low", "--mixture: unknown mixture 'cg-low'; "),
        (
            None,
            "lso-real",
            "identifier: unknown published mixture 'lso-real'; did you mean 'lso-re",
        ),
        (None, "lso-rs-noskechclasses", "unknown test domain 'skech'; did you mean 'sketch'"),
        ("mixtures: {cg-low: {kind: natural_only}}", "cg-lwo", "did you mean 'cg-low'?"),
        ("mixtures: {cg-low: {kind: natural_only}}", "cg-low", "mixtures.cg-low.test_domain"),
        ("mixtures: {m: {kind: natural}}", "m", "mixtures.m.kind: unknown kind 'natural'"),
        ("mixtures: {m: }", "m", "mixtures.m: is None, not a mapping"),
        ("mixtures: [m]", "m", "has no mapping `mixtures`"),
        ("test: {}", "m", "has no mapping `mixtures`"),
        ("[1", "m", "not valid YAML"),
        ("- 1", "m", "not a mapping of keys"),
        ("test: [sketch]\nmixtures: {m: {kind: natural_only}}", "m", "test"),
        (
            "test: {test_domain: sketch, held_out: [dragon]}\nmixtures: {m: {kind: natural_only}}",
            "m",
            "unknown class 'dragon'",
        ),
    ],
)
def test_mixture_names_what_is_wrong_with_a_key(
    tmp_path: Path, mistake: Say, published: Path, params: str | None, key: str, message: str
) -> None:
    words: list[object] = ["mixture", "--index", published / "indices", "--mixture", key]
    if params is not None:
        (tmp_path / "own.yaml").write_text(params)
        words += ["--params", tmp_path / "own.yaml"]
    assert message in mistake(*words, "--out", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_mixture_names_an_absent_index_or_parameter_file(
    tmp_path: Path, mistake: Say, published: Path
) -> None:
    words = ["mixture", "--mixture", "lso-real-only", "--out", tmp_path / "m", "--index"]
    assert "domains.parquet: no such index" in mistake(*words, tmp_path / "absent")
    line = mistake(*words, published / "indices", "--params", tmp_path / "absent.yaml")
    assert "absent.yaml: No such file" in line


@pytest.fixture
def corpora(tmp_path: Path) -> Corpora:
    corpora = Corpora(tmp_path)
    corpora.index()
    (tmp_path / "params.yaml").write_text(
        "test: {test_domain: sketch, held_out: [polar bear]}\n"
        "mixtures: {all: {kind: cg_high_diversity, subsample: false}}\n"
    )
    return corpora


def plant(corpora: Corpora) -> Path:
    """Put a copy of a held-out test image and an unreadable image into the training images."""
    tested = corpora.file("sketch/polar_bear/test_0.png").read_bytes()
    corpora.file("real/bee/train_1.png").write_bytes(tested)
    corpora.file("real/bee/train_2.png").write_bytes(b"")
    return corpora.verify()


def test_mixture_leaves_out_what_verification_and_policy_say(
    tmp_path: Path, say: Say, mistake: Say, corpora: Corpora
) -> None:
    words = ["mixture", "--index", tmp_path / "indices", "--params", tmp_path / "params.yaml"]
    words += ["--mixture", "all", "--out", tmp_path / "m"]
    assert "images not compared, unreadable ones not left out" in say(*words)
    verified = [*words, "--verification", plant(corpora)]
    line = mistake(*verified)
    assert line.startswith("mixtures.all: 1 training images have the bytes of held-out test images")
    assert "'real/bee/train_1.png' of 'sketch/polar_bear/test_0.png'" in line
    said = say(*verified, "--duplicates", "report").splitlines()
    assert said[-2:] == ["left out: 1 unreadable", f"{tmp_path / 'm'}: 34 training images"]
    said = say(*verified, "--duplicates", "remove").splitlines()
    assert said[-3:] == [
        "left out: 1 unreadable",
        "left out: 1 duplicates of held-out test images",
        f"{tmp_path / 'm'}: 33 training images",
    ]


# ---- audit


def test_audit_looks_again_at_a_mixture_that_is_there(
    tmp_path: Path, say: Say, mistake: Say, corpora: Corpora
) -> None:
    words = ["--index", tmp_path / "indices", "--params", tmp_path / "params.yaml"]
    say("mixture", *words, "--mixture", "all", "--out", tmp_path / "m")
    report = tmp_path / "m" / "audit.json"
    said = say("audit", "--mixture", tmp_path / "m")
    assert said == f"{report}: no leaks; images not compared (no --verification)\n"
    compared = ["audit", "--mixture", tmp_path / "m", "--verification", corpora.verify()]
    none = "0 exact and 0 near duplicates of held-out test images"
    assert say(*compared) == f"{report}: no leaks; {none}\n"
    plant(corpora)
    out = tmp_path / "other" / "report.json"
    assert "1 training images have the bytes" in mistake(*compared, "--out", out)
    # The mixture's own report is another file.
    assert json.loads(report.read_text())["leaks"] == []
    assert len(json.loads(out.read_text())["leaks"]) == 1
    said = say(*compared, "--duplicates", "report", "--near-bits", "0")
    assert said == f"{report}: no leaks; {none.replace('0 exact', '1 exact')}\n"
    assert json.loads(report.read_text())["duplicates"]["near_bits"] == 0


def test_audit_and_export_need_a_mixture(tmp_path: Path, mistake: Say) -> None:
    assert "mixture.json: absent" in mistake("audit", "--mixture", tmp_path)
    export = ["export", "--mixture", tmp_path, "--split", "train", "--out", tmp_path / "x.tsv"]
    assert "mixture.json: absent" in mistake(*export)
    assert not (tmp_path / "x.tsv").exists()


# ---- export


def by_hand(published: Path, split: str, prefixes: tuple[str, str] = ("", "")) -> str:
    """Write low diversity for sketches, as the study's scripts would, from the lists."""
    lists = read_lists(published / "domainnet", DOMAIN_ORDER)
    captions = published_captions(lists)
    folders = {name.replace(" ", "_") for name in published_held_out()}
    text = "filepath\ttitle\n"
    if split == "train":
        base = ["plain", '"a ""word"""', '"a\ttab"', "NA", ""]
        text += "".join(
            f"{prefixes[0]}images/b{number}.png\t{caption}\n" for number, caption in enumerate(base)
        )
    for domain in ("real", "sketch"):
        key = (domain, "train" if split == "train" else "test")
        for line, caption in zip(lists[key], captions[key], strict=True):
            path = line.rsplit(" ", 1)[0]
            if domain == "real" or path.split("/")[1] not in folders:
                text += f"{prefixes[1]}{path}\t{caption}\n"
    return text


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("roots", "prefixes"),
    [
        ([], ("", "")),
        (["/data"], ("/data/", "/data/")),
        (["/data/"], ("/data/", "/data/")),
        (["base-cc=/cc", "domains=dn"], ("/cc/", "dn/")),
        (["/data", "base-cc=s3://cc/a=b"], ("s3://cc/a=b/", "/data/")),
        (["domains=/dn"], ("", "/dn/")),
    ],
)
def test_export_writes_the_published_text(
    tmp_path: Path,
    say: Say,
    published: Path,
    split: str,
    roots: list[str],
    prefixes: tuple[str, str],
) -> None:
    words = ["--index", published / "indices", "--mixture", "lso-rs-nosketchclasses"]
    say("mixture", *words, "--out", tmp_path / "m")
    out = tmp_path / "out" / "m.tsv"
    flags = [word for root in roots for word in ("--root", root)]
    said = say("export", "--mixture", tmp_path / "m", "--split", split, "--out", out, *flags)
    expected = by_hand(published, split, prefixes)
    assert out.read_bytes() == expected.encode()
    rows = list(csv.reader(io.StringIO(expected), delimiter="\t"))
    assert said == f"{out}: {len(rows) - 1} rows\n"
    read = pd.read_csv(out, sep="\t", keep_default_na=False)
    assert read.to_numpy().tolist() == rows[1:]


def test_export_of_a_published_mixture_on_all_lists_is_the_published_file(
    tmp_path: Path, say: Say, shared_file: Callable[[str], Path]
) -> None:
    oracle = json.loads(shared_file("oracle/mixtures.json").read_text())
    packed = shared_file("domainnet_lists")
    (tmp_path / "domainnet").mkdir()
    for path in packed.glob("*.txt.xz"):
        text = lzma.decompress(path.read_bytes())
        (tmp_path / "domainnet" / path.stem).write_bytes(text)
    words = ["index", "--domainnet", tmp_path / "domainnet", "--no-images"]
    say(*words, "--out", tmp_path / "indices")
    identifier = "lso-cipqrs-nosketchclasses"
    (files,) = [
        mixture["files"] for mixture in oracle["mixtures"] if mixture["identifier"] == identifier
    ]
    words = ["--index", tmp_path / "indices", "--mixture", identifier, "--out", tmp_path / "m"]
    say("mixture", *words)
    for split in ("train", "val"):
        out = tmp_path / f"{split}.tsv"
        say("export", "--mixture", tmp_path / "m", "--split", split, "--out", out)
        known = files[f"dn-captions-{split}"]
        assert hashlib.sha256(out.read_bytes()).hexdigest() == known["sha256_stripped"]
    facts: dict[str, Any] = json.loads((tmp_path / "m" / "mixture.json").read_text())
    assert facts["identifier"] == identifier
    assert facts["images"]["train"]["domains"] == files["dn-captions-train"]["rows"]
