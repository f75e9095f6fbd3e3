"""Faults on demand, written as `status=503,rate=0.3,seed=7`: by option, by request header, or
while it runs."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Any

BODIES = ("html", "empty", "cut", "stalled", "dripped", "large", "nan", "echo", "unclosed", "blank")
"""`cut` and `unclosed` end with the connection, in the middle of a JSON text or after its end;
`stalled` and `dripped` stop after their first bytes, or send one each half second; `nan` is a
good answer with NaN in it; `echo` repeats the request's Authorization; `blank` is empty lines
without an end."""


@dataclass(frozen=True, kw_only=True)
class FaultSpec:
    """What goes wrong; the defaults are a backend that is well. Seconds where not said
    otherwise."""

    status: int = 0  # answer with this status and an error body
    retry_after: int = 0  # with status: a Retry-After header
    message: str = ""  # with status: the error's message, without a comma
    kind: str = ""  # with status: the error's type
    location: str = ""  # with status: a Location header
    body: str = ""  # with status: another body: one of BODIES
    size: int = 0  # with body=large: its bytes
    unread: bool = False  # with status: without parsing the request's body, which may be costly
    delay: float = 0.0  # wait before the answer
    hang: bool = False  # never answer
    close: bool = False  # close the connection without an answer
    reset: bool = False  # the same, by a TCP reset
    malformed: bool = False  # answer with what is not HTTP
    break_after: int = (
        -1
    )  # cut the answer: a stream after so many events, another one in the middle of its body
    error_after: int = -1  # tell of an error within a stream, after so many events
    error_code: int = (
        0  # with error_after, or status: the error's code, as of an answer with that status
    )
    stall_after: int = -1  # fall silent in the same places
    no_done: bool = False  # end a stream without its last events
    no_usage: bool = False  # report no token usage
    models: bool = False  # strike the model list too, and with it the health probes
    header: str = ""  # a further header of good answers, as "name: value"
    rate: float = 1.0  # share of requests that are struck
    seed: int = 0  # makes the share the same at every run

    @classmethod
    def parse(cls, text: str) -> FaultSpec:
        """Read `name=value,name`; ValueError with a sentence for what it does not know."""
        kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(cls)}
        values: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = item.partition("=")
            if name not in kinds:
                raise ValueError(f"There is no fault {name!r}; known are {', '.join(kinds)}.")
            try:
                if name == "body" and value not in BODIES:
                    raise ValueError(f"There is no body {value!r}; known are {', '.join(BODIES)}.")
                values[name] = (
                    value.lower() not in ("0", "false")
                    if kinds[name] is bool
                    else kinds[name](value)
                )
            except ValueError:
                raise ValueError(f"The fault {name} takes a number, not {value!r}.") from None
        return cls(**values)


WELL = FaultSpec()


class FaultSource:
    """Decides request by request; the same seed gives the same decisions in the same order."""

    def __init__(self, spec: FaultSpec) -> None:
        self.spec = spec
        self._random = random.Random(spec.seed)

    def next(self) -> FaultSpec:
        if self.spec.rate >= 1.0:
            return self.spec
        return self.spec if self._random.random() < self.spec.rate else WELL
