"""FlexTok."""

from tests.flextok_checkpoint import golden_config
from tests.golden_tokenizer import GoldenModel

MODELS = (
    GoldenModel(
        "flextok",
        "flextok",
        config=lambda _: golden_config(),
        prequant=lambda outputs: outputs["enc_latents_prequant"],
    ),
)
