"""Documents that people write: read with limits, checked, and every mistake shown where it stands.

One line per problem: `file:line:column: path: what was read; what is expected; nearest valid key`.
"""

import difflib
import io
import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from schemas.durations import format_duration
from schemas.errors import Invalid

M = TypeVar("M", bound=BaseModel)
Loc = tuple[int | str, ...]

MAX_DOCUMENT_BYTES = 1024**2
MAX_NODES = 200_000
"""Values in one document with aliases followed: a few aliased lines can ask for billions."""

_SHOWN = 60


class DocumentError(Invalid):
    """A document that cannot be used. `problems` holds one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def load_yaml(path: Path, model: type[M]) -> M:
    """The document at `path` as `model`. Raises DocumentError."""
    return parse_yaml(read_document(path), str(path), model)


def parse_yaml(text: str, name: str, model: type[M]) -> M:
    """The same of a text; `name` stands for the file in messages."""
    reader = YAML(typ="rt", pure=True)
    try:
        tree = reader.load(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else f"{name}:1:1"
        said = " ".join(str(error.problem or error.context).split())
        raise DocumentError([f"{where}: {said}"]) from error
    except (YAMLError, RecursionError, ValueError) as error:
        raise DocumentError([f"{name}:1:1: {' '.join(str(error).split())[:200]}"]) from error
    _count_nodes(tree, name)
    return _validate(_plain(tree), name, model, lambda loc: _yaml_position(tree, loc))


def load_toml(path: Path, model: type[M]) -> M:
    """The document at `path` as `model`. Raises DocumentError."""
    text = read_document(path)
    return _validate(
        parse_toml(text, str(path)), str(path), model, lambda loc: toml_position(text, loc)
    )


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """The plain tree of a TOML text. Raises DocumentError."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        said = str(error)
        at = re.search(r" \(at line (\d+), column (\d+)\)", said)
        line, column = at.groups() if at else (str(text.count("\n") + 1), "1")
        said = said.replace(at.group(0) if at else " (at end of document)", "")
        raise DocumentError([f"{name}:{line}:{column}: {said}"]) from error


def read_document(path: Path) -> str:
    """The text of a file within limits. Raises DocumentError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise DocumentError([f"{path}: cannot be read: {error.strerror}"]) from error
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DocumentError([f"{path}: larger than {MAX_DOCUMENT_BYTES} bytes"])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DocumentError([f"{path}:{line}:1: not UTF-8 text"]) from error


def _count_nodes(tree: Any, name: str) -> None:
    stack, seen = [tree], 0
    while stack:
        node = stack.pop()
        seen += 1
        if seen > MAX_NODES:
            raise DocumentError([f"{name}:1:1: more than {MAX_NODES} values, aliases included"])
        if isinstance(node, Mapping):
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def _plain(node: Any) -> Any:
    """ruamel's tree without its comments and positions, so that models see plain types."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    for plain in (str, int, float):
        if isinstance(node, plain):
            return plain(node)
    return node


def _validate(tree: Any, name: str, model: type[M], position: Any) -> M:
    try:
        return model.model_validate({} if tree is None else tree)
    except ValidationError as error:
        problems = []
        for details in error.errors(include_url=False):
            line, column = position(details["loc"])
            problems.append(f"{name}:{line}:{column}: {explain(details, model)}")
        raise DocumentError(problems) from error


def explain(details: ErrorDetails, model: type[BaseModel]) -> str:
    """`path: what was read; what is expected; nearest valid key` of one validation error."""
    loc = _visible(details["loc"])
    path = loc_text(loc) or "document"
    if details["type"] == "extra_forbidden":
        keys = _keys_at(model, loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), keys, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(keys)}"
        return f"{path}: unknown key {str(loc[-1])!r}{hint}"
    if details["type"] == "missing":
        return f"{path}: missing; it is required"
    said = details["msg"].removeprefix("Value error, ")
    said = said[0].lower() + said[1:] if said else said
    given = details["input"]
    secret = any(str(part).lower() in _SECRET_KEYS for part in loc)
    # A whole table says little, and may hold a password.
    if secret or details["type"] == "refused" or isinstance(given, dict):
        return f"{path}: {said}"
    read = format_duration(given) if isinstance(given, timedelta) else repr(given)
    return f"{path}: read {read if len(read) <= _SHOWN else read[:_SHOWN] + '…'}; {said}"


_SECRET_KEYS = {
    *("broker_url", "database_url", "auth_password", "smtp_auth_password", "password"),
    *("url", "credentials", "secrets"),
}


def loc_text(loc: Sequence[int | str]) -> str:
    """`groups[0].rules[2].expr` of ("groups", 0, "rules", 2, "expr")."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _visible(loc: Loc) -> Loc:
    """The location without what pydantic adds for unions and validators."""
    return tuple(p for p in loc if isinstance(p, int) or not re.search(r"[\[\]()]|-|^[A-Z]", p))


def _keys_at(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """The keys that a model knows at a location."""
    for part in loc:
        if isinstance(part, int):
            continue
        for name, info in model.model_fields.items():
            if part in (name, info.alias):
                model = _model_in(info.annotation) or model
    return [info.alias or name for name, info in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)


def _yaml_position(tree: Any, loc: Loc) -> tuple[int, int]:
    """Line and column, from 1, of the deepest part of `loc` that stands in the document."""
    line, column = 0, 0
    for part in _visible(loc):
        try:
            if isinstance(tree, Mapping):
                line, column = tree.lc.key(part)  # type: ignore[attr-defined]
            elif isinstance(tree, list) and isinstance(part, int):
                line, column = tree.lc.item(part)  # type: ignore[attr-defined]
            tree = tree[part]
        except (KeyError, IndexError, TypeError, AttributeError):
            break
    return line + 1, column + 1


_TABLE = re.compile(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?")
_KEY = re.compile(
    r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"|'[^']*'))*)\s*="
)


def toml_position(text: str, loc: Loc) -> tuple[int, int]:
    """Line and column, from 1, of the deepest part of `loc` that stands in the TOML text.

    The standard parser gives no positions, so this looks for tables and keys line by line; what it
    takes for a key inside a multi-line string can only put a message on a wrong line.
    """
    wanted = [str(part) for part in _visible(loc) if isinstance(part, str)]
    table: list[str] = []
    best, found = 0, (1, 1)
    for number, line in enumerate(text.splitlines(), 1):
        if match := _TABLE.match(line):
            path = table = _dotted(match.group(1))
        elif match := _KEY.match(line):
            path = table + _dotted(match.group(1))
        else:
            continue
        if len(path) > best and path == wanted[: len(path)]:
            best, found = len(path), (number, match.start(1) + 1)
    return found


def _dotted(text: str) -> list[str]:
    return [part.strip().strip("\"'") for part in text.split(".")]
