"""Index the corpora: every image once, with its caption and its place in the archive.

python stages/corpus.py
"""

from __future__ import annotations

from clip_mixtures.corpora.domainnet import index_domainnet
from clip_mixtures.corpora.emoji import MANIFEST, verify_sample
from clip_mixtures.corpora.imagenet_captions import index_imagenet_captions
from clip_mixtures.errors import reports_user_errors
from clip_mixtures.index import write_index
from clip_mixtures.mixtures.audit import check_split
from experiment import INDEX, load_experiment


@reports_user_errors
def main() -> None:
    """Write build/index/domains.parquet and build/index/base.parquet."""
    corpus = load_experiment().corpus
    if (corpus.domains_root.parent / MANIFEST).is_file():
        verify_sample(corpus.domains_root.parent)
    domains = index_domainnet(corpus.domains_root, corpus.domains)
    frame = domains.frame
    check_split(frame[frame["split"] == "train"], frame[frame["split"] == "test"])
    load_experiment(class_names=domains.class_names())
    base = index_imagenet_captions(corpus.base_captions, corpus.base_images)
    write_index(INDEX / "domains.parquet", domains)
    write_index(INDEX / "base.parquet", base.index)
    print(
        f"{len(domains)} images of {len(domains.class_names())} classes in "
        f"{len(domains.domains())} domains; {len(base.index)} captioned base images, "
        f"{base.without_image} captions without an image"
    )


if __name__ == "__main__":
    main()
