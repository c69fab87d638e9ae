"""Write the tokenizers that the tests of ``text_tokenizer`` use. Run it from this folder.

``bytelevel_bpe.json``: byte-level BPE of 400 ids, trained on the sentences below, with three
special tokens, a template that adds ``<s>`` and ``</s>``, one added token that is not special, and
truncation and padding switched on, as files on the hub often have them.

``split_nfc.json``: byte-level BPE as Qwen's, with a pattern and NFC, and added tokens that are
matched before and after normalisation.

``kl3m.json``: byte-level BPE laid out as KL3M's character tokenizers (kl3m-004-char-4k-cased): NFKC
in a sequence, seven special tokens and more of chat, an added token that is not special, padding to
the left, a ByteLevel post-processor, merges of at most four characters, and single bytes that the
vocabulary lacks.

``unigram.json``: Unigram whose model itself holds ``</s>`` as a piece, as T5
and XLM-R do.

``unigram.model`` and ``bpe.model``: SentencePiece models with a user-defined symbol and
two rules of normalisation.
"""

import io
import tempfile
from pathlib import Path

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
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


def split_nfc() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    tokenizer.add_tokens([AddedToken("Mühle", special=False, normalized=True)])
    return tokenizer


def kl3m() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    special = [f"<|{name}|>" for name in ("start", "end", "pad", "unk", "sep", "cls", "mask")]
    special += [f"<{slash}|{name}|>" for name in ("system", "user") for slash in ("", "/")]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=special,
        # Bytes 0x18 and 0x1a stand as \u0118 and \u011a in the byte-level alphabet.
        initial_alphabet=[letter for letter in letters if letter not in "\u0118\u011a"],
        max_token_length=4,
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.add_tokens([AddedToken("    ", special=False, normalized=True)])
    tokenizer.enable_padding(direction="left", pad_id=2, pad_token="<|pad|>")
    return tokenizer


def sentencepiece_model(kind: str) -> bytes:
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile(suffix=".tsv") as rules:
        rules.write(b"FB01\t66 69\n3000\t20\n")  # not all of NFKC, which takes 240 kB
        rules.flush()
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(SENTENCES * 4),
            model_writer=model,
            model_type=kind,
            vocab_size=100,
            normalization_rule_tsv=rules.name,
            user_defined_symbols=["<tab>"],
            minloglevel=2,
        )
    # The folder of the rules is no part of a model.
    return model.getvalue().replace(rules.name.encode(), b"-" * len(rules.name))


if __name__ == "__main__":
    bytelevel_bpe().save("bytelevel_bpe.json")
    split_nfc().save("split_nfc.json")
    kl3m().save("kl3m.json")
    unigram().save("unigram.json")
    for kind in ("unigram", "bpe"):
        Path(f"{kind}.model").write_bytes(sentencepiece_model(kind))
