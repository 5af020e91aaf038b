"""Fixtures that several test files use."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from corpora_factory import TinyCorpus, make_base, make_domainnet

from clip_mixtures.corpora.domainnet import index_domainnet
from clip_mixtures.corpora.imagenet_captions import index_imagenet_captions

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those that are about them (`make test-gpu`)."""
    # Tests prove the same on every machine; bits are promised on the CPU alone.
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_file() -> Callable[[str], Path]:
    """Find a file of known answers, which a checkout of its own does not have."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"known answers are not here: {path}")
        return path

    return find


@pytest.fixture
def tiny_corpus(tmp_path: Path) -> Callable[..., TinyCorpus]:
    """Write both corpora under the test's own folder and index them."""

    def make(
        domains: Sequence[str] = ("clipart", "painting", "real", "sketch"),
        classes: Sequence[str] = ("ant", "bee", "polar bear", "sun"),
        train: int = 4,
        test: int = 2,
        size: int = 16,
        archive: bool = True,
        base_images: int = 12,
    ) -> TinyCorpus:
        root, base = tmp_path / "corpus" / "domains", tmp_path / "corpus" / "base"
        make_domainnet(root, domains, classes, train, test, size, archive)
        make_base(base, base_images, size)
        captions, images = base / "captions.json", base / "images.tar"
        return TinyCorpus(
            domains_root=root,
            base_captions=captions,
            base_images=images,
            domains=index_domainnet(root, domains),
            base=index_imagenet_captions(captions, images).index,
        )

    return make
