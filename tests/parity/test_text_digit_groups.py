"""digit_groups against the authors' code and the published patterns."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import regex

from operators.text.digit_groups import DigitGroups, DigitGroupsConfig

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden/text/digit_grouping/groups.json").read_text()
)
NUMBERS = [item["digits"] for item in GOLDEN["items"]]
DIRECTIONS = {"l2r": "left_to_right", "r2l": "right_to_left"}
SEPARATORS = {"comma": ",", "space": " ", "dec": ".", "hashtag": "#", "dollar": "$", "foo": "foo"}
PRIVATE = "\ue000"
PATTERNS = {"l2r_1": ("l2r", 1), "l2r_3": ("l2r", 3), "r2l_3_lookahead": ("r2l", 3)}


def grouped(texts: list[str], **settings: Any) -> list[str]:
    op = DigitGroups(DigitGroupsConfig(**settings))
    found: list[str] = op({"text": pa.array(texts, pa.large_string())})["text"].to_pylist()
    return found


@pytest.mark.parametrize("name", GOLDEN["items"][0]["groups"])
def test_groups(name: str) -> None:
    direction, size = name.split("_")
    found = grouped(NUMBERS, direction=DIRECTIONS[direction], size=int(size), separator="|")
    assert [each.split("|") for each in found] == [item["groups"][name] for item in GOLDEN["items"]]


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_formatted_numbers(separator: str, direction: str) -> None:
    found = grouped(NUMBERS, direction=DIRECTIONS[direction], separator=SEPARATORS[separator])
    name = f"{separator}_{direction}"
    assert found == [item["formatted"][name] for item in GOLDEN["items"]]


@pytest.mark.parametrize("name", PATTERNS)
def test_groups_of_the_published_patterns(name: str) -> None:
    direction, size = PATTERNS[name]
    texts = [item["text"] for item in GOLDEN["regex_matches"]]
    found = grouped(texts, direction=DIRECTIONS[direction], size=size, separator=PRIVATE)
    for text, item in zip(found, GOLDEN["regex_matches"], strict=True):
        runs = regex.findall(rf"[\p{{N}}{PRIVATE}]+", text)
        assert [group for run in runs for group in run.split(PRIVATE)] == item["matches"][name]
