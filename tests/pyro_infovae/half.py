"""Pyro's half: what its programs are written with, and how its objectives are tried."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import numpy as np
import pyro
import pyro.infer.autoguide
import pyro.infer.reparam
import torch
from pyro import poutine
from scipy.optimize import minimize

import pyro_infovae
from tests.halves import Arrays, Case, Draws, GivenNumbers, Half, Slope, Step, Trained


class _Critic(torch.nn.Module):
    def __init__(self, score: Callable[..., Any], params: Mapping[str, Any]) -> None:
        super().__init__()
        self.score = score
        for name, value in params.items():
            self.register_parameter(name, torch.nn.Parameter(_floats(value)))

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.score(dict(self.named_parameters()), x, z)


class _CriticOfPairs(_Critic):
    def __init__(
        self, score: Callable[..., Any], params: Mapping[str, Any], pairs: Callable[..., Any]
    ) -> None:
        super().__init__(score, params)
        self.pairs = pairs

    def all_pairs(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.pairs(dict(self.named_parameters()), x, z)


class PyroHalf(Half):
    """Losses and gradients as ``loss_and_grads`` leaves them in the param store."""

    library = pyro_infovae
    infer = pyro.infer
    dist = pyro.distributions
    xp = torch
    handlers = poutine
    compiles = False

    @contextlib.contextmanager
    def precision(self, *, double: bool) -> Iterator[None]:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64 if double else torch.float32)
        yield
        torch.set_default_dtype(before)

    def unvalidated(self) -> AbstractContextManager[None]:
        return pyro.validation_enabled(False)

    def sample(
        self, name: str, fn: Any, *, obs: Any = None, obs_mask: Any = None, infer: Any = None
    ) -> Any:
        return pyro.sample(name, fn, obs=obs, obs_mask=obs_mask, infer=infer or {})

    def param(self, name: str, value: Any, *, constraint: Any = None) -> Any:
        constraint = constraint or pyro.distributions.constraints.real
        return pyro.param(name, _floats(value), constraint=constraint)

    def factor(self, name: str, value: Any) -> None:
        pyro.factor(name, value)

    def deterministic(self, name: str, value: Any, *, event_dim: int = 0) -> None:
        pyro.deterministic(name, value, event_dim=event_dim)

    def plate(
        self,
        name: str,
        size: int,
        *,
        dim: int = -1,
        batch: int | None = None,
        index: np.ndarray | None = None,
    ) -> AbstractContextManager[Any]:
        subsample = None if index is None else torch.as_tensor(index)
        return pyro.plate(name, size, subsample_size=batch, subsample=subsample, dim=dim)

    def mask(self, mask: Any) -> AbstractContextManager[Any]:
        if mask is None:
            return contextlib.nullcontext()
        return poutine.mask(mask=torch.as_tensor(mask))

    def scale(self, scale: float) -> AbstractContextManager[Any]:
        return poutine.scale(scale=scale)

    def init_to(self, values: Mapping[str, np.ndarray]) -> Any:
        values = {name: torch.as_tensor(value) for name, value in values.items()}
        return pyro.infer.autoguide.init_to_value(values=values)

    def prepared(self, guide: Any, *args: Any) -> Any:
        guide(*args)
        return guide

    def critic(
        self,
        score: Callable[..., Any],
        params: Mapping[str, Any],
        *,
        pairs: Callable[..., Any] | None = None,
    ) -> torch.nn.Module:
        return _Critic(score, params) if pairs is None else _CriticOfPairs(score, params, pairs)

    def steps(
        self, objectives: Sequence[Any], case: Case, *, draws: Callable[[], Draws] | None = None
    ) -> list[Step]:
        return [self._step(objective, case, draws) for objective in objectives]

    def slopes(
        self, objective: Any, case: Case, *, parameters: Mapping[str, Any] | None = None
    ) -> dict[str, Slope]:
        self._loss(objective, case, seed=3)  # in which it finds out how the plates are nested
        pyro.set_rng_seed(3)
        objective.loss_and_grads(case.model, case.guide, *case.args, **case.kwargs)
        leaves = parameters or dict(pyro.get_param_store()._params)
        gradients = {name: leaf.grad.clone() for name, leaf in leaves.items()}
        slopes = {}
        for name, leaf in leaves.items():
            leaf.grad = None
            direction = torch.linspace(1.0, 2.0, leaf.numel()).reshape(leaf.shape)
            losses = []
            for shift in (1e-5, -1e-5):
                with torch.no_grad():
                    leaf += shift * direction
                losses.append(self._loss(objective, case, seed=3))
                with torch.no_grad():
                    leaf -= shift * direction
            gradient = float((gradients[name] * direction).sum())
            slopes[_name(name)] = Slope(gradient, (losses[0] - losses[1]) / 2e-5)
        return slopes

    def minimised(
        self, objective: Any, case: Case, *, draws: Callable[[], Draws]
    ) -> tuple[float, Arrays]:
        pyro.clear_param_store()
        self._loss(objective, case)  # in which it finds out how the plates are nested
        self._step(objective, case, draws)
        store = pyro.get_param_store()
        leaves = list(store._params.values())
        vector = torch.nn.utils.parameters_to_vector(leaves).detach().numpy()

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            with torch.no_grad():
                torch.nn.utils.vector_to_parameters(torch.tensor(flat), leaves)
            for leaf in leaves:
                leaf.grad = None
            with _drawing(draws()):
                value = objective.loss_and_grads(case.model, case.guide, *case.args)
            return value, np.concatenate([leaf.grad.numpy().ravel() for leaf in leaves])

        best = minimize(loss, vector, jac=True, options={"maxiter": 300})
        loss(best.x)
        return float(best.fun), {_name(name): _as_numpy(value) for name, value in store.items()}

    def losses(self, objectives: Sequence[Any], case: Case, *, count: int) -> np.ndarray:
        losses = []
        with self.unvalidated(), torch.no_grad():
            for objective in objectives:
                self._loss(objective, case)  # in which it finds out how the plates are nested
                losses.append([self._loss(objective, case, seed=seed) for seed in range(count)])
        return np.array(losses)

    def losses_at(self, objective: Any, case: Case, noise: np.ndarray) -> np.ndarray:
        losses = []
        self._loss(objective, case)  # in which it finds out how the plates are nested
        for numbers in noise:
            with _drawing(GivenNumbers(numbers)):
                losses.append(self._loss(objective, case))
        return np.array(losses)

    def seen(
        self,
        log: list[Any],
        objective: Any,
        case: Case,
        *,
        count: int = 1,
        draws: Callable[[], Draws] | None = None,
    ) -> list[Any]:
        runs = []
        with self.unvalidated(), torch.no_grad():
            self._loss(objective, case)
            for seed in range(count):
                log.clear()
                with contextlib.nullcontext() if draws is None else _drawing(draws()):
                    self._loss(objective, case, seed=seed)
                runs.append(_as_numpy(log))
        return runs

    def draw(self, guide: Any, case: Case, draws: Callable[[], Draws]) -> Arrays:
        with _drawing(draws()):
            trace = poutine.trace(guide).get_trace(*case.args)
        return {name: _as_numpy(trace.nodes[name]["value"]) for name in trace.stochastic_nodes}

    def log_weights(self, elbo: Any, case: Case, *, draws: int) -> np.ndarray:
        guide, plate = elbo.refine(case.model, case.guide), pyro.plate("draws", draws, dim=-4)
        totals = []
        with torch.no_grad(), self.unvalidated():
            guide_trace = poutine.trace(plate(guide)).get_trace(*case.args)
            replayed = poutine.replay(plate(case.model), trace=guide_trace)
            for trace in (poutine.trace(replayed).get_trace(*case.args), guide_trace):
                trace.compute_log_prob()
                totals.append(sum(_per_draw(site, draws) for site in trace.nodes.values()))
        return (totals[0] - totals[1]).numpy()

    def trained(
        self, objective: Any, case: Case, *, steps: int, lr: float = 1e-2, decay: float = 1.0
    ) -> Trained:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        adam = {"optimizer": torch.optim.Adam, "optim_args": {"lr": lr}, "gamma": decay}
        optim = pyro.optim.ExponentialLR(adam)
        svi = pyro.infer.SVI(case.model, case.guide, optim, loss=objective)
        losses = []
        with self.unvalidated():
            for _ in range(steps):
                losses.append(svi.step(*case.args, **case.kwargs))
                optim.step()
        params = {_name(name): value for name, value in pyro.get_param_store().items()}
        return Trained(np.array(losses), _as_numpy(params))

    @torch.no_grad()
    def all_scores(self, objective: Any, case: Case, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        rows, codes = torch.as_tensor(x), torch.as_tensor(z)
        scores = [[float(objective.critic(a[None], b[None])) for b in codes] for a in rows]
        return np.array(scores)

    def evaluate(self, objective: Any, case: Case) -> None:
        with self.unvalidated():
            objective.loss_and_grads(case.model, case.guide, *case.args, **case.kwargs)

    def _step(self, objective: Any, case: Case, draws: Callable[[], Draws] | None) -> Step:
        if draws is not None:
            pyro.clear_param_store()
            self._loss(objective, case)  # in which it finds out how the plates are nested
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        with contextlib.nullcontext() if draws is None else _drawing(draws()):
            loss = objective.loss_and_grads(case.model, case.guide, *case.args, **case.kwargs)
        grads = {}
        for name, value in pyro.get_param_store()._params.items():
            if value.grad is not None:
                grads[_name(name)], value.grad = value.grad.numpy(), None
        return Step(loss, grads)

    def _loss(self, objective: Any, case: Case, *, seed: int = 0) -> float:
        pyro.set_rng_seed(seed)
        return objective.loss(case.model, case.guide, *case.args, **case.kwargs)


def _floats(value: Any) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.get_default_dtype())


def _name(name: str) -> str:
    """That of a parameter in the param store, without what marks those of modules."""
    return name.replace("$$$", ".")


def _as_numpy(values: Any) -> Any:
    if isinstance(values, torch.Tensor):
        return values.detach().numpy().copy()
    if isinstance(values, dict):
        return {name: _as_numpy(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(map(_as_numpy, values))
    return values


def _per_draw(site: Any, draws: int) -> Any:
    """The log density (draws,) of a site of a trace."""
    if site["type"] != "sample" or poutine.util.site_is_subsample(site):
        return torch.zeros(draws)
    log_prob = site["log_prob"]
    shape = (1,) * (4 - log_prob.dim()) + log_prob.shape
    return log_prob.reshape(shape).expand(draws, *shape[1:]).sum((1, 2, 3))


@contextlib.contextmanager
def _drawing(draws: Draws) -> Iterator[None]:
    def normal(shape: Sequence[int], dtype: torch.dtype, device: Any) -> torch.Tensor:
        return torch.as_tensor(draws.normal(shape))

    def randn_like(like: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(draws.normal(like.shape))

    def randint(low: int, high: int, size: Sequence[int], **_: Any) -> torch.Tensor:
        return torch.as_tensor(draws.integers(low, high, size))

    with (
        mock.patch("torch.distributions.normal._standard_normal", normal),
        mock.patch("torch.distributions.lowrank_multivariate_normal._standard_normal", normal),
        mock.patch("torch.randn_like", randn_like),
        mock.patch("torch.randint", randint),
    ):
        yield


PYRO = PyroHalf()
