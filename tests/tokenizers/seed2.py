"""SEED-2."""

from tests.golden_tokenizer import GoldenModel

MODELS = (
    GoldenModel(
        "seed2",
        "seed2",
        file="seed_quantizer.pt",
        prequant=lambda outputs: outputs["prequant"],
    ),
)
