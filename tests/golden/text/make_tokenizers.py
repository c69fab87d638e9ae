"""Write the tokenizers that the tests of ``text_tokenizer`` use. Run it from this folder.

``bytelevel_bpe.json``: byte-level BPE of 400 ids, trained on the sentences below, with three
special tokens, a template that adds ``<s>`` and ``</s>``, one added token that is not special, and
truncation and padding switched on, as files on the hub often have them.

``unigram.json``: Unigram whose model itself holds ``</s>`` as a piece, as T5
and XLM-R do.
"""

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

SENTENCES = [
    "The old mill stands where the river bends, and its wheel has not turned for years.",
    "Grain goes in at the top; flour comes out at the bottom, one sack after another.",
    "Die alte Mühle steht am Fluss, und ihr Rad dreht sich schon lange nicht mehr.",
    "def grind(sacks: list[int]) -> int:\n    return sum(sack // 2 for sack in sacks)\n",
    "1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144 and 233 sacks were counted.",
]


def bytelevel_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=399,
        special_tokens=["<s>", "</s>", "<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.add_tokens([AddedToken("<tab>", special=False, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.enable_truncation(max_length=8)
    tokenizer.enable_padding(pad_id=2, pad_token="<|endoftext|>")
    return tokenizer


def unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("</s>", 0.0)]
    pieces += [("▁mill", -2.0), ("▁wheel", -2.5), ("▁", -3.0)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz</>"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


if __name__ == "__main__":
    bytelevel_bpe().save("bytelevel_bpe.json")
    unigram().save("unigram.json")
