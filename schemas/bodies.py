"""JSON bodies of messages: how they are decoded, and fields that a database can keep."""

from datetime import UTC, datetime
from typing import Annotated, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ValidationError

from schemas.errors import Invalid

Body = TypeVar("Body", bound=BaseModel)

MAX_JSON_BYTES = 256 * 1024
"""Largest JSON body that is not samples. A body of nothing but mistakes takes a hundredfold."""


def decode_body(model: type[Body], body: bytes, name: str) -> Body:
    """The model of a JSON body. Raises Invalid: `name`, the place, the reason."""
    if len(body) > MAX_JSON_BYTES:
        raise Invalid(f"{name}: body: {len(body)} bytes; at most {MAX_JSON_BYTES}")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        said = first["msg"].removeprefix("Value error, ")
        raise Invalid(f"{name}: {where[:80]}: {said}") from error


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL character, which PostgreSQL keeps in no text")
    return text


def _in_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("an instant before the year 1 or after 9999 in UTC") from error


Text = Annotated[str, AfterValidator(_without_nul)]
"""Any text but for NUL characters."""

Instant = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""An instant, read with any offset; in UTC once it is validated."""
