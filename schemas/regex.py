"""Regular expressions of matchers: anchored, and in time linear in the text.

The engine is Rust's `regex`, which pydantic brings along. It is of one family with the RE2 that
Prometheus and Alertmanager use: no look-around, no back-references, so no expression is slow.
Python's `re` would be slow on some, and reads `\\d` and `$` differently.
"""

from collections.abc import Callable
from functools import lru_cache

from pydantic_core import SchemaError, SchemaValidator, core_schema

from schemas.errors import Invalid


@lru_cache(maxsize=4096)
def anchored(pattern: str, flags: str = "") -> Callable[[str], bool]:
    """Whether the whole text matches. `flags`: "s" lets `.` match a line break. Raises Invalid."""
    try:
        validator = SchemaValidator(core_schema.str_schema(pattern=f"^(?{flags}:{pattern})$"))
    except SchemaError as error:
        said = str(error).rsplit("error: ", 1)[-1].rsplit("SchemaError: ", 1)[-1].strip()
        raise Invalid(f"{pattern[:80]!r} is not a regular expression: {said}") from error
    return validator.isinstance_python
