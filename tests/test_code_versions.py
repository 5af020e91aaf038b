"""What counts as the code of a stage: the files it imports, and what they do."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_mixtures.code_versions import digest, imported_files
from clip_mixtures.errors import UserError
from code_versions import SCRIPTS, STAGES, code_of

ROOT = Path(__file__).parent.parent
SOURCE = '''\
"""A module."""

from other import number


def double(value: str) -> str:
    """Double it."""
    # Twice.
    return f"{value!r:>{number}}" * 2


class Empty:
    """Nothing."""

    text = "# no comment"
'''


def version(folder: Path, source: str) -> str:
    path = folder / "module.py"
    path.write_text(source, encoding="utf-8")
    return digest(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""', '"""Another text,\n\nof more lines."""'),
        ('"""A module."""\n', ""),
        ("    # Twice.\n", ""),
        ("    # Twice.\n", "    # Doubled.  \n\n"),
        ('    """Double it."""\n', '    r"""Do it twice."""\n'),
        ("import number\n", "import number  # of places\n"),
        ("\n\n\ndef", "\n\n\n\n\ndef"),
        ("* 2", "*  2"),
        ('    """Nothing."""\n\n    text', "    text"),
    ],
)
def test_what_is_only_said_does_not_count(tmp_path: Path, old: str, new: str) -> None:
    assert old in SOURCE
    assert version(tmp_path, SOURCE.replace(old, new)) == version(tmp_path, SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("* 2", "* 3"),
        ('"# no comment"', '"# some comment"'),
        ("{value!r:>{number}}", "{value!s:>{number}}"),
        ("{value!r:>{number}}", "{value!r:> {number}}"),
        ("{value!r:>{number}}", "{value!r:>{number}} "),
        ('    text = "# no comment"', 'text = "# no comment"'),
        ('"""Nothing."""', "pass"),
        ("from other import number", "from other import digits as number"),
    ],
)
def test_what_is_done_counts(tmp_path: Path, old: str, new: str) -> None:
    assert old in SOURCE
    assert version(tmp_path, SOURCE.replace(old, new)) != version(tmp_path, SOURCE)


def test_a_string_that_is_no_docstring_counts(tmp_path: Path) -> None:
    assert version(tmp_path, 'x = 1\n"""a"""\n') != version(tmp_path, 'x = 1\n"""b"""\n')


def test_lines_inside_of_a_string_count(tmp_path: Path) -> None:
    assert version(tmp_path, 'x = """a\n\nb"""\n') != version(tmp_path, 'x = """a\nb"""\n')


@given(st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc"))), min_size=2, max_size=2))
def test_comments_never_count_and_texts_always(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("sources")
    commented = {version(folder, f"x = 1  # {text}\n") for text in texts}
    assert commented == {version(folder, "x = 1\n")}
    assigned = [version(folder, f"x = {text!r}\n") for text in texts]
    assert (assigned[0] == assigned[1]) == (texts[0] == texts[1])


def test_formatted_strings_are_one_token_in_every_python(tmp_path: Path) -> None:
    # From 3.12 on Python takes them apart, and drops the spaces between what is in braces.
    formatted = """f"{a + f'{ 1}'} }}" """.strip()
    tokens = ["def", "f", "(", "a", ")", ":", "\n", "\t", "return", formatted, "\n", "\b"]
    source = f'def f(a):\n    """Say it."""\n    return {formatted}\n'
    expected = hashlib.sha256("".join(f"{token}\0" for token in tokens).encode())
    assert version(tmp_path, source) == expected.hexdigest()


def test_imports_and_data_files_are_followed_through_both_folders(tmp_path: Path) -> None:
    files = {
        "stages/run.py": "from helper import one\nimport package.deep as deep\nimport os\n",
        "stages/helper.py": "def one():\n    from package import late\n",
        "stages/other.py": "",
        "src/package/__init__.py": "",
        "src/package/deep.py": "from package.deeper import value\n",
        "src/package/deeper.py": "import package.deep\n",
        "src/package/late.py": "",
        "src/package/unused.py": "",
        "src/package/tables/facts.csv": "a,b\n",
        "src/package/tables/others.csv": "a,b\n",
        "src/package/pages/one.html": "",
        "src/package/pages/two.css": "",
        "src/package/notes/n.txt": "",
    }
    files["src/package/late.py"] = 'A, B, C = "tables/facts.csv", "pages/", "notes"\n'
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = imported_files(tmp_path / "stages/run.py", (tmp_path / "src", tmp_path / "stages"))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "src/package/deep.py", "src/package/deeper.py", "src/package/late.py",
        "src/package/pages/one.html", "src/package/pages/two.css", "src/package/tables/facts.csv",
        "stages/helper.py", "stages/run.py",
    ]  # fmt: skip


def test_a_data_file_counts_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_bytes(b"# a\xff\n")
    assert digest(path) == hashlib.sha256(b"# a\xff\n").hexdigest()


@pytest.mark.parametrize("content", [b"def", b"x = '\xff'", b"\x00"])
def test_a_file_that_is_no_python_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.py"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.py: not (Python|UTF-8)"):
        digest(path)
    with pytest.raises(UserError, match=r"broken\.py: not (Python|UTF-8)"):
        imported_files(path, (tmp_path,))


def test_a_stage_is_of_the_code_that_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    scripts = {stage: STAGES / script for stage, script in SCRIPTS.items()}
    code = {stage: {Path(path).name for path in files} for stage, files in code_of(scripts).items()}
    # No script of a stage is forgotten.
    assert set(SCRIPTS.values()) <= set(itertools.chain(*code.values()))
    assert {"train_clip.py", "experiment.py", "clip.py", "augmentation.py"} <= code["train"]
    assert not {"figures.py", "zero_shot.py", "emoji.py", "sae.py"} & code["train"]
    # How a network will be looked into does not concern its training.
    assert not {"mechanism_params.py", "cka.py", "towers.py"} & code["train"]
    assert {"figures.py", "tables.py"} <= code["compare"]
    assert not {"clip.py", "zero_shot.py", "pixels.py"} & code["compare"]
    assert not {"audit.py", "build.py"} & code["evaluate"]
    # A new network, or a mended class, re-runs what it concerns; an address of a download nothing.
    assert {"sample-RN.json", "domainnet_classes.csv"} <= code["train"]
    assert "downloads.csv" not in set(itertools.chain(*code.values()))
    assert {"page.css", "page.js", "page.html.j2"} <= code["compare"]


def test_every_data_file_is_named_by_a_module() -> None:
    modules = [*ROOT.glob("src/**/*.py"), *ROOT.glob("stages/*.py")]
    roots = (ROOT / "src", ROOT / "stages")
    named = set(itertools.chain(*(imported_files(module, roots) for module in modules)))
    package = ROOT / "src/clip_mixtures"
    data = {path for path in package.rglob("*") if path.is_file() and path.suffix != ".py"}
    data = {path for path in data if "__pycache__" not in path.parts}
    assert data == {path for path in named if path.suffix != ".py"}
