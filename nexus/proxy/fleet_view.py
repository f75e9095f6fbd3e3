"""The fleet as this process last read it. The next request uses a new snapshot."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from nexus.access.budgets import Budgets
from nexus.access.callers import Callers, callers_of
from nexus.access.counting_limit import CountingLimit
from nexus.access.limits import Limits
from nexus.access.prices import Price, Prices
from nexus.config import Config
from nexus.fleet.records import Backend, Snapshot
from nexus.fleet.snapshot import SnapshotReader
from nexus.http.address import Address
from nexus.http.headers import header_text
from nexus.http.request_template import RequestTemplate
from nexus.metrics import labels
from nexus.routing.router import Choice
from nexus.routing.table import RouteTable, configured_models

log = logging.getLogger("nexus.proxy")


@dataclass(frozen=True, slots=True)
class View:
    """A snapshot, and what is derived from it.

    Attributes:
        configured: The models that the configuration names.
        callers: The keys that clients may use; None if they need none.
        limits: The limits on what clients use; None without any.
        counting_limit: The limit on requests that count tokens; None without one.
        budgets: The budgets of `[[budgets]]`; None without any.
        prices: What requests cost; None without prices and budgets.
        accounts: By name of a backend, all backends of its account; None unless there are several
            accounts.
        upstream_names: By the column of a backend and a model, the model's name there; None if all
            models have their own names.
        fair_queue: Whether the queue's order depends on keys.
    """

    snapshot: Snapshot
    table: RouteTable
    configured: frozenset[str]
    callers: Callers | None
    limits: Limits | None
    counting_limit: CountingLimit | None
    budgets: Budgets | None
    prices: Prices | None
    accounts: Mapping[str, frozenset[str]] | None
    upstream_names: Mapping[tuple[int, str], str] | None
    fair_queue: bool
    want_label: Callable[[str], None]
    _route_headers: dict[tuple[int, str, str | None, str | None], list[tuple[str, str]]] = field(
        default_factory=dict
    )
    _prices_of: dict[str, tuple[tuple[Price | None, bool], ...]] = field(default_factory=dict)
    _wanted: set[str] = field(default_factory=set)
    _addresses: dict[int, Address] = field(default_factory=dict)
    _templates: dict[int, RequestTemplate] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        snapshot: Snapshot,
        want_label: Callable[[str], None] = lambda _: None,
        *,
        before: View | None = None,
        pause: Callable[[], object] = lambda: None,
    ) -> View:
        """Make the view of a snapshot.

        `want_label` is called once for each requested model without a label value. `before` is the
        view of an earlier snapshot. `pause` is called repeatedly, so that other greenlets can run.
        """
        return cls(
            snapshot=snapshot,
            table=RouteTable(snapshot, before=before.table if before else None, pause=pause),
            want_label=want_label,
            configured=frozenset(configured_models(snapshot.config.routing)),
            callers=callers_of(
                snapshot.config,
                key_labels=snapshot.labels.keys,
                team_labels=snapshot.labels.teams,
            ),
            limits=Limits.of(snapshot.config),
            counting_limit=CountingLimit.of(snapshot.config),
            budgets=Budgets.of(snapshot.config, snapshot.grants),
            prices=Prices.of(snapshot.config),
            accounts=_accounts(snapshot.backends),
            upstream_names=_upstream_names(snapshot.backends),
            fair_queue=_is_fair(snapshot.config),
        )

    def prices_of(self, model: str) -> tuple[tuple[Price | None, bool], ...]:
        """The different prices of a model over all backends that have it, and which are clouds'.

        None stands for an unknown price.
        """
        prices = self._prices_of.get(model)
        if prices is None:
            assert self.prices is not None
            prices = self._prices_of[model] = tuple(
                {
                    (self.prices.find(candidate.backend.config, model), candidate.backend.cloud)
                    for candidate in self.table.candidates_for(model)
                }
            )
        return prices

    def name_at_backend(self, choice: Choice) -> str:
        """The name of the chosen model at the chosen backend."""
        names = self.upstream_names
        if names is None:
            return choice.model
        return names.get((choice.backend.column, choice.model), choice.model)

    def context_length(self, model: str) -> int | None:
        """The longest context of a model over all backends that have it; None if one is unknown."""
        lengths = [candidate.model.context_length for candidate in self.table.candidates_for(model)]
        known = [length for length in lengths if length is not None]
        return max(known) if known and len(known) == len(lengths) else None

    def max_output_tokens(self, backend: Backend, model: str) -> int | None:
        """The most tokens of a response of a model at a backend; None if that is not known."""
        for candidate in self.table.candidates_for(model):
            if candidate.backend.column == backend.column:
                return candidate.model.max_output_tokens
        return None

    def address(self, backend: Backend) -> Address:
        """Where requests to the backend go."""
        address = self._addresses.get(backend.column)
        if address is None:
            address = self._addresses[backend.column] = Address.of_backend(backend.config)
        return address

    def request_template(
        self, backend: Backend, environ: Mapping[str, str], via: str
    ) -> RequestTemplate:
        """What all requests to the backend have in common. Raises `SecretError`."""
        template = self._templates.get(backend.column)
        if template is None:
            template = self._templates[backend.column] = RequestTemplate.of(
                backend.config, self.address(backend), environ=environ, via=via
            )
        return template

    def route_headers(self, choice: Choice) -> list[tuple[str, str]]:
        """The headers that describe the route to the client. Do not change the list."""
        backend, reason, affinity = choice.backend, choice.reason, choice.affinity
        key = backend.column, reason, affinity and affinity[1], choice.translation
        headers = self._route_headers.get(key)
        if headers is None:
            headers = self._route_headers[key] = [
                ("x-nexus-backend", header_text(backend.name)),
                ("x-nexus-backend-type", "cloud" if backend.cloud else "local"),
                ("x-nexus-route-reason", reason),
                ("x-nexus-privacy-zone", "restricted" if backend.restricted else "open"),
            ]
            if choice.translation is not None:
                headers.append(("x-nexus-translated", choice.translation))
            if self.table.uses_affinity:
                headers.append(("x-nexus-affinity", affinity[1] if affinity else "none"))
        return headers

    def model_label(self, name: str) -> str:
        """The label value of a model; `other` beyond the limit, `unknown` if no backend has it."""
        label = self.snapshot.labels.models.get(name)
        if label is None and (entry := self.table.entry(name)) != name:
            name, label = entry, self.snapshot.labels.models.get(entry)
        if label is not None:
            return label
        if name not in self.configured and name not in self.table.listing.by_name:
            return labels.UNKNOWN
        if name not in self._wanted:
            self._wanted.add(name)
            if name not in self.snapshot.labels.models_over:
                self.want_label(name)
        return labels.OTHER


def _accounts(backends: Iterable[Backend]) -> Mapping[str, frozenset[str]] | None:
    """By name of a backend that stores responses, all such backends of its account."""
    members: dict[tuple[str | None, str], set[str]] = defaultdict(set)
    for backend in backends:
        if "responses" in backend.spoken:
            account = backend.config.account
            members[account, backend.name if account is None else ""].add(backend.name)
    if len(members) < 2:
        return None
    return {name: frozenset(names) for names in members.values() for name in names}


def _upstream_names(backends: Iterable[Backend]) -> Mapping[tuple[int, str], str] | None:
    return {
        (backend.column, model.name): model.upstream
        for backend in backends
        for model in backend.config.models
        if model.upstream is not None
    } or None


def _is_fair(config: Config) -> bool:
    queue = config.queue
    return config.auth.mode != "off" and queue.order == "fair" and queue.max_waiting > 0


NO_FLEET = View.of(Snapshot(revision=0, published_at=0, config=Config()))
"""An empty fleet with the default configuration, until the first snapshot is seen."""


class FleetView:
    """Follows the snapshot file."""

    def __init__(
        self,
        reader: SnapshotReader | None,
        *,
        on_change: Callable[[Snapshot], None],
        want_label: Callable[[str], None] = lambda _: None,
        pause: Callable[[], object] = lambda: time.sleep(0),
    ) -> None:
        """`on_change` gets every new snapshot; before the first one there is no view.

        `pause` is called repeatedly while a snapshot is read.
        """
        self._reader = reader
        self._subscribers = [on_change]
        self._want_label = want_label
        self._pause = pause
        self._view: View | None = None
        self._updating = threading.Lock()
        self._seen = 0

    def current(self) -> View | None:
        """The current view; None before the first fleet. Makes no system call without a change."""
        # The revision is read before the file: if the file is newer, the next call reads it again.
        # It is stored after the view, so that no thread uses the old view with the new revision.
        if self._reader is not None and (revision := self._reader.revision) != self._seen:
            self._update(self._reader, revision)
        return self._view

    def _update(self, reader: SnapshotReader, revision: int) -> None:
        """Read the new snapshot. Other greenlets use the old view meanwhile."""
        before = self._view
        if before is None:  # no request can be served without it
            self._set(reader.read(), revision, before, pause=lambda: None)
        elif self._updating.acquire(blocking=False):
            try:
                self._set(reader.read(self._pause), revision, before, pause=self._pause)
            finally:
                self._updating.release()

    def _set(
        self,
        snapshot: Snapshot | None,
        revision: int,
        before: View | None,
        *,
        pause: Callable[[], object],
    ) -> None:
        if snapshot is not None:
            self._view = View.of(snapshot, self._want_label, before=before, pause=pause)
            for on_change in self._subscribers:
                on_change(snapshot)
            self._seen = revision

    def subscribe(self, on_change: Callable[[Snapshot], None]) -> None:
        """Call `on_change` with the current snapshot, if one was read, and with every new one."""
        self._subscribers.append(on_change)
        if self._view is not None:
            on_change(self._view.snapshot)

    def snapshot(self) -> Snapshot | None:
        view = self.current()
        return view.snapshot if view else None
