"""The callers that a configuration names, and which of them a request comes from."""

from __future__ import annotations

import fnmatch
import hashlib
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Literal

import msgspec
from msgspec.structs import replace

from nexus.config.access_records import KEY_HEADERS, Auth, Identity, Key, Team
from nexus.config.records import Config
from nexus.errors import RequestFailed
from nexus.http.headers import is_for_backends

NONE = "none"
UNKNOWN = "unknown"
OTHER = "other"
USER = "user"
"""The key's label value of all users whom a proxy has signed in."""
_SEPARATORS = re.compile(r"[,|]")
"""Between groups: most proxies write commas, authentik writes bars."""
_LONGEST_USER = 256
_MOST_USERS = 4096
_MOST_KEYS = 16
"""Parts of one header that may be keys."""
_LAST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
REASONS = {
    "invalid_api_key": "invalid",
    "key_expired": "expired",
    "key_blocked": "blocked",
    "ambiguous_credentials": "ambiguous",
}
"""Fault of a 401 → its label value in `nexus_key_refusals_total`."""


@lru_cache(maxsize=1024)
def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    """Matches what one of the globs matches; without a glob, nothing."""
    return re.compile("|".join(map(fnmatch.translate, globs)) or "(?!)")


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who sends a request, and what they may use.

    Attributes:
        key: The id of the key; `none` without one, `unknown` for one that is not known, and
            `user:NAME` for a user whom a proxy has signed in.
        name: The key's name, for people.
        user: The name of such a user; empty for others.
        team: The name of the team; `none` without one.
        key_label: The label value of the key in metrics.
        team_label: The label value of the team.
        models: Lists of globs; a model must match one glob of each.
        endpoints: Lists of endpoint names; an endpoint must be in each.
        expires: When the key stops being accepted, in Unix seconds; None for never.
        blocked: Whether the operators have blocked it.
        weight: Its share in the queue, relative to others.
        may_go_first: Whether its requests may have a high priority.
    """

    key: str = NONE
    name: str = ""
    user: str = ""
    team: str = NONE
    key_label: str = NONE
    team_label: str = NONE
    models: tuple[tuple[str, ...], ...] = ()
    endpoints: tuple[frozenset[str], ...] = ()
    expires: float | None = None
    blocked: bool = False
    weight: float = 1.0
    may_go_first: bool = False

    def __str__(self) -> str:
        """The caller as messages name it."""
        return f"user {self.user}" if self.user else f"key {self.key}"

    def may_use_model(self, model: str) -> bool:
        """Whether the model may be used, by the name that the client or the configuration gives."""
        return all(_pattern(globs).match(model) is not None for globs in self.models)

    def may_use_endpoint(self, name: str) -> bool:
        return all(name in names for names in self.endpoints)

    def state(self, now: float) -> Literal["active", "expired", "blocked"]:
        """`active`, `expired` or `blocked`, at a time in Unix seconds."""
        if self.blocked:
            return "blocked"
        return "expired" if self.expires is not None and now >= self.expires else "active"


ANONYMOUS = Caller()
UNIDENTIFIED = Caller(key=UNKNOWN, key_label=UNKNOWN, team_label=UNKNOWN, team=UNKNOWN)


class Callers:
    """The keys of one configuration, by digest.

    Attributes:
        required: Whether a request without a valid key is refused.
        by_key: Every caller by the id of its key.
        ended: The ids of blocked keys whose requests in progress are to be ended.
        identities: The users whom a proxy signs in; None if no proxy is believed.
    """

    def __init__(
        self,
        auth: Auth,
        callers: Mapping[str, Caller],
        keys: Sequence[Key],
        identities: Identities | None = None,
    ) -> None:
        self.identities = identities
        self.required = auth.mode == "keys"
        self.by_key = callers
        self.ended = frozenset(key.id for key in keys if key.blocked == "now")
        self._headers = (auth.header.lower(), *KEY_HEADERS)
        self._by_digest = {
            bytes.fromhex(digest): callers[key.id] for key in keys for digest in key.sha256
        }
        for key in keys:
            if key.grace_until is not None:
                caller, end = callers[key.id], key.grace_until.timestamp()
                end = end if caller.expires is None else min(end, caller.expires)
                self._by_digest[bytes.fromhex(key.sha256[0])] = replace(caller, expires=end)

    def identify(self, headers: Mapping[str, str]) -> Caller:
        """The caller whose key a request carries. `headers` are by name in lower case.

        Returns `ANONYMOUS` if it carries no known key, whatever else it carries. Raises
        `RequestFailed` if it carries two different ones.
        """
        known: Caller | None = None
        for name in self._headers:
            if (value := headers.get(name)) is None:
                continue
            for secret in _secrets(name, value):
                digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
                caller = self._by_digest.get(digest)
                if caller is None:
                    continue
                if known is not None and caller.key != known.key:
                    raise _refused(
                        "ambiguous_credentials",
                        f"The request carries two keys, {known.key} and {caller.key}; send one.",
                    )
                known = known or caller
        return known or ANONYMOUS

    def carries_key(self, headers: Mapping[str, str]) -> bool:
        """Whether a request carries a key, known or not. `headers` are by name in lower case."""
        return any(name in headers for name in self._headers)

    def check(self, caller: Caller, headers: Mapping[str, str], *, now: float) -> None:
        """Raise `RequestFailed` unless a caller that was identified may use the gateway now."""
        if caller is ANONYMOUS:
            if not self.required:
                return
            if self.carries_key(headers):
                message = "The API key is not known here; check it, or ask the operators for one."
            else:
                message = "An API key is required; send it as `Authorization: Bearer KEY`."
            raise _refused("invalid_api_key", message)
        match caller.state(now):
            case "blocked":
                raise _refused("key_blocked", f"The {caller} is blocked.")
            case "expired":
                raise _refused("key_expired", f"The {caller} has expired.")


def _secrets(name: str, value: str) -> Iterator[str]:
    """What a header has that may be a key. Servers join a repeated header with commas.

    Only its first parts are looked at: each is hashed, for whoever sends it.
    """
    for part in (value, *value.split(",", _MOST_KEYS)[:_MOST_KEYS]) if "," in value else (value,):
        secret = part.strip()
        if name == "authorization":
            scheme, _, secret = secret.partition(" ")
            if scheme.lower() != "bearer":
                continue
        yield secret.strip()


class Identities:
    """The users whom a proxy in front signs in, by its headers.

    Attributes:
        hidden: Names of the headers that must be kept from backends, as others are forwarded.
    """

    def __init__(self, identity: Identity, teams: Mapping[str, Caller]) -> None:
        """`teams` are callers without a user, by the name of their team; `none` is one of them."""
        self._user, self._groups = identity.user.lower(), identity.teams.lower()
        self.hidden = frozenset(filter(is_for_backends, (self._user, self._groups)))
        self._networks = [ipaddress.ip_network(peer) for peer in identity.peers]
        self._teams = teams
        self._known: dict[tuple[str, str], Caller] = {}
        self.believes = lru_cache(maxsize=256)(self._believes)

    def _believes(self, peer: str) -> bool:
        """Whether the headers are believed from this IP address."""
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)

    def identify(self, fields: Sequence[tuple[str, str]]) -> Caller | None:
        """The user whom these headers name; None if they name nobody.

        A header that is repeated counts as one with all values, as every server may join them.
        """
        user, groups = (
            ",".join(value for name, value in fields if name == wanted).strip()
            for wanted in (self._user, self._groups)
        )
        caller = self._known.get((user, groups))
        if caller is None and 0 < len(user) <= _LONGEST_USER:
            if len(self._known) >= _MOST_USERS:
                self._known.clear()
            caller = self._known[user, groups] = self._caller(_text(user), _text(groups))
        return caller

    def _caller(self, user: str, groups: str) -> Caller:
        named = (name.strip() for name in _SEPARATORS.split(groups))
        team = next((self._teams[name] for name in named if name in self._teams), None)
        return replace(team or self._teams[NONE], key=f"user:{user}", name=user, user=user)


def _text(header: str) -> str:
    """A header's value, whose bytes are UTF-8 if they are not ASCII."""
    return header.encode("latin-1", "replace").decode("utf-8", "replace")


def _refused(fault: str, message: str) -> RequestFailed:
    headers = {"www-authenticate": "Bearer", "x-should-retry": "false"}
    return RequestFailed(fault, message, headers=headers)


def callers_of(
    config: Config, *, key_labels: Mapping[str, str], team_labels: Mapping[str, str]
) -> Callers | None:
    """The callers of a configuration; None if `[auth] mode` is `off`.

    The labels are those of the snapshot, by key id and by team name.
    """
    if config.auth.mode == "off":
        return None
    teams = {team.name: team for team in config.teams}
    callers = {}
    for key in config.keys:
        team = teams.get(key.team) if key.team else None
        label = key_labels.get(key.id, OTHER)
        callers[key.id] = Caller(
            key=key.id,
            name=key.name,
            team=team.name if team else NONE,
            key_label=label,
            team_label=_team_label(team, label, team_labels),
            models=_lists(key.models, team.models if team else None),
            endpoints=tuple(
                map(frozenset, _lists(key.endpoints, team.endpoints if team else None))
            ),
            expires=None if key.expires is None else _end_of(key.expires),
            blocked=bool(key.blocked),
            weight=team.weight if team else 1.0,
            may_go_first=key.priority == "high",
        )
    identities = None
    if config.auth.identity.peers:
        identities = Identities(config.auth.identity, _users(config.teams, team_labels))
    return Callers(config.auth, callers, config.keys, identities)


def _users(teams: Sequence[Team], team_labels: Mapping[str, str]) -> dict[str, Caller]:
    """What the users of each team may use, by its name; `none` is for users without a team."""
    return {
        team.name: Caller(
            key_label=USER,
            team=team.name,
            team_label=team_labels.get(team.name, OTHER),
            models=_lists(team.models),
            endpoints=tuple(map(frozenset, _lists(team.endpoints))),
            weight=team.weight,
        )
        for team in teams
    } | {NONE: Caller(key_label=USER)}


def _team_label(team: Team | None, key_label: str, team_labels: Mapping[str, str]) -> str:
    """The label of a key's team. Keys that share the label `other` share that of the team."""
    if key_label == OTHER:
        return OTHER
    return NONE if team is None else team_labels.get(team.name, OTHER)


def _lists(*lists: list[str] | None) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(names) for names in lists if names is not None)


def _end_of(day: date) -> float:
    """The end of a day in UTC, in Unix seconds; that of the last day is a second early."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return min(midnight.timestamp() + 86400, _LAST)
