"""SEED-2 against the authors' code: what lies before the ids, and the image embeddings."""

from pathlib import Path

import pytest
import torch

from operators.errors import ContractError, SetupError
from operators.image_tokenizers.nn.qformer import QFormer
from operators.image_tokenizers.seed2 import Seed2
from tests.golden_tokenizer import assert_near
from tests.tokenizers.seed2 import MODELS

MODEL = MODELS[0]
IMAGES = MODEL.tensors("inputs")["images"]
OUTPUTS = MODEL.tensors("outputs")


@pytest.fixture(scope="module")
def op(tmp_path_factory: pytest.TempPathFactory) -> Seed2:
    found = MODEL.build(MODEL.write(tmp_path_factory.mktemp("seed2")))
    found.setup("cpu")
    assert isinstance(found, Seed2)
    return found


def test_everything_before_the_ids(op: Seed2) -> None:
    encoder = op._encoder
    with torch.inference_mode():
        tokens = encoder.tokens_of(IMAGES)
        queries = encoder.queries_of(tokens)
    assert_near(tokens, OUTPUTS["image_embeds"], 2e-4)
    assert_near(queries, OUTPUTS["qformer_last_hidden"], 2e-4)
    assert_near(encoder.encode_task_layer(queries), OUTPUTS["prequant"], 2e-4)


def test_image_embeddings(op: Seed2) -> None:
    tokens = OUTPUTS["tokens"].numpy().astype("uint8")
    found = torch.from_numpy(op.image_embeddings(tokens))
    assert_near(found, OUTPUTS["unclip_image_embeds"], 1e-4)
    codes = op._embedder.quantize.decode(OUTPUTS["tokens"])
    assert_near(op._embedder.decode_task_layer(codes), OUTPUTS["decode_task_output"], 1e-4)


def test_image_embeddings_need_no_encoder(tmp_path: Path) -> None:
    kept = ("quantize.", "decode_task_layer.", "pos_embed_image", "blocks_image.", "image_down.")
    few = {
        name: tensor
        for name, tensor in MODEL.tensors("weights").items()
        if name.startswith((*kept, "distill_image_proj."))
    }
    op = MODEL.build(MODEL.write(tmp_path, weights=few))
    assert isinstance(op, Seed2)
    assert op.image_embeddings(OUTPUTS["tokens"].numpy()).shape == (6, 24)


def test_image_embeddings_of_ids_out_of_range(op: Seed2) -> None:
    tokens = OUTPUTS["tokens"].clone()
    tokens[0, 3] = 160
    with pytest.raises(ContractError, match="id 160 is out of range, expected 0 to 159"):
        op.image_embeddings(tokens.numpy())


def test_images_cannot_be_drawn(op: Seed2) -> None:
    with pytest.raises(SetupError, match=r"Stable Diffusion unCLIP.*`image_embeddings`"):
        op.decode({"tokens": OUTPUTS["tokens"].numpy()})


def test_an_id_depends_on_no_later_query(op: Seed2) -> None:
    encoder = op._encoder
    before = encoder.query_tokens.data.clone()
    encoder.query_tokens.data[:, 20:] += torch.randn(before[:, 20:].shape)
    found = op.encode(IMAGES)
    encoder.query_tokens.data.copy_(before)
    assert torch.equal(found[:, :20], OUTPUTS["tokens"][:, :20])
    assert not torch.equal(found[:, 20:], OUTPUTS["tokens"][:, 20:])


def test_queries_see_one_another_where_they_are_not_causal() -> None:
    torch.manual_seed(0)
    former = QFormer(16, 2, 2, 32, context_dim=8, cross_every=2, causal=False)
    queries, image = torch.randn(1, 5, 16), torch.randn(2, 3, 8)
    changed = queries.clone()
    changed[:, 4] = torch.randn(16)
    with torch.inference_mode():
        first = [former(each, image)[:, 0] for each in (queries, changed)]
    assert not torch.allclose(*first)
