"""The one error of queries."""


class QueryError(ValueError):
    """The query is wrong, or cannot be answered from this data. The text is fit to be shown."""
