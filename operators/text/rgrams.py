"""Train R-grams: pairs are merged wherever they stand, across words too."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from operators.text.algorithms.byte_level import tokenizer_json
from operators.text.algorithms.pretokens import count_pieces, splitter
from operators.text.training import Documents, Progress, TokenizerTrainer, TrainerConfig


class RGramsConfig(TrainerConfig):
    """What a job may say about the trainer ``rgrams``."""

    name: Literal["rgrams"] = "rgrams"
    vocab_size: Annotated[
        int, Field(gt=256, le=1 << 24, description="Tokens to learn, without special ones.")
    ] = 100_000
    min_count: Annotated[
        int, Field(ge=2, description="Stop when the most frequent pair is rarer than this.")
    ] = 2
    within: Annotated[
        Literal["line", "document"],
        Field(description="What no token goes across; a line ends with its line feed."),
    ] = "line"
    special_tokens: Annotated[
        tuple[str, ...], Field(description="Special tokens; they get the ids after the others.")
    ] = ()


class RGrams(TokenizerTrainer[RGramsConfig]):
    """Learn R-grams (https://arxiv.org/abs/1808.04670): Re-Pair on text that nothing cuts.

    From single bytes on, the most frequent pair of neighbours is replaced everywhere by a new
    token, until ``vocab_size`` is reached or no pair stands ``min_count`` times (Re-Pair: twice).
    Spaces are bytes like others, so tokens become phrases. As in ``bpe``, and unlike Re-Pair,
    ``aaa`` counts ``a a`` twice; of pairs with one count that with the smaller left id goes first.

    Writes ``tokenizer.json``, byte-level BPE that cuts only lines, or nothing, which
    ``text_tokenizer`` reads. Its ids of a training text are its R-grams.

    The authors published no program. Checked against an oracle that counts anew before every
    merge, and that tokenizing repeats the merges. One core trains on 1.9 MB of English a second
    within lines, on 0.6 within documents of 3 kB (32,000 tokens).
    """

    Config = RGramsConfig

    def train(self, documents: Documents, progress: Progress) -> Mapping[str, bytes]:
        """See ``TokenizerTrainer.train``."""
        from operators.text.algorithms.bpe_training import learn_merges

        config = self.config
        by_line = config.within == "line"
        pieces = count_pieces(documents, splitter("identity", "keep"), progress, by_line=by_line)
        learnt = learn_merges(
            pieces, range(256), config.vocab_size, progress, min_count=config.min_count
        )
        special = {name: len(learnt.tokens) + i for i, name in enumerate(config.special_tokens)}
        pattern = LINE if by_line else "identity"
        return {
            "tokenizer.json": tokenizer_json(learnt.ids, learnt.merges, pattern, "keep", special)
        }


LINE = r"[^\n]*\n"
"""What lies after the last line feed is a piece, too."""
