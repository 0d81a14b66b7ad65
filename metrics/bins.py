"""The bins of histograms: logits of scores, confidences, absolute errors. All are additive.

Scores are binned on the logit, so that skewed scores (fraud, click-through) keep their order;
absolute errors in logarithmic buckets with a relative-error guarantee (DDSketch: Masson, Rim,
Lee 2019). Each function has its vector twin in `evaluators.rows`, held to it by a test.
"""

from __future__ import annotations

from math import ceil, exp, log

LOGITS_A_UNIT = 32
MAX_LOGIT_BIN = 32 * LOGITS_A_UNIT
"""Scores beyond a logit of ±32 share the outermost bins."""

CALIBRATION_BINS = 15
"""Equal-width bins of confidence (Guo et al. 2017)."""

RELATIVE_ERROR = 0.01
"""Guarantee of error quantiles."""
GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
LOG_GAMMA = log(GAMMA)
SMALLEST_ERROR = 1e-12
"""Absolute errors up to this one are zero for quantiles."""


def logit_bin(score: float) -> int:
    """The bin of a score in [0, 1]: monotone, so that order between bins is order of scores."""
    if score <= 0:
        return -MAX_LOGIT_BIN
    if score >= 1:
        return MAX_LOGIT_BIN
    bin = round(log(score / (1 - score)) * LOGITS_A_UNIT)
    if -MAX_LOGIT_BIN <= bin <= MAX_LOGIT_BIN:
        return bin
    return MAX_LOGIT_BIN if bin > 0 else -MAX_LOGIT_BIN


def score_of(bin: int) -> float:
    """The score in the middle of a logit bin."""
    return 1 / (1 + exp(-bin / LOGITS_A_UNIT))


def calibration_bin(confidence: float) -> int:
    """The bin of a confidence in [0, 1]."""
    return min(int(confidence * CALIBRATION_BINS), CALIBRATION_BINS - 1)


def error_bin(error: float) -> int | None:
    """The bucket of an absolute error; None for one that counts as zero."""
    return ceil(log(error) / LOG_GAMMA) if error > SMALLEST_ERROR else None


def error_of(bin: int) -> float:
    """The absolute error that stands for a bucket: within RELATIVE_ERROR of all in it."""
    return 2 * GAMMA**bin / (GAMMA + 1)
