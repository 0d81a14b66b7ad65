"""Prometheus metric families: built sample by sample, and encoded in parts that can be kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from .counters import Number
from .scores.ranges import plain

Blocks = list[tuple[bytes, bytes]]
"""Families of an exposition: each one's HELP and TYPE lines, and its samples."""


class Part(Collector):
    """Families that are encoded by themselves."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """The families."""
        return self._families


class Families:
    """Metric families under construction, each with its samples together."""

    def __init__(self, created: bool) -> None:
        self._created = created
        self._families: dict[str, Metric] = {}

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._families.values())

    def family(self, name: str, help: str, kind: str) -> Metric | None:
        """The family called `name`; None where one of another kind took the name."""
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = Metric(name, help, kind)
        return family if family.type == kind else None

    def merge(self, others: Iterable[Metric]) -> None:
        """Add the samples of other families; one of another kind than its namesake is left out."""
        for other in others:
            family = self.family(other.name, other.documentation, other.type)
            if family is not None:
                family.samples += other.samples

    def counter(
        self, name: str, help: str, labels: dict[str, str], number: Number, created: float
    ) -> None:
        """Add a sample of the counter `name` (without _total). Raises ValueError below 0."""
        if number < 0:  # broken state: strict parsers refuse the whole exposition
            raise ValueError(f"{name}: a counter is {number}")
        family = self.family(name, help, "counter")
        if family is not None:
            family.samples.append(Sample(f"{name}_total", labels, plain(number)))
            if self._created:
                family.samples.append(Sample(f"{name}_created", labels, created))

    def gauge(self, name: str, help: str, labels: dict[str, str], number: float) -> None:
        """Add a sample of the gauge `name`."""
        family = self.family(name, help, "gauge")
        if family is not None:
            family.samples.append(Sample(name, labels, plain(number)))

    def histogram(
        self,
        name: str,
        help: str,
        labels: dict[str, str],
        buckets: Iterable[tuple[str, float]],
        total: float,
    ) -> None:
        """Add a histogram's samples; `buckets` are cumulative."""
        family = self.family(name, help, "histogram")
        if family is None:
            return
        count = 0.0
        for bound, count in buckets:
            family.samples.append(Sample(f"{name}_bucket", {**labels, "le": bound}, count))
        family.samples.append(Sample(f"{name}_sum", labels, plain(total)))
        family.samples.append(Sample(f"{name}_count", labels, count))


def blocks_of(text: bytes) -> Blocks:
    """The families in the text of an exposition."""
    found = []
    text = b"\n" + text.removesuffix(b"# EOF\n").removesuffix(b"\n")
    for block in text.split(b"\n# HELP ")[1:]:  # a label may hold anything but a line's end
        help, kind, samples = (block + b"\n").split(b"\n", 2)
        found.append((b"# HELP " + help + b"\n" + kind + b"\n", samples))
    return found


def append(blocks: dict[bytes, list[bytes]], taken: set[bytes], more: Blocks) -> None:
    """Add samples to their families; one whose names another family has is left out."""
    for head, samples in more:
        same = blocks.get(head)
        if same is not None:
            same.append(samples)
            continue
        names = _names(head)
        if taken.isdisjoint(names):
            taken |= names
            blocks[head] = [samples]


@lru_cache(maxsize=4096)
def _names(head: bytes) -> frozenset[bytes]:
    """The names that a family and its samples have, in either format."""
    kind = head.rstrip().rpartition(b" ")[2]
    name = head.split(b" ", 3)[2]
    if kind == b"counter":
        name = name.removesuffix(b"_total")
    return frozenset(name + suffix for suffix in _SUFFIXES.get(kind, (b"",)))


_SUFFIXES = {
    b"counter": (b"", b"_total", b"_created"),
    b"histogram": (b"", b"_bucket", b"_sum", b"_count", b"_created"),
}
