"""The one error of everything that decodes: what came in breaks the contract, now and for ever."""


class Invalid(ValueError):
    """A message or document that no retry will mend. The text is the reason, fit to be shown."""
