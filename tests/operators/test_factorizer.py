"""factorizer: the contract, all ways to cut short words, ties, frozen ids, every mistake."""

import hashlib
import itertools
import random
import struct
from base64 import b64encode
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import FieldSpec, Invertible
from operators.errors import ContractError, RowErrors, SetupError
from operators.testing import assert_operator_contract
from operators.text.algorithms.factorized_subwords import stretches
from operators.text.factorizer import Factorizer, FactorizerConfig
from tests.dawg_files import Record, written
from tests.method_files import FACTORIZER_FILE, id_rows, texts, undecodable

BEGIN, END = "\u2e25".encode(), "\u2e24".encode()
Records = list[tuple[bytes, Record]]

STRETCHES_SHA256 = "74d398a856da2128d53c75b4e5d3b8fa0fbd058f317df7868cbd6c570daaaf8a"
DRAWN = [[118, 238, 142], [234, 17, 151], [263, 53, 171], [151, 97, 204]]

FROZEN: list[list[list[int]]] = [
    [
        [205, 164, 203],
        [251, 101, 128],
        [87, 166, 159],
        [234, 17, 151],
        [242, 113, 26],
        [35, 143, 131],
        [222, 152, 253],
        [87, 166, 159],
    ],
    [],
    [
        [29, 133, 207],
        [82, 85, 253],
        [79, 253, 22],
        [195, 86, 196],
        [87, 166, 159],
        [0, 3, 3],
        [263, 178, 244],
    ],
    [[90, 54, 150], [29, 133, 207], [240, 121, 52], [162, 200, 244], [87, 166, 159]],
]


def ready(tokenizer: str = FACTORIZER_FILE, **options: Any) -> Factorizer:
    op = Factorizer(FactorizerConfig(tokenizer=tokenizer, **options))
    op.setup("cpu")
    return op


@pytest.fixture(scope="module")
def op() -> Factorizer:
    return ready()


def some_records(seed: int, scores: list[float], alphabet: tuple[bytes, ...]) -> Records:
    """Return distinct records of random pieces of words, with all single characters among them."""
    rng = random.Random(seed)
    pieces = [b"".join(p) for n in (1, 2, 3) for p in itertools.product(alphabet, repeat=n)]
    pieces = [*rng.sample(pieces, len(pieces) // 2), *alphabet]
    marked = [a + piece + b for piece in pieces for a, b in rng.sample(MARKS, 2)]
    found = []
    for i, piece in enumerate(dict.fromkeys([BEGIN, END, *alphabet, *marked])):
        score = struct.unpack("<f", struct.pack("<f", rng.choice(scores)))[0]
        found.append((piece, (score, i // 65_536, i // 256 % 256, i % 256)))
    return found


MARKS = [(b"", b""), (BEGIN, b""), (b"", END), (BEGIN, END)]


def all_cuts(word: bytes, pieces: Collection[bytes]) -> list[list[bytes]]:
    if not word:
        return [[]]
    return [
        [word[:end], *rest]
        for end in range(1, len(word) + 1)
        if word[:end] in pieces
        for rest in all_cuts(word[end:], pieces)
    ]


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_no_cut_of_a_short_word_is_cheaper(tmp_path: Path, alpha: float) -> None:
    alphabet = (b"a", "é".encode(), b"b")
    rng = random.Random(5)
    records = some_records(1, [-rng.random() * 8 for _ in range(999)], alphabet)
    pieces = dict(records)
    names = {tuple(record[1:]): piece for piece, record in records}
    op = ready(written(tmp_path / "factorizer.dawg", records), alpha=alpha)
    words = [b"".join(p) for n in (1, 2, 3, 4) for p in itertools.product(alphabet, repeat=n)]
    out = op({"text": texts([word.decode() for word in words])})["tokens"]
    for word, ids in zip(words, id_rows(out), strict=True):
        cuts = all_cuts(BEGIN + word + END, pieces)
        found = [names[tuple(i - 8 for i in triple)] for triple in ids]
        assert found in cuts
        assert cost_of(found, pieces, alpha) <= min(cost_of(c, pieces, alpha) for c in cuts) + 1e-9


def cost_of(cut: list[bytes], pieces: dict[bytes, Record], alpha: float) -> float:
    return sum(alpha - pieces[piece][0] for piece in cut)


def slow_search(word: bytes, pieces: dict[bytes, Record], alpha: float) -> list[bytes] | None:
    """The search as it is described: a list that is sorted, stably, before each step."""
    cost: dict[int, float] = {0: 0.0}
    came_from: dict[int, int] = {}
    waiting = [0]
    end = len(word)
    while waiting:
        waiting.sort(key=cost.__getitem__)
        here = waiting.pop(0)
        if here == end or cost[here] + alpha >= cost.get(end, float("inf")):
            break
        for to in range(end, here, -1):
            if word[here:to] not in pieces:
                continue
            new = cost[here] + alpha - pieces[word[here:to]][0]
            if to < end and new + alpha >= cost.get(end, float("inf")):
                continue
            if to not in cost:
                waiting.append(to)
            elif new >= cost[to]:
                continue
            cost[to], came_from[to] = new, here
    if end not in cost:
        return None
    cut: list[bytes] = []
    while end:
        cut.insert(0, word[came_from[end] : end])
        end = came_from[end]
    return cut


@pytest.mark.parametrize(("seed", "alpha"), [(1, 0.0), (2, 0.5), (3, 1.0), (4, 0.0)])
def test_of_cuts_that_cost_the_same_the_described_one_is_taken(
    tmp_path: Path, seed: int, alpha: float
) -> None:
    """Scores of -1 and -2 alone: nearly every word has many cheapest cuts."""
    alphabet = (b"a", b"b")
    records = [record for record in some_records(seed, [-1.0, -2.0], alphabet) if record[0] != b"b"]
    pieces = dict(records)
    names = {tuple(record[1:]): piece for piece, record in records}
    op = ready(written(tmp_path / "factorizer.dawg", records), alpha=alpha)
    words = ["".join(p) for n in range(1, 9) for p in itertools.product("ab", repeat=n)]
    words += ["ab" * 40, "aab" * 50]
    out = op({"text": texts(words)})["tokens"]
    num_known = 0
    for word, ids in zip(words, id_rows(out), strict=True):
        want = slow_search(BEGIN + word.encode() + END, pieces, alpha)
        num_known += want is not None
        if want is None:
            assert ids == [[0, 3, 3]]
        else:
            assert [names[tuple(i - 8 for i in triple)] for triple in ids] == want
    assert num_known > 50


STEP, LOW64 = 0x9E3779B97F4A7C15, (1 << 64) - 1


def mixed(state: int) -> int:
    """SplitMix64 as it was published."""
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & LOW64
    state = (state ^ state >> 27) * 0x94D049BB133111EB & LOW64
    return state ^ state >> 31


def word_seed(key: str, word: int, seed: int = 0) -> int:
    digest = hashlib.sha256(f"{seed}/factorizer/{key}".encode()).digest()
    return mixed(int.from_bytes(digest[:8], "little") + word * STEP & LOW64)


def drawn_record(found: list[Record], state: int) -> Record:
    """Walk along the records, each taking over from those before it with its share."""
    taken, weights = found[0], 0.0
    for i, record in enumerate(found):
        weight = 1 / (-record[0] + 1e-12)
        weights += weight
        if (mixed(state + (i + 1) * STEP & LOW64) >> 11) * 2.0**-53 * weights < weight:
            taken = record
    return taken


def slow_draw(
    word: bytes, known: dict[bytes, list[Record]], seed: int, sigma: float, samples: bool
) -> tuple[list[Record], int]:
    """Return the records of the cheapest of all cuts, and in which attempt marks were whole."""
    size = len(word)
    for attempt in range(1, 17):
        state = mixed(seed + attempt * STEP & LOW64)
        best: tuple[float, list[tuple[int, Record]]] = (np.inf, [])
        for cut in all_cuts(word, known):
            cost, at, path = 0.0, 0, []
            for piece in cut:
                draw = mixed(state + (at * (size + 1) + at + len(piece)) * STEP & LOW64)
                found = known[piece]
                record = drawn_record(found, draw) if samples else max(found, key=lambda r: r[0])
                score = record[0]
                if sigma:
                    score -= sigma * len(piece) * stretches()[draw >> 48]
                cost += 0.1 - score
                path.append((at, record))
                at += len(piece)
            best = min(best, (cost, path))
        bounds = [at for at, _ in best[1]][1:]
        if all(word[at] & 0xC0 != 0x80 for at in (*bounds[:1], *bounds[-1:])):
            return [record for _, record in best[1]], attempt
    raise AssertionError("no attempt keeps the marks whole")


@pytest.mark.parametrize(("sigma", "samples"), [(0.3, False), (0.0, True), (0.2, True)])
def test_drawn_cuts_are_the_cheapest_of_all_with_what_was_drawn(
    tmp_path: Path, sigma: float, samples: bool
) -> None:
    """Some pieces end inside the marks, so that many a word has to be drawn again."""
    rng = random.Random(3)
    alphabet = (b"a", "é".encode(), b"b")
    records = some_records(4, [-rng.random() * 4 for _ in range(999)], alphabet)
    halves = [BEGIN[:1], BEGIN[1:], BEGIN[1:] + b"a", END[:2], END[2:], b"a" + END[:2]]
    for i, piece in enumerate([*(piece for piece, _ in records), *halves, *halves]):
        score = struct.unpack("<f", struct.pack("<f", -rng.random() * 2))[0]
        records.append((piece, (score, 9, i // 256, i % 256)))
    known: dict[bytes, list[Record]] = {}
    for piece, record in sorted(records, key=lambda r: b64encode(struct.pack("<fBBB", *r[1]))):
        known.setdefault(piece, []).append(record)
    file = written(tmp_path / "factorizer.dawg", records)
    op = ready(file, sigma=sigma, sample_records=samples, seed=5)
    # No letter comes twice: the same pieces in another order would cost the same.
    words = [b"".join(p).decode() for n in (1, 2, 3) for p in itertools.permutations(alphabet, n)]
    keys = ["k1", "k2", "k3"]
    out = op({"text": texts([" ".join(words)] * 3), "key": texts(keys)})["tokens"]
    attempts = set()
    for key, ids in zip(keys, id_rows(out), strict=True):
        want: list[list[int]] = []
        for number, word in enumerate(words):
            marked = BEGIN + word.encode() + END
            path, attempt = slow_draw(marked, known, word_seed(key, number, 5), sigma, samples)
            want += [[index + 8 for index in record[1:]] for record in path]
            attempts.add(attempt)
        assert ids == want
    assert max(attempts) > 1


def test_a_word_whose_mark_is_always_cut_is_cut_as_without_draws(tmp_path: Path) -> None:
    records: Records = [
        (BEGIN[:1], (-1.0, 1, 0, 0)),
        (BEGIN[1:], (-1.0, 2, 0, 0)),
        (BEGIN[1:] + b"a", (-1.0, 3, 0, 0)),
        (b"a", (-1.0, 4, 0, 0)),
        (END, (-1.0, 5, 0, 0)),
    ]
    file = written(tmp_path / "factorizer.dawg", records)
    batch = {"text": texts(["a aa"]), "key": texts(["k"])}
    assert id_rows(ready(file, sigma=9.0)(batch)["tokens"]) == id_rows(ready(file)(batch)["tokens"])


def test_records_are_drawn_in_proportion_to_their_scores(tmp_path: Path) -> None:
    records: Records = [
        (BEGIN, (-1.0, 0, 0, 0)),
        (END, (-1.0, 0, 0, 0)),
        *((b"a", (score, i, 0, 0)) for i, score in enumerate([-1.0, -2.0, -4.0], 1)),
    ]
    op = ready(written(tmp_path / "factorizer.dawg", records), sample_records=True)
    keys = texts([str(i) for i in range(7000)])
    first = op({"text": texts(["a"] * 7000), "key": keys})["tokens"].values[1::3, 0]
    # Weights 1, 1/2 and 1/4: shares 4/7, 2/7 and 1/7, each within five standard deviations.
    counts = np.bincount(first - 8, minlength=4)[1:]
    assert np.abs(counts - np.array([4000, 2000, 1000])).max() < 210


def test_lengths_are_stretched_by_exp_of_a_normal_number() -> None:
    """Frozen: another table gives other tokens under the same seed."""
    table = stretches()
    assert hashlib.sha256(table.tobytes()).hexdigest() == STRETCHES_SHA256
    logs = np.log(table)
    assert abs(np.median(table) - 1) < 1e-4
    assert abs(logs.mean()) < 1e-4
    assert abs(logs.std() - 1) < 1e-3


def test_draws_follow_key_and_seed_alone(op: Factorizer) -> None:
    rows, keys = ["waters newest lowest"] * 3, ["a", "b", "a"]
    drawing = ready(sigma=0.5, sample_records=True)
    out = assert_operator_contract(drawing, {"text": texts(rows), "key": texts(keys)})
    first, second, third = id_rows(out["tokens"])
    assert first == third != second
    assert first == DRAWN
    batch = {"text": texts(rows), "key": texts(keys)}
    assert id_rows(ready(sigma=0.5, sample_records=True, seed=1)(batch)["tokens"])[0] != first
    assert op.decode(out)["text"].to_pylist() == rows


def test_a_seed_where_nothing_is_drawn_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"seed=3 has no use where nothing is drawn.*sigma"):
        FactorizerConfig(tokenizer=FACTORIZER_FILE, seed=3)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.text(st.sampled_from("waterslo,\t \u00a0\u2003日é☃[]UNKunk"), max_size=25)))
def test_words_are_independent_and_split_as_python_does(op: Factorizer, rows: list[str]) -> None:
    found = id_rows(op({"text": texts(rows)})["tokens"])
    one_by_one = [
        [i for word in row.split() for i in id_rows(op({"text": texts([word])})["tokens"])[0]]
        for row in rows
    ]
    assert found == one_by_one


def test_every_whitespace_character_ends_a_word_and_no_other_does(op: Factorizer) -> None:
    chars = [chr(i) for i in range(0x11000) if not 0xD800 <= i < 0xE000]
    # No piece holds Q: each word is one unknown.
    num_words = np.diff(op({"text": texts([f"Q{char}Q" for char in chars])})["tokens"].offsets)
    assert num_words.tolist() == [1 + char.isspace() for char in chars]


def test_contract_and_frozen_ids(op: Factorizer) -> None:
    """Published shards hold these ids: other ones need a new version."""
    rows = ["waters, newest!", "", "xyz [UNK]  über", "\t日本 größer"]
    out = assert_operator_contract(op, {"text": texts(rows)})
    assert op.outputs == {"tokens": FieldSpec("uint16", (None, 3), 264)}
    assert id_rows(out["tokens"]) == FROZEN
    assert isinstance(op, Invertible)
    assert op.decode(out)["text"].to_pylist() == [" ".join(row.split()) for row in rows]
    assert op.metadata()["streams"] == ["first", "second", "third"]


def test_a_word_with_an_unknown_piece(tmp_path: Path) -> None:
    records: Records = [
        (BEGIN, (-1.0, 1, 0, 0)),
        (END, (-1.0, 2, 0, 0)),
        (b"[Unk]", (-1.0, 3, 0, 0)),
        (b"a", (-1.0, 4, 0, 0)),
    ]
    file = written(tmp_path / "factorizer.dawg", records)
    text = {"text": texts(["a[Unk]a [uNK]"])}
    assert id_rows(ready(file)(text)["tokens"]) == [[[0, 3, 3], [0, 3, 3]]]
    parts = id_rows(ready(file, merge_unknown=False)(text)["tokens"])[0]
    assert [triple[0] for triple in parts] == [9, 12, 0, 12, 10, 0]


def test_the_best_record_of_a_piece_and_of_equal_ones_the_first(tmp_path: Path) -> None:
    """The order is that of the file: of base64, in which digits stand before letters."""
    values = [(-3.0, 10), (-0.5, 20), (-0.5, 30), (-0.5, 215), (-9.0, 40)]
    records: Records = [
        (BEGIN, (-1.0, 1, 0, 0)),
        (END, (-1.0, 2, 0, 0)),
        *((b"a", (score, i, i, i)) for score, i in values),
    ]
    first = min((20, 30, 215), key=lambda i: b64encode(struct.pack("<fBBB", -0.5, i, i, i)))
    assert first == 215
    op = ready(written(tmp_path / "factorizer.dawg", records))
    assert id_rows(op({"text": texts(["a"])})["tokens"])[0][1] == [first + 8] * 3


def test_a_long_word_takes_time_in_proportion_and_memory_for_it(op: Factorizer) -> None:
    out = op({"text": texts(["wa" * 50_000])})["tokens"]
    assert len(out.values) > 50_000
    assert op.decode({"tokens": out})["text"].to_pylist() == ["wa" * 50_000]


def test_decode_names_specials_and_unknown_triples(op: Factorizer) -> None:
    from operators.base import Ragged

    triples = np.array([[3, 3, 3], [8, 8, 8], [0, 3, 3]], np.uint16)
    found = op.decode({"tokens": Ragged(triples, np.array([0, 3]))})["text"].to_pylist()
    assert found == ["[PAD] [UNK] [UNK]"]


@pytest.mark.parametrize("cut", [0, 3, 100, 9220, 13_831])
def test_a_file_that_is_cut_or_of_another_kind(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "factorizer.dawg"
    path.write_bytes(Path(FACTORIZER_FILE).read_bytes()[:cut])
    with pytest.raises(SetupError, match=rf"no dictionary of this method \({cut:,} bytes\)"):
        ready(str(path))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"factorizer: tokenizer .* has no file english.dawg"):
        ready(str(tmp_path / "english.dawg"))


def test_a_negative_alpha_is_refused() -> None:
    with pytest.raises(ValidationError, match="alpha"):
        FactorizerConfig(tokenizer=FACTORIZER_FILE, alpha=-0.1)


def test_text_that_is_no_text_goes_to_the_quarantine(op: Factorizer) -> None:
    with pytest.raises(RowErrors) as caught:
        op({"text": undecodable([b"a", b"\xe6\x97", b"a"])})
    assert list(caught.value.errors) == [1]
    assert len(caught.value.good["tokens"]) == 2


def test_null_text_is_a_broken_contract(op: Factorizer) -> None:
    with pytest.raises(ContractError, match=r"factorizer: 1 of 1 texts are null"):
        op({"text": pa.array([None], pa.large_string())})
