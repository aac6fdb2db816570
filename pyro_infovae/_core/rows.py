# SPDX-License-Identifier: MIT
"""Which latents an objective is about, and their rows: one per datum and particle."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from jaxtyping import Bool, Float, Shaped

from pyro_infovae._core.arrays import namespace
from pyro_infovae._core.row_weights import fits, row_weights
from pyro_infovae._core.sites import Plate, Run, Site, Sites

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Selection:
    """The latents that an objective is about.

    Attributes:
        caller: the objective's name, for messages.
        names: the latents asked for, or None for every reparameterised latent in plates of
            data.
        particles: the draws per datum that the base pools outside any plate.
    """

    caller: str
    names: frozenset[str] | None
    particles: int = 1

    @classmethod
    def of(cls, caller: str, sites: Iterable[str] | None, particles: int = 1) -> Selection:
        """The selection that ``sites=`` of a user stands for: a name, several, or None."""
        names = (sites,) if isinstance(sites, str) else sites
        return cls(caller, None if names is None else frozenset(names), particles)

    def may_take(self, site: Site) -> bool:
        """Whether a latent may be selected, as far as the guide alone can tell."""
        if self.names is None:
            return site.is_reparameterised and len(site.plates) > 0
        # The density of an automatic guide's latent may be that of an auxiliary site.
        generated = site.name.removesuffix("_unconstrained") if site.is_auxiliary else site.name
        return site.name in self.names or generated in self.names

    def select(self, guide: Sites, model: Sites) -> frozenset[str]:
        """The latents of a run that are selected, and the auxiliary sites that go with them.

        By default those are the reparameterised latents in plates of data: all of their plates are
        among those of some observed site, or of a factor. In a model that observes nothing every
        plate is one of data.

        Raises:
            ValueError: for a name that cannot be penalised, or where nothing is selected; naming
                the site and saying what to do.
        """
        if self.names is not None:
            self._check_named(self.names, guide, model)
            return self.names | {n for n in guide if n not in model and self.may_take(guide[n])}
        faults = {
            name: self._fault(guide[name], model)
            for name, site in model.items()
            if site.is_latent and name in guide
        }
        if all(faults.values()):
            reasons = "; ".join(f"'{name}' {fault}" for name, fault in faults.items())
            raise ValueError(
                f"{self.caller}: no latent is left to penalise"
                + (f": {reasons}" if reasons else ", for the guide draws none of the model's")
            )
        for name in guide.keys() - model.keys():
            generated = name.removesuffix("_unconstrained")
            known = generated in faults
            faults[name] = faults[generated] if known else self._fault(guide[name], model)
        return frozenset(name for name, fault in faults.items() if fault is None)

    def _check_named(self, names: Iterable[str], guide: Sites, model: Sites) -> None:
        latents = [name for name, site in model.items() if site.is_latent]
        for name in sorted(names):
            if name not in latents:
                raise ValueError(
                    f"{self.caller}: sites names '{name}', which is no latent of the model; "
                    f"its latents are {latents}"
                )
            if name not in guide:
                raise ValueError(
                    f"{self.caller}: sites names '{name}', which the guide does not draw; "
                    "leave it out of sites or draw it in the guide"
                )
            if fault := self._fault(guide[name], model):
                raise ValueError(f"{self.caller}: sites names '{name}', which {fault}")

    def _fault(self, drawn: Site, model: Sites) -> str | None:
        """What speaks against a latent as the guide draws it; the plates are the model's."""
        if not drawn.is_reparameterised:
            return (
                f"is not reparameterised ({drawn.kind}): name others in sites, or draw it by "
                "rsample"
            )
        plates = model.get(drawn.name, drawn).plates
        if self.names is not None:
            if plates or self.particles > 1:
                return None
            return (
                "has a single row, outside plates: set num_particles to 2 or more, or leave it out"
            )
        if not plates:
            return (
                "is in no plate: name it in sites, and set num_particles, to penalise its particles"
            )
        if drawn.name.endswith("_unobserved"):
            return "is the missing part of an observed site: name it in sites to penalise it"
        if not _are_of_data(plates, model):
            return (
                f"is in plates {[plate.name for plate in plates]}, which hold no observed site: "
                "name it in sites to penalise it"
            )
        return None


def _are_of_data(plates: Iterable[Plate], model: Sites) -> bool:
    names = {plate.name for plate in plates}
    # A factor is an observation of a Unit.
    observed = [s for s in model.values() if s.is_data or (not s.is_latent and s.kind == "Unit")]
    return not observed or any(names <= {plate.name for plate in site.plates} for site in observed)


class Reselected(BaseException):
    """Leaves a run in which the KL of other latents was reweighted than of the selected ones."""

    def __init__(self, recorder: object, selected: frozenset[str]) -> None:
        super().__init__(recorder, selected)
        self.recorder = recorder
        self.selected = selected


def check_reweighted(recorder: Any, reweighted: Iterable[str], selected: frozenset[str]) -> None:
    """Check, once a run knows the plates of data, that the right latents were reweighted in it.

    Raises:
        Reselected: where the guide alone guessed them, and guessed wrong.
        ValueError: where they change from run to run.
    """
    if selected == frozenset(reweighted):
        return
    if recorder.reweighted is None:
        leave = Reselected(recorder, selected)
        raise leave
    raise ValueError(
        f"{recorder.selection.caller}: the latents in plates of data change from run to run, from "
        f"{sorted(recorder.reweighted)} to {sorted(selected)}: name them in sites"
    )


def recorded(make: Callable[[frozenset[str] | None], T], evaluate: Callable[[T], R]) -> tuple[T, R]:
    """Evaluate programs under a recorder that reweights the KL of the selected latents.

    The guide runs before the model, which alone tells the plates of data: where a guess by the
    guide was wrong, the programs run once more.

    Args:
        make: makes a recorder that reweights the named latents, or those guessed for None.
        evaluate: runs the programs under a recorder.
    """
    recorder = make(None)
    try:
        return recorder, evaluate(recorder)
    except Reselected as found:
        if found.recorder is not recorder:
            raise
        recorder = make(found.selected)
    return recorder, evaluate(recorder)


@dataclass(frozen=True, eq=False)
class Rows:
    r"""The latents of one group, a row per datum and particle.

    Attributes:
        latents: by site name, the values with their event dims flattened, (rows, features).
        weights: nonnegative weights of the rows, 0 for a masked one; None where all count alike.
        batch_size: the data of the minibatch; row r belongs to datum r modulo ``batch_size``. None
            outside plates, where the particles themselves are the rows.
        num_data: N, the product of the full sizes of the group's plates.
        data: by site name, the observed values in the same plates, (rows, \*event), 0 where they
            are masked; empty where they were not asked for.
    """

    latents: OrderedDict[str, Float[Any, "rows _"]]
    weights: Float[Any, " rows"] | None
    batch_size: int | None
    num_data: int
    data: dict[str, Shaped[Any, " rows *event"]] = field(default_factory=dict)

    @property
    def values(self) -> Float[Any, "rows features"]:
        """The features of all latents of the group side by side."""
        parts = tuple(self.latents.values())
        return parts[0] if len(parts) == 1 else namespace(parts[0]).concatenate(parts, -1)

    @property
    def dense_weights(self) -> Float[Any, " rows"]:
        """The weights, 1 where all rows count alike."""
        if self.weights is not None:
            return self.weights
        first = next(iter(self.latents.values()))
        return namespace(first).ones_like(first[:, 0])

    def counting(self, counts: Bool[Any, " rows"] | None) -> Rows:
        """The same rows, of which only some count further; None for all."""
        if counts is None:
            return self
        return replace(self, weights=self.dense_weights * counts)

    def cleared(self) -> Rows:
        """The same rows, with zeros for what one of weight 0 holds, be it nan."""
        if self.weights is None:
            return self
        xp, counts = namespace(self.weights), self.weights > 0

        def clear(values: Any) -> Any:
            return xp.where(counts.reshape(-1, *(1,) * (values.ndim - 1)), values, 0)

        return replace(
            self,
            latents=OrderedDict((name, clear(values)) for name, values in self.latents.items()),
            data={name: clear(values) for name, values in self.data.items()},
        )


def groups_of(run: Run) -> list[tuple[str, ...]]:
    """The selected latents, those with the same stack of plates and the same masks together."""
    groups: dict[Any, list[str]] = {}
    for name, site in run.model.items():
        if name in run.selected and site.is_latent:
            masks = site.mask_numbers, run.guide[name].mask_numbers
            groups.setdefault((tuple(p.name for p in site.plates), masks), []).append(name)
    return [tuple(group) for group in groups.values()]


def drawn_not_enumerated(run: Run) -> list[str]:
    """The latents that the program marks to be enumerated, and the base draws."""
    sites = {**run.model, **run.guide}.values()
    return [s.name for s in sites if s.asks_enumeration and s.is_latent and s.enumeration is None]


def particles_of(run: Run) -> list[Run]:
    """A run by its particles, where they are vectorised."""
    if run.particle_plate is None:
        return [run]
    return [replace(run, particle=particle) for particle in range(run.particle_plate.size)]


def share_parents(names: Sequence[str], run: Run) -> bool:
    """Whether rows of a group share a latent that is drawn before them, in guide or model.

    The rows of two particles then differ by more than two draws, and must not be pooled.
    """
    plates = set(run.model[names[0]].plates)
    for sites in (run.guide, run.model):
        last = max(list(sites).index(name) for name in names)
        for site in list(sites.values())[:last]:
            if site.is_latent and site.name not in names and not plates <= set(site.plates):
                return True
    return False


def rows_of(names: Sequence[str], sites: Sites, run: Run) -> Rows:
    """The rows of a group of latents.

    Args:
        names: the latents of the group.
        sites: sites that hold them: those of the run's model, or of a fresh draw from the model.
        run: the run, for the masks of the guide and for the latents that it enumerates.
    """
    group = [sites[name] for name in names]
    shape = batch_shape(group, run)
    plates = group[0].plates
    return Rows(
        latents=OrderedDict((s.name, flatten(s.value, s.event_dim, shape, run)) for s in group),
        weights=_weights(group, run, shape),
        batch_size=batch_size(plates) if plates else None,
        num_data=data_size(plates),
    )


def data_of(names: Sequence[str], run: Run) -> dict[str, Shaped[Any, " rows *event"]]:
    """The observed values in the plates of a group, by site name, a row per row of the group."""
    group = [run.model[name] for name in names]
    shape = batch_shape(group, run)
    plates = {plate.name for plate in group[0].plates}
    return {
        name: expand_rows(_kept_value(site), site.event_dim, shape, run)
        for name, site in run.model.items()
        if site.is_data and {plate.name for plate in site.plates} == plates
    }


def counts_of(name: str, names: Sequence[str], run: Run) -> Bool[Any, " rows"] | None:
    """Which rows of a group have an entry of an observed site that is not masked; None for all."""
    site, shape = run.model[name], batch_shape([run.model[name] for name in names], run)
    if site.kept is None:
        return None
    kept = namespace(site.kept).broadcast_to(site.kept, tuple(_kept_value(site).shape))
    rows = expand_rows(kept, site.event_dim, shape, run)
    return rows.reshape(rows.shape[0], math.prod(rows.shape[1:])).any(1)


def _kept_value(site: Site) -> Any:
    """An observation with zeros where it is masked, be it nan there."""
    return (
        site.value if site.kept is None else namespace(site.value).where(site.kept, site.value, 0)
    )


def normal_rows(
    name: str, sites: Sites, run: Run
) -> tuple[Float[Any, "rows features"], Float[Any, "rows features"]] | None:
    """Location and scale of a latent's diagonal normal, per row; None for any other density.

    Args:
        name: the latent.
        sites: the sites of the guide, or of the model.
        run: the run that they are of.
    """
    site = sites[name]
    if site.normal is None:
        return None
    shape = batch_shape([run.model[name]], run)
    loc = site.normal[0]
    if not fits(tuple(loc.shape)[: loc.ndim - site.event_dim], shape):
        raise NotImplementedError(
            f"The prior of '{name}' is a mixture over a latent that the model sums out, which has "
            "no closed form here: use estimator='unbiased'"
        )
    loc, scale = (flatten(part, site.event_dim, shape, run) for part in site.normal)
    return loc, scale


def expand_rows(
    values: Any, event_dim: int, shape: tuple[int, ...], run: Run | None = None
) -> Shaped[Any, " rows *event"]:
    """An array with one row per index of the batch shape, its event dims as they are."""
    num_batch_dims = values.ndim - event_dim
    batch, event = tuple(values.shape)[:num_batch_dims], tuple(values.shape)[num_batch_dims:]
    if batch != shape:
        values = namespace(values).broadcast_to(values, (*shape, *event))
    if run is not None and run.particle is not None and run.particle_plate is not None:
        axis = len(shape) + run.particle_plate.dim
        if axis >= 0:
            values = values[(*(slice(None),) * axis, run.particle)]
            shape = (*shape[:axis], *shape[axis + 1 :])
    return values.reshape(math.prod(shape), *event)


def flatten(
    values: Any, event_dim: int, shape: tuple[int, ...], run: Run | None = None
) -> Float[Any, "rows features"]:
    """An array with one row per index of the batch shape, its event dims as features."""
    rows = expand_rows(values, event_dim, shape, run)
    return rows.reshape(rows.shape[0], math.prod(rows.shape[1:]))


def batch_shape(group: Sequence[Site], run: Run) -> tuple[int, ...]:
    """The batch shape of a group, all of whose dims are plates, particles or enumerated values.

    Raises:
        ValueError: for a dim that is none of these.
    """
    shape = _broadcast([tuple(s.value.shape)[: s.value.ndim - s.event_dim] for s in group])
    known = {plate.dim for site in group for plate in site.plates}
    known |= {site.enumeration.dim for site in run.guide.values() if site.enumeration is not None}
    if run.particle_plate is not None:
        known.add(run.particle_plate.dim)
    for dim in range(-len(shape), 0):
        if shape[dim] > 1 and dim not in known:
            raise ValueError(
                f"Site '{group[0].name}' has batch shape {shape}, of which dim {dim} belongs to no "
                "plate: declare a plate for it, or make it an event dim with .to_event()"
            )
    return shape


def enumerated_shapes(run: Run, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The batch shapes of latents where the guide enumerates some; elsewhere plates say all."""
    if all(site.enumeration is None for site in run.guide.values()):
        return {}
    return {name: batch_shape([run.model[name]], run) for name in names}


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that all broadcast to; sizes may be symbols, which must not be settled."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(
        next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True)
    )


def _weights(group: Sequence[Site], run: Run, shape: tuple[int, ...]) -> Float[Any, " rows"] | None:
    sites = [site for drawn in group for site in (drawn, run.guide[drawn.name])]
    is_masked = any(site.mask is not None or site.masks_features for site in sites)
    is_enumerated = any(site.enumeration is not None for site in run.guide.values())
    weights = row_weights(group, run, shape) if is_masked or is_enumerated else None
    return None if weights is None else expand_rows(weights, 0, shape, run)


def data_size(plates: Iterable[Plate]) -> int:
    """The number N of data of a stack of plates: the product of their full sizes."""
    return math.prod(plate.full_size for plate in plates)


def batch_size(plates: Iterable[Plate]) -> int:
    """The number of data in the minibatch of a stack of plates."""
    return math.prod(plate.size for plate in plates)
