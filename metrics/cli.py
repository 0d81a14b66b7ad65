"""The command line. A user's mistake is one line on stderr and exit status 2, no traceback."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from . import __version__, config
from .errors import FeedbackMetricsError

COMMANDS = {
    "send": ("send", "post feedback from files to a server or broker"),
    "show": ("show", "scores of a model, from a server or a store"),
    "export": ("export", "state of a store to portable JSON"),
    "import": ("export", "add an export to a store"),
    "reset": ("reset", "forget one model"),
}
"""Command -> its module in `commands`, imported only when it is asked for, and what it does."""

_EPILOG = """\
`python -m metrics COMMAND --help` has examples.

exit status: 0 all is well, 1 some of the input was refused, 2 usage or configuration (also what
             does not exist or cannot be reached), 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exits with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # labels of any script on any terminal
    try:
        options = _parser(words[0] if words else "").parse_args(words)
        status = options.run(options)
        sys.stdout.flush()
    except FeedbackMetricsError as error:
        print(f"feedback-metrics: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # the reader of our output has seen enough
        _close_stdout()
        status = 141  # as the shell has it of SIGPIPE
    except OSError as error:
        if options.command == "serve":
            raise
        _close_stdout()
        print(f"feedback-metrics: {error.strerror or error}", file=sys.stderr)
        status = 2
    if status:
        sys.exit(status)


def _close_stdout() -> None:
    """Have what is still to be written to stdout vanish without another error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser(chosen: str) -> argparse.ArgumentParser:
    """The parser of all commands; only the chosen one's words are known to it."""
    parser = argparse.ArgumentParser(
        prog="python -m metrics",
        description="Live quality metrics of models in production.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    for name, (module, help) in COMMANDS.items():
        command = commands.add_parser(
            name, help=help, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == chosen:
            add = getattr(import_module(f".commands.{module}", __package__), f"add_{name}")
            add(command)
    return parser


def _serve(options: argparse.Namespace) -> None:
    from . import log
    from .server import serve

    settings = config.load(os.environ, vars(options))
    log.configure(settings.log_level)
    serve(settings)
