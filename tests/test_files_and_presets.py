"""Files are replaced whole or not at all; presets change values and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from clip_mixtures.__main__ import main
from clip_mixtures.errors import UserError, reports_user_errors, unknown
from clip_mixtures.files import (
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    read_yaml,
    replacing,
    sha256_file,
)
from clip_mixtures.presets import apply_preset

# ---- files


def test_new_file_and_its_folders_appear(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    atomic_write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_keeps_the_old_file_and_leaves_no_part(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def cut_off() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            assert path.read_text() == "old"
            raise error

    with pytest.raises(error):
        cut_off()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_temporary_file_is_a_neighbour(tmp_path: Path) -> None:
    # A rename is one step within a file system only.
    with replacing(tmp_path / "file") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".part")
        temporary.write_text("new")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_text() == "new"
    assert not temporary.exists()


def test_hard_link_to_the_old_content_is_untouched(tmp_path: Path) -> None:
    path, cached = tmp_path / "file", tmp_path / "cached"
    cached.write_text("old")
    # A cache protects its files, which must not keep the output from being replaced.
    cached.chmod(0o444)
    os.link(cached, path)
    atomic_write_text(path, "new")
    assert cached.read_text() == "old"
    assert path.read_text() == "new"
    assert cached.stat().st_nlink == 1


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    mask: int = request.param
    before = os.umask(mask)
    yield mask
    os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], indirect=True)
def test_permissions_follow_the_umask_and_leave_it_alone(tmp_path: Path, umask: int) -> None:
    atomic_write_text(tmp_path / "file", "x")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask
    assert os.umask(umask) == umask


def test_text_is_utf8_with_its_line_ends_as_they_are(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "file", "é\r\nü\n")
    assert (tmp_path / "file").read_bytes() == b"\xc3\xa9\r\n\xc3\xbc\n"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None)
@given(value=json_values)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    atomic_write_json(path, value)
    assert json.loads(path.read_text()) == value
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_json_refuses_what_it_has_no_word_for(tmp_path: Path, value: float) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_write_json(path, {"accuracy": [0.5, value]})
    assert path.read_text() == "old"


def test_yaml_mapping_is_read_with_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1.0e-3\nb: [yes, true, 012, ~]\nc: {d: é}\n", encoding="utf-8")
    # Of YAML 1.2, in which "yes" is a word and 012 a decimal number.
    assert read_yaml(path) == {"a": 1e-3, "b": ["yes", True, 12, None], "c": {"d": "é"}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"a: [1", "not valid YAML", id="cut off"),
        pytest.param(b"a: 1\na: 2\n", "not valid YAML", id="key twice"),
        pytest.param(b"a: 2024-02-30", "not valid YAML", id="impossible date"),
        pytest.param(b"a: !!python/object:os.system x", "not valid YAML", id="code"),
        pytest.param(b"a: \x00", "not valid YAML", id="control character"),
        pytest.param(b"", "is None, not a mapping", id="empty"),
        pytest.param(b"- a\n", r"is \['a'\], not a mapping", id="list"),
        pytest.param(b"a\n", "is 'a', not a mapping", id="text"),
        pytest.param(b"a: \xff\n", "not UTF-8", id="not UTF-8"),
    ],
)
def test_yaml_that_is_no_mapping_is_named_in_one_line(
    tmp_path: Path, data: bytes, message: str
) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"a\.yaml: {message}") as raised:
        read_yaml(path)
    assert len(str(raised.value).splitlines()) == 1


def test_absent_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.yaml: No such file"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="directory"):
        read_yaml(tmp_path)


def test_sha256_file_equals_the_published_value(tmp_path: Path) -> None:
    # The two-block example of FIPS 180-2.
    text = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"
    (tmp_path / "file").write_bytes(text)
    expected = "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    assert sha256_file(tmp_path / "file") == expected


# ---- errors


def test_unknown_name_suggests_the_nearest() -> None:
    error = unknown("mixture", "cg-hihg", ["cg-low", "cg-high"], "params.yaml")
    assert str(error) == (
        "params.yaml: unknown mixture 'cg-hihg'; did you mean 'cg-high'? allowed: cg-low, cg-high"
    )


def test_unknown_name_without_a_near_one_lists_what_there_is() -> None:
    assert str(unknown("class", "zebra", [], "list")) == (
        "list: unknown class 'zebra'; allowed: none"
    )
    many = [f"x{number}" for number in range(25)]
    message = str(unknown("class", "????", many, "list"))
    assert message.endswith("x18, x19, ... (25 in all)")
    assert "did you mean" not in message


def test_only_a_users_mistake_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @reports_user_errors
    def mistaken() -> None:
        raise UserError("a.txt: no such file")

    @reports_user_errors
    def faulty() -> None:
        raise KeyError("ours to mend")

    with pytest.raises(SystemExit) as raised:
        mistaken()
    assert raised.value.code == 2
    assert capsys.readouterr().err == "error: a.txt: no such file\n"
    with pytest.raises(KeyError):
        faulty()


# ---- presets

PARAMS = """\
# What is run.
run:
  seeds: [0, 1]  # two of them

train:
  epochs: 12
  # Chosen on the validation set.
  learning_rate: 8.0e-4
  optimizer:
    beta: 0.9
mixtures:
  cg-low:
    kind: cg_low_diversity
models: {}
"""


@pytest.fixture
def params(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS)
    return path


def preset_of(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "presets" / "short.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_preset_changes_its_values_and_keeps_every_comment(tmp_path: Path, params: Path) -> None:
    preset = preset_of(tmp_path, "# quick\ntrain:\n  epochs: 1\n  optimizer: {beta: 0.5}\n")
    assert apply_preset(preset, params) == ["train.epochs", "train.optimizer.beta"]
    assert params.read_text() == PARAMS.replace("epochs: 12", "epochs: 1").replace(
        "beta: 0.9", "beta: 0.5"
    )


def test_only_what_changes_is_said(tmp_path: Path, params: Path) -> None:
    preset = preset_of(tmp_path, "run:\n  seeds: [0, 1]\ntrain:\n  epochs: 3\n")
    assert apply_preset(preset, params) == ["train.epochs"]


def test_list_is_replaced_whole(tmp_path: Path, params: Path) -> None:
    assert apply_preset(preset_of(tmp_path, "run: {seeds: [5]}\n"), params) == ["run.seeds"]
    assert YAML(typ="safe").load(params)["run"] == {"seeds": [5]}


def test_nothing_is_written_when_nothing_changes(tmp_path: Path, params: Path) -> None:
    # Spacing that a YAML writer would not keep shows whether it was written.
    odd = PARAMS.replace("epochs: 12", "epochs:    12")
    params.write_text(odd)
    before = params.stat()
    preset = preset_of(tmp_path, "train:\n  epochs: 12\n  learning_rate: 0.0008\n")
    assert apply_preset(preset, params) == []
    assert params.read_text() == odd
    assert (params.stat().st_ino, params.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_preset_may_bring_mixtures_and_models(tmp_path: Path, params: Path) -> None:
    preset = preset_of(
        tmp_path, "mixtures:\n  real:\n    kind: domains\nmodels:\n  rn: {architecture: RN50}\n"
    )
    assert apply_preset(preset, params) == ["mixtures.real", "models.rn"]
    values = YAML(typ="safe").load(params)
    assert values["mixtures"] == {
        "cg-low": {"kind": "cg_low_diversity"},
        "real": {"kind": "domains"},
    }
    assert values["models"] == {"rn": {"architecture": "RN50"}}


@pytest.mark.parametrize(
    ("text", "key", "suggestion"),
    [
        ("train: {epochs: 1, epoch: 2}\n", "train.epoch", "train.epochs"),
        ("trian: {epochs: 1}\n", "trian", "train"),
        ("train: {optimizer: {betas: 1}}\n", "train.optimizer.betas", "train.optimizer.beta"),
    ],
)
def test_unknown_key_is_refused_with_a_suggestion(
    tmp_path: Path, params: Path, text: str, key: str, suggestion: str
) -> None:
    with pytest.raises(UserError) as raised:
        apply_preset(preset_of(tmp_path, text), params)
    message = str(raised.value)
    assert f"short.yaml: unknown key '{key}'; did you mean '{suggestion}'?" in message
    assert params.read_text() == PARAMS


@pytest.mark.parametrize("text", ["train:\n", "train: 5\n", "mixtures: [cg-low]\n"])
def test_value_in_place_of_a_section_is_refused(tmp_path: Path, params: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"train|mixtures"):
        apply_preset(preset_of(tmp_path, text), params)


def test_unknown_preset_lists_those_there_are(tmp_path: Path, params: Path) -> None:
    folder = preset_of(tmp_path, "train: {}\n").parent
    (folder / "small.yaml").write_text("train: {}\n")
    with pytest.raises(UserError) as raised:
        apply_preset(folder / "smal.yaml", params)
    assert str(raised.value) == (
        f"{folder}: unknown preset 'smal'; did you mean 'small'? allowed: short, small"
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"a: [1", "not valid YAML", id="no YAML"),
        pytest.param(b"a: 1\na: 2\n", "not valid YAML", id="key twice"),
        pytest.param(b"", "holds no keys", id="empty"),
        pytest.param(b"- a\n", "holds no keys", id="list"),
        pytest.param(
            b'a: "\xff"\n',
            "not UTF-8",
            id="not UTF-8",
        ),
    ],
)
@pytest.mark.parametrize("place", ["preset", "params"])
def test_file_that_is_no_parameter_file_is_named(
    tmp_path: Path, params: Path, data: bytes, message: str, place: str
) -> None:
    preset = preset_of(tmp_path, "train: {epochs: 1}\n")
    spoiled = preset if place == "preset" else params
    spoiled.write_bytes(data)
    with pytest.raises(UserError, match=f"{spoiled}: {message}") as raised:
        apply_preset(preset, params)
    assert len(str(raised.value).splitlines()) == 1


def test_absent_parameter_file_is_named(tmp_path: Path) -> None:
    preset = preset_of(tmp_path, "train: {epochs: 1}\n")
    with pytest.raises(UserError, match=r"absent\.yaml: No such file"):
        apply_preset(preset, tmp_path / "absent.yaml")


# ---- the presets that are shipped


@pytest.fixture
def shipped(tmp_path: Path, repository: Path) -> Path:
    return Path(shutil.copy(repository / "params.yaml", tmp_path / "params.yaml"))


def comments(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith("#")]


def test_small_shortens_and_sample_gives_back(shipped: Path, repository: Path) -> None:
    before, yaml = shipped.read_text(), YAML(typ="safe")
    values = yaml.load(before)
    assert apply_preset(repository / "presets" / "sample.yaml", shipped) == []
    changed = apply_preset(repository / "presets" / "small.yaml", shipped)
    small = yaml.load(shipped.read_text())
    assert small["train"]["epochs"] < values["train"]["epochs"]
    assert comments(shipped.read_text()) == comments(before)
    assert sorted(apply_preset(repository / "presets" / "sample.yaml", shipped)) == sorted(changed)
    assert yaml.load(shipped.read_text()) == values


def test_every_shipped_preset_applies(shipped: Path, repository: Path) -> None:
    presets = sorted((repository / "presets").glob("*.yaml"))
    assert {"sample", "small"} <= {preset.stem for preset in presets}
    before = shipped.read_text()
    for preset in presets:
        shipped.write_text(before)
        apply_preset(preset, shipped)
        assert apply_preset(preset, shipped) == []


def test_lines_that_a_preset_does_not_name_stay(shipped: Path, repository: Path) -> None:
    before = shipped.read_text().splitlines()
    changed = apply_preset(repository / "presets" / "small.yaml", shipped)
    after = shipped.read_text().splitlines()
    assert len(before) == len(after)
    assert sum(old != new for old, new in zip(before, after, strict=True)) == len(changed)


def test_preset_command(
    shipped: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--params", str(shipped), "--folder", str(repository / "presets")]
    main(["preset", "small", *places])
    said = capsys.readouterr().out
    assert said.startswith(f"{shipped}: preset small sets ")
    assert "train.epochs" in said
    main(["preset", "small", *places])
    assert capsys.readouterr().out == f"{shipped}: preset small sets nothing new\n"
    with pytest.raises(SystemExit) as raised:
        main(["preset", "smal", *places])
    assert raised.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "did you mean 'small'?" in line


def test_hash_of_a_large_file_is_of_all_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()
