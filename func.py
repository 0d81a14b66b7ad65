"""The parliament function: what `func` recognises, and what `python -m parliament .` serves.

The store is opened here, before the port opens; SIGTERM ends in `atexit`, which commits.
Our own command, `python -m metrics serve`, serves the same app faster and with all routes.
"""

import atexit

import parliament

from metrics.host import answer, build_from_environment

app = build_from_environment()
atexit.register(app.close)


def main(context: parliament.Context):
    """Answer one request: a feedback event, or a person's look at `/`."""
    return answer(app, context)
