"""The reference of PromQL, held to the code."""

import re
from pathlib import Path

from engine.promql.aggregations import REDUCTIONS
from engine.promql.operators import OPERATORS, SET_OPERATORS
from engine.promql.parsing import FUNCTION_NAMES, NATIVE_HISTOGRAMS
from engine.promql.selections import RANKINGS

REFERENCE = Path(__file__).parents[2] / "docs/reference/promql.md"


def words(heading: str) -> set[str]:
    """What stands in code below a heading."""
    section = REFERENCE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    code = " ".join(re.findall(r"`([^`]+)`", section))
    return set(re.findall(r"[a-z_0-9]+|[^\sa-z_0-9]+", code))


def test_it_names_everything_that_there_is() -> None:
    known = {*FUNCTION_NAMES, *REDUCTIONS, *RANKINGS, "quantile", "count_values", *SET_OPERATORS}
    known |= {one for one in OPERATORS if one[0] not in "<>=!"}
    assert not known - words("What there is")


def test_it_names_what_there_is_not() -> None:
    missing = {"histogram_avg", *(f"_{name.partition('_')[2]}" for name in NATIVE_HISTOGRAMS)}
    assert not missing - words("What there is not") - {"_avg"}
