"""Names of units, by hand, and vocabularies that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.concepts import name_units, read_vocabulary

WORDS = ["cat", "dog"]


def test_a_unit_takes_the_name_at_the_smallest_angle() -> None:
    # Long vectors do not win: the angle alone counts. Unit 2 lies between the two, nearer to dog;
    # unit 3 is opposite to cat and at a right angle to dog.
    texts = torch.tensor([[10.0, 0.0], [0.0, 0.1]])
    dictionary = torch.tensor([[0.2, 0.0], [0.0, 7.0], [3.0, 4.0], [-1.0, 0.0]])
    names = name_units(dictionary, texts, WORDS)
    assert names["unit"].tolist() == [0, 1, 2, 3]
    assert names["name"].tolist() == ["cat", "dog", "dog", "dog"]
    assert names["cosine"].tolist() == pytest.approx([1, 1, 0.8, 0])


def test_the_first_of_equal_words_is_taken_and_half_precision_is_raised() -> None:
    names = name_units(torch.tensor([[1.0, 0.0]]).half(), torch.ones(2, 2).half(), WORDS)
    assert names["name"].tolist() == ["cat"]
    assert names["cosine"].tolist() == pytest.approx([0.5**0.5], abs=1e-6)


def test_features_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="of 2 words do not match"):
        name_units(torch.ones(3, 4), torch.ones(2, 5), WORDS)
    with pytest.raises(ValueError, match="of 2 words do not match"):
        name_units(torch.ones(3, 4), torch.ones(3, 4), WORDS)
    with pytest.raises(ValueError, match="no words"):
        name_units(torch.ones(3, 4), torch.ones(0, 4), [])
    with pytest.raises(ValueError, match="not finite"):
        name_units(torch.full((3, 4), float("nan")), torch.ones(2, 4), WORDS)


def test_a_vocabulary_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("polar bear\n  naïve \nant\n", encoding="utf-8")
    assert read_vocabulary(path) == ["polar bear", "naïve", "ant"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ant\n\nbee\n", r"words\.txt:2: blank; delete the line"),
        ("ant\nbee\n ant\n", r"words\.txt:3: 'ant' is on line 1 too; delete one"),
        ("", r"words\.txt: empty"),
    ],
)
def test_blank_and_repeated_lines_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "words.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_vocabulary(path)


def test_an_absent_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"words\.txt: No such file"):
        read_vocabulary(tmp_path / "words.txt")
