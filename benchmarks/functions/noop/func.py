"""A function that does nothing: what stock parliament itself costs."""

import parliament


def main(context: parliament.Context):
    """Answer without a look at the event."""
    return "", 200
