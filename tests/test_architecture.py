"""The house rules that a machine can hold: arrows point one way, and the map has every room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "metrics"

LAYERS = (
    {"errors", "counters", "exact", "bins", "histograms", "urls", "__init__"}
    | {"http1", "connections", "large_arrays", "outgoing"},
    {"values", "tensors", "payload", "windows", "alerts"},
    {"model_settings", "state"},
    {"evaluators", "joins"},
    {"scores"},
    {"store", "sqlite_file", "sqlite_store", "redis_store", "redis_link", "events", "server_stats"}
    | {"background", "isolation"},
    {"committer", "config", "models_file", "sink", "watch", "outbox", "identity"},
    {"labels", "replies", "ignored", "large_bodies"},
    {"app"},
    {"exposition", "families", "series_cap", "pages", "dashboard", "pushgateway"},
    {"host", "log", "workers"},
    {"server"},
    {"commands"},
    {"cli", "__main__"},
)
PURE = set().union(*LAYERS[:5]) - {"http1", "connections", "outgoing"}
IMPURE = {"time", "random", "os", "secrets", "uuid", "socket", "threading", "asyncio", "sqlite3"}


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in it."""
    package = ["metrics", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_imports_point_one_way(path: Path) -> None:
    """A room uses rooms of its own layer or of those below, and the core is pure."""
    layer = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
    room = _room(path)
    assert room in layer, f"{room} has no place in LAYERS"
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "metrics" and len(parts) > 1 and parts[1] in layer:
            allowed = layer[parts[1]] <= layer[room] or _only_types(path, parts[1])
            assert allowed, f"{room} must not use {parts[1]}"
        if room in PURE:
            assert parts[0] not in IMPURE, f"{room} is pure: no {parts[0]}"


def _only_types(path: Path, room: str) -> bool:
    """Whether a file imports a room for its annotations only."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == room:
            return False
    source = path.read_text()
    guarded = source.partition("if TYPE_CHECKING:")[2].partition("\n\n")[0]
    return f"from .{room} " in guarded


def test_documents_name_rooms_that_exist() -> None:
    """ARCHITECTURE.md has a row for every module, and none that is gone."""
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = {_room(path) for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    for room in rooms:
        assert f"`{room}`" in architecture or f"`{room}/`" in architecture, room
