"""What `vervet query --explain` prints: an explanation as the api gives it, as lines of text."""

from collections.abc import Mapping
from typing import Any

from services.query import aligned

COLUMNS = ("selector", "from", "to", "series", "layouts", "samples", "stored in", "read")
PHASES = ("queue", "read", "evaluate")


def explained(told: Mapping[str, Any]) -> str:
    """The expression, a line per selector, and what all of it cost."""
    steps = f"{told['steps']:,} steps of {told['step_s']:g} s" if told["step_s"] else "one instant"
    lines = [f"{told['query']}", f"{told['type']}, {steps}, {told['start']} to {told['end']}", ""]
    if told["selectors"]:
        lines += [aligned([COLUMNS, *map(_selector, told["selectors"])]), ""]
    lines += [
        f"read      {told['samples_read']:,} samples",
        f"result    {told['result_series']:,} series, {told['result_samples']:,} samples",
        "time      "
        + ", ".join(
            f"{phase} {_ms(told[f'{phase}_s'])}" for phase in ("queue", "read", "evaluate")
        ),
    ]
    return "\n".join(lines)


def _selector(read: Mapping[str, Any]) -> tuple[str, ...]:
    stored = ", ".join(f"{tier} {samples:,}" for tier, samples in sorted(read["storage"].items()))
    return (
        read["selector"],
        read["start"],
        read["end"],
        f"{read['series']:,}",
        f"{read['layouts']:,}",
        f"{read['samples']:,}",
        stored or "nothing",
        _ms(read["read_s"]),
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
