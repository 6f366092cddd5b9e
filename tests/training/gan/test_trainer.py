"""One training step: what it changes, by how much, and that nothing but (seed, sample's number)
decides about its random draws.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dnnlib.console import UserError
from tests.tiny import differing, orbit_labels, pictures, tensors_of, tiny_config
from tests.training.gan.phases import run_phase
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.config.settings import Config
from training.data.dataset import to_float
from training.gan import trainer as trainer_module
from training.gan.augment import AugmentPipe
from training.gan.batches import Phase, RankShard, RngStream, draw_seed
from training.gan.loss import Pictures, Schedule, ema_decay
from training.gan.trainer import Batch, Trainer
from training.networks.generator import Generator, GeneratorOutput

CPU = torch.device("cpu")
Change = Callable[..., Any]


def make_trainer(*assignments: str) -> Trainer:
    return Trainer(tiny_config(*assignments), orbit_labels(16), CPU)


def real_batch(size: int = 4, first: int = 0) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(pictures(16)).permute(0, 3, 1, 2)
    chosen = [(first + i) % 16 for i in range(size)]
    return to_float(images[chosen]), orbit_labels(16)[chosen]


def take_steps(trainer: Trainer, count: int) -> None:
    size = trainer.config.training.batch
    for _ in range(count):
        trainer.step(*real_batch(size, first=trainer.progress.images))


def drawn_batch(trainer: Trainer) -> Batch:
    torch.manual_seed(1)
    return trainer._draw(*real_batch(trainer.config.training.batch))


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {
        name for name, value in module.state_dict().items() if not torch.equal(value, before[name])
    }


def spy(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, note: Callable[..., None]) -> None:
    """Let `note(result, *arguments)` see every call of owner.name."""
    original = getattr(owner, name)

    def wrapper(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        note(result, *arguments, **options)
        return result

    monkeypatch.setattr(owner, name, wrapper)


def gradients_at_step(optimizer: torch.optim.Optimizer) -> list[list[Tensor | None]]:
    """A list that gets, at every optimiser step, copies of the gradients it uses."""
    taken: list[list[Tensor | None]] = []

    def note(*_: Any) -> None:
        taken.append(
            [
                None if p.grad is None else p.grad.clone()
                for p in optimizer.param_groups[0]["params"]
            ]
        )

    optimizer.register_step_pre_hook(note)
    return taken


# --------------------------------------------------------------------------------------------------
# Optimisers and regularisers


def test_lazy_regularisation_scales_learning_rates_and_betas() -> None:
    trainer = make_trainer()
    g, d = trainer.G_optimizer.param_groups[0], trainer.D_optimizer.param_groups[0]
    assert g["lr"] == pytest.approx(0.0025 * 4 / 5)
    assert g["betas"] == pytest.approx((0.0, 0.99 ** (4 / 5)))
    assert d["lr"] == pytest.approx(0.002 * 16 / 17)
    assert d["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))
    assert g["eps"] == d["eps"] == 1e-8
    assert not g.get("weight_decay")


def test_each_network_has_one_optimiser_with_all_its_parameters() -> None:
    trainer = make_trainer()
    for network, optimizer in ((trainer.G, trainer.G_optimizer), (trainer.D, trainer.D_optimizer)):
        assert len(optimizer.param_groups) == 1
        assert [id(p) for p in optimizer.param_groups[0]["params"]] == [
            id(p) for p in network.parameters()
        ]


def test_regularisers_run_at_step_0_and_at_their_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer("training.g_reg_interval=2", "training.d_reg_interval=3")
    steps: dict[str, list[int]] = defaultdict(list)
    for name in ("density_regularisation", "r1_penalty"):
        spy(
            monkeypatch,
            trainer_module.loss,
            name,
            lambda *_, name=name, **__: steps[name].append(trainer.progress.steps),
        )
    take_steps(trainer, 7)
    assert steps == {"density_regularisation": [0, 2, 4, 6], "r1_penalty": [0, 3, 6]}


def test_published_intervals() -> None:
    options = Config().training
    assert (options.g_reg_interval, options.d_reg_interval) == (4, 16)
    assert (options.density_reg, options.density_reg_distance, options.density_reg_points) == (
        0.25,
        0.004,
        1000,
    )


def test_regularisers_of_no_weight_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer("training.gamma=0", "training.density_reg=0")
    for name in ("density_regularisation", "r1_penalty"):
        monkeypatch.setattr(trainer_module.loss, name, None)
    take_steps(trainer, 1)


@pytest.mark.parametrize("batch_gpu", ["null", "1", "2"])
def test_density_gradient_is_weighted_and_multiplied_by_the_interval(
    monkeypatch: pytest.MonkeyPatch, batch_gpu: str
) -> None:
    options = (
        "training.g_reg_interval=5",
        "training.density_reg=0.7",
        "discriminator.mbstd_group_size=1",
    )
    trainer = make_trainer(*options, f"training.batch_gpu={batch_gpu}")
    parts: list[Sequence[Tensor | None]] = []

    def note(penalty: Tensor, *_: Any) -> None:
        parts.append(
            torch.autograd.grad(penalty, trainer.G_parameters, retain_graph=True, allow_unused=True)
        )

    spy(monkeypatch, trainer_module.loss, "density_regularisation", note)
    taken = gradients_at_step(trainer.G_optimizer)
    run_phase(trainer, Phase.G_REG, drawn_batch(trainer), Schedule(8, 0.0, 0.0))
    assert len(parts) == {"null": 1, "1": 4, "2": 2}[batch_gpu]
    check_mean_of_parts(taken, parts, factor=0.7 * 5)


@pytest.mark.parametrize("batch_gpu", ["null", "1", "2"])
def test_r1_gradient_is_weighted_and_multiplied_by_the_interval(
    monkeypatch: pytest.MonkeyPatch, batch_gpu: str
) -> None:
    options = ("training.d_reg_interval=7", "training.gamma=3", "discriminator.mbstd_group_size=1")
    trainer = make_trainer(*options, f"training.batch_gpu={batch_gpu}")
    parts: list[Sequence[Tensor | None]] = []

    def note(penalty: Tensor, *_: Any) -> None:
        parts.append(
            torch.autograd.grad(
                penalty.mean(), trainer.D_parameters, retain_graph=True, allow_unused=True
            )
        )

    spy(monkeypatch, trainer_module.loss, "r1_penalty", note)
    taken = gradients_at_step(trainer.D_optimizer)
    run_phase(trainer, Phase.D_REG, drawn_batch(trainer), Schedule(8, 0.0, 0.0))
    check_mean_of_parts(taken, parts, factor=3 / 2 * 7)


@pytest.mark.parametrize("batch_gpu", ["null", "2"])
@pytest.mark.parametrize("shared", ["false", "true"])
def test_both_penalties_add_up_with_their_weights(
    monkeypatch: pytest.MonkeyPatch, shared: str, batch_gpu: str
) -> None:
    trainer = make_trainer(
        "training.d_reg_interval=7",
        "training.gamma=3",
        "training.gamma_fakes=5",
        f"training.shared_fakes={shared}",
        f"training.batch_gpu={batch_gpu}",
        "discriminator.mbstd_group_size=1",
    )
    made, penalised = list[Tensor](), list[Pictures]()
    parts: list[Sequence[Tensor | None]] = []

    def note(penalty: Tensor, _: Tensor, pictures: Pictures) -> None:
        penalised.append(pictures)
        weight = (3, 5)[len(parts) % 2] / 2 * 7 * 2  # two make up one part
        gradients = torch.autograd.grad(
            penalty.mean() * weight, trainer.D_parameters, retain_graph=True, allow_unused=True
        )
        parts.append([torch.zeros(()) if g is None else g for g in gradients])

    spy(monkeypatch, trainer_module.loss, "generate", lambda fakes, *_: made.append(fakes.image))
    spy(monkeypatch, trainer_module.loss, "r1_penalty", note)
    taken = gradients_at_step(trainer.D_optimizer)
    take_steps(trainer, 1)
    check_mean_of_parts(taken[1:], parts, factor=1)
    micro = 1 if batch_gpu == "null" else 2
    assert len(penalised) == 2 * micro
    judged = made[:micro] if shared == "true" else made[-micro:]
    blurred = [
        trainer_module.loss.blur(image, trainer.schedule.blur_sigma).detach() for image in judged
    ]
    for fakes, shown in zip(blurred, penalised[1::2], strict=True):
        assert torch.equal(fakes, shown.image)


def test_learning_rates_follow_the_schedule() -> None:
    trainer = make_trainer("training.kimg=0.016", "training.lr_final=0.1")
    rates = []
    for _ in range(6):
        take_steps(trainer, 1)
        rates.append(
            [opt.param_groups[0]["lr"] for opt in (trainer.G_optimizer, trainer.D_optimizer)]
        )
    factors = [1, 0.1 + 0.9 * (1 + 0.5**0.5) / 2, 0.55, 0.1 + 0.9 * (1 - 0.5**0.5) / 2, 0.1, 0.1]
    for factor, (g, d) in zip(factors, rates, strict=True):
        assert g == pytest.approx(0.0025 * 4 / 5 * factor)
        assert d == pytest.approx(0.002 * 16 / 17 * factor)


def check_mean_of_parts(
    taken: list[list[Tensor | None]], parts: list[Sequence[Tensor | None]], factor: float
) -> None:
    """The one optimiser step used `factor` times the mean of the micro-batches' gradients."""
    (used,) = taken
    assert any(value is not None and bool(value.any()) for value in used)
    for value, shares in zip(used, zip(*parts, strict=True), strict=True):
        expected = (
            sum((share for share in shares if share is not None), start=torch.zeros(()))
            * factor
            / len(parts)
        )
        torch.testing.assert_close(
            torch.zeros(()) if value is None else value, expected, rtol=1e-4, atol=1e-6
        )


def test_the_discriminator_weighs_real_and_fake_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()
    parts: dict[str, Sequence[Tensor | None]] = {}

    def note(name: str) -> Callable[..., None]:
        def add(losses: Tensor, _: Tensor) -> None:
            parts[name] = torch.autograd.grad(
                losses.mean(), trainer.D_parameters, retain_graph=True, allow_unused=True
            )

        return add

    for name in ("loss_real", "loss_fake"):
        spy(monkeypatch, trainer_module.loss, name, note(name))
    taken = gradients_at_step(trainer.D_optimizer)
    run_phase(trainer, Phase.D, drawn_batch(trainer), Schedule(8, 1.0, 0.0))
    check_mean_of_parts(taken, list(parts.values()), factor=2)


def test_the_generator_wants_its_fakes_to_look_real(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()
    parts: list[Sequence[Tensor | None]] = []

    def note(losses: Tensor, _: Tensor) -> None:
        parts.append(
            torch.autograd.grad(
                losses.mean(), trainer.G_parameters, retain_graph=True, allow_unused=True
            )
        )

    spy(monkeypatch, trainer_module.loss, "loss_real", note)
    taken = gradients_at_step(trainer.G_optimizer)
    run_phase(trainer, Phase.G, drawn_batch(trainer), Schedule(8, 1.0, 0.0))
    check_mean_of_parts(taken, parts, factor=1)


def test_r1_acts_on_both_tensors_after_blur_and_augmentation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = make_trainer("augment.mode=fixed", "augment.p=1")
    shown: list[Pictures] = []
    penalised: list[Pictures] = []
    spy(
        monkeypatch,
        trainer_module.loss,
        "augment_pictures",
        lambda result, *_: shown.append(result),
    )
    spy(monkeypatch, trainer_module.loss, "r1_penalty", lambda *given: penalised.append(given[2]))
    batch, schedule = drawn_batch(trainer), Schedule(8, 2.0, 0.0)
    run_phase(trainer, Phase.D_REG, batch, schedule)
    for given, result, plain in zip(
        penalised[0], shown[0], trainer_module.loss.real_pictures(batch.real, schedule), strict=True
    ):
        assert given.requires_grad
        assert given.is_leaf
        assert torch.equal(given, result)
        assert not torch.allclose(given, plain, atol=0.1)
    assert penalised[0].image_raw.shape == (4, 3, 8, 8)


# --------------------------------------------------------------------------------------------------
# Accumulation


def fixed_fakes(trainer: Trainer, batch: Batch, size: int) -> list[GeneratorOutput]:
    """The same fakes in micro-batches of `size`."""
    with torch.no_grad():
        z, c, _ = batch.fakes[Phase.D]
        whole = trainer.G.synthesis(trainer.G.mapping(z, c), c, 8)
    return [
        GeneratorOutput(*(value[i : i + size] for value in whole))
        for i in range(0, len(batch.real), size)
    ]


def compare_gradients(whole: list[list[Tensor | None]], parts: list[list[Tensor | None]]) -> None:
    assert len(whole) == len(parts) == 1
    for first, second in zip(whole[0], parts[0], strict=True):
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            torch.testing.assert_close(
                first, second, rtol=1e-3, atol=1e-5 + 1e-4 * float(first.abs().max())
            )


@pytest.mark.parametrize("phase", [Phase.D, Phase.D_REG])
def test_discriminator_gradients_of_4_of_8_equal_those_of_8(
    monkeypatch: pytest.MonkeyPatch, phase: Phase
) -> None:
    taken = []
    for micro in (8, 4):
        # Groups of one: those of the minibatch statistics would be made of other samples.
        trainer = make_trainer(
            "training.batch=8", f"training.batch_gpu={micro}", "discriminator.mbstd_group_size=1"
        )
        batch, schedule = drawn_batch(trainer), Schedule(8, 1.0, 0.0)
        taken.append(gradients_at_step(trainer.D_optimizer))
        fakes = iter(fixed_fakes(trainer, batch, micro))
        monkeypatch.setattr(trainer, "_generate", lambda *_, fakes=fakes, **__: next(fakes))
        run_phase(trainer, phase, batch, schedule)
    compare_gradients(*taken)


def test_generator_gradients_of_4_of_8_equal_those_of_8(monkeypatch: pytest.MonkeyPatch) -> None:
    def steady(
        G: Generator,
        z: Tensor,
        c: Tensor,
        schedule: Schedule,
        update_w_avg: bool,
        _swapped_c: Tensor,
        background: Tensor | None,
    ) -> GeneratorOutput:
        assert not update_w_avg
        assert background is None
        return G.synthesis(
            G.mapping(z, c), c, schedule.resolution, noise_mode="const", deterministic=True
        )

    monkeypatch.setattr(trainer_module.loss, "generate", steady)
    taken = []
    for micro in (8, 4):
        trainer = make_trainer(
            "training.batch=8", f"training.batch_gpu={micro}", "discriminator.mbstd_group_size=1"
        )
        taken.append(gradients_at_step(trainer.G_optimizer))
        run_phase(trainer, Phase.G, drawn_batch(trainer), Schedule(8, 1.0, 0.0))
    compare_gradients(*taken)


def test_micro_batches_keep_whole_groups_of_the_minibatch_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = make_trainer("training.batch=8", "training.batch_gpu=4")
    sizes: list[tuple[int, int]] = []
    spy(
        monkeypatch,
        trainer.D,
        "forward",
        lambda logits, *_, batches=1, **__: sizes.append((len(logits), batches)),
    )
    take_steps(trainer, 1)
    # G; D on fakes and reals at once; R1
    assert sizes == [(4, 1)] * 2 + [(8, 2)] * 2 + [(4, 1)] * 2


# --------------------------------------------------------------------------------------------------
# What a phase changes


@pytest.mark.parametrize(
    ("phase", "changes"),
    [(Phase.G, "G"), (Phase.G_REG, "G"), (Phase.D, "D"), (Phase.D_REG, "D")],
)
def test_each_phase_changes_its_network_only(phase: Phase, changes: str) -> None:
    trainer = make_trainer()
    batch, schedule = drawn_batch(trainer), Schedule(8, 1.0, 0.5)
    before = {name: weights_of(getattr(trainer, name)) for name in ("G", "D", "G_ema")}
    run_phase(trainer, phase, batch, schedule)
    found = {
        name: changed(getattr(trainer, name), before[name]) - {"backbone.mapping.w_avg"}
        for name in before
    }
    assert found.pop(changes)
    assert not any(found.values())
    other = trainer.D if changes == "G" else trainer.G
    assert all(p.grad is None and not p.requires_grad for p in other.parameters())


def test_a_step_reaches_every_layer_of_both_networks() -> None:
    trainer = make_trainer()
    before = {name: weights_of(getattr(trainer, name)) for name in ("G", "D", "G_ema")}
    take_steps(trainer, 2)
    assert (trainer.progress.images, trainer.progress.steps) == (8, 2)
    for name in ("G", "D"):
        module = getattr(trainer, name)
        unused = {
            key
            for key, _ in module.named_parameters()
            if key.startswith("superresolution") and key.endswith("noise_strength")
        }
        assert {key for key, _ in module.named_parameters()} - unused <= changed(
            module, before[name]
        )
    assert changed(trainer.G_ema, before["G_ema"])


def test_each_phase_has_its_own_latents_and_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer("training.swap_start=0", "training.swap_final=0")
    seen: list[tuple[Tensor, Tensor]] = []
    spy(monkeypatch, trainer.G, "mapping", lambda _, z, c, **__: seen.append((z, c)))
    take_steps(trainer, 1)
    assert len(seen) == 3  # G, Greg, D
    for kind in (0, 1):
        assert all(
            not torch.equal(seen[i][kind], seen[j][kind]) for i, j in ((0, 1), (0, 2), (1, 2))
        )
    labels = {tuple(c.tolist()) for c in orbit_labels(16)}
    assert all(tuple(c.tolist()) in labels for _, cameras in seen for c in cameras)


def test_fake_cameras_come_evenly_from_the_labels() -> None:
    trainer = make_trainer("training.batch=4000", "discriminator.mbstd_group_size=1")
    torch.manual_seed(0)
    batch = trainer._draw(torch.empty(4000, 0), torch.empty(4000, 25))
    z, c = (torch.cat([fakes[i] for fakes in batch.fakes.values()]) for i in (0, 1))
    assert z.shape == (3 * 4000, 8)
    assert float(z.std()) == pytest.approx(1, abs=0.01)
    _, counts = torch.unique(c, dim=0, return_counts=True)
    assert len(counts) == 16
    assert bool(((counts - 750).abs() < 5 * math.sqrt(750)).all())


def test_the_discriminator_sees_true_cameras_and_the_resolution_of_the_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = make_trainer(
        "training.resolution_initial=8",
        "rendering.resolution=16",
        "training.resolution_fade_kimg=0.008",
    )
    rendered: list[Tensor] = []
    seen: list[tuple[int, Tensor]] = []
    spy(monkeypatch, trainer.G, "synthesis", lambda *given, **__: rendered.append(given[2]))
    spy(
        monkeypatch,
        trainer.D,
        "forward",
        lambda *given, **_: seen.append((given[2].shape[-1], given[3])),
    )
    take_steps(trainer, 3)
    assert [size for size, _ in seen] == [8] * 3 + [12] * 2 + [16] * 2
    real_c = real_batch()[1]
    for given, expected in zip(
        (c for _, c in seen[:3]),
        (rendered[0], torch.cat([rendered[1], real_c]), real_c),
        strict=True,
    ):
        assert torch.equal(given, expected)


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_freeze_d_keeps_exactly_the_first_layers(count: int) -> None:
    order = [
        "b32.fromrgb",
        "b32.conv0",
        "b32.conv1",
        "b32.skip",
        "b16.conv0",
        "b16.conv1",
        "b16.skip",
        "b8.conv0",
        "b8.conv1",
        "b8.skip",
    ]
    trainer = make_trainer(f"training.freeze_d={count}")
    before = weights_of(trainer.D)
    take_steps(trainer, 2)
    names = [name for name, _ in trainer.D.named_parameters()]
    frozen = {name for name in names if name.rpartition(".")[0] in order[:count]}
    assert changed(trainer.D, before) == set(names) - frozen
    assert len(frozen) == len(
        [name for name in names if name.startswith(tuple(f"{layer}." for layer in order[:count]))]
    )


# --------------------------------------------------------------------------------------------------
# Averages


def test_averaged_weights_and_copied_buffers() -> None:
    trainer = make_trainer("training.ema_kimg=0.01", "training.ema_rampup=null")
    with torch.no_grad():
        for buffer in trainer.G.buffers():
            buffer.add_(torch.rand_like(buffer))
    before = {name: value.double() for name, value in weights_of(trainer.G_ema).items()}
    take_steps(trainer, 1)
    decay = 0.5 ** (4 / 10)
    current = trainer.G.state_dict()
    parameters = {name for name, _ in trainer.G.named_parameters()}
    for name, value in trainer.G_ema.state_dict().items():
        expected = (
            decay * before[name] + (1 - decay) * current[name].double()
            if name in parameters
            else current[name].double()
        )
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_average_ramps_with_images_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()
    take_steps(trainer, 1)
    decays: list[float] = []
    spy(monkeypatch, trainer_module.loss, "ema_decay", lambda decay, *_: decays.append(decay))
    take_steps(trainer, 1)
    assert decays == [ema_decay(trainer.config.training, 8)]
    assert decays[0] == pytest.approx(0.5 ** (4 / 0.4))


@pytest.mark.parametrize("shared", [False, True])
def test_w_avg_is_moved_by_the_fakes_of_the_discriminator_only(
    monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    trainer = make_trainer(f"training.shared_fakes={str(shared).lower()}")
    means: list[Tensor] = []
    updates: list[bool] = []

    def note(ws: Tensor, *_: Any, update_w_avg: bool = False, **__: Any) -> None:
        updates.append(update_w_avg)
        if update_w_avg:
            means.append(ws[:, 0].detach().mean(0))

    spy(monkeypatch, trainer.G, "mapping", note)
    take_steps(trainer, 2)
    # Step 0: G, Greg, and D unless it uses those of G; step 1 without Greg.
    assert updates == ([True, False, True] if shared else [False, False, True, False, True])
    expected = (1 - 0.998) * means[0]
    expected = 0.998 * expected + (1 - 0.998) * means[1]
    torch.testing.assert_close(trainer.G.backbone.mapping.w_avg, expected)
    assert torch.equal(trainer.G_ema.backbone.mapping.w_avg, trainer.G.backbone.mapping.w_avg)


def test_shared_fakes_are_the_generators_own(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(
        "training.shared_fakes=true",
        "training.blur_sigma=0",
        "training.batch=8",
        "training.batch_gpu=4",
    )
    made: list[GeneratorOutput] = []
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    spy(monkeypatch, trainer_module.loss, "generate", lambda fakes, *_, **__: made.append(fakes))
    spy(monkeypatch, trainer.D, "forward", lambda _, *given, **__: seen.append(given))
    take_steps(trainer, 1)
    assert len(made) == 2
    for micro, fakes in enumerate(made):
        of_generator, of_discriminator = seen[micro], [given[:4] for given in seen[2 + micro]]
        assert torch.equal(of_discriminator[0], fakes.image.detach())
        assert not of_discriminator[0].requires_grad
        for first, second in zip(of_generator, of_discriminator, strict=True):
            assert torch.equal(first, second)


# --------------------------------------------------------------------------------------------------
# Gradients that are not finite


def break_loss(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    when: Callable[[], bool] = lambda: True,
    factor: float = math.nan,
) -> None:
    original = getattr(trainer_module.loss, name)
    monkeypatch.setattr(
        trainer_module.loss, name, lambda *a, **k: original(*a, **k) * (factor if when() else 1.0)
    )


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_skipped_and_counted(
    monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    trainer = make_trainer("training.gamma=0", "training.density_reg=0")
    before = {name: weights_of(getattr(trainer, name)) for name in ("G", "D")}
    break_loss(monkeypatch, "loss_fake", factor=factor)
    take_steps(trainer, 3)
    assert not changed(trainer.D, before["D"])
    assert trainer.D_optimizer.state_dict()["state"] == {}
    assert changed(trainer.G, before["G"])
    values = trainer.statistics.collect()
    assert values["Gradients/nonfinite_D"] == {"count": 3, "mean": 1, "std": 0}
    assert values["Gradients/nonfinite_G"]["mean"] == 0
    assert "Gradients/norm_D" not in values
    assert values["Gradients/norm_G"]["mean"] > 0
    assert trainer.progress.bad_steps == {"G": 0, "D": 3}


def check_all_finite(trainer: Trainer) -> None:
    state = trainer.state_dict()
    assert all(
        bool(value.isfinite().all()) for _, value in tensors_of(state) if isinstance(value, Tensor)
    )


def test_twenty_bad_updates_in_a_row_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer("training.gamma=0", "training.density_reg=0")
    break_loss(monkeypatch, "loss_fake")
    take_steps(trainer, 19)
    with pytest.raises(UserError, match=r"20 updates in a row.*phase D\b"):
        take_steps(trainer, 1)
    check_all_finite(trainer)


@pytest.mark.parametrize(
    ("name", "phase"), [("r1_penalty", "Dreg"), ("density_regularisation", "Greg")]
)
def test_a_regulariser_that_never_recovers_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, name: str, phase: str
) -> None:
    monkeypatch.setattr(trainer_module, "MAX_BAD_STEPS", 3)
    trainer = make_trainer("training.g_reg_interval=2", "training.d_reg_interval=2")
    break_loss(monkeypatch, name)
    take_steps(trainer, 4)
    with pytest.raises(UserError, match=rf"3 updates in a row.*phase {phase}\b"):
        take_steps(trainer, 1)
    check_all_finite(trainer)


def test_a_run_recovers_from_single_bad_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "MAX_BAD_STEPS", 3)
    trainer = make_trainer("training.gamma=0", "training.density_reg=0")
    break_loss(monkeypatch, "loss_fake", when=lambda: trainer.progress.steps % 3 > 0)
    take_steps(trainer, 9)
    assert trainer.progress.bad_steps["D"] == 2
    assert trainer.statistics.collect()["Gradients/nonfinite_D"]["mean"] == pytest.approx(6 / 9)


# --------------------------------------------------------------------------------------------------
# Adaptive augmentation


def say(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, sign: int) -> None:
    """Let D give all pictures logits of one sign."""
    original = trainer.D.forward
    monkeypatch.setattr(
        trainer.D,
        "forward",
        lambda *given, **options: sign * (original(*given, **options).abs() + 0.1),
    )


def test_augmentation_probability_follows_the_discriminator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = make_trainer("augment.mode=ada", "augment.kimg=1", "augment.interval=2")
    seen = []
    for sign in (1, 1, -1, -1, -1):
        with monkeypatch.context() as patch:
            say(patch, trainer, sign)
            take_steps(trainer, 2)
        seen.append(float(trainer.augment.p))
    assert seen == pytest.approx([0.008, 0.016, 0.008, 0.0, 0.0], abs=1e-6)


def test_adaptation_observes_the_real_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer("augment.mode=ada", "training.gamma=0")
    observed: list[Tensor] = []
    said: list[tuple[Tensor, Tensor]] = []
    spy(
        monkeypatch,
        trainer.D,
        "forward",
        lambda logits, *given, **_: said.append((logits, given[2])),
    )
    spy(monkeypatch, trainer.adaptation, "observe", lambda _, logits, **__: observed.append(logits))
    take_steps(trainer, 1)
    real_c = real_batch()[1]
    (of_both,) = [
        logits
        for logits, c in said
        if len(c) == 2 * len(real_c) and torch.equal(c[len(real_c) :], real_c)
    ]
    assert len(observed) == 1
    assert torch.equal(observed[0], of_both[len(real_c) :])


@pytest.mark.parametrize(("mode", "expected"), [("noaug", 0.0), ("fixed", 0.3)])
def test_other_modes_keep_their_probability(
    monkeypatch: pytest.MonkeyPatch, mode: str, expected: float
) -> None:
    trainer = make_trainer(
        f"augment.mode={mode}", "augment.p=0.3", "augment.kimg=0.001", "augment.interval=1"
    )
    say(monkeypatch, trainer, 1)
    take_steps(trainer, 2)
    assert float(trainer.augment.p) == pytest.approx(expected)


def test_real_and_fake_pictures_are_augmented_for_both_networks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = make_trainer("augment.mode=fixed", "augment.p=1")
    calls: list[Tensor] = []
    spy(monkeypatch, AugmentPipe, "forward", lambda *given: calls.append(given[2]))
    take_steps(trainer, 1)
    # G; D on fakes and reals; R1
    assert [tuple(images.shape) for images in calls] == [(4, 6, 32, 32)] * 4


# --------------------------------------------------------------------------------------------------
# Random draws and resume


def disturb() -> None:
    """Use up random numbers of every kind, as an observer might."""
    torch.rand(7)
    np.random.rand(3)
    random.random()
    torch.manual_seed(123)


def test_random_draws_depend_on_seed_and_images_only() -> None:
    first, second = (
        make_trainer("augment.mode=fixed", "augment.p=0.5"),
        make_trainer("augment.mode=fixed", "augment.p=0.5"),
    )
    for _ in range(2):
        take_steps(first, 1)
        disturb()
        take_steps(second, 1)
    assert not differing(first.state_dict(), second.state_dict())


def test_another_seed_or_share_draws_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def latents(trainer: Trainer) -> Tensor:
        seen: list[Tensor] = []
        with monkeypatch.context() as patch:
            spy(patch, trainer, "_draw", lambda batch, *_: seen.append(batch.fakes[Phase.G].z))
            take_steps(trainer, 1)
        return seen[0]

    trainer = make_trainer()
    steps = [latents(trainer) for _ in range(3)]
    other_seed = latents(make_trainer("training.seed=1"))
    with monkeypatch.context() as patch:
        trainer = make_trainer("training.batch=8")
        trainer.shard = RankShard(trainer.config, rank=1, processes=2)
        patch.setattr(trainer, "step", lambda *batch: trainer._draw(*batch))
        other_share = latents(trainer)
    for first, second in itertools.combinations([*steps, other_seed, other_share], 2):
        assert not torch.equal(first, second)
    started_there = make_trainer()
    started_there.progress.images = 8
    assert torch.equal(latents(started_there), steps[2])


def test_seeds_of_draws_do_not_collide() -> None:
    seeds = {
        draw_seed(seed, image, stream)
        for seed in range(5)
        for image in range(800)
        for stream in RngStream
    }
    assert len(seeds) == 5 * 800 * len(RngStream)
    assert draw_seed(0, 8, RngStream.G) == draw_seed(0, 8, RngStream.G)


def test_networks_start_from_the_seed() -> None:
    first, second = make_trainer(), make_trainer()
    assert not differing(first.state_dict(), second.state_dict())
    assert not differing(first.G.state_dict(), first.G_ema.state_dict())
    assert "b4.conv.weight" in changed(make_trainer("training.seed=1").D, weights_of(first.D))


def save(trainer: Trainer, path: Path) -> None:
    save_checkpoint(
        path, Checkpoint(config=trainer.config, rng={}, cameras=None, **trainer.state_dict())
    )


PENALTIES = (
    "training.loss=relativistic",
    "training.gamma_fakes=3",
    "training.penalty=finite_difference",
    "training.d_reg_interval=2",
    "training.kimg=0.03",
    "training.lr_final=0.1",
    "training.gamma_final=0.1",
)


@pytest.mark.parametrize(
    ("shared", "others"),
    [
        ("false", ()),
        ("true", ()),
        ("true", PENALTIES),
        ("true", ("data.poses=repair",)),
        ("false", ("data.poses=repair",)),
    ],
)
def test_resume_goes_on_bit_for_bit(tmp_path: Path, shared: str, others: tuple[str, ...]) -> None:
    options = (
        *others,
        "augment.mode=ada",
        "augment.p=0.4",
        "augment.kimg=0.1",
        "training.g_reg_interval=2",
        f"training.shared_fakes={shared}",
    )
    whole, part, rest = make_trainer(*options), make_trainer(*options), make_trainer(*options)
    take_steps(whole, 6)
    take_steps(part, 3)
    save(part, tmp_path / "state.pkl")
    disturb()
    rest.load_state_dict(vars(load_checkpoint(tmp_path / "state.pkl")))
    assert not differing(rest.state_dict(), part.state_dict())
    take_steps(rest, 3)
    assert not differing(rest.state_dict(), whole.state_dict())
    assert rest.augment.p != 0.4
    assert rest.state_dict()["augment"]["batches"] == 2


def test_saved_state_does_not_change_with_training() -> None:
    trainer = make_trainer()
    take_steps(trainer, 1)
    progress = trainer.state_dict()["progress"]
    kept = copy.deepcopy(progress)
    take_steps(trainer, 1)
    assert progress == kept


@pytest.mark.parametrize("part", ["progress", "G", "D", "G_ema", "optimizers", "augment"])
def test_a_state_that_lacks_a_part_is_refused(part: str) -> None:
    trainer = make_trainer()
    take_steps(trainer, 1)
    state = trainer.state_dict()
    state[part] = None if part in ("G", "D", "G_ema") else {"unknown": 1}
    with pytest.raises(UserError, match=r"whole state of a run.*--init-from"):
        make_trainer().load_state_dict(state)


def test_a_state_of_other_networks_is_refused() -> None:
    other = make_trainer("generator.channel_max=4")
    with pytest.raises(UserError, match="whole state of a run"):
        make_trainer().load_state_dict(other.state_dict())


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"training\.d_reg_interval is 0"):
        make_trainer("training.d_reg_interval=0")


# --------------------------------------------------------------------------------------------------
# Statistics and precision


def test_a_step_reports_the_runs_health() -> None:
    trainer = make_trainer("augment.mode=fixed", "augment.p=0.25")
    take_steps(trainer, 1)
    values = trainer.statistics.collect()
    wanted = {
        "Loss/G",
        "Loss/D",
        "Loss/R1",
        "Loss/density",
        "Logits/real",
        "Logits/fake",
        "Logits/sign_real",
        "Augment/p",
        "Depth/spread",
    }
    wanted |= {
        f"Gradients/{kind}_{phase}"
        for kind in ("norm", "nonfinite")
        for phase in ("G", "Greg", "D", "Dreg")
    }
    assert wanted <= set(values)
    assert values["Augment/p"]["mean"] == 0.25
    assert values["Loss/G"]["count"] == 4
    assert values["Logits/sign_real"]["mean"] in (-1, -0.5, 0, 0.5, 1)


def test_reported_gradient_norm_is_that_of_all_gradients() -> None:
    trainer = make_trainer("training.density_reg=0")
    taken = gradients_at_step(trainer.G_optimizer)
    take_steps(trainer, 1)
    squares = sum(float(g.double().square().sum()) for g in taken[0] if g is not None)
    assert trainer.statistics.collect()["Gradients/norm_G"]["mean"] == pytest.approx(
        math.sqrt(squares), rel=1e-5
    )


def conv_dtypes(module: nn.Module) -> dict[str, torch.dtype]:
    return {
        name: part.conv_dtype
        for name, part in module.named_modules()
        if isinstance(getattr(part, "conv_dtype", None), torch.dtype)
    }


def test_bf16_convolutions_but_an_exact_r1(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer("training.precision=bf16")
    during: list[set[torch.dtype]] = []
    spy(
        monkeypatch,
        trainer_module.loss,
        "r1_penalty",
        lambda *_: during.append(set(conv_dtypes(trainer.D).values())),
    )
    take_steps(trainer, 1)
    assert during == [{torch.float32}]
    for network in (trainer.G, trainer.D, trainer.G_ema):
        assert set(conv_dtypes(network).values()) == {torch.bfloat16}
        assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_fp16_is_for_super_resolution_and_the_four_highest_discriminator_blocks() -> None:
    sizes = (
        "model.resolution=128",
        "superresolution.input_resolution=32",
        "discriminator.channel_base=512",
    )
    trainer = make_trainer("training.precision=fp16", *sizes)
    for G in (trainer.G, trainer.G_ema):
        assert set(conv_dtypes(G.backbone).values()) == {torch.float32}
        assert set(conv_dtypes(G.superresolution).values()) == {torch.float16}
    found = conv_dtypes(trainer.D)
    assert {name for name, dtype in found.items() if dtype == torch.float16} == {
        "b128",
        "b64",
        "b32",
        "b16",
    }
    assert found["b8"] == torch.float32


def test_pose_swapping_does_not_depend_on_the_micro_batch():
    """With micro-batches of one sample, what is swapped in still comes from the other samples."""
    options = (
        "training.batch_gpu=1",
        "discriminator.mbstd_group_size=1",
        "training.swap_start=1",
        "training.swap_final=1",
    )
    trainer = make_trainer("training.batch=4", *options)
    batch = drawn_batch(trainer)
    fakes = batch.fakes[Phase.G]
    assert torch.equal(fakes.swapped_c, fakes.c.roll(1, dims=0))
    seen = []
    mapping = trainer.G.mapping

    def note(z: Tensor, c: Tensor, **options: Any) -> Tensor:
        seen.append(c)
        return mapping(z, c, **options)

    trainer.G.mapping = note  # type: ignore[assignment]
    schedule = Schedule(8, 0.0, 1.0)
    run_phase(trainer, Phase.G, batch, schedule)
    assert torch.equal(torch.cat(seen), fakes.swapped_c)


def test_a_share_of_one_sample_is_swapped_with_another_camera():
    trainer = make_trainer("training.batch=1", "discriminator.mbstd_group_size=1")
    torch.manual_seed(1)
    batch = trainer._draw(*real_batch(1))
    for fakes in batch.fakes.values():
        assert fakes.swapped_c.shape == fakes.c.shape
    assert any(not torch.equal(fakes.swapped_c, fakes.c) for fakes in batch.fakes.values())


# --------------------------------------------------------------------------------------------------
# torch.compile


def test_a_compiled_step_has_no_graph_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of G and D, in all phases."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    take_steps(make_trainer("training.compile=true", "augment.mode=ada", "augment.p=0.4"), 1)
    assert counters["stats"]["unique_graphs"] >= 2
    assert not counters["graph_break"]


def losses_of(trainer: Trainer, steps: int) -> dict[str, float]:
    take_steps(trainer, steps)
    return {
        name: value["mean"]
        for name, value in trainer.statistics.collect().items()
        if name.startswith(("Loss", "Gradients/norm"))
    }


@pytest.mark.slow
def test_compiled_training_is_training() -> None:
    """Noise is drawn by other code, so that only what is drawn outside of the compiled part stays
    the same.
    """
    options = ("generator.use_noise=false", "rendering.depth_resolution_importance=0")
    compiled, plain = make_trainer("training.compile=true", *options), make_trainer(*options)
    torch.testing.assert_close(losses_of(compiled, 3), losses_of(plain, 3), rtol=0.05, atol=0.01)
    assert changed(compiled.G, weights_of(make_trainer(*options).G))


# --------------------------------------------------------------------------------------------------
# Losses that compare


def test_a_paired_loss_shows_fakes_from_the_cameras_of_the_reals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = make_trainer("training.loss=relativistic", "training.gamma=0")
    seen: list[tuple[Tensor, ...]] = []
    spy(
        monkeypatch, trainer.D, "forward", lambda logits, *given, **_: seen.append((logits, *given))
    )
    take_steps(trainer, 1)
    real_c = real_batch()[1]
    assert [len(c) for *_, c in seen] == [4, 4, 8]  # G: fakes, reals; D: both
    for *_, c in seen:
        assert torch.equal(c, torch.cat([real_c] * (len(c) // 4)))
    assert not seen[1][0].requires_grad  # no gradient through D(real) in the generator's step


def test_an_unknown_loss_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"training\.loss is 'hinge'; known are logistic, relativ"):
        make_trainer("training.loss=hinge")
