"""A decoder that can do without the code."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

CODE_SCALE = 0.1


class MaskedLinear(nn.Linear):
    """A linear layer some of whose weights are 0.

    Args:
        mask: Which weights are not, of shape (outputs, inputs).
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer."""
        return linear(inputs, self.mask * self.weight, self.bias)


class AutoregressiveDecoder(nn.Module):
    """Logits of every pixel given the pixels before it, and the code.

    The code comes in through weights that start small. The pixels have a masked autoencoder to
    themselves: "MADE: Masked Autoencoder for Distribution Estimation", arXiv 1502.03509.

    Args:
        pixels: Number of pixels of an image.
        latent_dim: Number of dimensions of the code.
        hidden: Width of the two hidden layers.
    """

    def __init__(self, *, pixels: int, latent_dim: int, hidden: int = 64) -> None:
        super().__init__()
        pixel = torch.arange(pixels)
        last_seen = torch.arange(hidden) % (pixels - 1)
        self.first = MaskedLinear(last_seen[:, None] >= pixel)
        self.second = MaskedLinear(last_seen[:, None] >= last_seen)
        self.third = MaskedLinear(pixel[:, None] > last_seen)
        self.direct = MaskedLinear(pixel[:, None] > pixel)
        self.code = nn.Linear(latent_dim, hidden, bias=False)
        with torch.no_grad():
            self.code.weight.mul_(CODE_SCALE)

    def forward(self, z: Tensor, images: Tensor) -> Tensor:
        """Score images of shape (*batch, pixels) under codes of shape (*batch, latent_dim)."""
        hidden = silu(self.first(images) + self.code(z))
        return self.third(silu(self.second(hidden))) + self.direct(images)
