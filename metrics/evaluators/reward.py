"""Rewards, whatever the task: of all events, and by the route a bandit or A/B test took.

Families, with no label for all events and with the route for each: rewards (events),
reward_positive and reward_negative (sums of magnitudes: a signed sum is no counter),
reward_offset and reward_offset_squared (less the model's origin, for the variance: 0, but for
models that were begun when it was their first reward). All but rewards are in units; see `exact`.
"""

from __future__ import annotations

from ..counters import MAX_ROOT, NO_LABELS, OTHER
from ..errors import Refused
from ..exact import squared, to_units
from ..payload import Feedback
from .evaluation import Evaluation, Known

MAX_ROUTES = 100
"""Routes past these are counted as `__other__`."""


def evaluate(feedback: Feedback, evaluation: Evaluation, known: Known) -> None:
    """Add the event's reward to `evaluation`. Raises Refused for one too large to be squared."""
    reward = feedback.reward
    assert reward is not None
    origin = float(known.constants.get("reward_origin", 0.0))
    if not max(abs(reward), abs(reward - origin)) < MAX_ROOT:
        raise Refused("reward", "too large to be squared")
    evaluation.constants["reward_origin"] = origin
    offset = to_units(reward) - to_units(origin)
    labels = [NO_LABELS]
    if feedback.route:
        routes = known.labels.get("route", set())
        full = len(routes) >= MAX_ROUTES and feedback.route not in routes
        labels.append((OTHER if full else feedback.route,))
    sums = {
        "rewards": 1,
        "reward_positive": to_units(max(reward, 0.0)),
        "reward_negative": to_units(max(-reward, 0.0)),
        "reward_offset": offset,
        "reward_offset_squared": squared(offset),
    }
    vector = evaluation.vector()
    for family, value in sums.items():
        vector[family] = dict.fromkeys(labels, value)
