"""Every message outside of data_tools that names an option, a command or a file: a test does what
it says. A message that no test does fails here.
"""

from __future__ import annotations

import re
import shlex
import socket
import tomllib
from pathlib import Path

import click
import pytest
import torch

import app
import calc_metrics
import dataset_tool
import export
import gen_samples
import gen_videos
import invert
import train
import viewer
from media.viewer.gateway import Gateway
from open_eg3d import SHIPPED_MODEL
from tests.advice import check_table, messages
from tests.tiny import ROOT, TINY_OPTIONS, call, only_run, tiny_config, write_dataset
from tests.train.runs import snapshot_in, train_here
from torch_utils.ops import library
from training.cameras import CameraSummary
from training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from training.networks.generator import Generator

HERE = "tests/test_advice.py"
TRAIN = "tests/train/test_train_advice.py"
RESUME = "tests/train/test_train_resume.py"
ASKED = "tests/data_tools/test_alpha.py::test_alpha_is_asked_of_data_that_have_it"
BUILDER = "tests/torch_utils/ops/test_builder.py"
REFUSALS = f"{TRAIN}::test_what_a_refusal_says_is_taken"
TOLD = f"{HERE}::test_options_that_are_named_exist"
# Rooms that tests/data_tools/test_advice.py looks after.
ELSEWHERE = ("data_tools", "training/data", "tests", "benchmarks", "docs", "out")
NO_MESSAGES = ("training/config/document.py", "media/report/page.py")  # pages that they write

# A part of the message -> the test that does what it says.
INVERT = "tests/test_invert.py"
INVERT_WRONG = f"{INVERT}::test_wrong_input_is_one_line"
DONE_IN = {
    "choose --cameras checkpoint": f"{HERE}::test_options_of_calc_metrics",
    "have an effect with --cameras range only": f"{HERE}::test_options_of_calc_metrics",
    "give them with --data": f"{HERE}::test_options_of_calc_metrics",
    "seeds go up to {}, and every picture takes one": f"{HERE}::test_options_of_calc_metrics",
    "free some space or choose another --outdir": f"{HERE}::test_another_outdir",
    "cannot write {}: {}; choose another --outdir": f"{HERE}::test_another_outdir",
    "make data that have them: dataset_tool.py heads --depth": (
        f"{HERE}::test_depth_maps_are_made_by_the_command"
    ),
    "docs/metrics.md says what it takes and gives": f"{HERE}::test_packages_and_pages_are_there",
    "pip install": f"{HERE}::test_packages_and_pages_are_there",
    "there is one process per GPU": f"{TRAIN}::test_devices_that_are_advised",
    "only one process can use --device mps": f"{TRAIN}::test_devices_that_are_advised",
    "device; choose --device cpu": f"{HERE}::test_a_device_that_is_not_there",
    "try fewer --procs or a smaller --batch": (
        "tests/test_calc_metrics.py::test_processes_and_batches_do_not_change_figures"
    ),
    "try fewer --workers": "tests/dnnlib/test_parallel.py::test_few_jobs_start_no_process",
    "choose another --format": "tests/test_export.py::test_folders_and_files_are_not_mixed_up",
    "exists already and is a file; choose another --dest": (
        "tests/test_export.py::test_folders_and_files_are_not_mixed_up"
    ),
    "or --overwrite a file other than": (
        "tests/test_export.py::test_folders_and_files_are_not_mixed_up"
    ),
    "gen_samples.py --network {network}": (
        "tests/test_export.py::test_a_name_of_another_kind_of_file_names_the_command"
    ),
    "gen_videos.py --network {network}": (
        "tests/test_export.py::test_a_name_of_another_kind_of_file_names_the_command"
    ),
    "export.py --network {network}": (
        "tests/test_export.py::test_a_name_of_another_kind_of_file_names_the_command"
    ),
    "end --dest in .html, or leave them out": f"{HERE}::test_options_of_export",
    "--no-images without --shapes leaves nothing": f"{HERE}::test_options_of_gen_samples",
    "--texture needs --shapes": f"{HERE}::test_options_of_gen_samples",
    "choose a --shape-level between them": f"{HERE}::test_options_of_gen_samples",
    "add --transparent": f"{HERE}::test_options_about_transparency",
    "--transparent shows the final picture; leave {} out": (
        f"{HERE}::test_options_about_transparency"
    ),
    "of these only webm holds alpha; leave --formats out": (
        f"{HERE}::test_options_about_transparency"
    ),
    "--remove-background is for models that paint": f"{HERE}::test_options_about_transparency",
    "--remove-background finds no wall": (
        "tests/test_gen_samples.py::test_transparent_pictures_are_the_others_over_their_background"
    ),
    "--frames does not go with poses from a file": f"{HERE}::test_options_of_gen_videos",
    "choose another --port or --host": f"{HERE}::test_another_port",
    "set OPEN_EG3D_TIMEOUT to more minutes": (
        "tests/torch_utils/distributed/test_processes.py"
        "::test_a_process_that_works_alone_for_long_is_waited_for"
    ),
    "set OPEN_EG3D_CACHE to a writable folder": f"{BUILDER}::test_paths_with_blanks_and_dollars",
    "OPEN_EG3D_OPS=reference, or": f"{HERE}::test_second_derivatives_by_the_reference",
    "leave these options out, or start a new run": REFUSALS,
    "it may only grow": REFUSALS,
    "--resume and --init-from exclude each other": REFUSALS,
    "add --dry-run": REFUSALS,
    "for example --p 0.2": REFUSALS,
    "add --aug ada or --aug fixed": REFUSALS,
    "--aug ada puts that off": f"{TRAIN}::test_few_pictures_are_told",
    "--config and --{} exclude each other": REFUSALS,
    "leave it out of --set, or of the file of --config": REFUSALS,
    "leave --nrr-initial out, or begin": (
        "tests/train/test_train_strict.py::test_what_follows_from_it_is_settled"
    ),
    "choose --alpha composite, or --aug noaug": ASKED,
    "leave --alpha out, or make the data again": ASKED,
    "choose a multiple of": REFUSALS,
    "choose a divisor of": REFUSALS,
    "--set discriminator.mbstd_group_size=1": REFUSALS,
    "the folder holds no {}": REFUSALS,
    "start a new one from a URL with --init-from": REFUSALS,
    "say where with --data": REFUSALS,
    "are not the data that the run began with": REFUSALS,
    "or measure nothing with --metrics none": f"{RESUME}::test_files_of_metrics_may_move",
    "is not the file that the run began with": f"{RESUME}::test_files_of_metrics_may_move",
    "resize the data to that size": f"{TRAIN}::test_the_size_that_weights_want",
    "Choose --nrr-final {}": f"{TRAIN}::test_rendering_that_is_thrown_away",
    "--set superresolution.input_resolution={}": f"{TRAIN}::test_rendering_that_is_thrown_away",
    "use --gpus 0 to train on the CPU": f"{TRAIN}::test_devices_that_are_advised",
    "--device cuda: no CUDA device to use": f"{TRAIN}::test_devices_that_are_advised",
    "--device mps: not available here": f"{TRAIN}::test_devices_that_are_advised",
    "leave --procs out": f"{TRAIN}::test_devices_that_are_advised",
    "started without torchrun": f"{TRAIN}::test_devices_that_are_advised_under_torchrun",
    "give it --nproc-per-node": f"{TRAIN}::test_devices_that_are_advised_under_torchrun",
    "or give torchrun another": f"{TRAIN}::test_devices_that_are_advised_under_torchrun",
    "no free run number": f"{TRAIN}::test_another_outdir_where_numbers_are_used_up",
    "a larger --kimg goes on": f"{TRAIN}::test_a_larger_kimg_goes_on",
    "does not hold the whole state of a run": f"{TRAIN}::test_half_a_state_starts_a_new_run",
    "the last good checkpoint is kept": f"{TRAIN}::test_gradients_that_are_not_finite",
    "smaller --batch-gpu, or a smaller --nrr-final": (
        f"{TRAIN}::test_memory_of_a_gpu_that_runs_out"
    ),
    "if it is a released snapshot, start": (
        "tests/train/test_train_weights.py::test_a_released_snapshot_can_be_trained_on"
    ),
    "has put no cameras right; train with --poses repair": (
        "tests/train/test_train_poses.py::test_what_cannot_be_put_right"
    ),
    "go on with --resume latest": f"{RESUME}::test_ways_to_name_a_run",
    "go on with: python train.py --resume {}": f"{HERE}::test_what_a_run_says_at_its_end",
    "leave --cfg or --dry-run out": (
        "tests/train/test_train_runs.py::test_the_scene_of_heads_that_are_not_there_cannot_be_read"
    ),
    "a larger --gamma or more data may help": f"{HERE}::test_what_a_run_says_at_its_end",
    "curves: tensorboard --logdir {}": f"{HERE}::test_what_a_run_says_at_its_end",
    "a file holds one head, and these are": (
        "tests/test_export.py::test_splats_of_several_heads_want_a_folder"
    ),
    "--label {}": INVERT_WRONG,
    "On a clone: python NAME.py": (
        "tests/test_command_line.py::test_the_package_lists_the_commands"
    ),
    "A 3D-aware GAN: from random numbers": "tests/test_hub.py::test_model_card_of_little_known",
    "`calc_metrics.py` measures": "tests/test_hub.py::test_model_card_of_little_known",
    "Measured by `calc_metrics.py`": "tests/test_hub.py::test_model_card_tells_of_the_model",
    "--log wandb needs the package wandb": "tests/training/run/test_folder.py::test_without_wandb",
    "set WANDB_MODE=offline, or leave it out of": (
        "tests/training/run/test_folder.py::test_curves_and_pictures_in_wandb"
    ),
    "python gen_samples.py --network {}": f"{HERE}::test_commands_of_the_demo_are_understood",
    "python gen_videos.py --network {}": f"{HERE}::test_commands_of_the_demo_are_understood",
    "python viewer.py --network models": f"{HERE}::test_commands_of_the_demo_are_understood",
    # what is told, without advice
    "Not computed: it takes --data": TOLD,
    "--source and --dest go together": TOLD,
    "No --data: rendering": TOLD,
    "going on with the newest run (--resume latest)": TOLD,
    "or as a start (--init-from)": TOLD,
    "(--batch, --batch-gpu): results are not those": TOLD,
    "--init-from: {}": TOLD,
    "(--precision)": TOLD,
    "--precision bf16 is recommended": (
        "tests/training/run/test_messages.py::test_bf16_is_recommended_on_gpus_that_have_it"
    ),
    "name data with --data": "tests/training/data/test_shards.py::test_stray_words_are_refused",
    "sizes (--sizes)": TOLD,
    "give --mask once for each": INVERT_WRONG,
    "--poses has labels of several files": f"{INVERT}::test_poses_are_found_by_whole_names_first",
    "has no label in --poses; add its": f"{INVERT}::test_ways_to_a_camera",
    "is neither 25 numbers nor a JSON file": INVERT_WRONG,
    "unless --latents]": "tests/test_latents.py::test_samples_of_named_latents",
    "invert.py writes such files": f"{INVERT}::test_the_result_goes_into_the_other_commands",
    "--latents: the network's file holds": (
        "tests/test_latents.py::test_what_is_not_there_is_one_line"
    ),
    "leave others and --face out": f"{INVERT}::test_a_data_set_goes_on_where_it_stopped",
    "none can be found; give --label or --poses": INVERT_WRONG,
    "name photos or --data, one of them": INVERT_WRONG,
    "--dest goes with --scores or --train-encoder": f"{INVERT}::test_directions_from_scores",
    "train one with invert.py --train-encoder": f"{INVERT}::test_an_encoder_of_the_command_line",
    "both tell the camera; leave one out": INVERT_WRONG,
    "goes with named photos, not with --data": INVERT_WRONG,
    "--face goes with photos in which faces": INVERT_WRONG,
    "--optimise-focal goes with --optimise-pose": INVERT_WRONG,
    "or network; choose another --outdir": f"{INVERT}::test_what_was_made_otherwise_is_told",
    "goes with --network, --dest and --device alone": INVERT_WRONG,
    "`dataset_tool.py traits` adds them to older ones": (
        "tests/data_tools/heads/test_traits.py::test_an_older_data_set_is_given_its_traits"
    ),
    "or NVIDIA's wheels of it (docs/kernels.md)": f"{HERE}::test_packages_and_pages_are_there",
}
COMMANDS: tuple[click.Command, ...] = (
    app.main, calc_metrics.main, export.main, gen_samples.main, gen_videos.main, invert.main,
    train.main, viewer.main,
    *dataset_tool.main.commands.values(),
)  # fmt: skip
OF_OTHERS = {"--nproc-per-node", "--logdir"}


def said() -> dict[str, str]:
    paths = [
        path
        for path in sorted(ROOT.rglob("*.py"))
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
        and not path.relative_to(ROOT).as_posix().startswith(ELSEWHERE)
    ]
    found = messages(paths)
    return {
        text: name for text, name in found.items() if name not in NO_MESSAGES and text != "--set {}"
    }


def test_every_advice_is_done_by_a_test() -> None:
    found = said()
    assert len(found) > 80
    check_table(found, DONE_IN)


def test_options_that_are_named_exist() -> None:
    known = {
        name
        for command in COMMANDS
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    } | OF_OTHERS
    everywhere = {**said(), **messages(sorted((ROOT / "data_tools").rglob("*.py")))}
    named = {
        (option, text)
        for text in everywhere
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)
    }
    assert len(named) > 60
    assert {(option, text) for option, text in named if option not in known} == set()


def test_commands_of_the_demo_are_understood() -> None:
    programs = {"gen_samples.py": gen_samples, "gen_videos.py": gen_videos, "viewer.py": viewer}
    texts = [text for text, name in said().items() if name == "demo.py"]
    assert len(texts) == 3
    for text in texts:
        program, *arguments = shlex.split(text.format("models/heads64.pkl"))[1:]
        context = programs[program].main.make_context(program, arguments)
        assert Path(context.params["network"]) == SHIPPED_MODEL.relative_to(ROOT)


def test_packages_and_pages_are_there() -> None:
    """Extras and packages that messages tell to install are those of this project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    packages = " ".join([*project["dependencies"], *(" ".join(names) for names in extras.values())])
    for text in said():
        for names in re.findall(r"pip install (?:-e )?'?(?:open-eg3d|\.)\[([\w,]+)\]", text):
            assert set(names.split(",")) <= set(extras), text
        for name in re.findall(r"pip install ([a-z][a-z-]+)$", text):
            assert name in packages, text
        for page in re.findall(r"docs/[\w-]+\.md", text):
            assert (ROOT / page).exists(), text


# --------------------------------------------------------------------------------------------------
# Commands that render and measure


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config()
    config.model.rendering.density_gain = 30.0
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "tiny.pkl"
    cameras = CameraSummary(2.7, (0.0, 0.0, 0.0)).to_dict()
    state = Generator(config.model).state_dict()
    save_checkpoint(path, Checkpoint(config=config, G_ema=state, cameras=cameras))
    return path


def follow(
    command: click.Command, words: str, wrong: list[str | Path], *mends: list[str | Path]
) -> None:
    """`wrong` is refused in these words; what they say instead is done."""
    refused = call(command, *wrong)
    refused.assert_refused(refused.status, words)
    for mend in mends:
        call(command, *mend).assert_done()


def test_options_of_calc_metrics(network: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data.zip", 4)
    base: list[str | Path] = ["--network", network, "--outdir", tmp_path / "o", "--metrics"]
    relief = [*base, "relief2"]
    metrics = calc_metrics.main
    follow(
        metrics,
        "choose --cameras checkpoint",
        [*relief, "--cameras", "data"],
        [*relief, "--cameras", "data", "--data", data],
        [*relief, "--cameras", "checkpoint"],
    )
    follow(
        metrics,
        "with --cameras range only",
        [*relief, "--yaw", "-5,5"],
        [*relief, "--yaw", "-5,5", "--cameras", "range"],
    )
    follow(
        metrics,
        "seeds go up to",
        [*relief, "--seed", str(2**32 - 1)],
        [*relief, "--seed", str(2**32 - 3)],
    )
    fid = [*base, "fid4_full", "--detector", "lite0"]
    follow(metrics, "give them with --data", fid, [*fid, "--data", data])


def test_another_outdir(network: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    base: list[str | Path] = ["--network", network, "--metrics", "relief2", "--outdir"]
    follow(calc_metrics.main, "file", [*base, tmp_path / "file"], [*base, tmp_path / "other"])


def test_depth_maps_are_made_by_the_command(network: Path, tmp_path: Path) -> None:
    base: list[str | Path] = ["--network", network, "--metrics", "depth2"]
    plain, deep = write_dataset(tmp_path / "data.zip", 4), tmp_path / "deep.zip"
    options = ("--count", "4", "--resolution", "32", "--dest", deep, "--workers", "1")
    call(dataset_tool.main, "heads", "--depth", *options).assert_done()
    follow(
        calc_metrics.main,
        "dataset_tool.py heads --depth",
        [*base, "--outdir", tmp_path, "--data", plain],
        [*base, "--outdir", tmp_path, "--data", deep],
    )


def test_a_device_that_is_not_there(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    base: list[str | Path] = ["--network", network, "--seeds", "0", "--outdir", tmp_path]
    follow(
        gen_samples.main,
        "choose --device cpu",
        [*base, "--device", "cuda"],
        [*base, "--device", "cpu"],
    )


def test_options_of_gen_samples(network: Path, tmp_path: Path) -> None:
    base: list[str | Path] = ["--network", network, "--seeds", "0", "--outdir", tmp_path]
    shape = ["--shapes", "glb", "--shape-res", "16", "--shape-level"]
    follow(
        gen_samples.main,
        "--no-images without --shapes",
        [*base, "--no-images"],
        base,
        [*base, "--no-images", *shape, "0"],
    )
    follow(
        gen_samples.main,
        "--texture needs --shapes obj or glb",
        [*base, "--texture", "16"],
        [*base, "--texture", "16", *shape, "0"],
        [*base, "--texture", "16", "--shapes", "obj", *shape[2:], "0"],
    )
    refused = call(gen_samples.main, *base, *shape, "1e9")
    low, high = re.findall(r"reach from (\S+) to (\S+);", refused.err)[0]
    middle = str((float(low) + float(high)) / 2)
    follow(
        gen_samples.main,
        "choose a --shape-level between them",
        [*base, *shape, "1e9"],
        [*base, *shape, middle],
    )


def test_options_of_gen_videos(network: Path, tmp_path: Path) -> None:
    base: list[str | Path] = ["--network", network, "--outdir", tmp_path]
    short = ["--frames", "2"]
    follow(
        gen_videos.main,
        "3x1 has 3 cells, --seeds names 4; change --seeds or the grid",
        [*base, *short, "--grid", "3x1", "--seeds", "0-3"],
        [*base, *short, "--grid", "3x1", "--seeds", "0-2"],
        [*base, *short, "--grid", "4x1", "--seeds", "0-3"],
    )
    poses = tmp_path / "poses.json"
    label = CameraSummary(2.7, (0.0, 0.0, 0.0)).frontal_label()
    poses.write_text(f'{{"labels": [["a", {label.tolist()}]]}}')
    camera: list[str | Path] = ["--seeds", "0", "--camera", poses]
    follow(gen_videos.main, "--frames does not go", [*base, *camera, *short], [*base, *camera])


def test_options_about_transparency(network: Path, tmp_path: Path) -> None:
    base: list[str | Path] = ["--seeds", "0", "--network", network, "--outdir", tmp_path]
    samples = [*base, "--views", "0"]
    follow(
        gen_samples.main,
        "add --transparent",
        [*samples, "--remove-background", "--rows", "image"],
        [*samples, "--transparent"],
    )
    rows = [*samples, "--transparent"]
    follow(gen_samples.main, "leave --rows out", [*rows, "--rows", "depth"], rows)
    videos = [*base, "--frames", "2", "--transparent"]
    follow(gen_videos.main, "leave --formats out", [*videos, "--formats", "mp4"], videos)
    plain: list[str | Path] = ["--network", SHIPPED_MODEL, "--seeds", "0", "--views", "0"]
    follow(
        gen_samples.main,
        "--transparent alone cuts that out",
        [*plain, "--outdir", tmp_path, "--transparent", "--remove-background"],
        [*plain, "--outdir", tmp_path, "--transparent"],
    )


def test_options_of_export(network: Path, tmp_path: Path) -> None:
    base: list[str | Path] = ["--network", network, "--seeds", "0", "--dest"]
    follow(
        export.main,
        "end --dest in .html, or leave them out",
        [*base, tmp_path / "a.pkl"],
        [*base, tmp_path / "a.html"],
        ["--network", network, "--dest", tmp_path / "a.pkl"],
    )


def test_another_port(network: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = call(viewer.main, "--network", network, "--port", str(port))
        refused.assert_refused(1, "choose another --port or --host")
        for host, other in (("127.0.0.1", 0), ("127.0.0.2", port)):
            gateway = Gateway("title", host, other, 1)
            assert gateway.port != 0
            gateway.close()


def test_second_derivatives_by_the_reference() -> None:
    generator = Generator(tiny_config().model)
    label = CameraSummary(2.7, (0.0, 0.0, 0.0)).frontal_label()[None]
    ws = torch.zeros(1, generator.num_ws, generator.w_dim)

    def second() -> None:
        planes = generator.planes(ws).detach().requires_grad_()
        image = generator.render(planes, ws, label).image_raw
        (first,) = torch.autograd.grad(image.square().sum(), planes, create_graph=True)
        first.square().sum().backward()

    with pytest.raises(NotImplementedError, match="OPEN_EG3D_OPS=reference"):
        second()
    with library.path("reference"):
        second()


# --------------------------------------------------------------------------------------------------
# Runs


def test_what_a_run_says_at_its_end(tmp_path: Path) -> None:
    """The command that a stopped run names goes on with it, and its curves are where it says."""
    data = write_dataset(tmp_path / "data.zip")
    run: list[str | Path] = ["--data", data, "--outdir", tmp_path / "my runs", *TINY_OPTIONS]
    ended = train_here(*run, "--kimg", "1", "--minutes", "0.0001").assert_done()
    folder = only_run(tmp_path / "my runs")
    assert list(folder.glob("events.out.tfevents*"))
    logs = re.findall(r"tensorboard (--logdir .*)", ended.out)[0]
    assert shlex.split(logs) == ["--logdir", str(folder.parent)]
    command = re.findall(r"go on with: python train\.py (.*)", ended.out)[0]
    assert shlex.split(command) == ["--resume", str(folder)]
    train_here(*shlex.split(command), "--dry-run").assert_done()
    # the advice where seeds look alike
    train_here(
        "--data", data, "--init-from", snapshot_in(folder), "--gamma", "9", "-n"
    ).assert_done()
