"""The one exception that a person sees: a sentence that says what is wrong and what to do."""


class AbridgedError(Exception):
    """Raised for bad input and faults outside the code; the command line prints it and exits with 1."""
