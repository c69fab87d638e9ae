"""TESTA: merge frames that are alike, then tokens within each frame."""

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.errors import ContractError
from operators.reducers.base import (
    Keep,
    Reduction,
    Tokens,
    cosine,
    merge,
    share,
    sum_by_map,
    top_k,
)
from operators.reducers.key_metric import KeyMetricConfig, KeyMetricReducer
from operators.reducers.tome import match

if TYPE_CHECKING:
    import torch


class TESTAConfig(KeyMetricConfig):
    """What a job may say about TESTA."""

    name: Literal["testa"] = "testa"
    frames: Annotated[
        Keep, Field(description="Frames that are left, or their share; at least half of them.")
    ] = 0.5
    tokens: Annotated[
        Keep, Field(description="Tokens that are left of each frame, or their share, likewise.")
    ] = 0.5


class TESTA(KeyMetricReducer[TESTAConfig]):
    """Merges whole frames first, then the tokens of each of what is left, by bipartite matching.

    Reads all frames of a video, [T, N, C]. Frames: each even frame is matched with an odd one, by
    the cosines of tokens at the same place; the places vote on its partner (the most frequent, of
    equals the first), and its likeness is the most frequent of their best cosines, which is the
    lowest where no two are the same. The most alike even frames are merged, each place for itself.
    Then tokens of each frame are merged as ToMe does, different ones in each. All by size; keys go
    along, as averages. Rows: the even frames that are left, by time, then the odd ones; in each the
    even tokens that are left, by place, then the odd ones.

    The authors merge within the layers of a divided space-time model, by temporal keys for frames
    and spatial ones for tokens; here both are by the keys that the encoder gives. A share is
    rounded up.

    Source: Ren et al., "TESTA", section 3. Checked: the authors' groups, sizes and features of
    both merges, a brute-force oracle.
    """

    Config = TESTAConfig
    paper = "arXiv:2310.19060"
    is_joint = True
    needs_crops = True

    @property
    def needs_whole(self) -> bool:
        """Padding has no place in a video."""
        return True

    def num_kept(self, num_tokens: int) -> int:
        """Return the frames times the tokens that are left.

        Raises:
            ContractError: fewer than half of one of them.
        """
        frames, tokens = self._left(num_tokens)
        return frames * tokens

    def reduce(self, tokens: Tokens) -> Reduction:
        """Merge frames, then tokens."""
        import torch

        metric = self.metric_of(tokens)
        count, num = metric.shape[:2]
        frames = self.joint_crops or 1
        of_frame = num // frames
        frames_left, tokens_left = self._left(num)
        weights = tokens.sizes.unflatten(1, (frames, of_frame))
        metric = metric.float().unflatten(1, (frames, of_frame))
        features = tokens.features.float().unflatten(1, (frames, of_frame))
        frame_map = match_frames(metric, frames - frames_left)
        sizes = sum_by_map(weights, frame_map, frames_left)

        def merged(values: "torch.Tensor") -> "torch.Tensor":
            """Average [B, T, N, D] over the frames that are merged: [B * T', N, D]."""
            weighted = (values * weights[..., None]).flatten(2)
            summed = sum_by_map(weighted, frame_map, frames_left).unflatten(2, (of_frame, -1))
            return (summed / sizes[..., None]).flatten(0, 1)

        is_less = frames_left < frames
        features, metric = (
            merged(values) if is_less else values.flatten(0, 1) for values in (features, metric)
        )
        within = Tokens(features, sizes.flatten(0, 1))
        token_map = torch.arange(of_frame, device=metric.device).expand(len(metric), -1)
        if tokens_left < of_frame:
            token_map = match(metric, of_frame - tokens_left, within, ascending=True)
            features = merge(within, token_map, tokens_left).features
        found = sum_by_map(within.sizes[..., None], token_map, tokens_left)
        token_map = token_map.unflatten(0, (count, frames_left))
        rows = token_map.gather(1, frame_map[..., None].expand(-1, -1, of_frame))
        return Reduction(
            features.to(tokens.features.dtype).unflatten(0, (count, -1)).flatten(1, 2),
            (rows + frame_map[..., None] * tokens_left).flatten(1),
            sizes=found.unflatten(0, (count, -1)).flatten(1),
        )

    def _left(self, num_tokens: int) -> tuple[int, int]:
        """Return how many frames are left, and how many tokens of each."""
        frames = self.joint_crops or 1
        of_frame = num_tokens // frames
        found = []
        for option, num in (("frames", frames), ("tokens", of_frame)):
            keep = getattr(self.config, option)
            kept = share(keep, num, "testa", math.ceil, option)
            if kept < num - num // 2:
                raise ContractError(
                    f"testa: {option}={keep} is {kept} of {num}, one call can at most halve them "
                    f"to {num - num // 2}",
                    hint="put several reducers in a row",
                )
            found.append(kept)
        return found[0], found[1]


def match_frames(metric: "torch.Tensor", num_merged: int) -> "torch.Tensor":
    """Return int64 [B, T]: the frame of the result that each goes into.

    Args:
        metric: [B, T, N, D], what is compared.
        num_merged: How many even frames are merged, at most half of all.
    """
    import torch

    count, frames = metric.shape[:2]
    device = metric.device
    if num_merged == 0:
        return torch.arange(frames, device=device).expand(count, -1)
    by_place = metric.transpose(1, 2).flatten(0, 1)
    alike = cosine(by_place[:, 0::2], by_place[:, 1::2])
    best, partner = alike.max(dim=2)  # the first of equals
    votes = partner.unflatten(0, (count, -1)).transpose(1, 2)
    partner = most_frequent(votes)
    likeness = most_frequent(best.unflatten(0, (count, -1)).transpose(1, 2))
    order = top_k(likeness, likeness.shape[1])
    merged, left = order[:, :num_merged], order[:, num_merged:].sort(dim=1).values
    rows = torch.empty_like(order)
    first_odd = left.shape[1]
    rows.scatter_(1, left, torch.arange(first_odd, device=device).expand_as(left))
    rows.scatter_(1, merged, partner.gather(1, merged) + first_odd)
    frame_map = torch.empty((count, frames), dtype=torch.int64, device=device)
    frame_map[:, 0::2] = rows
    frame_map[:, 1::2] = torch.arange(frames // 2, device=device) + first_odd
    return frame_map


def most_frequent(values: "torch.Tensor") -> "torch.Tensor":
    """Return the most frequent value of the last axis, of equals the lowest."""
    import torch

    ordered = values.sort(dim=-1).values.contiguous()
    ends = torch.searchsorted(ordered, ordered, right=True)
    counts = ends - torch.searchsorted(ordered, ordered)
    most: torch.Tensor = ordered.gather(-1, counts.argmax(dim=-1, keepdim=True))[..., 0]
    return most
