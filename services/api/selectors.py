"""`match[]`: series selectors as parameters."""

from engine.promql import Matcher, QueryError, parse
from engine.promql.nodes import Selector
from engine.promql.places import placed
from engine.promql.regex_costs import MAX_COST_US, cost_in_query_us
from services.api.errors import BadData
from services.api.parameters import Parameters

MAX_SELECTORS = 100
"""Selectors of one request."""

MAX_CHARS = 16_384
"""Of all selectors of one request together, which are parsed on the event loop."""


def selectors_of(given: Parameters) -> list[tuple[Matcher, ...]]:
    """The matchers of each match[]. Raises BadData."""
    texts = given.all("match[]")
    if len(texts) > MAX_SELECTORS:
        raise BadData(f'invalid parameter "match[]": {len(texts)} of them; at most {MAX_SELECTORS}')
    if (chars := sum(map(len, texts))) > MAX_CHARS:
        raise BadData(
            f'invalid parameter "match[]": {chars:,} characters in all; at most {MAX_CHARS:,}'
        )
    if sum(map(cost_in_query_us, texts)) > MAX_COST_US:
        raise BadData('invalid parameter "match[]": regular expressions that are too large')
    return [selector_matchers(text) for text in texts]


def selector_matchers(text: str) -> tuple[Matcher, ...]:
    """The matchers of a series selector. Raises BadData when it is anything else."""
    try:
        tree = parse(text).tree
    except QueryError as error:
        raise BadData(f'invalid parameter "match[]": {placed(text, str(error))}') from error
    if not isinstance(tree, Selector) or tree.offset_us or tree.pinned is not None:
        raise BadData(f'invalid parameter "match[]": {text[:60]!r} is not a series selector')
    if all(one.accepts("") for one in tree.matchers):
        raise BadData(
            'invalid parameter "match[]": match[] must contain at least one non-empty matcher'
        )
    return tree.matchers
