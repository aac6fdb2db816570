"""Random programs: plates, masks, scales, dependence, supports and enumeration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from hypothesis import strategies as st

from tests.halves import Case, Half

Support: TypeAlias = Literal["real", "positive", "unit", "simplex"]
Distribution: TypeAlias = Callable[[str, Support, Any], Any]

N, OUTER, STEPS, CLASSES = 6, 3, 2, 3
MASK = np.array([True, True, False, True, True, True])
DIMS = {"real": 1, "positive": 1, "unit": 1, "simplex": 3}


@dataclass(frozen=True)
class Spec:
    """What a program is made of.

    Attributes:
        plates: none, one of data, an outer one around it, or a loop over time in it.
        supports: those of the local latents, of which each may depend on the one before.
        parent: whether a global latent comes before them.
        batch: the minibatch; None for all data.
        mask: which local latents, and data, are masked: none, all or the last alone.
        scale: a scale that all sites share.
        enumeration: whether there is a label, summed out in the guide or in the model.
    """

    plates: Literal["none", "one", "nested", "loop"]
    supports: tuple[Support, ...]
    parent: bool
    batch: int | None
    mask: Literal["none", "all", "last"]
    scale: float
    enumeration: Literal["none", "guide", "model"]

    @property
    def latents(self) -> list[str]:
        """The local latents, the last of which are in the innermost plate."""
        return [f"z{i}" for i in range(len(self.supports))]

    @property
    def local(self) -> list[str]:
        """Those in the plate of data."""
        return self.latents[1:] if self.plates == "nested" else self.latents

    @property
    def together(self) -> list[str]:
        """Those of one group."""
        return self.local[:1] if self.mask == "last" else self.local

    @property
    def nesting(self) -> int:
        """How deep the plates are."""
        return {"none": 0, "one": 1, "loop": 1, "nested": 2}[self.plates]

    @property
    def features(self) -> int:
        """Those of a row of the group."""
        return sum(DIMS[self.supports[self.latents.index(name)]] for name in self.together)


@st.composite
def specs(draw: Any, *, plates: Any = ("none", "one", "nested", "loop"), **given: Any) -> Spec:
    """A program; what is given is not drawn."""
    kind = draw(st.sampled_from(plates))
    count = 2 if kind in ("nested", "loop") else draw(st.integers(1, 2))
    support = st.sampled_from(["real", "positive", "unit", "simplex"])
    drawn = {
        "supports": tuple(draw(support) for _ in range(count)),
        "parent": draw(st.booleans()),
        "batch": None if kind == "none" else draw(st.sampled_from([None, 4])),
        "mask": "none" if kind == "none" else draw(st.sampled_from(["none", "all", "last"])),
        "scale": draw(st.sampled_from([1.0, 0.25])),
        "enumeration": draw(st.sampled_from(["none", "guide", "model"])),
    }
    return Spec(plates=kind, **{**drawn, **given})


def program(
    half: Half,
    spec: Spec,
    *,
    draws: Distribution | None = None,
    index: np.ndarray | None = None,
    size: int = N,
) -> Case:
    """A model and a guide.

    Args:
        half: the half that they are written for.
        spec: what they are made of.
        draws: makes the distribution of a latent, by its name, support and score; random by
            default.
        index: the minibatch; drawn by the plate if it has one.
        size: the number of data.
    """
    dist, xp, fn = half.dist, half.xp, draws or random_draws(half)
    rng = np.random.default_rng(0)
    shape = {"none": (), "one": (size,), "nested": (OUTER, size), "loop": (STEPS, size)}
    x = xp.asarray(rng.normal(size=shape[spec.plates]))
    mask = None if spec.plates == "none" else xp.asarray(np.resize(MASK, size))

    @contextmanager
    def data_plate() -> Iterator[Any]:
        if spec.plates == "none":
            yield ...
            return
        with half.plate("data", size, batch=spec.batch, index=index) as chosen:
            yield chosen

    def masked(position: int, rows: Any) -> Any:
        """Under the mask, where a latent and its data are."""
        is_last = position == len(spec.supports) - 1
        return half.mask(rows if spec.mask == "all" or (spec.mask == "last" and is_last) else None)

    def outer_plate() -> Any:
        return half.plate("outer", OUTER, dim=-2)

    def label(logits: Any, kind: str) -> Any:
        infer = {"enumerate": "parallel"} if spec.enumeration == kind else None
        return half.sample("y", dist.Categorical(logits=logits), infer=infer)

    def walk(
        x: Any, score: Callable[..., Any], labelled: Callable[[Any], Any], is_model: bool
    ) -> None:
        """Visit the latents in order; model and guide differ by the scores and the data."""
        with half.scale(spec.scale), ExitStack() as stack:
            before = (
                _feature(half.sample("t", fn("t", "real", score("t", 0.0, x))), "real")
                if spec.parent
                else xp.zeros(())
            )
            supports = list(enumerate(spec.supports))
            if spec.plates == "nested":
                stack.enter_context(outer_plate())
                (i, support), *supports = supports
                at = score(f"z{i}", before, x[:, :1] if is_model else x.mean(-1)[:, None])
                before = _feature(half.sample(f"z{i}", fn(f"z{i}", support, at)), support)
            chosen = stack.enter_context(data_plate())
            seen = x if spec.plates == "none" else x[..., chosen]
            rows = None if spec.mask == "none" else mask[chosen]
            y = labelled(seen[0] if spec.plates == "loop" else seen)
            for i, support in supports:
                with masked(i, rows):
                    datum = seen[i] if spec.plates == "loop" else seen
                    at = score(f"z{i}", before + 0.5 * y, datum)
                    value = half.sample(f"z{i}", fn(f"z{i}", support, at))
                    before = before + _feature(value, support)
                    if is_model and (spec.plates == "loop" or i == len(spec.supports) - 1):
                        name = f"x{i}" if spec.plates == "loop" else "x"
                        half.sample(name, dist.Normal(before + 0.3 * y, 0.5), obs=datum)

    def model(x: Any) -> None:
        def labelled(datum: Any) -> Any:
            return 0.0 if spec.enumeration == "none" else label(xp.zeros(CLASSES), "model")

        walk(x, lambda name, before, datum: before, labelled, True)

    def guide(x: Any) -> None:
        slope = half.param("slope", 0.4)

        def labelled(datum: Any) -> Any:
            if spec.enumeration != "guide":
                return 0.0
            logits = slope * datum
            return label(xp.stack([logits, 0.0 * logits, -logits], -1), "guide")

        def score(name: str, before: Any, datum: Any) -> Any:
            return half.param(f"shift_{name}", 0.1) + (
                0.5 * before + slope * datum if name != "t" else 0.0
            )

        walk(x, score, labelled, False)

    return Case(model, guide, (x,))


def random_draws(half: Half) -> Distribution:
    """Distributions with each support, all of which have closed-form KLs among themselves."""
    dist, xp = half.dist, half.xp

    def fn(name: str, support: Support, score: Any) -> Any:
        score = score + xp.zeros(())
        level = 1 / (1 + xp.exp(-score))
        if support == "real":
            return dist.Normal(score, 0.7)
        if support == "positive":
            return dist.Gamma(1 + level, 1.5)
        if support == "unit":
            return dist.Beta(1 + level, 2 - level)
        ones = xp.ones_like(level)
        return dist.Dirichlet(xp.stack([1 + level, 2 * ones, 1.5 * ones], -1))

    return fn


def _feature(value: Any, support: Support) -> Any:
    """A number that later latents depend on."""
    return value[..., 0] if support == "simplex" else value
