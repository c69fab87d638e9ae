"""Learn vectors of tokens from their neighbours: skip-gram with negative sampling (word2vec).

Mikolov et al., "Distributed Representations of Words and Phrases and their Compositionality"
(https://arxiv.org/abs/1310.4546), with the settings that SaGe uses. One thread and one generator:
the same tokens give the same vectors.
"""

from dataclasses import dataclass

import numpy as np

from operators.text.algorithms.compiled import compiled
from operators.text.algorithms.splitmix import STEP, uniform

FREQUENT_SHARE = 1e-3
"""Tokens that are more of the text than this are passed over at times."""

NOISE_POWER = 0.75
LAST_RATE = 1e-4


@dataclass(frozen=True, slots=True)
class SkipGram:
    """How vectors are learnt.

    Attributes:
        size: Of a vector.
        window: Neighbours to either side, at most.
        negative: Tokens drawn from the noise for each pair.
        rate: Of learning, in the beginning; it falls evenly to 0.0001.
        epochs: How often the text is gone through.
        seed: Of all draws.
    """

    size: int
    window: int
    negative: int
    rate: float
    epochs: int
    seed: int

    def learn(self, ids: np.ndarray, firsts: np.ndarray, num_tokens: int) -> np.ndarray:
        """Return float32 [V, size]; a token that is not there keeps what it was drawn as.

        Args:
            ids: Of all lines, one after another.
            firsts: int64 [L + 1], where lines begin.
            num_tokens: V.
        """
        rng = np.random.default_rng(self.seed)
        bound = 0.5 / self.size
        vectors = rng.uniform(-bound, bound, (num_tokens, self.size)).astype(np.float32)
        if not len(ids):
            return vectors
        counts = np.bincount(ids, minlength=num_tokens)
        noise = np.cumsum(counts.astype(np.float64) ** NOISE_POWER)
        frequent = FREQUENT_SHARE * len(ids)
        with np.errstate(divide="ignore"):
            kept = (np.sqrt(counts / frequent) + 1) * (frequent / counts)
        outputs = np.zeros_like(vectors)
        _learn(
            ids.astype(np.int64),
            firsts,
            vectors,
            outputs,
            noise / noise[-1],
            np.minimum(kept, 1.0),
            self.window,
            self.negative,
            self.rate,
            self.epochs,
            np.uint64(self.seed),
        )
        return vectors


@compiled
def _next_uniform(state: np.ndarray) -> float:
    """Return a number in [0, 1), and move its state on."""
    state[0] += STEP
    return float(uniform(state[0]))


@compiled
def _learn(
    ids: np.ndarray,
    firsts: np.ndarray,
    vectors: np.ndarray,
    outputs: np.ndarray,
    noise: np.ndarray,
    kept: np.ndarray,
    window: int,
    negative: int,
    first_rate: float,
    epochs: int,
    seed: np.uint64,
) -> None:
    size = vectors.shape[1]
    state = np.full(1, seed, np.uint64)
    change = np.empty(size, np.float32)
    longest = 0
    for line in range(len(firsts) - 1):
        longest = max(longest, firsts[line + 1] - firsts[line])
    tokens = np.empty(longest, np.int64)
    num_done = 0
    num_all = epochs * len(ids)
    for _ in range(epochs):
        for line in range(len(firsts) - 1):
            rate = np.float32(first_rate - (first_rate - LAST_RATE) * (num_done / num_all))
            num = 0
            for i in range(firsts[line], firsts[line + 1]):
                if kept[ids[i]] >= 1.0 or _next_uniform(state) < kept[ids[i]]:
                    tokens[num] = ids[i]
                    num += 1
            for i in range(num):
                reach = window - int(_next_uniform(state) * window)
                for j in range(max(0, i - reach), min(num, i + reach + 1)):
                    if i == j:
                        continue
                    context = vectors[tokens[j]]
                    change[:] = 0
                    for draw in range(negative + 1):
                        target = tokens[i]
                        if draw:
                            target = min(
                                np.searchsorted(noise, _next_uniform(state), side="right"),
                                len(noise) - 1,
                            )
                            if target == tokens[i]:
                                continue
                        output = outputs[target]
                        product = np.float32(0)
                        for k in range(size):
                            product += context[k] * output[k]
                        wanted = np.float32(1 if draw == 0 else 0)
                        sigmoid = np.float32(1) / (np.float32(1) + np.exp(-product))
                        step = (wanted - sigmoid) * rate
                        for k in range(size):
                            change[k] += step * output[k]
                            output[k] += step * context[k]
                    for k in range(size):
                        context[k] += change[k]
            num_done += firsts[line + 1] - firsts[line]
