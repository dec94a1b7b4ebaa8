"""Numbers and label sets in Prometheus' text forms (Go's strconv.FormatFloat)."""

import math

from engine.promql.blocks import NAME, Labels


def format_value(value: float) -> str:
    """A sample's value as in the HTTP API: shortest digits that read back, no exponent."""
    special = _special(value)
    if special is not None:
        return special
    text = repr(value)
    if "e" not in text:
        return text.removesuffix(".0")
    digits, exponent = _shortest(value)
    sign = "-" if value < 0 else ""
    if exponent < 0:
        return f"{sign}0.{'0' * (-exponent - 1)}{digits}"
    return sign + digits.ljust(exponent + 1, "0")


def format_exponent(value: float) -> str:
    """A value as in /api/v1/alerts: `1e+00`."""
    special = _special(value)
    if special is not None:
        return special
    digits, exponent = _shortest(value)
    sign = "-" if math.copysign(1, value) < 0 else ""
    point = "." if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{point}{digits[1:]}e{'-' if exponent < 0 else '+'}{abs(exponent):02}"


def format_plain(value: float) -> str:
    """A value as Go prints it by itself (%v): with an exponent below 1e-4 and from 1e6 on."""
    if _special(value) is None and value != 0:
        exponent = _shortest(value)[1]
        if exponent < -4 or exponent >= 6:
            return format_exponent(value)
    return format_value(value)


def format_labels(labels: Labels) -> str:
    """A series as Prometheus writes it: `name{a="b", c="d"}`."""
    pairs = [f'{name}="{_escaped(labels[name])}"' for name in sorted(labels) if name != NAME]
    name = labels.get(NAME, "")
    return f"{name}{{{', '.join(pairs)}}}" if pairs or not name else name


def format_label_set(labels: Labels) -> str:
    """All labels in braces, the metric's name like any other: `{__name__="up", a="b"}`."""
    pairs = [f'{name}="{_escaped(labels[name])}"' for name in sorted(labels)]
    return f"{{{', '.join(pairs)}}}"


def _special(value: float) -> str | None:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return None


def _shortest(value: float) -> tuple[str, int]:
    """(significant digits, decimal exponent of the first), of the shortest text that reads back."""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    leading = len(whole) + len(fraction) - len(digits)
    significant = digits.rstrip("0")
    if not significant:
        return "0", 0
    return significant, int(exponent or 0) + len(whole) - 1 - leading


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
