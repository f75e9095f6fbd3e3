"""The fields of a vendor's request types, as its Python package has them."""

import typing
from typing import Any


def is_object(hint: Any) -> bool:
    return isinstance(hint, type) and hasattr(hint, "__total__")


def fields(hint: type) -> dict[str, Any]:
    return typing.get_type_hints(hint)


def objects(hint: Any) -> list[type]:
    """The types of objects that a type hint allows, lists and unions taken apart."""
    if is_object(hint):
        return [hint]
    return [found for one in typing.get_args(hint) for found in objects(one)]


def types_of(hint: type) -> list[str]:
    """The values that the field `type` of an object may have."""

    def literals(hint: Any) -> list[str]:
        if typing.get_origin(hint) is typing.Literal:
            return list(typing.get_args(hint))
        return [found for one in typing.get_args(hint) for found in literals(one)]

    return literals(fields(hint).get("type"))
