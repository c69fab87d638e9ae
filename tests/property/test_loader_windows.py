"""Windows of any data set are what cutting one long list of its ids gives."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loader import TokenDataset, Windows, varlen
from tests.token_data import CORPORA, Corpus

PAD = 7


def reference(corpus: Corpus, start: int, width: int) -> dict[str, list[Any]]:
    """Return one window, place by place."""
    owners = [(n, i) for n, sample in enumerate(corpus.samples()) for i in sample]
    window = owners[start : start + width]
    samples = [n for n, _ in window]
    distinct = sorted(set(samples))
    padding = list(range(width - len(window)))
    return {
        "ids": [int(corpus.ids[i]) for _, i in window] + [PAD for _ in padding],
        "learn": [int(corpus.learn[i]) for _, i in window] + [0 for _ in padding],
        "loss_mask": [bool(corpus.learn[i]) for _, i in window] + [False for _ in padding],
        "document_ids": [distinct.index(n) for n in samples] + [-1 for _ in padding],
        "position_ids": [i - samples.index(n) for i, n in enumerate(samples)] + padding,
    }


@settings(max_examples=60, deadline=None)
@given(
    corpus=CORPORA,
    length=st.one_of(st.integers(1, 20), st.just(200)),
    extra=st.integers(0, 2),
    batch_size=st.integers(1, 9),
    boundaries=st.booleans(),
    shuffle=st.booleans(),
)
def test_windows_are_the_stream_cut_evenly(
    corpus: Corpus, length: int, extra: int, batch_size: int, boundaries: bool, shuffle: bool
) -> None:
    extra = min(extra, length)
    view = Windows(
        "ids",
        length,
        extra=extra,
        pad=PAD,
        boundaries=boundaries,
        loss_mask="learn",
    )
    total = len(corpus.ids)
    with corpus.written() as url:
        data = TokenDataset(url, batch_size=batch_size, view=view, shuffle=shuffle)
        batches = list(data)
        order = data._order.rows(np.arange(data.num_positions)).tolist()
    starts = [i for i in range(0, total, length) if i == 0 or i + extra < total]
    assert sorted(order) == list(range(len(starts)))
    names = ["ids", "loss_mask", *(["document_ids", "position_ids"] if boundaries else [])]
    want = [reference(corpus, starts[item], length + extra) for item in order]
    for name in names:
        found = [row for batch in batches for row in batch[name].tolist()]
        assert found == [window[name] for window in want], name
    for batch in batches if boundaries else []:
        flat = batch["position_ids"].flatten()
        bounds = [*np.flatnonzero(flat == 0).tolist(), len(flat)]
        assert batch["cu_seqlens"].tolist() == bounds
        assert batch["max_seqlen"] == max(np.diff(bounds))
        assert varlen(batch["position_ids"])[0].tolist() == bounds
        assert varlen(batch["position_ids"])[1] == batch["max_seqlen"]
