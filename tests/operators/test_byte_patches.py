"""byte_patches: the contract, every rule as a loop over bytes, frozen lengths, mistakes."""

from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import ContractError
from operators.testing import assert_operator_contract
from operators.text.byte_patches import BytePatches, BytePatchesConfig

KINDS = b"aZ0 \n.\xc3\xa9"


def column(documents: list[bytes]) -> pa.Array:
    return pa.array(documents, pa.large_binary()).view(pa.large_string())


def patches(documents: list[bytes], **settings: Any) -> list[list[int]]:
    out = BytePatches(BytePatchesConfig(**settings))({"text": column(documents)})["patch_lengths"]
    return [out[row].tolist() for row in range(len(out))]


def is_spacelike(byte: int) -> bool:
    is_word = chr(byte).isalnum() and byte < 0x80
    return not is_word and not 0x80 <= byte < 0xC0


def loop(document: bytes, rule: str) -> list[int]:
    lengths, length = [], 0
    for i, byte in enumerate(document):
        length += 1
        if rule == "spacelike":
            ends = is_spacelike(byte) and (i == 0 or not is_spacelike(document[i - 1]))
        else:
            is_white = bytes([byte]).isspace()
            ends = is_white and not document[i + 1 : i + 2].isspace()
        if ends or i == len(document) - 1:
            lengths.append(length)
            length = 0
    return lengths


@pytest.mark.parametrize("rule", ["spacelike", "whitespace"])
def test_all_short_strings_of_every_kind_of_byte(rule: str) -> None:
    documents = [bytes(each) for num in range(5) for each in product(KINDS, repeat=num)]
    assert len(documents) == 4_681
    assert patches(documents, rule=rule) == [loop(document, rule) for document in documents]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_fixed_patches_are_all_full_but_the_last(size: int) -> None:
    documents = [b"x" * num for num in range(20)]
    want = [
        [len(document[i : i + size]) for i in range(0, len(document), size)]
        for document in documents
    ]
    assert patches(documents, rule="fixed", size=size) == want


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(alphabet="ab1 .\né日", max_size=12), min_size=1, max_size=5),
    settings_=st.sampled_from(
        [
            {"rule": "fixed"},
            {"rule": "spacelike"},
            {"rule": "spacelike", "max_bytes": 2},
            {"rule": "whitespace", "max_bytes": 1},
            {"rule": "whitespace"},
        ]
    ),
    before=st.integers(0, 2),
)
def test_contract_holds_for_any_slice(
    texts: list[str], settings_: dict[str, Any], before: int
) -> None:
    op = BytePatches(BytePatchesConfig(**settings_))
    whole = pa.array(["äx"] * before + texts + ["y "], pa.large_string())
    out = assert_operator_contract(op, {"text": whole.slice(before, len(texts))})
    assert op.decode(out)["text"].to_pylist() == texts
    for row, text in enumerate(texts):
        lengths = out["patch_lengths"][row]
        assert lengths.sum() == len(text.encode())
        assert (lengths > 0).all()
        assert lengths.max(initial=0) <= settings_.get("max_bytes", 99)


def test_long_patches_are_cut_from_the_left() -> None:
    assert patches([b"abcdefg hi"], max_bytes=3) == [[3, 3, 2, 2]]


def test_patches_are_frozen() -> None:
    """Published shards hold these lengths: other ones need a new version."""
    document = "Hello,  wörld: 3.14\n日本".encode()
    assert patches([document, b""], rule="spacelike") == [[6, 4, 5, 3, 3, 4, 2], []]
    assert patches([document], rule="whitespace") == [[8, 8, 5, 6]]
    assert patches([document], rule="fixed") == [[8, 8, 8, 3]]


def test_dtypes() -> None:
    out = BytePatches(BytePatchesConfig())({"text": column([])})
    assert (out["tokens"].values.dtype, out["patch_lengths"].values.dtype) == (np.uint8, np.uint32)
    assert len(out["patch_lengths"]) == 0


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"rule": "fixed", "max_bytes": 4}, "max_bytes belongs to the other rules"),
        ({"rule": "whitespace", "size": 4}, "size belongs to rule=fixed, but rule=whitespace"),
        ({"rule": "fixed", "size": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_of_another_rule_are_refused(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BytePatchesConfig(**settings_)


def test_null_text_is_a_broken_contract() -> None:
    with pytest.raises(ContractError, match=r"byte_patches: 1 of 2 texts are null"):
        BytePatches(BytePatchesConfig())({"text": pa.array(["a", None], pa.large_string())})
