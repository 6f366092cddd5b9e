"""A training step on a GPU, without one: the host never waits for the device, and what it does not
ask for is decided there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dnnlib.console import UserError
from tests.host_waits import DEVICE, HostWaits, meta_gpu
from tests.tiny import differing, orbit_labels, pictures, tiny_config
from torch_utils.devices import Uploader, upload
from torch_utils.ops import library
from torch_utils.stats import Statistics
from training.config.presets import make_config
from training.config.settings import Precision, set_option
from training.data.dataset import to_float
from training.gan import augment, augment_transforms, loss, updates
from training.gan import trainer as trainer_module
from training.gan.augment_transforms import TRANSFORMS, draw_parameters, neutral_parameters
from training.gan.trainer import Trainer

__all__ = ["meta_gpu"]
ADA = ("augment.mode=ada", "augment.p=0.4", "augment.interval=1", "augment.kimg=0.1")


def step(precision: Precision, batch_gpu: int | None = None, poses: str = "given") -> Trainer:
    """A step of the published FFHQ networks from pictures on the host, with the lazy regularisers,
    which are due at the first one, and adaptive augmentation.
    """
    config = make_config("ffhq", 512, "published")
    config.augment.mode, config.augment.p, config.augment.interval = "ada", 0.3, 1
    config.training.batch, config.training.batch_gpu = 4, batch_gpu
    config.training.precision = precision
    config.model.discriminator.mbstd_group_size = 2
    set_option(config, f"data.poses={poses}")
    trainer = Trainer(config, orbit_labels(100), DEVICE)
    images, labels = torch.zeros(4, 3, 512, 512, dtype=torch.uint8), torch.zeros(4, 25)
    with HostWaits():
        trainer.step(to_float(upload(images, DEVICE)), labels)
    return trainer


@pytest.mark.usefixtures("meta_gpu")
def test_a_step_waits_for_nothing() -> None:
    """In two micro-batches, on plain PyTorch operators."""
    told = step("fp16", batch_gpu=2, poses="repair").statistics._moments
    expected = {"Loss/density", "Loss/R1", "Augment/p", "Gradients/norm_Dreg", "Poses/gain"}
    assert expected <= set(told)


@pytest.mark.usefixtures("meta_gpu")
def test_a_step_of_the_compiled_operators_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are stood for by the shapes of their results; their bindings look at no number."""
    calls: list[Any] = []
    if not library.load():
        pytest.skip(str(library.failure()))
    monkeypatch.setattr(library, "use_kernels", lambda *given: not calls.append(given))  # type: ignore[func-returns-value]
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # knows no "meta"
    step("fp32")
    assert calls


class Operations(TorchDispatchMode):
    """Names of all that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        self.seen.add(function.overloadpacket.__name__)
        return function(*arguments, **(options or {}))


# Sums of which CUDA forms in any order, and has no other way (torch.use_deterministic_algorithms).
UNORDERED = re.compile(
    r"grid_sampler.*_backward|_?upsample.*_backward|.*_pad.*_backward|.*_pool.*_backward|scatter"
    r"_(add|reduce).*|index_(add|reduce).*|put|cumsum|histc|bincount|kthvalue|median|.*_interp.*"
)


@pytest.mark.usefixtures("meta_gpu")
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_deterministic_step_has_no_sums_in_any_order(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    """Convolutions and products have deterministic algorithms, the compiled operators no others."""
    if not library.load():
        pytest.skip(str(library.failure()))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    monkeypatch.setattr(library, "use_kernels", lambda *_: True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # knows no "meta"
    with Operations() as operations:
        step("fp32")
    unordered = {name for name in operations.seen if UNORDERED.fullmatch(name)}
    assert unordered == (
        set() if deterministic else {"grid_sampler_2d_backward", "_upsample_bilinear2d_aa_backward"}
    )


def test_batches_go_up_as_bytes_and_the_host_waits_for_none() -> None:
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, 25)
    with HostWaits():
        sent = Uploader(DEVICE).send(images, labels)
    assert [(x.device, x.dtype) for x in sent] == [(DEVICE, torch.uint8), (DEVICE, torch.float32)]


def test_statistics_wait_for_nothing_until_they_are_collected() -> None:
    statistics = Statistics(DEVICE)
    with HostWaits():
        statistics.report("loss", torch.ones(3, device=DEVICE))
        statistics.report("setting", 0.1)
        statistics.report("norm", torch.ones((), device=DEVICE), torch.ones((), device=DEVICE) > 0)
    with pytest.raises(AssertionError, match="copies to the host"), HostWaits():
        statistics.collect()


# --------------------------------------------------------------------------------------------------
# What the device decides is what the host would have decided


def train_with_bad_updates(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Four steps, two of which have losses that are not finite, for one phase or another."""
    config = tiny_config("training.g_reg_interval=1", "training.d_reg_interval=1", *ADA)
    trainer = Trainer(config, orbit_labels(16), torch.device("cpu"))
    for name, bad in (("loss_fake", 1), ("r1_penalty", 2), ("density_regularisation", 2)):
        original = getattr(loss, name)
        monkeypatch.setattr(
            loss,
            name,
            lambda *given, original=original, bad=bad, **options: (
                original(*given, **options) * (math.nan if trainer.progress.steps == bad else 1)
            ),
        )
    images = to_float(torch.from_numpy(pictures(16)).permute(0, 3, 1, 2))
    for number in range(4):
        chosen = slice(4 * number, 4 * number + 4)
        trainer.step(images[chosen], orbit_labels(16)[chosen])
    return trainer


def test_updates_skipped_on_the_device_are_those_that_the_host_would_skip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        here = train_with_bad_updates(patch)
    with monkeypatch.context() as patch:
        for module in (trainer_module, updates):
            patch.setattr(module, "is_asynchronous", lambda _: True)
        there = train_with_bad_updates(patch)
        assert there.progress.skipped == 0  # is not known yet
        there.count_skipped()
    assert here.progress == there.progress
    assert here.progress.skipped == 3
    assert not differing(here.state_dict(), there.state_dict())
    assert here.statistics.collect() == there.statistics.collect()


def test_too_many_updates_skipped_on_the_device_end_the_run_when_they_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer_module, "MAX_BAD_STEPS", 3)
    for module in (trainer_module, updates):
        monkeypatch.setattr(module, "is_asynchronous", lambda _: True)
    monkeypatch.setattr(loss, "loss_fake", lambda logits: logits * math.nan)
    trainer = Trainer(tiny_config(), orbit_labels(16), torch.device("cpu"))
    images = to_float(torch.from_numpy(pictures(4)).permute(0, 3, 1, 2))
    for _ in range(3):
        trainer.step(images, orbit_labels(16)[:4])
    with pytest.raises(UserError, match=r"3 updates in a row.*phase D\b"):
        trainer.count_skipped()


def test_augmentation_of_all_samples_and_a_choice_is_that_of_the_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = torch.rand(12, 6, 32, 32)
    parameters = draw_parameters(12, 32, 0.4)
    chosen = augment.augment(images, parameters)
    monkeypatch.setattr(augment, "is_asynchronous", lambda _: True)
    result = augment.augment(images, parameters)
    torch.testing.assert_close(result, chosen, rtol=0, atol=1e-5)
    neutral = augment.augment(images, neutral_parameters(12))
    assert torch.equal(neutral, images)


def test_numbers_drawn_at_once_are_all_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the transforms take, each once, and those of the host's distribution."""
    monkeypatch.setattr(augment_transforms, "is_asynchronous", lambda _: True)
    p = torch.tensor(0.3)
    found = draw_parameters(20000, 64, p)
    monkeypatch.undo()
    expected = draw_parameters(20000, 64, 0.3)
    seen: list[Tensor] = []
    for name in sorted(TRANSFORMS):
        value, host = (getattr(x, name).double().flatten() for x in (found, expected))
        assert value.mean() == pytest.approx(
            float(host.mean()), abs=0.02 + 0.05 * float(host.std())
        )
        assert value.std() == pytest.approx(float(host.std()), rel=0.1)
        seen += [value[:20000]]
    table = torch.stack(seen)
    assert (torch.corrcoef(table) - torch.eye(len(table))).abs().max() < 0.05


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x[torch.tensor([0])],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: torch.tensor(1.0, device=x.device),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: x.copy_(torch.zeros(4)),
        lambda x: torch.linalg.inv(x.expand(4, 4)),
        lambda x: x.tolist(),
    ],
)
def test_waiting_is_found(waits: Callable[[Tensor], Any]) -> None:
    with HostWaits(), pytest.raises((AssertionError, RuntimeError)):
        waits(torch.ones(4, device=DEVICE))
