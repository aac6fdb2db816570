"""What is compared, and what both backends train with."""

from dataclasses import dataclass

from hvae_gaussian_parts.problem import Array, Parameters

LOG_SIGMA = 3.0
LOG_SCALE = 1.0
STEP_SIZE = 0.005
BETA_0 = 1 / 25
PARTICLES = 10
RMS_DECAY = 0.9


@dataclass(frozen=True)
class Method:
    """A way to fit the parameters.

    Attributes:
        num_steps: Leapfrog steps K from the prior; 0 for a mean-field normal.
        tempering: Their tempering.
    """

    num_steps: int
    tempering: str = "none"

    @property
    def gradients(self) -> int:
        """What an optimisation step costs, in gradients of the log joint."""
        return self.num_steps + 1


METHODS = {
    "VB": Method(0),
    "HVAE K=1": Method(1, "quadratic"),
    "HVAE K=10": Method(10, "quadratic"),
    "HVAE K=1, no tempering": Method(1),
    "HVAE K=10, no tempering": Method(10),
}


@dataclass(frozen=True)
class Snapshot:
    """What has been learned after some steps.

    Attributes:
        steps: Optimisation steps taken.
        parameters: The model's.
        bound: ELBO of each data set, in nats, of shape (data sets,).
        temperature: The initial factor T₀ = 1/√β₀ on the momentum; 1 without tempering.
    """

    steps: int
    parameters: Parameters
    bound: Array
    temperature: float
