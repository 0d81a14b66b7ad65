"""`python -m metrics send`: post feedback from files as CloudEvents, as a broker delivers them.

Records go to a few connections through a short queue, at a rate. What may succeed later (no
answer, 404, 408, 409, 429, 5xx) is tried again after 0.2·2ⁿ seconds, or later where the answer
asks for it; any other answer but 2xx refuses the event. An event has one id for all its tries.
"""

from __future__ import annotations

import argparse
import http.client
import os
import queue
import sys
import threading
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from stat import S_ISREG
from typing import IO, NamedTuple
from uuid import uuid4

import orjson

from ..config import FEEDBACK_TYPE
from ..errors import ConfigurationError, Refused, Unavailable
from ..events import STRUCTURED, binary_headers
from ..payload import check_label
from .link import DEFAULT_URL, Server, detail_of, reason_of
from .records import FORMATS, Broken, Form, Record, read_records

SOURCE = "/feedback-metrics/send"
FIRST_DELAY = 0.2
"""Seconds before the first retry; each further one waits twice as long."""
MAX_DELAY = 120.0
"""Seconds between two tries, at most, whatever an answer asks for."""
RETRIED = frozenset((404, 408, 409, 429))
"""Statuses that a broker retries, besides every 5xx."""
STOP_AFTER = 10
"""Events given up in a row after which the rest is not tried."""
REDRAW_SECONDS = 0.2

_IDENTITY = (
    ("namespace", "namespace"),
    ("deployment", "inferenceservicename"),
    ("predictor", "endpoint"),
    ("model", "modelid"),
)

_EPILOG = """\
examples:
  python -m metrics send feedback.csv --namespace seldon --deployment iris
  python -m metrics send *.jsonl --rate 100 --connections 8 --url http://broker.example/ns/default
  tail -f predictions.jsonl | python -m metrics send - --model classifier

files, by their names or else by how they begin:
  JSON lines, or a JSON array; each of them
      {"truth": {"data": {"ndarray": [2]}}, "response": {"data": {"ndarray": [[0.1, 0.2, 0.7]]}},
       "reward": 1, "id": "a-1", "time": "2026-01-31T12:00:00Z"}     (the last three if you like)
      or a structured CloudEvent, sent as it is
  CSV with a header and a record a line (separated by , ; or tab):
      truth,prediction     a label or a number each, and perhaps
      id,time,reward,requestid      time is RFC 3339 or epoch seconds
      p0,p1,…              probabilities of the classes instead of `prediction`;
                           --probabilities names other columns, which then name the classes

`requestid` says which request a truth belongs to that comes without its prediction.

An event's id is that of its record, or follows from the file's content, the line and the model's
options: the same file sent again counts nothing twice, for as long as the server remembers
(FEEDBACK_DEDUP_TTL). A file that has grown is another file: give it ids. From a pipe, which cannot
be read ahead, an id follows from all records up to it.

A broken or refused line is named on stderr, and all others are sent. What a broker would try again
(no answer, 404, 408, 409, 429, 5xx) is tried again; after 10 events given up in a row the rest is
not sent.

exit status: 0 all was taken (duplicates too), 1 something was broken, refused or given up, 2 usage,
             no such file or no server, 130 interrupted
"""


class Post(NamedTuple):
    """A record ready to go."""

    place: str
    """file:line"""
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    """What one try came to; status 0 for none."""

    status: int
    detail: str
    retry_after: float = 0.0

    @property
    def retried(self) -> bool:
        """Whether a broker would try again."""
        return not self.status or self.status in RETRIED or self.status >= 500


def add_send(parser: argparse.ArgumentParser) -> None:
    """Describe the command's words to `parser`."""
    parser.description = "Post feedback from files as CloudEvents."
    parser.epilog = _EPILOG
    parser.add_argument("files", nargs="+", metavar="FILE", help="- for stdin")
    parser.add_argument("--url", default=DEFAULT_URL, help=f"where to post [{DEFAULT_URL}]")
    parser.add_argument("--rate", type=_positive, metavar="N", help="events a second, at most")
    parser.add_argument("--connections", type=_count(1), default=4, metavar="N", help="at once [4]")
    parser.add_argument("--retries", type=_count(0), default=5, metavar="N", help="of an event [5]")
    parser.add_argument("--timeout", type=_positive, default=30.0, metavar="S", help="seconds [30]")
    parser.add_argument("--format", choices=FORMATS, default="auto", help="of the files [auto]")
    parser.add_argument("--probabilities", type=_names, default=(), metavar="A,B,…", help="columns")
    parser.add_argument("--text", action="store_true", help="labels are names, also 1 and 2.5")
    parser.add_argument("--fresh-ids", action="store_true", help="count everything, again or not")
    for option, attribute in _IDENTITY:
        parser.add_argument(f"--{option}", type=_part, metavar="NAME", help=f"ce-{attribute}")
    parser.add_argument("--type", default=FEEDBACK_TYPE, help=f"of the events [{FEEDBACK_TYPE}]")
    parser.add_argument("--source", help=f"of the events [{SOURCE} and the model's names]")
    parser.add_argument("--json", action="store_true", help="the summary as JSON")
    parser.set_defaults(run=send)


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


def _count(low: int) -> Callable[[str], int]:
    """Reads an integer of at least `low`."""

    def integer(text: str) -> int:
        number = int(text)
        if not low <= number <= 100:
            raise argparse.ArgumentTypeError(f"must be {low} to 100")
        return number

    return integer


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError("must be different columns, comma-separated")
    return names


def _part(text: str) -> str:
    """A part of a model's id."""
    try:
        if not text or "/" in text:
            raise argparse.ArgumentTypeError("must be a name without a slash")
        return check_label(text, "")
    except Refused as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def send(options: argparse.Namespace) -> int:
    """Send every file; 0 where all was taken. Raises Unavailable where nobody ever answered."""
    server = Server(options.url)
    streams = [_open(name) for name in options.files]
    report = Report(streams)
    sender = Sender(server, options, report)
    try:
        sender.run(_posts(streams, options, report))
    except KeyboardInterrupt:
        report.say("interrupted: the rest was not sent")
        raise
    finally:
        sender.stop()
        if not sender.deaf:
            report.close(options.json)
    if sender.deaf:
        raise Unavailable(f"{server.url}: {sender.deaf}; nothing was sent")
    tally = report.tally
    return int(bool(tally.broken or tally.refused or tally.given_up))


# --- files ------------------------------------------------------------------------------------


def _open(name: str) -> IO[bytes]:
    """The file. Raises ConfigurationError where it cannot be read."""
    if name == "-":
        return sys.stdin.buffer
    try:
        return open(name, "rb")
    except OSError as error:
        raise ConfigurationError(f"{name}: {error.strerror}") from None


def _posts(
    streams: Sequence[IO[bytes]], options: argparse.Namespace, report: Report
) -> Iterator[Post]:
    """Every good record of the files, ready to go; the broken ones are named."""
    form = Form(options.format, options.probabilities, options.text)
    named = {attribute: getattr(options, option) for option, attribute in _IDENTITY}
    identity = {attribute: text for attribute, text in named.items() if text}
    # A source for each model, so that records of two models may bear the same ids.
    source = options.source or "/".join((SOURCE, *identity.values()))
    head = {"type": options.type, "source": source, **identity}
    for stream in streams:
        name = "stdin" if stream is sys.stdin.buffer else str(stream.name)
        try:
            ids = Ids(stream, head)
            for each in read_records(stream, name, form):
                if isinstance(each, Broken):
                    report.broken(each)
                    continue
                attributes = {**head, "id": ids.next(each), **each.attributes}
                if options.fresh_ids:
                    attributes["id"] = str(uuid4())
                headers = dict(binary_headers(attributes))
                if each.structured:  # it says all this of itself
                    headers = {"content-type": STRUCTURED}
                yield Post(f"{name}:{each.line}", headers, each.body)
        except OSError as error:
            report.broken(Broken(name, 0, reason_of(error)))


class Ids:
    """Ids that follow from what is sent: the same again for the same file."""

    def __init__(self, stream: IO[bytes], attributes: Mapping[str, str]) -> None:
        self._hash = blake2b(orjson.dumps(sorted(attributes.items())), digest_size=16)
        self._chained = not stream.seekable()
        if not self._chained:
            begin = stream.tell()
            while part := stream.read(1 << 20):
                self._hash.update(part)
            stream.seek(begin)

    def next(self, record: Record) -> str:
        """The id of a record, which comes after all those before."""
        hash = self._hash if self._chained else self._hash.copy()
        hash.update(orjson.dumps((record.line, sorted(record.attributes.items()))) + record.body)
        return hash.hexdigest()


# --- delivery ---------------------------------------------------------------------------------


class Sender:
    """Connections that post what comes through a queue, each event until its answer is final."""

    def __init__(self, server: Server, options: argparse.Namespace, report: Report) -> None:
        self._server = server
        self._retries: int = options.retries
        self._timeout: float = options.timeout
        self._gap = 1 / options.rate if options.rate else 0.0
        self._report = report
        self._queue: queue.Queue[Post | None] = queue.Queue(2 * options.connections)
        self._stop = threading.Event()
        self._answered = False
        self._in_a_row = 0
        self._bug: BaseException | None = None
        self.deaf = ""
        """Why nobody was ever reached; empty where somebody answered."""
        self._threads = [
            threading.Thread(target=self._work, daemon=True) for _ in range(options.connections)
        ]

    def run(self, posts: Iterator[Post]) -> None:
        """Send `posts`; returns when each has its answer, or when it makes no sense to go on."""
        for thread in self._threads:
            thread.start()
        due = clock.monotonic()
        for post in posts:
            while (left := due - clock.monotonic()) > 0 and not self._stop.is_set():
                self._stop.wait(min(left, REDRAW_SECONDS))
                self._report.draw()
            due = max(due + self._gap, clock.monotonic() - 1)  # a pause is made up by a second
            self._put(post)
            if self._stop.is_set():
                break
        for _ in self._threads:
            self._put(None)
        for thread in self._threads:
            while thread.is_alive():
                thread.join(REDRAW_SECONDS)
                self._report.draw()
        if self._bug is not None:
            raise self._bug
        if self._stop.is_set() and not self.deaf:
            self._report.say("gave up: the rest was not sent")

    def stop(self) -> None:
        """Finish what is on its way, within seconds, and take no more."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2)

    def _put(self, post: Post | None) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(post, timeout=REDRAW_SECONDS)
            except queue.Full:
                self._report.draw()
            else:
                break

    def _work(self) -> None:
        line = Line(self._server, self._timeout)
        try:
            while not self._stop.is_set():
                try:
                    post = self._queue.get(timeout=REDRAW_SECONDS)
                except queue.Empty:
                    continue
                if post is None:
                    break
                self._deliver(post, line)
        except BaseException as error:
            self._bug = error
            self._stop.set()
        finally:
            line.close()

    def _deliver(self, post: Post, line: Line) -> None:
        """Post one event until its answer is final or its tries are used up."""
        answer = line.post(post)
        for attempt in range(self._retries):
            delay = min(max(FIRST_DELAY * 2**attempt, answer.retry_after), MAX_DELAY)
            if not answer.retried or self._stop.wait(delay):
                break
            self._report.count("retries")
            answer = line.post(post)
        self._answered = self._answered or bool(answer.status)
        if not answer.retried:
            self._in_a_row = 0
            if answer.status < 300:
                self._report.count("taken")
            else:
                self._report.count("refused", f"{post.place}: refused: {answer.detail}")
            return
        if not self._answered:
            self.deaf = answer.detail
            self._stop.set()
            return
        self._report.count("given_up", f"{post.place}: given up: {answer.detail}")
        self._in_a_row += 1
        if self._in_a_row >= STOP_AFTER:
            self._stop.set()


class Line:
    """One connection, opened again whenever it breaks."""

    def __init__(self, server: Server, timeout: float) -> None:
        self._server = server
        self._timeout = timeout
        self._connection: http.client.HTTPConnection | None = None

    def post(self, post: Post) -> Answer:
        """What one try came to."""
        reused = self._connection is not None
        try:
            try:
                return self._exchange(post)
            except ConnectionError:
                if not reused:
                    raise
                self.close()
                return self._exchange(post)  # the server had closed it while idle: no try
        except TimeoutError:
            self.close()
            return Answer(0, f"no answer in {self._timeout:g} s")
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return Answer(0, reason_of(error))

    def _exchange(self, post: Post) -> Answer:
        if self._connection is None:
            self._connection = self._server.connect(self._timeout)
        self._connection.request("POST", self._server.path, post.body, post.headers)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status < 300:
            return Answer(answer.status, "")
        detail = f"HTTP {answer.status}: {detail_of(body) or answer.reason}"
        after = answer.getheader("retry-after", "").strip()
        seconds = float(after) if after.isascii() and after.isdigit() else 0.0
        return Answer(answer.status, detail, seconds)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


# --- what people see --------------------------------------------------------------------------


@dataclass
class Tally:
    """What became of the records."""

    taken: int = 0
    """Answered 2xx, duplicates among them."""
    refused: int = 0
    given_up: int = 0
    broken: int = 0
    retries: int = 0


class Report:
    """Counts what happened; names what failed, and on a terminal keeps a line of it, on stderr."""

    def __init__(self, streams: Sequence[IO[bytes]]) -> None:
        self.tally = Tally()
        self._streams = streams
        status = [os.fstat(stream.fileno()) for stream in streams]
        regular = all(S_ISREG(each.st_mode) for each in status)
        self._size = sum(each.st_size for each in status) if regular else 0
        self._lock = threading.Lock()
        self._began = self._drawn = clock.monotonic()
        self._terminal = sys.stderr.isatty()

    def count(self, what: str, text: str = "") -> None:
        """Add one to a field of the tally; `text` says why."""
        with self._lock:
            setattr(self.tally, what, getattr(self.tally, what) + 1)
        if text:
            self.say(text)

    def broken(self, each: Broken) -> None:
        """A line is no record."""
        self.count("broken", f"{each.file}:{each.line}: {each.reason}")

    def say(self, text: str) -> None:
        """A line on stderr, in the place of the progress."""
        with self._lock:
            clear = "\r\x1b[K" if self._terminal else ""
            print(clear + text, file=sys.stderr, flush=True)

    def draw(self) -> None:
        """Draw the line of progress, a few times a second at most."""
        now = clock.monotonic()
        if not self._terminal or now - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = now
        bar = ""
        if self._size:
            share = min(1.0, sum(stream.tell() for stream in self._streams) / self._size)
            bar = f"[{'#' * int(24 * share):24}] {share:4.0%}  "
        with self._lock:
            text = f"\r\x1b[K{bar}{self._summary(now)}"
            print(text, end="", file=sys.stderr, flush=True)

    def close(self, as_json: bool) -> None:
        """Print the summary."""
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        now = clock.monotonic()
        if as_json:
            summary = {**asdict(self.tally), "seconds": now - self._began}
            print(orjson.dumps(summary).decode(), flush=True)
        else:
            print(self._summary(now), flush=True)

    def _summary(self, now: float) -> str:
        tally, seconds = self.tally, now - self._began
        return (
            f"{tally.taken} taken, {tally.refused} refused, {tally.given_up} given up, "
            f"{tally.broken} broken lines, {tally.retries} retries; {seconds:.1f} s, "
            f"{tally.taken / seconds if seconds else 0:.0f}/s"
        )
