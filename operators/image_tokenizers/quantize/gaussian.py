"""Continuous latents: a Gaussian per latent, from its mean and log variance."""

import torch
from torch import nn

_MOST, _LEAST = 20.0, -30.0


class DiagonalGaussian(nn.Module):  # type: ignore[misc]
    """Posterior of a variational autoencoder (Kingma and Welling, 2014, arXiv:1312.6114).

    Stands where a quantizer does, has no parameters, and computes in float32.
    """

    def mode(self, moments: torch.Tensor) -> torch.Tensor:
        """Return the mean [..., C] of moments [..., 2 C]: means, then log variances."""
        return moments.float().chunk(2, dim=-1)[0]

    def sample(self, moments: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the sample [..., C] that standard normal noise [..., C] picks."""
        mean, logvar = moments.float().chunk(2, dim=-1)
        return mean + torch.exp(0.5 * logvar.clamp(_LEAST, _MOST)) * noise
