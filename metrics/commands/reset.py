"""`python -m metrics reset`: forget one model."""

from __future__ import annotations

import argparse
import sys

from ..counters import value
from ..errors import ConfigurationError, NotFound
from .stores import opened

_EPILOG = """\
examples:
  python -m metrics reset seldon/iris/default/classifier --store sqlite:///state/feedback.db
  python -m metrics reset seldon/iris/default/classifier --store redis://localhost:6379 --yes

A server that uses the store notices within a second. Ids of events stay remembered: what was
counted before is not counted again when it is sent again. Export first what may be wanted again.

exit status: 0 forgotten, 1 not confirmed, 2 usage, no such store or model, 130 interrupted
"""


def add_reset(parser: argparse.ArgumentParser) -> None:
    """Describe the command's words to `parser`."""
    parser.description = "Forget all counters of one model."
    parser.epilog = _EPILOG
    parser.add_argument("model", metavar="MODEL", help="namespace/deployment/predictor/model")
    parser.add_argument("--store", required=True, metavar="URL", help="sqlite:///… or redis://…")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.set_defaults(run=reset)


def reset(options: argparse.Namespace) -> int:
    """Forget `options.model`; 0 where it was forgotten, 1 where nobody confirmed."""
    with opened(options.store) as store:
        state = store.read().models.get(options.model)
        if state is None:
            raise NotFound(f"the store has no model {options.model!r}")
        events = value(state.all_time, "events")
        if not options.yes:
            if not sys.stdin.isatty():
                raise ConfigurationError("nobody to ask whether to forget it: say --yes")
            question = f"Forget {options.model} and its {events} events for good? [y/N] "
            print(question, end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                print("feedback-metrics: nothing was forgotten", file=sys.stderr)
                return 1
        store.reset(options.model)
    print(f"forgot {options.model}: {events} events")
    return 0
