"""Which code decides a result: the files that a script imports, and a digest of what each does.

A data file belongs to the modules that name it. The digest of a module is over its tokens, without
comments and docstrings. So an edit of what is only said changes nothing, and an edit of what is
done changes the version of every script that reaches the file, however far away, and of no other.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

from clip_mixtures.errors import UserError

# What Python 3.12 and later take apart and earlier ones leave whole; see `_texts`.
_STARTS = {getattr(tokenize, f"{kind}STRING_START", None) for kind in "FT"} - {None}
_ENDS = {getattr(tokenize, f"{kind}STRING_END", None) for kind in "FT"} - {None}
_SAID = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER)
_LAYOUT = {tokenize.NEWLINE: "\n", tokenize.INDENT: "\t", tokenize.DEDENT: "\b"}

# A path from a module's own folder; other strings are not worth a look at the disk.
_PATH = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*/?")

Position = tuple[int, int]


def imported_files(script: Path, roots: Sequence[Path]) -> list[Path]:
    """Return a script and every file under some folders that it imports or reads, however far away.

    A module reads the data files that a string in it names by their path from its own folder, or
    all files of a folder that it names so, with a slash at the end.

    Args:
        script: a Python file.
        roots: folders that modules are looked for in. An ``__init__.py`` is not followed: here
            they hold nothing that decides a result.

    Returns:
        The files in the order of their names.

    Raises:
        UserError: for a module that is no Python.
    """
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            said = _said(_source(path), path)
            waiting += [file for name in said.imports if (file := _module_file(name, roots))]
            found.update(_data_files(said.texts, path.parent))
    return sorted(found)


def digest(path: Path) -> str:
    """Return a hexadecimal SHA-256 of what a module does, see above, or of a data file's bytes.

    It is the same in all versions of Python that this project runs in.

    Raises:
        UserError: for a module that is no Python.
    """
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    source = _source(path)
    docstrings = set(_docstrings(_parsed(source, path)))
    found = hashlib.sha256()
    is_said = False
    for start, text in _texts(source):
        # With the end of its line.
        is_said = start in docstrings or (is_said and text == "\n")
        if not is_said:
            found.update(text.encode() + b"\0")
    return found.hexdigest()


def _source(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error})") from error


def _parsed(source: str, path: Path) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not Python ({error})") from error


@dataclasses.dataclass(frozen=True)
class _Said:
    """What a module names.

    Attributes:
        imports: dotted names, of modules or of what is in them.
        texts: its strings that could be paths.
    """

    imports: tuple[str, ...]
    texts: tuple[str, ...]


@functools.cache  # scripts share most of what they import
def _said(source: str, path: Path) -> _Said:
    imports: list[str] = []
    texts: list[str] = []
    for node in ast.walk(_parsed(source, path)):
        if isinstance(node, ast.Import):
            imports += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names a module, `from module import name` a name in it.
            imports += (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts += [node.value] if _PATH.fullmatch(node.value) else []
    return _Said(tuple(imports), tuple(texts))


def _data_files(texts: Sequence[str], folder: Path) -> Iterator[Path]:
    for text in texts:
        named = folder / text
        if text.endswith("/") and named.is_dir():
            yield from (path for path in named.iterdir() if path.suffix != ".py" and path.is_file())
        elif named.suffix != ".py" and named.is_file():
            yield named


def _module_file(name: str, roots: Sequence[Path]) -> Path | None:
    relative = Path(*name.split(".")).with_suffix(".py")
    return next((root / relative for root in roots if (root / relative).is_file()), None)


def _docstrings(tree: ast.Module) -> Iterator[Position]:
    """Return where docstrings begin, as tokens are placed: line, and column in characters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                # Before it there is only indentation, which has as many bytes as characters.
                yield first.lineno, first.col_offset


def _texts(source: str) -> Iterator[tuple[Position, str]]:
    """Return the tokens that do something and where they begin; formatted strings are one each."""
    lines = source.splitlines(keepends=True)
    nested, begin = 0, (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in _STARTS:
            begin = begin if nested else token.start
            nested += 1
        elif token.type in _ENDS:
            nested -= 1
            if not nested:
                yield begin, _between(lines, begin, token.end)
        elif not nested and token.type not in _SAID:
            yield token.start, _LAYOUT.get(token.type, token.string)


def _between(lines: Sequence[str], start: Position, end: Position) -> str:
    (first, left), (last, right) = start, end
    if first == last:
        return lines[first - 1][left:right]
    inner = lines[first : last - 1]
    return "".join([lines[first - 1][left:], *inner, lines[last - 1][:right]])
