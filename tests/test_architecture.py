"""Imports run downward: which room may import which, in one table.

A room is a folder of code, or one file of a folder. A file belongs to the room with the longest
name that fits. docs/architecture.md says what happens in each room and draws these arrows.
"""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"

# Room -> rooms that its files may import. What is not named here is refused.
ALLOWED = {
    "dnnlib": "",
    "torch_utils/ops": "dnnlib",
    "torch_utils/distributed": "dnnlib",
    "torch_utils": "dnnlib torch_utils/ops torch_utils/distributed",
    "training/__init__.py": "",
    "training/cameras.py": "dnnlib",
    "training/config": "dnnlib",
    "training/rendering": "dnnlib torch_utils torch_utils/ops training/config",
    "training/data": "dnnlib training/cameras.py training/config",
    "training/networks": "dnnlib torch_utils torch_utils/ops"
    " training/cameras.py training/config training/rendering",
    "training/gan": "dnnlib torch_utils torch_utils/ops torch_utils/distributed"
    " training/cameras.py training/config training/rendering training/networks",
    "training/checkpoints/released": "dnnlib training/cameras.py training/config",
    "training/checkpoints": "dnnlib torch_utils torch_utils/ops training/cameras.py"
    " training/config training/networks training/checkpoints/released",
    "training/run": "dnnlib torch_utils torch_utils/distributed training/cameras.py"
    " training/config training/data training/networks training/gan training/checkpoints"
    " training/checkpoints/released",
    "training/inversion": "dnnlib training/cameras.py training/networks training/checkpoints",
    "metrics": "dnnlib torch_utils torch_utils/distributed",
    "media": "dnnlib metrics training/cameras.py training/config training/data training/networks",
    "media/pictures": "dnnlib media metrics training/cameras.py training/networks"
    " training/rendering training/run",
    "media/meshes": "dnnlib media media/pictures metrics training/cameras.py training/rendering",
    "media/splats": "dnnlib media media/pictures metrics torch_utils/ops training/cameras.py"
    " training/rendering",
    "media/videos": "dnnlib media media/pictures training/cameras.py training/data",
    "media/report": "dnnlib media media/pictures metrics training/cameras.py",
    "media/avatar": "dnnlib media media/pictures training/cameras.py training/data"
    " training/networks",
    "media/web": "dnnlib media media/avatar media/pictures training/cameras.py"
    " training/networks training/checkpoints",
    "media/viewer": "dnnlib media media/pictures media/meshes media/videos training/cameras.py"
    " training/data training/networks training/checkpoints",
    "data_tools/sources": "dnnlib training/cameras.py training/data",
    "data_tools": "dnnlib data_tools/sources training/cameras.py training/data",
    "data_tools/check": "dnnlib data_tools data_tools/sources"
    " training/cameras.py training/config training/data",
    "data_tools/faces": "dnnlib data_tools data_tools/sources metrics"
    " training/cameras.py training/data",
    "data_tools/heads": "dnnlib data_tools training/cameras.py training/config training/data"
    " training/rendering",
    "open_eg3d": "dnnlib torch_utils torch_utils/distributed metrics media media/pictures"
    " media/meshes media/splats media/videos media/avatar media/web data_tools/faces"
    " data_tools/heads training/cameras.py training/config training/data training/networks"
    " training/checkpoints training/checkpoints/released training/run training/inversion",
    "cli": "dnnlib torch_utils metrics open_eg3d data_tools/faces data_tools/sources"
    " training/cameras.py training/config training/data training/networks training/inversion"
    " training/checkpoints",
}
COMMAND_LINES = "command lines"  # on top: they may import every room, and nothing imports them


def code_files() -> dict[str, Path]:
    """Modules of the project by their dotted names, without tests, benchmarks and docs."""
    folders = sorted({room.split("/")[0] for room in ALLOWED})
    paths = [
        *ROOT.glob("*.py"),
        *(path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))),
    ]
    return {module_name(path.relative_to(ROOT)): path.relative_to(ROOT) for path in paths}


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = code_files()


def room_of(path: Path) -> str:
    """The room with the longest name that fits."""
    if len(path.parts) == 1:
        return COMMAND_LINES
    name = path.as_posix()
    fitting = [room for room in ALLOWED if name == room or name.startswith(f"{room}/")]
    return max(fitting, key=len, default="")


def imported_modules(source: str, path: Path) -> Iterator[str]:
    """Modules of the project that a file imports, anywhere in it, also for type checkers only."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{name}.{alias.name}"
                found = full if full in MODULES else name
                if found in MODULES:
                    yield found


def refused(source: str, path: Path) -> list[str]:
    """A line for each import that the table does not allow."""
    room = room_of(path)
    if not room:
        return [f"{path.as_posix()} stands in no room of the table: add its folder"]
    lines = []
    for module in sorted(set(imported_modules(source, path))):
        target = room_of(MODULES[module])
        allowed = list(ALLOWED) if room == COMMAND_LINES else [room, *ALLOWED[room].split()]
        if target not in allowed:
            rooms = ", ".join(allowed[1:] if room != COMMAND_LINES else ["every room"])
            lines.append(
                f"{path.as_posix()} imports {module}; {room} may import {rooms or 'no other room'}"
            )
    return lines


def read(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_every_import_is_allowed() -> None:
    lines = [line for path in MODULES.values() for line in refused(read(path), path)]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(
    ("path", "source", "line"),
    [
        ("dnnlib/files.py", "import torch_utils.memory", "dnnlib may import no other room"),
        (
            "training/rendering/rays.py",
            "def late():\n    from training.networks import generator",
            "training/rendering/rays.py imports training.networks.generator; training/rendering"
            " may import dnnlib, torch_utils, torch_utils/ops, training/config",
        ),
        ("metrics/fid.py", "import train", "metrics/fid.py imports train; metrics may import"),
        ("gen_samples.py", "from train import main", "gen_samples.py imports train"),
        ("training/run/loop.py", "from ..gan import trainer", None),
        ("media/pictures/x.py", "from ..viewer import server", "imports media.viewer.server"),
        ("data_tools/world.py", "from data_tools.check import guess", "data_tools.check.guess"),
        ("training/rooms/x.py", "", "training/rooms/x.py stands in no room of the table"),
    ],
)
def test_other_imports_are_refused(path: str, source: str, line: str | None) -> None:
    found = "\n".join(refused(source, Path(path)))
    assert line in found if line else not found


def test_the_table_has_no_circles() -> None:
    graph = {room: allowed.split() for room, allowed in ALLOWED.items()}
    assert {target for targets in graph.values() for target in targets} <= set(ALLOWED)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_modules_do_not_import_each_other_in_circles() -> None:
    graph = {}
    for name, path in MODULES.items():
        modules = imported_modules(read(path), path)
        # A package is imported before its own modules, so these may import it.
        graph[name] = {m for m in modules if not f"{name}.".startswith(f"{m}.")}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_lowest_room_knows_no_torch() -> None:
    for path in (ROOT / "dnnlib").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) torch\b", path.read_text(encoding="utf-8"), re.M)


# --------------------------------------------------------------------------------------------------
# docs/architecture.md


def section(title: str) -> str:
    text = PAGE.read_text(encoding="utf-8")
    return re.split(r"^## ", text.partition(f"## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def rows(title: str) -> list[list[str]]:
    """Cells of the table of a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_has_a_line_for_each_room() -> None:
    named = {cells[0].strip("`").rstrip("/") for cells in rows("Rooms")}
    others = {COMMAND_LINES, "notebooks", "tests", "benchmarks"}
    assert named - others == set(ALLOWED) - {"training/__init__.py"}


def drawn_arrows() -> set[tuple[str, str]]:
    """The table's arrows between the rooms of training, without those that others imply."""
    graph = {
        room: {target for target in allowed.split() if target.startswith("training/")}
        for room, allowed in ALLOWED.items()
        if room.startswith("training/")
    }
    implied = {
        (room, further)
        for room, targets in graph.items()
        for target in targets
        for further in reachable(graph, target)
    }
    return {(room, target) for room in graph for target in graph[room]} - implied


def reachable(graph: dict[str, set[str]], room: str) -> set[str]:
    return graph[room].union(*(reachable(graph, target) for target in graph[room]))


def test_the_page_draws_the_table() -> None:
    drawn = set(re.findall(r"^ +(\S+) --> (\S+)$", section("Arrows"), re.MULTILINE))
    wanted = {tuple(room.removeprefix("training/") for room in arrow) for arrow in drawn_arrows()}
    assert drawn == wanted


def test_every_place_to_change_exists() -> None:
    """Each row links a file, and the names in backticks beside it stand in the linked files."""
    table = rows("Where do I change X")
    assert len(table) >= 20
    for wish, place in table:
        paths = re.findall(r"\]\(\.\./([^)]+)\)", place)
        assert paths, wish
        texts = [read(Path(path)) for path in paths if (ROOT / path).is_file()]
        assert all((ROOT / path).exists() for path in paths), f"{wish}: {paths}"
        for name in re.findall(r"(?<!\[)`([A-Za-z_]+)`", place):
            assert any(name in text for text in texts), f"{wish}: no {name} in {paths}"


@pytest.mark.parametrize(
    ("title", "longest"), [("From z to a picture", 10), ("A training step", 15)]
)
def test_ways_through_the_code_are_short(title: str, longest: int) -> None:
    files = {path for cells in rows(title) for path in re.findall(r"\]\(\.\./([^)]+)\)", cells[-1])}
    assert 5 <= len(files) <= longest
    assert all((ROOT / path).is_file() for path in files)
