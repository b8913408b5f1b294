"""Validates requests; the errors name the fields of the API.

Author: djjay
Date: 2026-11-20
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pixyproxy.core.exceptions import FieldViolation, ImageNotFoundError, InvalidFieldError, PriceUnknownError
from pixyproxy.core.fields import Guid
from pixyproxy.core.models import Model

AnyModel = TypeVar("AnyModel", bound=Model)

# Fields of our models that the API does not have: their fields are fields of the request itself.
_UNNAMED_PARTS = frozenset({"detail", "filter"})
_GUID: TypeAdapter[str] = TypeAdapter(Guid)


def validated(model: type[AnyModel], values: Any, violations: Sequence[FieldViolation] = ()) -> AnyModel:
    """Return a model of ``values``, or validate a model again.

    Args:
        model: the kind of model.
        values: its fields by name, or a model.
        violations: what is already known to be wrong.

    Raises:
        InvalidFieldError: at least one field breaks a rule; each of them is named.
    """
    try:
        valid = model.model_validate(values)
    except ValidationError as error:
        raise InvalidFieldError([*violations, *_violations_of(error)]) from error
    if violations:
        raise InvalidFieldError(violations)
    return valid


@contextmanager
def fields_within(part: str) -> Iterator[None]:
    """Name the fields of errors as those of a part of the request, such as ``request.prompt`` for ``prompt``."""
    try:
        yield
    except InvalidFieldError as error:
        raise InvalidFieldError(
            [FieldViolation(f"{part}.{violation.field}", violation.description) for violation in error.violations]
        ) from error
    except ImageNotFoundError as error:
        if not error.field:
            raise
        raise ImageNotFoundError(error.guid, f"{part}.{error.field}") from error
    except PriceUnknownError as error:
        error.field = f"{part}.{error.field}"
        raise


def validated_guid(guid: str) -> str:
    """Validate a guid, and return it in lower case.

    Raises:
        InvalidFieldError: it is not a guid.
    """
    try:
        return _GUID.validate_python(guid)
    except ValidationError as error:
        raise InvalidFieldError(_violations_of(error, field="guid")) from error


def _violations_of(error: ValidationError, field: str = "") -> list[FieldViolation]:
    return [
        # In pydantic's words: "Input should be", "String should have".
        FieldViolation(_path(detail["loc"]) or field, re.sub(r"^\w+ should", "must", detail["msg"]))
        for detail in error.errors(include_input=False, include_url=False)
    ]


def _path(location: Sequence[str | int]) -> str:
    """Return the path of a field in the API, such as ``tags[3]`` or ``options.size``."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _UNNAMED_PARTS:
            path += f".{part}" if path else part
    return path
