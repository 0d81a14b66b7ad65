"""Benchmarks against peers; `python -m benchmarks` runs them, README.md explains them."""
