"""PromQL over blocks of samples: pure, column by column, one engine for every store.

query = parse('rate(node_cpu_seconds_total{mode="idle"}[5m])')
blocks = {select: read(select) for select in query.selects(start_us, end_us)}
matrix = query.range(start_us, end_us, step_us, blocks)
"""

from engine.promql.blocks import NAME, Block, Columns
from engine.promql.errors import QueryError, Unanswered
from engine.promql.matchers import Matcher, MatchOp, matches, matching_columns
from engine.promql.plan import DEFAULT_LOOKBACK, Moment, Parser, Query, parse
from engine.promql.reading import Blocks, Select
from engine.promql.results import Matrix, Result, Scalar, Vector

__all__ = [
    "DEFAULT_LOOKBACK",
    "NAME",
    "Block",
    "Blocks",
    "Columns",
    "MatchOp",
    "Matcher",
    "Matrix",
    "Moment",
    "Parser",
    "Query",
    "QueryError",
    "Result",
    "Scalar",
    "Select",
    "Unanswered",
    "Vector",
    "matches",
    "matching_columns",
    "parse",
]
