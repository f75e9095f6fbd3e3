"""`nexus prices`: what requests cost."""

from __future__ import annotations

from datetime import UTC, date, datetime
from difflib import unified_diff
from pathlib import Path

import click
import msgspec

from nexus.access.prices import Prices
from nexus.cli.gateway import config_option, last_fleet, run_directory
from nexus.cli.output import Exit, Failure, Result, counted, returns_result, table
from nexus.config import load
from nexus.config.cost_records import Costs
from nexus.fleet.records import Snapshot


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


class PricesProposed(msgspec.Struct, frozen=True):
    """What `nexus prices update --json` prints."""

    file: str
    proposed: int
    unknown: list[UnpricedModel]
    diff: str


def unpriced_models(costs: Costs, snapshot: Snapshot) -> tuple[list[UnpricedModel], int]:
    """The models of a fleet that no price matches, and the number of all."""
    known, unpriced, offered = Prices(costs.price), [], 0
    for backend in snapshot.backends:
        offered += len(backend.models)
        unpriced += [
            UnpricedModel(backend.name, model.name)
            for model in backend.models
            if known.find(backend.config, model.name) is None
        ]
    return sorted(unpriced), offered


@click.group("prices", short_help="What requests cost.")
def prices() -> None:
    """The prices of [costs]: what requests to backends and models cost."""


@prices.command("check", short_help="Check the prices; name the models without one.")
@config_option
@returns_result
def check(config: str | None) -> Result:
    """Check the file of prices, and name the fleet's models that have no price.

    The models are those that the gateway saw last, the prices those of the file now. It exits with
    1 if a model has no price.
    """
    costs, (snapshot, _) = load(config).config.costs, last_fleet(run_directory(config))
    unpriced, offered = unpriced_models(costs, snapshot)
    checked = PricesChecked(costs.version, len(costs.price), offered, unpriced)
    if not unpriced:
        return Result(checked, f"All of the fleet's models have a price: {offered}.")
    rows = [(one.backend, one.model) for one in unpriced]
    return Result(
        checked,
        lambda: table(("BACKEND", "MODEL"), rows),
        failure=Failure(
            f"{counted(len(unpriced), 'model')} of {offered} have no price; "
            "add a [[price]] to the file that [costs] prices names.",
            status=Exit.NEGATIVE,
        ),
    )


@prices.command("update", short_help="Propose prices for the fleet's models.")
@config_option
@click.option("--output", metavar="FILE", help="Where the proposal is written [proposed.toml].")
@returns_result
def update(config: str | None, output: str | None) -> Result:
    """Propose prices for the fleet's models, and show how they differ from those in use.

    The proposal is a file for you to review: nothing is applied. It takes the prices of vendors
    from genai-prices, an optional package: `pip install genai-prices`. Models on servers of your
    own are left out.
    """
    from nexus.cli.price_proposal import as_toml, compiled, proposed_price

    costs, (snapshot, _) = load(config).config.costs, last_fleet(run_directory(config))
    known, now, proposed = Prices(costs.price), list[str](), list[str]()
    unknown, count = [], 0
    for backend in snapshot.backends:
        if backend.config.provider.self_hosted:
            continue
        for model in backend.models:
            try:
                record = proposed_price(backend, model.name)
            except ImportError:
                message = "This needs genai-prices; install it with `pip install genai-prices`."
                raise Failure(message, status=Exit.USAGE) from None
            if record is None:
                unknown.append(UnpricedModel(backend.name, model.name))
                continue
            count += 1
            price = known.find(backend.config, model.name)
            now += ["", *as_toml(backend, model.name, price)]
            proposed += ["", *as_toml(backend, model.name, compiled(record, backend, model.name))]
    file = Path(output or "proposed.toml")
    version = f'version = "{datetime.now(UTC).date()}"'
    try:
        file.write_text("\n".join([version, *proposed]) + "\n")
    except OSError as error:
        message = f"{file} cannot be written ({error.strerror}); name another with --output."
        raise Failure(message, status=Exit.USAGE) from error
    diff = "\n".join(unified_diff(now, proposed, "in use", str(file), lineterm=""))
    text = diff or "The proposal has the prices that are in use."
    written = f"Wrote {file} with {counted(count, 'price')}"
    notes = [f"{written}; review it, then name it in [costs] prices."]
    if unknown:
        names = ", ".join(f"{one.model} at {one.backend}" for one in unknown)
        notes.append(f"genai-prices does not know {names}.")
    return Result(PricesProposed(str(file), count, unknown, diff), text, notes=notes)
