"""What can be set for a model, and the defaults: the pure core reads settings from here only."""

from __future__ import annotations

from dataclasses import dataclass, field

from .alerts import Rule
from .errors import ConfigurationError
from .payload import MAX_LABEL, one_line
from .windows import Window, window

TASKS = ("auto", "multiclass", "binary", "multilabel", "regression")
PROBABILITIES = ("refuse", "normalise", "scores")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One model's settings; `FEEDBACK_MODELS` overrides the process-wide ones, glob by glob."""

    task: str = "auto"
    """One of TASKS, or the dotted path of a class of the user's."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the probabilities' columns."""
    positive_class: str = ""
    """The positive class of a binary model: a name of `classes`, or 0 or 1; the second if empty."""
    threshold: float = 0.5
    """A probability at or above it predicts the positive class (binary) or the label."""
    k: int = 0
    """`top_k_accuracy` counts the truth among the k most probable classes; 0: not kept."""
    beta: float = 0.0
    """`fbeta_*` weighs recall beta times as much as precision; 0: not shown."""
    probabilities: str = "refuse"
    """Rows that are no probabilities: refuse them, normalise them, or take them as scores."""
    flat_rows: bool = False
    """A flat list is one row of scores, not N scalars: the ancestor's MulticlassOneHot."""
    windows: tuple[Window, ...] = field(
        default_factory=lambda: (window("5m"), window("1h"), window("1d"))
    )
    segments: tuple[str, ...] = ()
    """Keys of CloudEvent extensions or `meta.tags` by which scores are sliced."""
    max_classes: int = 1000
    """Classes past these are counted as `__other__`."""
    confidence: float = 0.95
    """Level of the intervals."""
    alerts: tuple[Rule, ...] = ()
    """Thresholds of scores, of whose crossing is told."""

    def __post_init__(self) -> None:
        if self.task not in TASKS and "." not in self.task:
            raise ConfigurationError(
                f"task: {self.task!r} is neither one of {', '.join(TASKS)} "
                "nor the dotted path of a class"
            )
        if self.probabilities not in PROBABILITIES:
            raise ConfigurationError(f"probabilities: must be one of {', '.join(PROBABILITIES)}")
        if len(set(self.classes)) != len(self.classes):
            raise ConfigurationError("classes: names a class twice")
        if any(not name or one_line(name, MAX_LABEL) != name for name in self.classes):
            raise ConfigurationError(
                f"classes: a name needs 1 to {MAX_LABEL} characters, none of them a control one"
            )
        if self.task == "binary" and len(self.classes) not in (0, 2):
            raise ConfigurationError("classes: a binary model has two")
        if self.positive_class not in ("", *(self.classes or ("0", "1"))):
            raise ConfigurationError(f"positive_class: {self.positive_class!r} is no class")
        for name in ("threshold", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigurationError(f"{name}: must lie between 0 and 1")
        for name in ("k", "beta"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigurationError(f"{name}: must be 0 or more")
        for rule in self.alerts:
            if rule.window not in ("all", *(each.name for each in self.windows)):
                raise ConfigurationError(f"alerts: {rule.name}: window {rule.window!r} is not kept")
        if len({rule.name for rule in self.alerts}) != len(self.alerts):
            raise ConfigurationError("alerts: two rules have one name")
        if self.max_classes < 2:
            raise ConfigurationError("max_classes: must be 2 or more")

    @property
    def positive(self) -> int:
        """The column of a binary model's positive class, 0 or 1."""
        if not self.positive_class:
            return 1
        return (self.classes or ("0", "1")).index(self.positive_class)
