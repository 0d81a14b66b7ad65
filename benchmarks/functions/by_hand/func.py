"""What a user would write by hand: counters of prometheus_client, and a CloudEvent in reply.

Nothing is durable and no duplicate is noticed.
"""

import parliament
from cloudevents.http import CloudEvent
from prometheus_client import Counter

RIGHT = Counter("right", "Right rows.", ["model", "label"])
WRONG = Counter("wrong", "Wrong rows.", ["model", "truth", "prediction"])


def main(context: parliament.Context):
    """Count each row of an event and tell how many were right."""
    event = context.cloud_event
    model = event["modelid"]
    scores, truths = (event.data[part]["data"]["ndarray"] for part in ("response", "truth"))
    right = 0
    for row, truth in zip(scores, truths, strict=True):
        prediction = max(range(len(row)), key=row.__getitem__)
        if prediction == truth:
            RIGHT.labels(model, truth).inc()
            right += 1
        else:
            WRONG.labels(model, truth, prediction).inc()
    attributes = {"type": "metrics", "source": "/function", "datacontenttype": "application/json"}
    return CloudEvent(attributes, {"model": model, "rows": len(truths), "right": right})
