"""The documentation is true: its code runs, its commands parse, its links, settings, tables and
messages exist.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import doctest
import functools
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import app
import calc_metrics
import dataset_tool
import export
import gen_samples
import gen_videos
import invert
import open_eg3d
import torch_utils.ops.__main__ as operators
import train
import viewer
from media.meshes.files import save_mesh
from tests.released_layout import Layout, write_snapshot
from tests.tiny import write_dataset
from training.cameras import FFHQ_FOCAL, CameraSummary, orbit_pose, pack_label, pinhole_intrinsics
from training.checkpoints import show as inspect
from training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from training.config.presets import make_config
from training.config.settings import (
    Config,
    GeneratorConfig,
    ModelConfig,
    SuperResolutionConfig,
    config_sections,
    set_option,
)
from training.gan.loss import GAN_LOSSES
from training.gan.trainer import Trainer
from training.networks.discriminator import DISCRIMINATORS, Discriminator
from training.networks.generator import DECODERS, SUPERRESOLUTIONS, Generator
from training.rendering.sampling import FINE_SAMPLERS
from training.run.launch import Launch
from training.run.settings import RunData, new_config

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
COMMAND_LINES: dict[str, click.Command] = {
    "train.py": train.main,
    "gen_samples.py": gen_samples.main,
    "gen_videos.py": gen_videos.main,
    "calc_metrics.py": calc_metrics.main,
    "dataset_tool.py": dataset_tool.main,
    "export.py": export.main,
    "invert.py": invert.main,
    "viewer.py": viewer.main,
    "app.py": app.main,
    "-m torch_utils.ops": operators.main,
    "-m training.checkpoints.show": inspect.main,
}
SOURCES = [ROOT / name for name in COMMAND_LINES if name.endswith(".py")]
ROOMS = ("dnnlib", "torch_utils", "training", "metrics", "media", "data_tools", "open_eg3d")
SOURCES += [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
PRESET_COLUMNS, SIZE_COLUMNS = {"ffhq", "afhq", "shapenet", "heads"}, {"published", "laptop"}


def blocks(page: Path, language: str) -> list[str]:
    """Fenced code blocks of one language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def every_block(language: str) -> list[Any]:
    return [
        pytest.param(code, id=f"{page.name}-{index}")
        for page in PAGES
        for index, code in enumerate(blocks(page, language))
    ]


def shell_commands() -> list[str]:
    lines = [line for page in PAGES for code in blocks(page, "sh") for line in code.splitlines()]
    return [line for line in lines if line.startswith("python ")]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )


def small_model() -> ModelConfig:
    model = ModelConfig(resolution=32)
    model.generator = GeneratorConfig(
        z_dim=4,
        w_dim=5,
        mapping_layers=1,
        plane_resolution=8,
        plane_channels=3,
        channel_base=32,
        channel_max=4,
        decoder_hidden=4,
    )
    model.superresolution = SuperResolutionConfig(channels=(4, 4))
    model.rendering.resolution = 8
    model.rendering.depth_resolution = model.rendering.depth_resolution_importance = 4
    model.discriminator.channel_base, model.discriminator.channel_max = 32, 4
    return model


def labels_of_orbit(count: int) -> torch.Tensor:
    return pack_label(
        orbit_pose(torch.linspace(-0.5, 0.5, count), 0.1, 2.7), pinhole_intrinsics(FFHQ_FOCAL)
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that code in the documentation opens."""
    folder = tmp_path_factory.mktemp("docs")
    torch.manual_seed(0)
    model = small_model()
    states = {"G": Generator(model), "G_ema": Generator(model), "D": Discriminator(model)}
    cameras = CameraSummary.from_labels(labels_of_orbit(8)).to_dict()
    weights: Any = {name: network.state_dict() for name, network in states.items()}
    save_checkpoint(
        folder / "ckpt.pkl", Checkpoint(Config(model=model), cameras=cameras, **weights)
    )
    (folder / "models").symlink_to(ROOT / "models")
    write_snapshot(folder / "released.pkl", Layout(plane_channels=4))
    write_dataset(folder / "mydata.zip")
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(folder / "photo.png")
    ball = trimesh.creation.icosphere(2)
    save_mesh(
        folder / "head.glb",
        trimesh.Trimesh(ball.vertices, ball.faces, vertex_colors=np.full((162, 4), 200, np.uint8)),
    )
    return folder


# --------------------------------------------------------------------------------------------------
# Code


PAGES_WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
TABLES: tuple[dict[str, Any], ...] = (
    GAN_LOSSES,
    DECODERS,
    FINE_SAMPLERS,
    SUPERRESOLUTIONS,
    DISCRIMINATORS,
)


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=lambda page: page.name)
def test_python_runs(page: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks import what they use; entries in tables of parts last to the end of the page."""
    monkeypatch.chdir(files)
    briefly = functools.partial(open_eg3d.train, minutes=0.001, device="cpu")
    monkeypatch.setattr(open_eg3d, "train", lambda config, outdir, **_: briefly(config, outdir))
    known = [set(table) for table in TABLES]
    try:
        for code in blocks(page, "python"):
            exec(compile(code, page.name, "exec"), {"__name__": "documentation"})
    finally:
        for table, names in zip(TABLES, known, strict=True):
            for name in set(table) - names:
                del table[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sessions_print_what_is_shown(page: Path) -> None:
    """All sessions of a page are one: later ones use names of earlier ones."""
    with default_print_options():
        parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
        text = "\n".join(blocks(page, "pycon"))
        runner.run(parser.get_doctest(text, {}, page.name, str(page), 0))
    assert runner.summarize(verbose=False).failed == 0


@contextlib.contextmanager
def default_print_options() -> Iterator[None]:
    try:
        yield
    finally:
        torch.set_printoptions(profile="default")


def test_there_is_something_to_run() -> None:
    assert len(every_block("python")) >= 8
    assert len(shell_commands()) >= 12
    assert sum(len(blocks(page, "pycon")) for page in PAGES) >= 3


def test_worked_example_agrees_with_trigonometry() -> None:
    """The matrix printed in cameras.md, against the sines and cosines themselves."""
    page = (ROOT / "docs" / "cameras.md").read_text(encoding="utf-8")
    shown = re.search(r">>> cam2world\ntensor\((\[\[.*?\]\])\)", page, re.DOTALL)
    assert shown
    a, b = np.radians(30), np.radians(10)
    backward = np.array([np.sin(a) * np.cos(b), np.sin(b), np.cos(a) * np.cos(b)])
    right = np.array([np.cos(a), 0, -np.sin(a)])
    down = np.cross(-backward, right)
    expected = np.eye(4)
    expected[:3] = np.stack([right, down, -backward, 2.7 * backward], axis=1)
    np.testing.assert_allclose(np.array(ast.literal_eval(shown[1])), expected, atol=6e-5)


def test_drawing_can_be_made_again(tmp_path: Path) -> None:
    target = tmp_path / "cameras.png"
    result = subprocess.run(
        [sys.executable, ROOT / "docs" / "draw_cameras.py", target],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    with Image.open(target) as made, Image.open(ROOT / "docs" / "media" / "cameras.png") as kept:
        assert made.size == kept.size
        difference = np.abs(
            np.asarray(made.convert("L"), dtype=float) - np.asarray(kept.convert("L"), dtype=float)
        )
    assert difference.mean() < 5  # fonts differ a little between Pillow's versions


# --------------------------------------------------------------------------------------------------
# Commands


def parse(line: str) -> tuple[str, dict[str, Any]]:
    """Command line's file and the options it parses to; nothing is run."""
    program, *arguments = shlex.split(line, comments=True)[1:]
    if program == "-m":
        program = f"-m {arguments.pop(0)}"
    command = COMMAND_LINES[program]
    if isinstance(command, click.Group):
        command = command.commands[arguments.pop(0)]
    return program, command.make_context(program, arguments).params


@pytest.mark.parametrize("line", shell_commands())
def test_commands_parse(line: str) -> None:
    program, options = parse(line)
    if program == "train.py":
        for assignment in options["overrides"]:
            set_option(Config(), assignment)


@pytest.mark.parametrize("line", blocks(ROOT / "README.md", "sh")[0].splitlines()[1:])
def test_first_commands_of_the_readme_run(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a fresh clone, with nothing but the shipped model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    _, program, *arguments = shlex.split(line, comments=True)
    COMMAND_LINES[program].main(arguments, prog_name=program, standalone_mode=False)
    assert any(path.stat().st_size > 10_000 for path in (tmp_path / "out").rglob("*.*"))


RECIPES = [
    line
    for line in shell_commands()
    if "--cfg" in line and "--gpus" in line and "--init-from" not in line
]


@pytest.mark.parametrize("line", RECIPES)
def test_recipes_give_settings_that_fit(line: str) -> None:
    """As on a machine with the GPUs that the recipe names: the options go together and the batch
    divides.
    """
    _, options = parse(line)
    size = re.search(r"(\d+)\.zip", options["data"])
    assert size
    launch = Launch("cuda", options["gpus"], "")
    data = RunData(Path("data.zip"), int(size[1]))
    config, _ = new_config(train.run_request(options), data, launch.device)
    train.check_options(config, launch)
    with torch.device("meta"):
        Generator(config.model)
        Discriminator(config.model)


def test_make_targets_exist() -> None:
    targets = set(
        re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    named = {
        name
        for page in PAGES
        for name in re.findall(
            r"(?:^|`)make ([\w-]+)(?=`| +#|$)", page.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert {"demo", "test"} <= named <= targets


def test_make_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY:((?:.*\\\n)*.*)$", text, re.MULTILINE)[0].split()) - {"\\"}
    listed = set(re.findall(r"^## ([\w-]+) +\S", text, re.MULTILINE))
    assert listed == phony - {"help", "browser"}
    default = re.search(r"^([\w-]+):", text, re.MULTILINE)
    assert default
    assert default[1] == "help"


def test_site_has_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:\n")[2]
    named = set(re.findall(r"(\S+\.md)$", text, re.MULTILINE))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= named


def test_commands_of_the_issue_templates_parse() -> None:
    found = []
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        found += re.findall(r"`(python [^`]+)`", path.read_text(encoding="utf-8"))
    assert len(found) >= 3
    for line in found:
        parse(line)


def test_options_in_prose_exist() -> None:
    known = {option for program in COMMAND_LINES.values() for option in option_names(program)} | {
        "--help"
    }
    for page in PAGES:
        for option in re.findall(r"`(--[a-z-]+)", prose(page)):
            assert option in known, f"{page.name}: {option}"


def option_names(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from option_names(child)


# --------------------------------------------------------------------------------------------------
# Settings, statistics, messages, links


def all_settings(config: Config) -> set[str]:
    return {
        f"{name}.{field}"
        for name, section in config_sections(config).items()
        for field in vars(section)
    }


def test_settings_exist() -> None:
    config = Config()
    sections, settings = set(config_sections(config)), all_settings(config)
    found = set()
    for page in PAGES:
        for name in re.findall(r"`(?:--set )?([a-z_]+\.[a-z_0-9]+)(?:\s*=[^`]*)?`", prose(page)):
            section, _, field = name.partition(".")
            if section in sections and field not in ("py", "field") and not is_module(name):
                assert name in settings, f"{page.name}: {name}"
                found.add(name)
    assert len(found) > 20


def is_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None if name.startswith("training.") else False


def settings_tables() -> list[tuple[list[str], str, list[str]]]:
    """(columns, setting, values) of each row of the tables that give values of settings."""
    rows, columns = [], []
    for line in prose(ROOT / "docs" / "training.md").splitlines():
        cells = (
            [cell.strip().strip("`") for cell in line.strip("|").split("|")]
            if line.startswith("|")
            else []
        )
        if cells and cells[0] == "Setting":
            columns = cells[1:]
        elif not cells:
            columns = []
        elif columns and "." in cells[0]:
            rows.append((columns, cells[0], cells[1:]))
    return rows


def test_tables_of_settings_are_true() -> None:
    rows = settings_tables()
    assert {name for columns, _, _ in rows for name in columns} == PRESET_COLUMNS | SIZE_COLUMNS
    for columns, name, values in rows:
        for column, value in zip(columns, values, strict=True):
            preset: Any = column if column in PRESET_COLUMNS else "auto"
            size: Any = (
                column if column in SIZE_COLUMNS else "laptop" if column == "heads" else "published"
            )
            config = make_config(preset, 64 if size == "laptop" else 512, size)
            wanted = copy.deepcopy(config)
            set_option(wanted, f"{name}={value}")
            assert config == wanted, f"{name} of {column} is not {value}"


def test_table_of_statistics_is_complete() -> None:
    """Every statistic of a step is explained, and none that does not exist."""
    torch.manual_seed(0)
    config = Config(model=small_model())
    config.training.batch, config.training.density_reg_points = 2, 4
    config.training.gamma_fakes = 1.0
    trainer = Trainer(config, labels_of_orbit(4), torch.device("cpu"))
    trainer.step(torch.rand(2, 3, 32, 32) * 2 - 1, labels_of_orbit(2))
    reported = set(trainer.statistics.collect())
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`([A-Z][a-z]+/\w+)`", page))
    assert reported <= explained
    run = "".join(
        (ROOT / "training" / name).read_text(encoding="utf-8")
        for name in ("run/loop.py", "run/messages.py", "gan/health.py")
    )
    assert all(f'"{name}"' in run for name in explained - reported)


def test_messages_exist() -> None:
    """Quoted parts of error messages stand in the source."""
    page = prose(ROOT / "docs" / "training.md").partition("## Messages")[2]
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(quoted) > 15
    literals = "\n".join(
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    missing = [text for text in quoted if text not in literals]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [
                re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
            ], f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_has_lines_of_at_most_100_columns(page: Path) -> None:
    lines = [line for line in prose(page).splitlines() if not line.startswith("|")]
    assert not [line for line in lines if len(line) > 100]


def test_pages_name_no_place_of_one_machine() -> None:
    for page in PAGES:
        assert not re.search(
            r"(?<![\w.])/(home|root|tmp|work|usr|mnt)/", page.read_text(encoding="utf-8")
        ), page.name


# --------------------------------------------------------------------------------------------------
# Legal files


def test_legal_files_agree_with_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    citation = pytest.importorskip("yaml").safe_load(
        (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    )
    assert (citation["title"], str(citation["version"]), citation["license"]) == (
        project["name"],
        project["version"],
        project["license"],
    )
    assert any("Geometry-aware 3D" in reference["title"] for reference in citation["references"])


def test_every_dependency_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    page = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8")
    for requirement in wanted:
        name = re.split(r"[<>=!~\[; ]", requirement)[0]
        assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", page), name
