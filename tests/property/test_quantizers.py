"""Every quantizer: there and back, ranges, ties, types, pieces; and what each adds to that."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from operators.errors import ContractError
from operators.image_tokenizers.quantize import per_dimension, vq
from operators.image_tokenizers.quantize.base import Quantizer
from operators.image_tokenizers.quantize.fsq import FSQ
from operators.image_tokenizers.quantize.keyed import KeyedCodes
from operators.image_tokenizers.quantize.lfq import BSQ, LFQ
from operators.image_tokenizers.quantize.per_dimension import PerDimension
from operators.image_tokenizers.quantize.product import Product
from operators.image_tokenizers.quantize.residual import MultiScale, Residual
from operators.image_tokenizers.quantize.shared_index import SharedIndexVQ
from operators.image_tokenizers.quantize.vq import VQ, Metric
from tests.golden_tokenizer import GoldenModel

METRICS: tuple[Metric, ...] = ("euclidean", "cosine", "dot")
WHOLE = 1 << 64


def random_vq(
    size: int, dim: int, metric: Metric, *, normalized: bool = False, seed: int = 0
) -> VQ:
    found = VQ(size, dim, metric=metric, normalized=normalized)
    rows = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))
    # By inner product an entry finds itself only where all have one length.
    found.embedding.weight.data = F.normalize(rows, dim=-1) if metric == "dot" else rows
    return found


def random_shared_index() -> SharedIndexVQ:
    found = SharedIndexVQ(50, (5, 3))
    for seed, book in enumerate(found.codebooks):
        generator = torch.Generator().manual_seed(seed)
        book.weight.data = torch.randn(book.weight.shape, generator=generator)
    return found


def random_keyed_codes() -> KeyedCodes:
    found = KeyedCodes(30, 9, 3)
    rows = torch.randn(3, 30, 3, generator=torch.Generator().manual_seed(0))
    found.codes.data = F.normalize(rows, dim=-1)
    for maps in (found.key_weight, found.value_weight):  # so that a code's vector is its key
        maps.data = torch.eye(3).expand(3, 3, 3).clone()
    return found


def fsq_latents(vectors: torch.Tensor) -> torch.Tensor:
    """Invert ``FSQ.bound``."""
    levels = torch.tensor((8, 5, 3, 4))
    half = (levels - 1) * 1.001 / 2
    offset = torch.where(levels % 2 == 0, 0.5, 0.0)
    return torch.atanh((vectors * (levels // 2) + offset) / half) - torch.atanh(offset / half)


@dataclass(frozen=True)
class Case:
    """A quantizer, and what holds of it.

    Attributes:
        name: Of the test.
        build: Makes it; its weights are the same every time.
        dim: D.
        grid: Positions that latents and ids have in front of D, where it needs a grid.
        back: Makes latents whose ids are known, of vectors; None where no vectors give all ids.
    """

    name: str
    build: Callable[[], Quantizer]
    dim: int
    grid: tuple[int, int] | None = None
    back: Callable[[torch.Tensor], torch.Tensor] | None = torch.clone

    def latents(self, lead: tuple[int, ...], seed: int) -> torch.Tensor:
        shape = (*lead, self.dim) if self.grid is None else (*lead, self.grid[0], self.dim)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2

    def ids(self, lead: tuple[int, ...], seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        positions = () if self.grid is None else (self.grid[1],)
        streams = []
        for size in self.build().codebook_sizes:
            least, most = (-(1 << 63) if size == WHOLE else 0), min(size, (1 << 63) - 1)
            streams.append(torch.randint(least, most, (*lead, *positions), generator=generator))
        return streams[0] if len(streams) == 1 else torch.stack(streams, dim=-1)


def halving(depth: int) -> list[Quantizer]:
    """Return stages whose sums are all different, and found again sign by sign."""
    return [LFQ(4, radius=2.0**-number) for number in range(depth)]


CASES = [
    *(Case(f"vq {metric}", partial(random_vq, 50, 6, metric), 6) for metric in METRICS),
    Case("vq normalized", lambda: random_vq(50, 6, "cosine", normalized=True), 6),
    Case("fsq", lambda: FSQ((8, 5, 3, 4)), 4, back=fsq_latents),
    Case("lfq", lambda: LFQ(10), 10),
    Case("lfq big-endian", lambda: LFQ(10, first_is_high=True), 10),
    Case("lfq groups", lambda: LFQ(12, num_groups=3, first_is_high=True), 12),
    Case("lfq 63 bits", lambda: LFQ(63), 63),
    Case("lfq 64 bits", lambda: LFQ(64), 64),
    Case("lfq groups of 64 bits", lambda: LFQ(128, num_groups=2, first_is_high=True), 128),
    Case("bsq", lambda: BSQ(9), 9),
    Case("bsq groups", lambda: BSQ(8, num_groups=2), 8),
    Case(
        "product",
        lambda: Product([random_vq(30, 3, "cosine", seed=seed) for seed in range(3)], (3, 3, 3)),
        9,
    ),
    Case("product of unlike parts", lambda: Product([LFQ(2), random_vq(9, 3, "dot")], (2, 3)), 5),
    Case("residual of bits", lambda: Residual(3, halving(3)), 4),
    Case("residual", lambda: Residual(3, [random_vq(20, 5, "euclidean")]), 5, back=None),
    Case("multi-scale of bits", lambda: MultiScale((2, 2, 2), halving(3)), 4, grid=(4, 12)),
    Case(
        "multi-scale",
        lambda: MultiScale((1, 2, 3), [random_vq(20, 5, "cosine")]),
        5,
        grid=(9, 14),
        back=None,
    ),
    Case(
        "product of scales",
        lambda: Product([MultiScale((2, 2), halving(2)) for _ in range(2)], (4, 4)),
        8,
        grid=(4, 8),
    ),
    Case("per dimension", lambda: PerDimension(7), 7),
    Case("per dimension, 3 bits", lambda: PerDimension(2, bits=3, low=-1, high=2, tail=4.0), 2),
    Case("shared index", random_shared_index, 8),
    Case("keyed codes", random_keyed_codes, 9),
]
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
LEADS = st.sampled_from([(), (1,), (7,), (2, 3)])
SEEDS = st.integers(0, 2**32)
FEW = settings(max_examples=15, deadline=None)


def lead_of(case: Case, lead: tuple[int, ...]) -> tuple[int, ...]:
    return lead or ((2,) if case.grid else ())


@EACH
@FEW
@given(lead=LEADS, seed=SEEDS)
def test_ids_are_found_again(case: Case, lead: tuple[int, ...], seed: int) -> None:
    quantizer = case.build()
    ids = case.ids(lead_of(case, lead), seed)
    vectors = quantizer.decode(ids)
    assert vectors.dtype == torch.float32
    if case.back is not None:
        assert torch.equal(quantizer.encode(case.back(vectors)), ids)


@EACH
@FEW
@given(lead=LEADS, seed=SEEDS)
def test_ids_are_in_range_and_shaped_like_the_latents(
    case: Case, lead: tuple[int, ...], seed: int
) -> None:
    quantizer = case.build()
    latents = case.latents(lead_of(case, lead), seed)
    ids = quantizer.encode(latents)
    assert ids.dtype == torch.int64
    assert ids.shape == case.ids(lead_of(case, lead), seed).shape
    assert quantizer.decode(ids).shape == latents.shape  # which checks the range


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_arithmetic_is_float32_whatever_comes_in(case: Case, dtype: torch.dtype) -> None:
    quantizer = case.build()
    latents = case.latents((40,), 1).to(dtype)
    ids = quantizer.encode(latents)
    assert torch.equal(ids, quantizer.encode(latents.float()))
    for width in (torch.bfloat16, torch.float64):
        assert quantizer.to(width).decode(ids).dtype == torch.float32


@EACH
def test_a_row_does_not_depend_on_its_company(case: Case) -> None:
    quantizer, latents = case.build(), case.latents((20,), 2)
    ids = quantizer.encode(latents)
    for row in range(20):
        assert torch.equal(quantizer.encode(latents[row : row + 1])[0], ids[row])


@EACH
def test_ids_out_of_range_are_refused(case: Case) -> None:
    quantizer = case.build()
    sizes = quantizer.codebook_sizes
    for stream, size in enumerate(sizes):
        if size == WHOLE:
            continue  # every int64 is an id
        for wrong in {-1, size} if size < 1 << 63 else {-1}:
            ids = case.ids((2,), 0)
            (ids if len(sizes) == 1 else ids[..., stream])[1] = wrong
            with pytest.raises(ContractError, match=f"id {wrong} is out of range, expected 0 to"):
                quantizer.decode(ids)


@EACH
def test_large_codebooks_are_searched_in_pieces(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer, latents = case.build(), case.latents((20,), 3)
    whole = quantizer.encode(latents)
    monkeypatch.setattr(vq, "_MAX_SCORES", 150)  # three rows of 50 entries
    assert torch.equal(quantizer.encode(latents), whole)


@EACH
def test_built_on_the_meta_device(case: Case) -> None:
    """As nets are: what is no parameter must not stay there."""
    with torch.device("meta"):
        quantizer = case.build()
    quantizer.load_state_dict(case.build().state_dict(), assign=True)
    latents = case.latents((3,), 0)
    ids = quantizer.encode(latents)
    assert torch.equal(ids, case.build().encode(latents))
    assert torch.equal(quantizer.decode(ids), case.build().decode(ids))


# --- ties ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_equal_entries_give_the_lowest_id(metric: Metric) -> None:
    quantizer = VQ(9, 3, metric=metric)
    quantizer.embedding.weight.data = torch.eye(3).repeat(3, 1)
    assert quantizer.encode(torch.eye(3) * 4).tolist() == [0, 1, 2]


@pytest.mark.parametrize("metric", METRICS)
def test_entries_at_one_distance_give_the_lowest_id(metric: Metric) -> None:
    quantizer = VQ(4, 4, metric=metric)
    quantizer.embedding.weight.data = torch.eye(4)
    latents = torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]])
    assert quantizer.encode(latents).tolist() == [1, 0, 0]


def test_shared_entries_at_one_distance_give_the_lowest_id() -> None:
    quantizer = SharedIndexVQ(4, (2, 2))
    for book in quantizer.codebooks:
        book.weight.data = torch.eye(2).repeat(2, 1)
    assert quantizer.encode(torch.tensor([[1.0, 0, 1, 0], [0, 1, 1, 0]])).tolist() == [0, 0]


def test_a_latent_between_two_values_gives_the_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_dimension, "_means_of_parts", lambda *_: torch.tensor([-2.0, 0, 1, 2]))
    quantizer = PerDimension(4, low=-4, high=4, tail=4)  # so that nothing is rounded
    assert quantizer.encode(torch.tensor([-1.0, 0.5, 1.5, 1.75])).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("quantizer", [LFQ(3), BSQ(3)], ids=["lfq", "bsq"])
def test_zero_counts_as_below_zero(quantizer: Quantizer) -> None:
    latents = torch.tensor([[0.0, -0.0, 0.0], [1e-30, 0.0, -1e-30]])
    assert quantizer.encode(latents).tolist() == [0, 1]


# --- each by itself ------------------------------------------------------------------------------


def test_what_is_nearest() -> None:
    """By three measures, three entries: only their order along the latent's line differs."""
    codes = torch.tensor([[3.0, 3.0], [1.0, 0.2], [0.1, 0.0]])
    latent = torch.tensor([[0.8, 0.0]])
    for metric, expected in (("euclidean", 1), ("cosine", 2), ("dot", 0)):
        quantizer = VQ(3, 2, metric=metric)  # type: ignore[arg-type]
        quantizer.embedding.weight.data = codes
        assert quantizer.encode(latent).tolist() == [expected]


def test_order_of_bits() -> None:
    latents = torch.tensor([1.0, -1, -1, -1, 1, 1])
    assert LFQ(6).encode(latents).item() == 0b110001
    assert LFQ(6, first_is_high=True).encode(latents).item() == 0b100011
    assert LFQ(6, num_groups=2).encode(latents).tolist() == [0b001, 0b110]
    assert LFQ(6, num_groups=2, first_is_high=True).encode(latents).tolist() == [0b100, 0b011]


@pytest.mark.parametrize("first_is_high", [False, True])
def test_sixty_four_bits_are_the_bits_of_an_int64(first_is_high: bool) -> None:
    quantizer = LFQ(64, first_is_high=first_is_high)
    assert quantizer.codebook_sizes == (WHOLE,)
    for value in (0, 1, 1 << 63, WHOLE - 1, 0x9E3779B97F4A7C15):
        order = reversed(range(64)) if first_is_high else range(64)
        latents = torch.tensor([1.0 if value >> bit & 1 else -1.0 for bit in order])
        ids = quantizer.encode(latents)
        assert ids.view(torch.uint64).item() == value
        assert torch.equal(quantizer.decode(ids.view(torch.uint64)), latents)


def test_corners_of_the_sphere() -> None:
    vectors = BSQ(16, num_groups=2).decode(torch.tensor([[3, 255]]))
    assert vectors.abs().unique().tolist() == [0.25]
    assert vectors.norm().item() == pytest.approx(1)


@pytest.mark.parametrize(("bits", "groups"), [(7, 2), (65, 1), (0, 1)])
def test_bits_that_do_not_fit(bits: int, groups: int) -> None:
    with pytest.raises(
        ValueError, match=f"{bits} bits in {groups} groups: expected equal, 1 to 64"
    ):
        LFQ(bits, num_groups=groups)


def test_a_product_is_its_parts_side_by_side() -> None:
    parts = [random_vq(30, 3, "cosine", seed=seed) for seed in range(2)]
    latents = torch.randn(11, 6, generator=torch.Generator().manual_seed(0))
    ids = Product(parts, (3, 3)).encode(latents)
    for number, part in enumerate(parts):
        run = latents[:, 3 * number : 3 * number + 3]
        assert torch.equal(ids[:, number], part.encode(run))


def test_a_residual_is_quantized_stage_by_stage() -> None:
    stages = [random_vq(30, 3, "euclidean", seed=seed) for seed in range(3)]
    quantizer = Residual(3, stages)
    latents = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
    ids, rest = quantizer.encode(latents), latents
    for number, stage in enumerate(stages):
        assert torch.equal(ids[:, number], stage.encode(rest))
        rest = rest - stage.decode(ids[:, number])
    torch.testing.assert_close(quantizer.decode(ids), latents - rest)


def test_coarser_residuals_are_prefixes() -> None:
    stages = [random_vq(30, 3, "euclidean", seed=seed) for seed in range(3)]
    latents = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        Residual(3, stages).encode(latents)[:, :2], Residual(2, stages[:2]).encode(latents)
    )


def test_one_quantizer_for_all_stages_is_stored_once() -> None:
    for quantizer in (
        Residual(3, [random_vq(8, 2, "cosine")]),
        MultiScale((1, 2, 4), [random_vq(8, 2, "cosine")]),
    ):
        assert list(quantizer.state_dict()) == ["stages.0.embedding.weight"]


def test_one_scale_is_the_quantizer_itself() -> None:
    inner = random_vq(30, 3, "cosine")
    latents = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    ids = inner.encode(latents)
    assert torch.equal(MultiScale((4,), [inner]).encode(latents), ids)
    assert torch.equal(MultiScale((4,), [inner]).decode(ids), inner.decode(ids))


def test_the_coarsest_scale_is_the_mean() -> None:
    inner = random_vq(30, 3, "euclidean")
    latents = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    ids = MultiScale((1, 4), [inner]).encode(latents)
    assert torch.equal(ids[:, 0], inner.encode(latents.mean(dim=1)))
    rest = latents - inner.decode(ids[:, :1])
    assert torch.equal(ids[:, 1:], inner.encode(rest))


def test_the_first_scales_alone_can_be_decoded() -> None:
    inner = random_vq(30, 3, "euclidean")
    quantizer = MultiScale((1, 2, 4), [inner])
    ids = quantizer.encode(torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0)))
    coarse = quantizer.decode(ids[:, :1])
    torch.testing.assert_close(coarse, inner.decode(ids[:, :1]).expand(-1, 16, -1))
    rest = quantizer.decode(ids) - quantizer.decode(ids[:, :5])
    torch.testing.assert_close(rest, inner.decode(ids[:, 5:]), rtol=0, atol=1e-5)
    with pytest.raises(ContractError, match="4 ids, expected whole scales: 1, 5, 21"):
        quantizer.decode(ids[:, :4])


def test_shared_entries_are_nearest_in_sum() -> None:
    quantizer = random_shared_index()
    latents = torch.randn(40, 8, generator=torch.Generator().manual_seed(9))
    first, second = (F.normalize(part, dim=-1) for part in latents.split((5, 3), dim=-1))
    books = [F.normalize(book.weight, dim=-1) for book in quantizer.codebooks]
    apart = torch.cdist(first, books[0]) ** 2 + torch.cdist(second, books[1]) ** 2
    assert torch.equal(quantizer.encode(latents), apart.argmin(dim=1))


def test_latents_outside_the_interval_count_as_its_ends() -> None:
    quantizer = PerDimension(3)
    latents = torch.tensor([[-9.0, 9.0, math.inf], [-5.0, 5.0, 5.0]])
    assert quantizer.encode(latents).tolist() == [[0, 63, 63]] * 2


@pytest.mark.parametrize(
    ("whole", "sizes"), [(Product, (4, 4)), (MultiScale, (1, 2))], ids=["product", "multi-scale"]
)
def test_parts_have_one_stream(whole: Callable[..., Quantizer], sizes: tuple[int, int]) -> None:
    parts = [LFQ(4, num_groups=2), LFQ(4)]
    with pytest.raises(ValueError, match="LFQ has 2 streams, expected one"):
        whole(*((parts, sizes) if whole is Product else (sizes, parts)))
    with pytest.raises(ValueError, match="LFQ has 2 streams, expected one"):
        Residual(2, parts)


def test_numbers_of_parts() -> None:
    with pytest.raises(ValueError, match="1 parts, 2 dims: expected equal, at least 2"):
        Product([LFQ(4)], (2, 2))
    for build in (lambda s: Residual(3, s), lambda s: MultiScale((1, 2, 3), s)):
        with pytest.raises(
            ValueError, match="2 quantizers for 3 stages, expected one, or one each"
        ):
            build([LFQ(4), LFQ(4)])
    with pytest.raises(ValueError, match=r"codebooks of \[4, 8\] ids, expected one size"):
        MultiScale((1, 2), [LFQ(2), LFQ(3)])
    with pytest.raises(ValueError, match="depth 1: expected at least 2"):
        Residual(1, [LFQ(4)])


# --- the authors' code ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 5, 6])
def test_tokenbridge_values(bits: int) -> None:
    golden = GoldenModel("tokenbridge", "")
    outputs, name = golden.tensors("outputs"), f"b{bits}_r5_s3"
    quantizer = PerDimension(1, bits=bits)
    ids = quantizer.encode(golden.tensors("inputs")["grid"][:, None])[:, 0]
    assert torch.equal(ids, outputs[f"grid_tokens_{name}"])
    found = quantizer.decode(ids[:, None])[:, 0]
    torch.testing.assert_close(found, outputs[f"grid_dequant_{name}"], rtol=0, atol=5e-6)


@pytest.mark.parametrize("kind", ["mode", "sampled"])
def test_tokenbridge_latents(kind: str) -> None:
    outputs = GoldenModel("tokenbridge", "").tensors("outputs")
    latents = outputs[f"latents_{kind}"].flatten(2).transpose(1, 2)
    assert torch.equal(PerDimension(16).encode(latents), outputs[f"tokens_{kind}"])


def test_wetok_groups() -> None:
    outputs = GoldenModel("wetok", "").tensors("outputs")
    latents = outputs["prequant"].flatten(2).transpose(1, 2)
    quantizer = LFQ(16, num_groups=2)
    assert torch.equal(quantizer.encode(latents), outputs["tokens"])
    vectors = quantizer.decode(outputs["tokens"]).transpose(1, 2).unflatten(2, (8, 8))
    assert torch.equal(vectors, outputs["quant_exact"])
    factorized = Product([LFQ(6), LFQ(10)], (6, 10)).encode(latents)
    for number in range(2):
        assert torch.equal(factorized[..., number], outputs[f"tokens_factorized_{number}"])


def test_atoken_levels() -> None:
    golden = GoldenModel("atoken_fsq", "")
    outputs = golden.tensors("outputs")
    quantizer = Product([FSQ((4,) * 6) for _ in range(8)], (6,) * 8)
    ids = quantizer.encode(golden.tensors("inputs")["z"])
    assert torch.equal(ids, outputs["tokens"].long())
    torch.testing.assert_close(quantizer.decode(ids), outputs["codes_from_indices"])
