"""The page in real headless Chromium: what it says, what it asks for, and how it looks."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from metrics.config import PREDICTION_TYPE
from tests.browser import PHONE, Browser, Page, chromium
from tests.servers_http import (
    OwnServer,
    ParliamentServer,
    Server,
    attributes,
    feedback,
    message,
    until,
)

MODELS = """
models:
  "vision/*/*/*": {task: multiclass, classes: [%s]}
  "clinic/*/*/*": {task: binary, segments: [site]}
  "music/*/*/*": {task: multilabel, classes: [calm, loud, live, studio]}
"""
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VISION = "vision/digits/default/classifier"
CLINIC = "clinic/biopsy/default/screening"
FORECAST = "energy/demand/default/forecast"
BANDIT = "shop/banner/default/bandit"
MUSIC = "music/tags/default/tagger"
SHOWN = (VISION, CLINIC, FORECAST, BANDIT, MUSIC)
HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "{{ 7 * 7 }}{% raw %}",
    "\N{RIGHT-TO-LEFT OVERRIDE}txt.exe",
    "Z\N{COMBINING ACUTE ACCENT}" * 100,
    "\N{ZERO WIDTH SPACE}",
    "😈" * 60,
    "'; DROP TABLE models; --",
    "javascript:alert(1)//" + "x" * 200,
)


def _at(rows: int, number: int) -> float:
    """When the rows of one of `number` events happened: over the last day."""
    return 86000 * (1 - (rows + 1) / number)


def _event(model: str, id: int, age: float, data: Any, **more: str) -> dict[str, Any]:
    happened = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - age))
    return {**attributes(str(id), model, time=happened, **more), "data": data}


def _feedback(response: Any, truth: Any) -> dict[str, Any]:
    return {"response": message(response.tolist()), "truth": message(truth.tolist())}


def _parts(rows: int, events: int) -> Iterator[tuple[int, float, Any]]:
    for id, chosen in enumerate(np.array_split(np.arange(rows), events)):
        yield id, _at(id, events), chosen


def tell(server: Server) -> None:
    """Send five real models' feedback of a day."""
    rng = np.random.default_rng(7)
    events: list[dict[str, Any]] = []
    rows, labels = load_digits(return_X_y=True)
    rows = rows + rng.normal(0, 4, rows.shape)
    rows, held, labels, truth = train_test_split(rows, labels, test_size=0.7, random_state=1)
    digits = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(rows, labels)
    guess = digits.predict_proba(held)
    for id, age, part in _parts(len(truth), 90):
        events.append(_event(VISION, id, age, _feedback(guess[part], truth[part])))

    rows, labels = load_breast_cancer(return_X_y=True)
    rows = rows[:, :5] + 0.6 * rows[:, :5].std(axis=0) * rng.normal(size=(len(rows), 5))
    rows, held, labels, truth = train_test_split(rows, labels, test_size=0.6, random_state=1)
    biopsy = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)
    guess = biopsy.predict_proba(held)[:, 1]
    for id, age, part in _parts(len(truth), 80):
        site = ("north", "north", "south", "harbour")[id % 4]
        events.append(_event(CLINIC, id, age, _feedback(guess[part], truth[part]), site=site))

    rows, targets = load_diabetes(return_X_y=True)
    rows, held, targets, truth = train_test_split(rows, targets, test_size=0.6, random_state=1)
    guess = LinearRegression().fit(rows, targets).predict(held) + 0.25
    for id, age, part in _parts(len(truth), 70):
        events.append(_event(FORECAST, id, age, _feedback(guess[part], truth[part] + 0.5)))

    for id, age, _ in _parts(200, 200):
        route = int(rng.integers(3))
        reward = round(float(rng.normal(0.2 + 0.15 * route, 0.4)), 3)
        hit = int(rng.random() < 0.5 + 0.1 * route)
        told = _feedback(np.array([1]), np.array([hit]))
        told["response"]["meta"] = {"routing": {"banner": route}}
        events.append(_event(BANDIT, id, age, {**told, "reward": reward}))

    truth = rng.random((120, 4)) < 0.4
    guess = np.clip(truth * 0.5 + rng.random((120, 4)) * 0.6, 0, 1)
    for id, age, part in _parts(120, 30):
        events.append(_event(MUSIC, id, age, _feedback(guess[part], truth[part].astype(int))))

    for start in range(0, len(events), 100):
        answer = server.batch(*events[start : start + 100])
        assert answer.status == 200, answer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with five models."""
    chromium()
    directory = tmp_path_factory.mktemp("page")
    (directory / "models.yaml").write_text(MODELS % ", ".join(DIGITS))
    with OwnServer(directory, FEEDBACK_MODELS=str(directory / "models.yaml")) as running:
        tell(running)
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests."""
    with Browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture
def visit(server: Server, browser: Browser) -> Iterator[Any]:
    """Opens a page of the server; once the test is over, nothing may have been amiss on any."""
    url = f"http://127.0.0.1:{server.port}/"
    opened: list[Page] = []

    def visit(query: str = "", **how: Any) -> Page:
        page = browser.open(url + query, **how)
        opened.append(page)
        return page

    yield visit
    for page in opened:
        assert page.trouble == []
        assert {each for each in page.requests if not each.startswith(url)} == set()
        page.close()


def of(model: str, window: str = "all") -> str:
    """The query of a model's page."""
    return "?" + urlencode({"model": model, "window": window})


PAGES = ("", "?window=1h", *map(of, SHOWN), of(VISION, "5m"), "?model=no/such/model/here")


# --- numbers ------------------------------------------------------------------------------------


READ = """(() => {
  const number = (cell) => {
    const found = cell.querySelector("data");
    return found ? [Number(found.value), found.textContent] : null;
  };
  const rows = (selector) => [...document.querySelectorAll(selector)];
  return {
    scores: rows("[data-score]").flatMap((row) => [...row.querySelectorAll("[data-window]")]
      .map((cell) => [row.dataset.score, cell.dataset.window, number(cell)])),
    classes: rows("[data-class]").map((row) => [row.dataset.class, number(row.cells[1]),
      Object.fromEntries([...row.querySelectorAll("[data-measure]")]
        .map((cell) => [cell.dataset.measure, number(cell)]))]),
    matrix: rows(".heat tbody tr").map((row) => [...row.querySelectorAll("td:not(.sum)")]
      .map((cell) => number(cell)[0])),
    bins: rows("#bins tbody tr").map((row) => [...row.querySelectorAll("td")]
      .map((cell) => number(cell)[0])),
    routes: rows("[data-route]").map((row) => [row.dataset.route, ...[...row.cells].slice(1)
      .map((cell) => number(cell)?.[0] ?? null)]),
    errors: rows("td.bars").map((cell) => number(cell.previousElementSibling)[0]),
    big: number(document.querySelector(".big")),
  };
})()"""


def settled(server: Server, visit: Any, model: str) -> tuple[Any, dict[str, Any]]:
    """What the page tells of a model, and its JSON by window, while no pane passes between them."""

    def views() -> dict[str, Any]:
        return {
            name: server.get(f"/{of(model, name)}&format=json").json
            for name in ("all", "5m", "1h", "1d")
        }

    def both() -> Any:
        before = views()
        page = visit(of(model))
        told = page(READ)
        return (told, before) if views() == before else None

    return until(both, 60)


@pytest.mark.parametrize("model", SHOWN)
def test_the_numbers_on_the_page_are_the_json_s(server: Server, visit: Any, model: str) -> None:
    """Scores in every window, classes, cells, bins, routes and quantiles, to the last digit."""
    told, views = settled(server, visit, model)
    view = views["all"]
    for score, window, shown in told["scores"]:
        exact = views[window]["scores"].get(score)
        assert (shown and shown[0]) == exact, (score, window)
        if exact is not None:
            assert float(shown[1]) == pytest.approx(exact, rel=1e-3, abs=1e-4)
    names = {(score, window) for score, window, _ in told["scores"]}
    assert {(score, name) for name in views for score in views[name]["scores"]} <= names
    assert told["big"][0] in view["scores"].values()
    assert told["matrix"] == view.get("confusion_matrix", {}).get("matrix", [])
    assert told["bins"] == [
        [each["confidence"], each["accuracy"], each["rows"]] for each in view.get("calibration", ())
    ]
    assert [each[0] for each in told["classes"]] == [
        each["class"] for each in view.get("classes", ())
    ]
    for (_, support, measures), each in zip(told["classes"], view.get("classes", ()), strict=True):
        assert support[0] == each["support"]
        for measure, shown in measures.items():
            assert (shown and shown[0]) == each.get(measure), measure
    assert told["errors"] == [
        error
        for output in view.get("outputs", ())
        for error in output["absolute_error_quantiles"].values()
    ]
    if "reward" in view:
        everything = [{"route": "", **view["reward"]}, *view["reward"]["routes"]]
        members = ("route", "count", "mean", "sum", "variance")
        assert told["routes"] == [[each.get(name) for name in members] for each in everything]


def test_the_list_tells_each_model_s_headline(server: Server, visit: Any) -> None:
    """Rows and the task's first score, as the JSON has them."""
    page = visit()
    told = page(
        "Object.fromEntries([...document.querySelectorAll('[data-model]')].map((row) => "
        "[row.dataset.model, [...row.querySelectorAll('data')].map((each) => Number(each.value))]))"
    )
    firsts = {FORECAST: "mean_absolute_error", MUSIC: "subset_accuracy"}
    assert told == {
        model: [view["scores"][firsts.get(model, "accuracy")], view["rows"]]
        for model in SHOWN
        for view in [server.get(f"/{of(model)}&format=json").json]
    }
    assert page("document.querySelectorAll('svg.spark').length") == len(SHOWN)


# --- looks --------------------------------------------------------------------------------------

AUDIT = """(() => {
  const faults = [];
  const all = (selector) => [...document.querySelectorAll(selector)];
  const levels = all("h1, h2, h3").map((each) => Number(each.tagName[1]));
  if (levels.filter((each) => each === 1).length !== 1 || levels[0] !== 1) faults.push("h1");
  if (document.documentElement.lang !== "en") faults.push("lang");
  for (const each of all("th")) if (!each.scope) faults.push(`no scope: ${each.outerHTML}`);
  for (const each of all("table"))
    if (!each.caption && !document.getElementById(each.getAttribute("aria-labelledby")))
      faults.push("table without a name");
  for (const each of all("svg"))
    if (!each.ariaLabel && each.ariaHidden !== "true") faults.push("picture without a name");
  for (const each of all(".scroll"))
    if (each.tabIndex !== 0 || !each.ariaLabel) faults.push("out of the keyboard's reach");
  for (const each of all("input:not([type=hidden])"))
    if (!each.labels.length) faults.push("input without a label");
  for (const each of all("[id]"))
    if (all(`[id="${each.id}"]`).length > 1) faults.push(`twice: ${each.id}`);
  return faults;
})()"""

CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const paint = (colors) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (pixel) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, at) => {
    const part = pixel[at] / 255;
    return sum + weight * (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  }, 0);
  let worst = [99, ""], seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const owner = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || owner.closest("script, style, svg")) continue;
    const grounds = [];
    for (let at = owner; at; at = at.parentElement)
      grounds.unshift(getComputedStyle(at).backgroundColor);
    const ground = light(paint(grounds));
    const ink = light(paint([...grounds, getComputedStyle(owner).color]));
    const ratio = (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05);
    seen += 1;
    if (ratio < worst[0]) worst = [ratio, owner.outerHTML.slice(0, 200)];
  }
  return [...worst, seen, getComputedStyle(document.body).backgroundColor];
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_is_readable_in_both_themes(visit: Any, dark: bool) -> None:
    """Each text has a contrast of 4.5 or more to what is under it (WCAG 2, AA)."""
    grounds = set()
    for query in PAGES:
        if query.startswith("?model=no"):
            continue
        page = visit(query, dark=dark)
        page("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        ratio, where, texts, ground = page(CONTRAST)
        assert ratio >= 4.5, (query, where)
        assert texts > 15
        grounds.add(ground)
    assert grounds == {"rgb(14, 17, 22)" if dark else "rgb(246, 247, 249)"}


@pytest.mark.parametrize("query", PAGES[:-1])
def test_names_headings_and_scopes_are_there_for_those_who_listen(visit: Any, query: str) -> None:
    """Every page passes the audit, and the keyboard's first stop leads past the header."""
    page = visit(query)
    assert page(AUDIT) == []
    page.key("Tab", 9)
    assert page("document.activeElement.className") == "skip"


@pytest.mark.parametrize("query", PAGES[:-1])
def test_a_phone_shows_a_page_without_scrolling_sideways(visit: Any, query: str) -> None:
    """Wide tables scroll in themselves."""
    page = visit(query, size=PHONE)
    page("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page("document.documentElement.scrollWidth") <= PHONE[0]


def test_the_page_is_whole_without_a_script(visit: Any) -> None:
    """What the server sent is all there is: only the refreshing is gone."""
    page = visit(of(CLINIC), script=False)
    assert page("document.querySelectorAll('[data-score]').length") > 10
    assert page("document.getElementById('live').hidden")
    assert not visit(of(CLINIC))("document.getElementById('live').hidden")


# --- in use -------------------------------------------------------------------------------------


def test_the_page_refreshes_in_place(server: Server, visit: Any) -> None:
    """New rows appear; what was unfolded stays so; once it is stopped, nothing moves."""
    server.feedback("1", "live/d/p/m")
    page = visit(of("live/d/p/m"))
    page("document.getElementById('averages').open = true")
    page(
        "document.addEventListener('refreshed', () => { window.times = (window.times ?? 0) + 1; })"
    )
    rows = "document.querySelector('.meta data:nth-of-type(2)').value"
    assert page(rows) == "1"
    server.feedback("2", "live/d/p/m", 1, 0)
    until(lambda: page(rows) == "2", 60)
    assert page("window.times") >= 1  # no navigation
    assert page("document.getElementById('averages').open")
    page("document.getElementById('live').click()")
    assert page("document.getElementById('live').ariaPressed") == "false"


def test_links_lead_from_the_list_to_a_model_and_through_its_windows(visit: Any) -> None:
    """By the links alone."""
    page = visit("?window=1d")
    page(f"document.querySelector('[data-model=\"{CLINIC}\"] a').click()")
    heading = "document.querySelector('h1')?.textContent"
    until(lambda: page(heading) == "screening", 30)
    chosen = "document.querySelector('.tabs [aria-current]')?.textContent"
    assert page(chosen) == "1d"
    page("[...document.querySelectorAll('.tabs a')].find((a) => a.textContent === '1h').click()")
    until(lambda: page(chosen) == "1h", 30)
    assert page(heading) == "screening"


@pytest.mark.parametrize(
    ("query", "status"), [("?model=no/such/model/here", 404), (of(VISION, "7m"), 400)]
)
def test_what_is_not_there_has_a_page_that_says_so(server: Server, query: str, status: int) -> None:
    """People get HTML, programs get their problem."""
    answer = server.get(f"/{query}", accept="text/html")
    assert answer.status == status
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "All models" in answer.text
    assert server.get(f"/{query}&format=json").status == status


def test_what_goes_out_with_a_page(server: Server) -> None:
    """Nothing runs but what the policy names, nothing tells where a reader came from."""
    headers = server.get("/", accept="text/html").headers
    policy = dict(
        each.strip().split(" ", 1) for each in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"].startswith("'sha256-")
    assert policy["style-src"].startswith("'sha256-")
    assert not {"unsafe-inline", "unsafe-eval", "*"} & set(" ".join(policy.values()).split())
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_an_empty_function_tells_how_to_send_a_first_event(
    tmp_path: Path, browser: Browser
) -> None:
    """The curl line, as it stands on the page, is taken and shown."""
    with OwnServer(tmp_path) as fresh:
        page = browser.open(f"http://127.0.0.1:{fresh.port}/")
        line = page("document.querySelector('pre').textContent")
        command, url, header, kind, data, body = shlex.split(line)
        assert (command, header, data) == ("curl", "-H", "-d")
        assert url == f"http://127.0.0.1:{fresh.port}/"
        name, _, value = kind.partition(": ")
        assert fresh.request("POST", "/", {name: value}, body.encode()).status == 200
        page("location.reload()")
        until(lambda: page("document.querySelectorAll('[data-model]').length") == 1, 30)
        assert page.trouble == []
        page.close()


def test_stock_parliament_shows_the_same_pages(tmp_path: Path, browser: Browser) -> None:
    """It has no path but `/`, and the links need no other."""
    with ParliamentServer(tmp_path) as stock:
        stock.feedback("1", "stock/d/p/m")
        page = browser.open("http://127.0.0.1:8080/")
        page("document.querySelector('[data-model] a').click()")
        until(lambda: page("document.querySelectorAll('[data-score]').length"), 30)
        assert page.trouble == []
        page.close()


# --- under attack -------------------------------------------------------------------------------


def test_hostile_labels_stay_text(server: Server, visit: Any) -> None:
    """Names of models and classes of any Unicode: text everywhere, whole in a title, and cut."""
    for id, label in enumerate(HOSTILE):
        ours = label.replace("/", "∕")
        assert server.feedback(str(id), f"hostile/{ours}/p/{ours}", ours, ours).status == 200
        assert server.feedback(f"in {id}", "hostile/all/p/m", label, HOSTILE[id - 1]).status == 200
    labels = "[...document.querySelectorAll('bdi')]"
    for query in ("?q=hostile", of("hostile/all/p/m")):
        page = visit(query, size=PHONE)
        assert page("document.title").endswith("feedback-metrics")
        assert page("document.images.length") == 0
        assert page("document.scripts.length") == 1
        assert page("document.querySelectorAll('[onerror], iframe, object').length") == 0
        assert page("document.documentElement.scrollWidth") <= PHONE[0]
        told = page(f"{labels}.map((each) => each.title || each.innerText)")
        assert max(map(len, page(f"{labels}.map((each) => each.innerText)"))) <= 2 * 48
        for label in HOSTILE:
            assert (label if "all" in query else label.replace("/", "∕")) in told
    for label in HOSTILE:
        ours = label.replace("/", "∕")
        page = visit(of(f"hostile/{ours}/p/{ours}"))
        assert page("document.querySelector('.meta data').value") == "1"
        assert page("document.images.length + document.scripts.length") == 1


def test_ten_thousand_models_and_a_thousand_classes_stay_small_and_fast(tmp_path: Path) -> None:
    """A page is under a megabyte; and within a second, as soon as the machine has one to spare."""
    with OwnServer(
        tmp_path, FEEDBACK_STORE="memory:", FEEDBACK_MAX_MODELS="20000", FEEDBACK_REPLY="off"
    ) as crowded:
        for start in range(0, 10_000, 500):
            events = [
                {**attributes(str(n), f"many/model-{n:05}/p/m"), "data": feedback()}
                for n in range(start, start + 500)
            ]
            assert crowded.batch(*events).status == 202
        labels = [chr(0x4E00 + n) * 200 + str(n) for n in range(1000)]
        wrong = {"response": message(labels[1:] + labels[:1]), "truth": message(labels)}
        assert crowded.event(wrong, attributes("1", "many/classes/p/m")).status == 202

        def answers(query: str) -> bool:
            start = time.monotonic()
            answer = crowded.get(f"/{query}", accept="text/html")
            elapsed = time.monotonic() - start
            assert answer.status == 200
            assert len(answer.body) < 1_000_000
            return elapsed < 1

        for query in ("", "?page=201", "?q=classes", of("many/classes/p/m")):
            until(lambda query=query: answers(query), 60)
        page = crowded.get("/?page=201", accept="text/html").text
        assert page.count("data-model=") == 1
        assert "10\N{NARROW NO-BREAK SPACE}001" in page


# --- what other parts of the view bring -----------------------------------------------------------


def test_halves_that_wait_are_shown(tmp_path: Path, browser: Browser) -> None:
    """With joins on, the page tells how many predictions have met their truth."""
    late = of("late/d/p/m")
    tiles = (
        "Object.fromEntries([...document.querySelectorAll('.tiles > div')].map((each) => "
        "[each.querySelector('dt').textContent, Number(each.querySelector('data').value)]))"
    )
    with OwnServer(tmp_path, FEEDBACK_JOIN_TTL="1h") as joining:

        def told() -> Any:
            page = browser.open(f"http://127.0.0.1:{joining.port}/{late}")
            assert page.trouble == []
            found = page(tiles)
            page.close()
            view = joining.get(f"/{late}&format=json").json["join"]
            assert found.pop("mean delay, s", None) == view.get("mean_delay_seconds")
            assert found == {name: view[name] for name in found}
            return found

        for request in "ab":
            prediction = attributes(request, "late/d/p/m", requestid=request, type=PREDICTION_TYPE)
            assert joining.event(message([1]), prediction).status == 202
        found = told()
        assert (found["predictions"], found["waiting"], found["coverage"]) == (2, 2, 0)
        truth = attributes("truth", "late/d/p/m", requestid="a")
        assert joining.event({"truth": message([1])}, truth).status == 200
        found = told()
        assert (found["joined"], found["waiting"], found["coverage"]) == (1, 1, 0.5)
