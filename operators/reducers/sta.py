"""STA: drop from each time slot of a video what was there before and says little."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.errors import ContractError
from operators.reducers.base import (
    Keep,
    Reduction,
    Tokens,
    cosine,
    select,
    share,
)
from operators.reducers.key_metric import KeyMetricConfig, KeyMetricReducer

if TYPE_CHECKING:
    import torch


class STAConfig(KeyMetricConfig):
    """What a job may say about STA."""

    name: Literal["sta"] = "sta"
    keep: Annotated[
        Keep, Field(description="Tokens that are left of each slot, or their share.")
    ] = 0.7
    slots: Annotated[
        int | None,
        Field(ge=2, description="Time slots that the tokens are divided into; null: the frames."),
    ] = None
    reverse: Annotated[
        bool, Field(description="From the last slot to the first (the authors' second stage).")
    ] = False


class STA(KeyMetricReducer[STAConfig]):
    """Keeps tokens of each time slot that little of the slots before leads to, or that say much.

    Reads all frames of a video, [T, N, C], or the tokens that an earlier ``sta`` left, [K, C], with
    ``slots`` then. Of the first slot the even tokens that are most like an odd one are dropped. A
    token of any other slot scores how much of the earlier slots' kept tokens it takes up
    (accumulated softmax of cosines), times one minus its saliency, the sum of its absolute
    features from 0 to 1 over the slot. The lowest scores are kept. Rows: slot after slot by time;
    in the first the odd tokens, then the even ones, from the least alike to the most; in the others
    from the lowest score to the highest.

    The authors do this at three depths of a model, with 8, 4 and 2 slots, the second time in
    reverse: put three in a row for that. The paper's importance is attention, the code's the sum of
    features. Where all tokens of a slot have the same sum their saliency is 0 here.

    Source: Ding et al., "Prune Spatio-temporal Tokens by Semantic-aware Temporal Accumulation",
    section 3. Checked: the authors' tokens and their order at three stages, a brute-force oracle.
    """

    Config = STAConfig
    paper = "arXiv:2308.04549"
    is_joint = True

    @property
    def needs_whole(self) -> bool:
        """Padding has no place in a video."""
        return True

    def num_kept(self, num_tokens: int) -> int:
        """Return what all slots keep.

        Raises:
            ContractError: slots do not divide the tokens, or a budget does not fit one.
        """
        slots = self._slots(num_tokens)
        return slots * share(self.config.keep, num_tokens // slots, "sta")

    def reduce(self, tokens: Tokens) -> Reduction:
        """Go through the slots."""
        import torch

        metric = self.metric_of(tokens)
        num = metric.shape[1]
        slots = self._slots(num)
        kept, of_slot = self.num_kept(num) // slots, num // slots
        keys = torch.nn.functional.normalize(metric.float(), dim=2).unflatten(1, (slots, of_slot))
        loud = tokens.features.float().abs().sum(dim=2).unflatten(1, (slots, of_slot))
        low, high = loud.amin(dim=2, keepdim=True), loud.amax(dim=2, keepdim=True)
        saliency = (loud - low) / (high - low).clamp(min=1e-12)

        order = list(range(slots))[:: -1 if self.config.reverse else 1]
        chosen: dict[int, torch.Tensor] = {}
        before, scores = torch.empty(0), None
        for slot in order:
            current = keys[:, slot]
            if not chosen:
                found = _by_likeness(current)
                before = _rows(current, found)
                chosen[slot] = found[:, :kept]
                continue
            flow = (current @ before.transpose(1, 2)).softmax(dim=1)
            total = flow.sum(dim=2) if scores is None else (flow @ scores[..., None])[..., 0]
            rank = total * (1 - saliency[:, slot])
            found = rank.sort(dim=1, stable=True).indices[:, :kept]
            chosen[slot] = found
            before = _rows(current, found)
            left = total.gather(1, found)
            scores = left / left.sum(dim=1, keepdim=True)
        index = torch.cat([chosen[slot] + slot * of_slot for slot in range(slots)], dim=1)
        return select(tokens, index)

    def _slots(self, num_tokens: int) -> int:
        slots = self.config.slots or self.joint_crops
        if slots is None or num_tokens % slots:
            raise ContractError(
                f"sta: slots={self.config.slots} of {num_tokens} tokens, which are "
                + ("no frames" if slots is None else "not divided by it"),
                hint="set slots to a number that divides the tokens",
            )
        return slots


def _by_likeness(keys: "torch.Tensor") -> "torch.Tensor":
    """Return int64 [B, N]: odd tokens, then the even ones, the most like an odd one last."""
    import torch

    best = cosine(keys[:, 0::2], keys[:, 1::2]).amax(dim=2)
    even = best.sort(dim=1, stable=True).indices * 2
    odd = torch.arange(1, keys.shape[1], 2, device=keys.device).expand(len(keys), -1)
    return torch.cat([odd, even], dim=1)


def _rows(values: "torch.Tensor", index: "torch.Tensor") -> "torch.Tensor":
    """Return [B, K, D]: some rows of [B, N, D]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
