"""Errors of queries."""


class QueryError(ValueError):
    """The query is wrong, unless it is Unanswered. The text is fit to be shown."""


class Unanswered(QueryError):
    """The query is right, but this data, or a bound, forbids an answer."""
