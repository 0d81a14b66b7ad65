"""feedback-metrics: live, durable quality metrics of models in production, from feedback events.

An event passes four rooms in a straight line: `payload.decode`, `evaluators.evaluate`,
`committer.Committer` (over a `store.Store`) and `app.App`, which replies. Whoever asks about
a model is answered from `store.read`, `scores`, and one of the renderers.
"""

__version__ = "0.1.0"
