"""Sections of parameters: what is taken, and how mistakes are named."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import pytest

from clip_mixtures.errors import UserError
from clip_mixtures.settings import (
    BelowOne,
    NaturalInt,
    OneOf,
    Positive,
    PositiveInt,
    Range,
    Share,
    check_settings,
    settings_from_params,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    steps: PositiveInt
    rate: Positive
    name: Annotated[str, OneOf(("one", "two"))] = "one"
    share: Share = 1.0
    part: BelowOne = 0.0
    rest: NaturalInt = 0
    near: Annotated[int, Range(2)] = 2
    flag: bool = False
    words: tuple[str, ...] = ()


GOOD: dict[str, Any] = {"steps": 3, "rate": 1}


def test_values_become_what_the_annotations_say() -> None:
    made = settings_from_params(Recipe, {**GOOD, "words": ["a", "b"], "share": 1}, "recipe")
    assert made == Recipe(steps=3, rate=1.0, words=("a", "b"))
    assert isinstance(made.rate, float)
    assert isinstance(made.share, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, r"^recipe\.steps: is 0; allowed: 1 or more$"),
        ({"steps": 1.5}, r"^recipe\.steps: is 1\.5, not of type int$"),
        ({"steps": True}, r"^recipe\.steps: is True, not of type int$"),
        ({"rate": 0}, r"^recipe\.rate: is 0; allowed: more than 0$"),
        ({"rate": "1e-3"}, r"^recipe\.rate: is '1e-3', .*\(in quotes it is text; write 1e-3\)$"),
        ({"rate": float("inf")}, r"^recipe\.rate: is inf; allowed: a finite number$"),
        ({"rate": float("nan")}, r"^recipe\.rate: is nan; allowed: a finite number$"),
        ({"name": "three"}, r"^recipe\.name: unknown name 'three'"),
        ({"name": 3}, r"^recipe\.name: unknown name 3"),
        ({"share": 0}, r"^recipe\.share: is 0; allowed: more than 0, up to 1$"),
        ({"share": 1.1}, "up to 1$"),
        ({"part": 1}, r"^recipe\.part: is 1; allowed: from 0 to less than 1$"),
        ({"rest": -1}, r"^recipe\.rest: is -1; allowed: 0 or more$"),
        ({"near": 1}, r"^recipe\.near: is 1; allowed: 2 or more$"),
        ({"flag": 1}, r"^recipe\.flag: is 1, not of type bool$"),
        ({"words": "ab"}, r"^recipe\.words: is 'ab', not a list$"),
        ({"words": [1]}, r"^recipe\.words: is 1, not of type str$"),
        ({"more": 1}, r"^recipe: unknown key 'more'"),
    ],
)
def test_a_mistake_names_the_key_the_value_and_what_is_allowed(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        settings_from_params(Recipe, {**GOOD, **change}, "recipe")


def test_missing_keys_and_sections_that_are_no_mapping() -> None:
    with pytest.raises(UserError, match=r"^recipe: rate missing"):
        settings_from_params(Recipe, {"steps": 1}, "recipe")
    with pytest.raises(UserError, match=r"^recipe: is \[1\], not a mapping"):
        settings_from_params(Recipe, [1], "recipe")


def test_a_value_made_in_code_is_checked_alike() -> None:
    check_settings(Recipe(steps=1, rate=0.5), "recipe")
    with pytest.raises(UserError, match=r"^recipe\.steps: is 0"):
        check_settings(Recipe(steps=0, rate=0.5), "recipe")
