"""Counters -> scores with intervals and bounds. Nothing derived is ever stored.

Scores bear scikit-learn's names where it has one. An undefined score (0/0) is absent, never 0.
"""

from .view import Scored, model_view, score_vector

__all__ = ["Scored", "model_view", "score_vector"]
