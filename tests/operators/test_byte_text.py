"""byte_text: the contract, a slow oracle, frozen ids, slices, and what decode does with cuts."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from operators.base import FieldSpec, Invertible, Ragged
from operators.errors import ContractError
from operators.testing import assert_operator_contract
from operators.text.byte_text import ByteText, ByteTextConfig

TEXTS = st.lists(st.text(max_size=12), min_size=1, max_size=6)


def column(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def operator(*, bos: bool = False, eos: bool = False) -> ByteText:
    return ByteText(ByteTextConfig(add_bos=bos, add_eos=eos))


def rows(tokens: Ragged) -> list[list[int]]:
    return [tokens[i].tolist() for i in range(len(tokens))]


@settings(max_examples=60, deadline=None)
@example(texts=[""], bos=True, eos=True, before=0, after=0)
@example(texts=["", "", "é"], bos=True, eos=True, before=2, after=1)
@given(
    texts=TEXTS,
    bos=st.booleans(),
    eos=st.booleans(),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
)
def test_any_slice_gives_what_python_gives_document_by_document(
    texts: list[str], bos: bool, eos: bool, before: int, after: int
) -> None:
    op = operator(bos=bos, eos=eos)
    whole = column(["äx"] * before + texts + ["yß"] * after)
    out = assert_operator_contract(op, {"text": whole.slice(before, len(texts))})
    first = [256] if bos else []
    last = [256 + bos] if eos else []
    assert rows(out["tokens"]) == [[*first, *text.encode(), *last] for text in texts]
    assert op.decode(out)["text"].to_pylist() == texts


def test_ids_are_frozen() -> None:
    """Published shards hold these ids: other ones need a new version."""
    out = operator(bos=True, eos=True)({"text": column(["añ", "", "🌾"])})["tokens"]
    assert rows(out) == [[256, 97, 195, 177, 257], [256, 257], [256, 240, 159, 140, 190, 257]]


@pytest.mark.parametrize(
    ("bos", "eos", "spec", "special_ids"),
    [
        (False, False, FieldSpec("uint8", (None,), 256), {}),
        (True, False, FieldSpec("uint16", (None,), 257), {"<bos>": 256}),
        (False, True, FieldSpec("uint16", (None,), 257), {"<eos>": 256}),
        (True, True, FieldSpec("uint16", (None,), 258), {"<bos>": 256, "<eos>": 257}),
    ],
)
def test_spec_and_metadata_follow_the_specials(
    bos: bool, eos: bool, spec: FieldSpec, special_ids: dict[str, int]
) -> None:
    op = operator(bos=bos, eos=eos)
    assert op.outputs == {"tokens": spec}
    assert op.metadata() == {
        "vocab_size": spec.vocab_size,
        "special_ids": special_ids,
        "bos_id": special_ids.get("<bos>"),
        "eos_id": special_ids.get("<eos>"),
    }


def test_no_rows_give_no_rows() -> None:
    out = operator(eos=True)({"text": column([])})["tokens"]
    assert out.offsets.tolist() == [0]
    assert out.values.dtype == np.uint16


def test_without_ends_the_tokens_are_the_column_itself() -> None:
    texts = column(["abc", "def"])
    values = operator()({"text": texts})["tokens"].values
    assert values.ctypes.data == texts.buffers()[2].address


def test_decode_writes_a_cut_character_as_a_replacement_character() -> None:
    op = operator(eos=True)
    assert isinstance(op, Invertible)
    cut = Ragged(np.array([97, 195, 98, 99], np.uint16), np.array([0, 2, 4]))
    assert op.decode({"tokens": cut})["text"].to_pylist() == ["a\ufffd", "bc"]


def test_null_text_is_a_broken_contract() -> None:
    texts = pa.array(["a", None, "b"], pa.large_string())
    with pytest.raises(ContractError, match=r"byte_text: 1 of 3 texts are null, expected none"):
        operator()({"text": texts})
