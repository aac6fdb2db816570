# SPDX-License-Identifier: MIT
"""What a diagnostic asks of the latents of a model and guide, before it draws any."""

from __future__ import annotations

from collections.abc import Iterable

from numpyro_backend._traces.fresh_draws import Outline
from numpyro_backend.sites import Plate, Site, is_latent


def check_all_drawn(asker: str, outline: Outline) -> None:
    """Refuse a prior that may depend on a latent of the model's own.

    Raises:
        ValueError: naming it.
    """
    for name, site in outline.run.model.items():
        if is_latent(site) and name not in outline.run.guide:
            raise ValueError(
                f"{asker}: the guide does not draw '{name}', on which the prior of "
                f"{list(outline.names)} may depend: draw it in the guide"
            )
        if name == outline.names[-1]:
            break


def check_densities(asker: str, outline: Outline) -> None:
    """Refuse a guide whose draws do not have a density per datum.

    Raises:
        ValueError: naming the site.
    """
    for name in outline.names:
        drawn, prior = outline.run.guide[name], outline.run.model[name]
        if drawn.kind == "Delta":
            raise ValueError(
                f"{asker}: the guide draws '{name}' as a point mass, which has no density: "
                "choose others by sites"
            )
        check_batch_shape(asker, drawn, prior.plates)


def check_batch_shape(asker: str, site: Site, plates: Iterable[Plate]) -> None:
    """Refuse a site that does not have a value per datum.

    Args:
        asker: who needs it, for messages.
        site: a latent, as drawn or replayed.
        plates: the plates of the data.

    Raises:
        ValueError: naming the site.
    """
    sizes = {plate.dim: plate.size for plate in plates}
    expected = tuple(sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0))
    got = site.value.shape[: site.value.ndim - site.event_dim]
    if got != expected:
        raise ValueError(
            f"{asker}: Expected the guide to draw '{site.name}' with batch shape {expected}, as "
            f"the model does; got {got}: draw a code per datum, in the same plates"
        )
