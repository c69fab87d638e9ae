"""chat: a slow oracle, every form of a conversation, masks, every mistake of data and template."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import Batch, FieldSpec
from operators.errors import ContractError, RowErrors, SampleError
from operators.sequence.chat import Chat, ChatConfig
from operators.testing import assert_operator_contract
from operators.text.byte_text import ByteText
from tests.ragged_rows import Rows, rows_of, texts

TOKENIZER = "tests/golden/text/bytelevel_bpe.json"
VOCABULARY = [{"special": ["<bos>", "<user>", "<bot>", "<end>"]}, {"text": 256}]
ROLES: dict[str, Any] = {
    "system": {"before": [{"text": "S:"}]},
    "user": {"before": ["<user>"], "after": [{"text": "\n"}]},
    "assistant": {"before": ["<bot>", {"text": ">"}], "after": ["<end>"], "loss": True},
}
SPECIAL = {"<bos>": 0, "<user>": 1, "<bot>": 2, "<end>": 3}


def operator(**options: Any) -> Chat:
    defaults = {"tokenizer": {"name": "byte_text"}, "vocabulary": VOCABULARY, "roles": ROLES}
    op = Chat(ChatConfig.model_validate({**defaults, **options}))
    op.bind({"messages": FieldSpec("string")})
    op.setup("cpu")
    return op


def say(*messages: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in messages]


def batch(*documents: Any) -> Batch:
    return {"messages": texts(*(json.dumps(document) for document in documents))}


def pieces_slowly(pieces: list[Any]) -> list[int]:
    ids = []
    for piece in pieces:
        ids += (
            [SPECIAL[piece]] if isinstance(piece, str) else [4 + b for b in piece["text"].encode()]
        )
    return ids


def join_slowly(messages: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    ids, mask = [SPECIAL["<bos>"]], [0]
    for message in messages:
        role = ROLES[message["role"]]
        before = pieces_slowly(role.get("before", []))
        rest = [4 + b for b in message["content"].encode()] + pieces_slowly(role.get("after", []))
        ids += before + rest
        mask += [0] * len(before) + [int(role.get("loss", False))] * len(rest)
    return [*ids, SPECIAL["<end>"]], [*mask, 0]


@settings(max_examples=80, deadline=None)
@given(
    documents=st.lists(
        st.lists(
            st.tuples(st.sampled_from(sorted(ROLES)), st.text(max_size=6)), min_size=1, max_size=4
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_conversation_is_written_as_a_loop_would(
    documents: list[list[tuple[str, str]]],
) -> None:
    conversations = [say(*messages) for messages in documents]
    op = operator(begin=["<bos>"], end=["<end>"])
    out = assert_operator_contract(op, batch(*conversations))
    want = [join_slowly(messages) for messages in conversations]
    assert rows_of(out["tokens"]) == [ids for ids, _ in want]
    assert rows_of(out["loss_mask"]) == [mask for _, mask in want]
    assert [len(row) for row in rows_of(out["loss_mask"])] == [
        len(row) for row in rows_of(out["tokens"])
    ]


FORMS: list[tuple[dict[str, Any], Any]] = [
    ({}, [{"role": "user", "content": "a"}, {"content": "b", "role": "assistant", "id": 7}]),
    (
        {"path": "data.turns"},
        {"id": 1, "data": {"turns": say(("user", "a"), ("assistant", "b"))}},
    ),
    (
        {
            "path": "conversations",
            "role_key": "from",
            "content_key": "value",
            "roles": {"human": ROLES["user"], "gpt": ROLES["assistant"]},
        },
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ),
    (
        {"parallel": True, "role_key": "roles", "content_key": "texts"},
        {"roles": ["user", "assistant"], "texts": ["a", "b"]},
    ),
]


@pytest.mark.parametrize(("options", "document"), FORMS)
def test_forms_of_one_conversation(options: dict[str, Any], document: Any) -> None:
    out = assert_operator_contract(operator(**options), batch(document))
    assert rows_of(out["tokens"]) == [[1, 4 + 97, 4 + 10, 2, 4 + 62, 4 + 98, 3]]
    assert rows_of(out["loss_mask"]) == [[0, 0, 0, 0, 0, 1, 1]]


def test_chatml_of_a_tokenizer_with_its_own_specials() -> None:
    """Nothing merges across the ends of messages, and specials in a message are text."""
    roles = {
        "user": {"before": ["<|endoftext|>", {"text": "user\n"}]},
        "assistant": {"before": [{"text": "bot\n"}], "after": ["<|endoftext|>"], "loss": True},
    }
    tokenizer = {"name": "text_tokenizer", "tokenizer": TOKENIZER}
    op = operator(tokenizer=tokenizer, vocabulary=None, roles=roles)
    out = assert_operator_contract(op, batch(say(("user", "<|endoftext|>"), ("assistant", "hi"))))
    metadata: Any = op.metadata()
    special = metadata["special_ids"]["<|endoftext|>"]
    [ids], [mask] = rows_of(out["tokens"]), rows_of(out["loss_mask"])
    assert [i for i in (0, len(ids) - 1) if ids[i] == special] == [0, len(ids) - 1]
    assert ids.count(special) == 2
    assert op.outputs["tokens"].vocab_size == metadata["vocab_size"]
    text = op._tokenizer
    assert ids[1:-1] == [
        i
        for row in rows_of(
            text({"text": texts("user\n", "<|endoftext|>", "bot\n", "hi")})["tokens"]
        )
        for i in row
    ]
    num_learnt = len(rows_of(text({"text": texts("hi")})["tokens"])[0]) + 1
    assert mask == [0] * (len(ids) - num_learnt) + [1] * num_learnt
    assert op.identity()["tokenizer_sha256"]


def test_tokenizers_specials_are_shifted_with_its_text() -> None:
    tokenizer = {"name": "byte_text", "add_eos": True}
    roles = {"user": {"before": ["<bos>"], "after": ["<eos>"], "loss": True}}
    vocabulary = [{"special": ["<bos>"]}, {"text": 257}]
    op = operator(tokenizer=tokenizer, vocabulary=vocabulary, roles=roles)
    out = assert_operator_contract(op, batch(say(("user", "a"))))
    assert rows_of(out["tokens"]) == [[0, 98, 257, 257]]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "the document is no JSON: Expecting"),
        ('"text"', "the conversation is text, expected a list"),
        ("[]", "the conversation has no messages"),
        ("[3]", "message 1 is a number, expected an object with 'role'"),
        ('[{"role": "user"}]', r"message 1 has no 'content', only \['role'\]"),
        (json.dumps(say(("user", "a"), ("tool", "b"))), "message 2: role 'tool' is none of "),
        (json.dumps(say(("user", ["part"]))), "message 1: content is a list, expected text"),
        (json.dumps(say(("user", None))), "message 1: content is null, expected text"),
        ('[{"role": ["user"], "content": "a"}]', r"message 1: role \['user'\] is none of"),
        (json.dumps(say(("user", "a\ud800"))), "message 1: content has half a character"),
        ("[" * 100_000, "maximum recursion|is no JSON"),
    ],
)
def test_document_that_is_no_conversation_is_a_bad_row(document: str, message: str) -> None:
    good = json.dumps(say(("user", "a")))
    with pytest.raises(RowErrors) as caught:
        operator()({"messages": texts(good, document, good)})
    [(row, error)] = caught.value.errors.items()
    assert row == 1
    with pytest.raises(SampleError, match=f"chat: .*({message})"):
        raise error
    assert len(caught.value.good["tokens"]) == 2


@pytest.mark.parametrize(
    ("options", "document", "message"),
    [
        ({"path": "a.b"}, {"a": {"c": 1}}, r"the document has no 'b', only \['c'\]"),
        ({"path": "a.b"}, {"a": [1]}, "the document is a list, expected an object with 'b'"),
        ({"parallel": True}, {"role": ["user"], "content": []}, "1 of 'role' and 0 of 'content'"),
        ({"parallel": True}, {"role": "user", "content": []}, "role is text, expected a list"),
    ],
)
def test_other_forms_that_do_not_fit_are_bad_rows(
    options: dict[str, Any], document: Any, message: str
) -> None:
    with pytest.raises(RowErrors) as caught:
        operator(**options)(batch(document))
    with pytest.raises(SampleError, match=message):
        raise caught.value.errors[0]


def test_message_that_cannot_be_tokenized_costs_its_document(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = ByteText.__call__

    def refuse_x(self: ByteText, columns: Batch) -> Batch:
        found = columns["text"].to_pylist()
        bad = {i: SampleError("no x", hint="write y") for i, t in enumerate(found) if t == "x"}
        if bad:
            raise RowErrors(bad, {})
        return whole(self, columns)

    monkeypatch.setattr(ByteText, "__call__", refuse_x)
    documents = [say(("user", "a")), say(("user", "a"), ("user", "x")), say(("user", "b"))]
    with pytest.raises(RowErrors) as caught:
        operator()(batch(*documents))
    assert {row: str(e) for row, e in caught.value.errors.items()} == {
        1: "chat: message 2: no x; write y"
    }
    found: Rows = rows_of(caught.value.good["tokens"])
    assert [row[1] for row in found] == [4 + 97, 4 + 98]


def test_null_document_is_refused() -> None:
    with pytest.raises(ContractError, match="1 of 1 texts are null"):
        operator()({"messages": pa.array([None], pa.large_string())})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roles": {"user": {}}}, r"roles: none of \['user'\] has `loss: true`"),
        ({"roles": {}}, "at least 1 item"),
        ({"tokenizer": {}}, "tokenizer: {} has no `name`"),
        ({"tokenizer": {"name": "byte_tex"}}, "no operator is named .*did you mean 'byte_text'"),
        ({"tokenizer": {"name": "byte_text", "bos": 1}}, r"tokenizer \(byte_text\): bos: Extra"),
        (
            {"tokenizer": {"name": "byte_text", "inputs": {"text": "a"}}},
            r"tokenizer: \['inputs'\] rename nothing here",
        ),
        ({"vocabulary": [{"a": 256}, {"b": 256}]}, r"vocabulary: \['a', 'b'\] are no special"),
        ({"vocabulary": [{"a": ["<x>"]}]}, r"vocabulary: \[\] are no special"),
        ({"path": "a..b"}, "should match pattern"),
    ],
)
def test_config_that_makes_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        operator(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin": ["<s>"]}, "chat: begin: '<s>' is no special token; there are .*'<bos>'"),
        (
            {"roles": {"user": {"after": ["<x>"], "loss": True}}},
            "chat: roles.user.after: '<x>' is no special token",
        ),
        ({"tokenizer": {"name": "length_filter", "min_length": 1}}, "does not map `text` to"),
        ({"tokenizer": {"name": "dct_fsq"}}, "tokenizer 'dct_fsq' does not map `text`"),
        (
            {"vocabulary": [VOCABULARY[0], {"text": 100}]},
            "'text' has 100 ids, but the tokenizer has 256; write `text: 256`",
        ),
    ],
)
def test_template_that_does_not_fit_its_tokenizer(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        operator(**options)
