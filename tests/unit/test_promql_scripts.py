"""Scripts in Prometheus' format for tests of PromQL, and what their runner says.

VERVET_TEST_PROMQL_SCRIPTS: a folder of more scripts, such as promql/promqltest/testdata of
Prometheus' repository; what PromQL means beyond docs/reference/promql.md is left out.
"""

import os
import re
from pathlib import Path

import pytest

from tests import promqltest

OWN = Path(__file__).parent / "promql"
GIVEN = os.environ.get("VERVET_TEST_PROMQL_SCRIPTS")
SCRIPTS = [
    path for folder in (OWN, GIVEN) if folder for path in sorted(Path(folder).glob("*.test"))
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_case_of_a_script_is_answered_as_it_says(script: Path) -> None:
    cases = list(promqltest.run(script.read_text()))
    wrong = [f"{script.name}:{case.line}: {case.query}: {said}" for case, said in cases if said]
    assert not wrong
    assert cases or script.parent != OWN


@pytest.mark.parametrize(
    ("expectation", "said"),
    [
        ("x 2", "answered .*1.0.*expected .*2.0"),
        ("y 1", "answered"),
        ("", "answered"),
        ("expect fail", "an error was expected"),
        ("expect string 'a'", "answered"),
    ],
)
def test_a_case_that_is_not_as_expected_is_told(expectation: str, said: str) -> None:
    script = f"load 1m\n  x 1\n\neval instant at 0 x\n  {expectation}\n"
    ((case, found),) = promqltest.run(script)
    assert case.line == 4
    assert re.search(said, found)


def test_a_failure_with_another_message_is_told() -> None:
    script = "eval instant at 0 sum(\n  expect fail msg: something else\n"
    ((_, found),) = promqltest.run(script)
    assert "something else" in found
