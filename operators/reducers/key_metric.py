"""What reducers share that compare tokens by their keys."""

from typing import TYPE_CHECKING, Annotated, Generic, Literal, TypeVar

from pydantic import Field

from operators.reducers.base import Reducer, ReducerConfig, Tokens

if TYPE_CHECKING:
    import torch


class KeyMetricConfig(ReducerConfig):
    """What a job may say about a reducer that compares keys."""

    metric: Annotated[
        Literal["keys", "features"],
        Field(description="What is compared: keys averaged over the heads (the authors'), or not."),
    ] = "keys"


ConfigT = TypeVar("ConfigT", bound=KeyMetricConfig)


class KeyMetricReducer(Reducer[ConfigT], Generic[ConfigT]):
    """Compares keys, averaged over the heads, or features."""

    @property
    def signals(self) -> tuple[str, ...]:
        """Keys, unless features are compared."""
        return ("keys",) if self.config.metric == "keys" else ()

    def metric_of(self, tokens: Tokens) -> "torch.Tensor":
        """Return what is compared, [B, N, D]: float32 keys, or features as they are."""
        if self.config.metric == "keys":
            return tokens.signal("keys").float().mean(dim=2)
        return tokens.features
