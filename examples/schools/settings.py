"""How long to train and to sample."""

from dataclasses import dataclass

LEARNING_RATE = 0.1
PARTICLES = 8


@dataclass(frozen=True)
class Settings:
    """How long to train and to sample.

    Attributes:
        steps: Gradient steps of a guide.
        warmup: Draws of NUTS that adapt it.
        draws: Draws to compare, of guides and chain alike.
        seed: Of all randomness.
        quiet: Whether to show no bars.
    """

    steps: int = 400
    warmup: int = 1000
    draws: int = 4000
    seed: int = 0
    quiet: bool = False

    @property
    def decay(self) -> float:
        """The factor on the learning rate per step, to a 30th in the end."""
        return 30 ** (-1 / self.steps)
