"""River's running metrics behind parliament, their values in reply; nothing is durable."""

from collections import defaultdict
from threading import Lock

import parliament
from cloudevents.http import CloudEvent
from river import metrics


def fresh():
    """The metrics of one model, which share a confusion matrix."""
    matrix = metrics.ConfusionMatrix()
    shared = [metrics.Accuracy, metrics.MacroPrecision, metrics.MacroRecall, metrics.MacroF1]
    shared += [metrics.CohenKappa]
    return matrix, metrics.CrossEntropy(), {each.__name__: each(matrix) for each in shared}


MODELS = defaultdict(fresh)
LOCK = Lock()


def main(context: parliament.Context):
    """Update the metrics with each row of an event and tell them all."""
    event = context.cloud_event
    scores, truths = (event.data[part]["data"]["ndarray"] for part in ("response", "truth"))
    with LOCK:
        matrix, loss, shared = MODELS[event["modelid"]]
        for row, truth in zip(scores, truths, strict=True):
            matrix.update(truth, max(range(len(row)), key=row.__getitem__))
            loss.update(truth, dict(enumerate(row)))
        told = {name: metric.get() for name, metric in shared.items()}
        told["CrossEntropy"] = loss.get()
    attributes = {"type": "metrics", "source": "/function", "datacontenttype": "application/json"}
    return CloudEvent(attributes, told)
