"""The command line. A user's mistake is one line on stderr and exit status 2, no traceback."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import __version__, config
from .errors import FeedbackMetricsError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exits with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m metrics", description="Live quality metrics of models in production."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        help="take feedback events over HTTP",
        description="Take feedback events over HTTP. A flag wins over its variable.",
    )
    config.add_flags(serve)
    serve.set_defaults(run=_serve)
    options = parser.parse_args(words)
    try:
        options.run(options)
    except FeedbackMetricsError as error:
        print(f"feedback-metrics: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _serve(options: argparse.Namespace) -> None:
    from .host import configure_logging
    from .server import serve

    settings = config.load(os.environ, vars(options))
    configure_logging(settings.log_level)
    serve(settings)
