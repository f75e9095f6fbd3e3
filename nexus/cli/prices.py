"""`nexus prices`: what requests cost."""

from __future__ import annotations

from datetime import date

import click
import msgspec

from nexus.cli.gateway import config_option, run_directory
from nexus.cli.output import Exit, Failure, Result, counted, returns_result, table


class UnpricedModel(msgspec.Struct, frozen=True, order=True):
    """A model of a backend that no price matches."""

    backend: str
    model: str


class PricesChecked(msgspec.Struct, frozen=True):
    """What `nexus prices check --json` prints."""

    version: date | None
    prices: int
    models: int
    unpriced: list[UnpricedModel]


@click.group("prices", short_help="What requests cost.")
def prices() -> None:
    """The prices of [costs]: what requests to backends and models cost."""


@prices.command("check")
@config_option
@returns_result
def check(config: str | None) -> Result:
    """Check the file of prices, and name the fleet's models that have no price.

    The models are those that the gateway saw last, the prices those of the file now. It exits with
    1 if a model has no price.
    """
    from nexus.access.prices import Prices
    from nexus.config import load
    from nexus.fleet.snapshot import SnapshotReader

    costs, run_dir = load(config).config.costs, run_directory(config)
    snapshot = SnapshotReader(run_dir.path).read() if run_dir.path.is_dir() else None
    if snapshot is None:
        raise Failure(
            f"No gateway has run in {run_dir.path}; name its configuration with -c.",
            status=Exit.UNREACHABLE,
        )
    known = Prices(costs.price)
    offered = [(backend, model) for backend in snapshot.backends for model in backend.models]
    unpriced = sorted(
        UnpricedModel(backend.name, model.name)
        for backend, model in offered
        if known.find(backend.config, model.name) is None
    )
    checked = PricesChecked(costs.version, len(costs.price), len(offered), unpriced)
    if not unpriced:
        return Result(checked, f"All of the fleet's models have a price: {len(offered)}.")
    rows = [(one.backend, one.model) for one in unpriced]
    return Result(
        checked,
        lambda: table(("BACKEND", "MODEL"), rows),
        failure=Failure(
            f"{counted(len(unpriced), 'model')} of {len(offered)} have no price; "
            "add a [[price]] to the file that [costs] prices names.",
            status=Exit.NEGATIVE,
        ),
    )
