"""ImageNet-Sketch: black-and-white drawings of ImageNet's classes (paper appendix E).

It comes as ``sketch/<synset>/<file>``, zipped or not. A caption is one of 21 sentences: the class
name alone or with an article, and six more for each of three words for a drawing. The *published*
captions come out of one random stream and have "a" for every article; the *corrected* ones draw
from the image's own name and have the right articles.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clip_mixtures.archives import Member
from clip_mixtures.corpora.captions import CAPTION_SEED
from clip_mixtures.corpora.classes import (
    imagenet_class_names,
    imagenet_synsets,
    noun_phrase,
    synset_labels,
)
from clip_mixtures.corpora.imagenet import by_synset, labelled_frame
from clip_mixtures.errors import unknown
from clip_mixtures.index import Index

CORPUS = "imagenet_sketch"

# With their articles.
_NOUNS = {"drawing": "a drawing", "sketch": "a sketch", "image": "an image"}

_Labelled = Sequence[tuple[int, Member]]


def index_imagenet_sketch(images: Path, protocol: str = "published") -> Index:
    """Index ImageNet-Sketch with captions.

    Args:
        images: the folder or archive; its parent is the corpus root.
        protocol: "published" or "corrected" captions; see the module.

    Returns:
        The images by synset, then by file name, all of the split "train".

    Raises:
        UserError: for absent or damaged images, an image in no folder of a synset, or an unknown
            protocol.
    """
    if protocol not in _CAPTIONS:
        raise unknown("protocol", protocol, _CAPTIONS, str(images))
    labelled = by_synset(images)
    captions = _CAPTIONS[protocol](labelled)
    return Index(labelled_frame(CORPUS, images, labelled, captions, "train"), images.parent)


def without_counterpart(index: Index, protocol: str) -> npt.NDArray[np.bool_]:
    """Tell which images show a class that DomainNet has not.

    The published filter looks for names of classes that DomainNet has anywhere in a caption, and so
    takes a beetle for a bee and a library for a bra; it keeps 514 classes of 1,000. The corrected
    one goes by the class and keeps 550.

    Args:
        index: of ImageNet-Sketch; for "published", with captions.
        protocol: "published" or "corrected".

    Returns:
        (N,) bool.

    Raises:
        UserError: for an unknown protocol.
    """
    if protocol not in _CAPTIONS:
        raise unknown("protocol", protocol, _CAPTIONS, str(index.root))
    has_counterpart = np.array([synset in synset_labels() for synset in imagenet_synsets()])
    if protocol == "corrected":
        return np.asarray(~has_counterpart[index.frame["class_id"].to_numpy(dtype=np.int64)])
    names = [name for name, has in zip(imagenet_class_names(), has_counterpart, strict=True) if has]
    keeps = {
        caption: not any(name in caption for name in names)
        for caption in index.frame["caption"].unique()
    }
    return np.array([keeps[caption] for caption in index.frame["caption"]], dtype=np.bool_)


def _published(labelled: _Labelled) -> list[str]:
    stream = random.Random(CAPTION_SEED)
    captions = []
    for class_id, _ in labelled:
        # The order of the two draws is part of the published result.
        sentence = stream.choice(_published_sentences(class_id))
        captions.append(sentence + "." if stream.random() < 0.5 else sentence)
    return captions


def _corrected(labelled: _Labelled) -> list[str]:
    return corrected_sketch_captions(
        [class_id for class_id, _ in labelled], [member.name for _, member in labelled]
    )


def corrected_sketch_captions(class_ids: Iterable[int], paths: Iterable[str]) -> list[str]:
    """Caption sketches by class and path alone, with the right articles.

    Args:
        class_ids: of ImageNet, one an image.
        paths: ending in ``<synset>/<file>``.
    """
    both = zip(class_ids, paths, strict=True)
    return [_corrected_caption(int(class_id), path) for class_id, path in both]


def _corrected_caption(class_id: int, path: str) -> str:
    # Of the path, what is the same in an archive and in a folder of any name.
    name = "/".join(path.split("/")[-2:])
    key = CAPTION_SEED.to_bytes(8, "big")
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=key).digest()
    sentences = _corrected_sentences(class_id)
    draw, choice = divmod(int.from_bytes(digest, "big"), len(sentences))
    return sentences[choice] + "." if draw % 2 else sentences[choice]


_CAPTIONS: dict[str, Callable[[_Labelled], list[str]]] = {
    "published": _published,
    "corrected": _corrected,
}


@functools.cache
def _published_sentences(class_id: int) -> tuple[str, ...]:
    name = imagenet_class_names()[class_id]
    return _sentences(name, f"a {name}", f"a {name}")


@functools.cache
def _corrected_sentences(class_id: int) -> tuple[str, ...]:
    noun = noun_phrase(imagenet_class_names()[class_id])
    return _sentences(noun.bare, noun.text, noun.attributive)


def _sentences(bare: str, indefinite: str, attributive: str) -> tuple[str, ...]:
    """Return the 21 sentences of a class, in published order and without full stops.

    Args:
        bare: the class name, such as "ant".
        indefinite: with its article, such as "an ant".
        attributive: before a noun, with the article that the noun then has, such as "an ant" in
            "an ant drawing".
    """
    definite = f"the {bare}"
    sentences = [bare, indefinite, definite]
    for noun, with_article in _NOUNS.items():
        sentences += [
            f"{bare} {noun}",
            f"{noun} of {indefinite}",
            f"{noun} of {definite}",
            f"{attributive} {noun}",
            f"{with_article} of {indefinite}",
            f"{with_article} of {definite}",
        ]
    return tuple(sentences)
