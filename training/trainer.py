"""One training step and everything it changes: networks, averages, optimisers, augmentation (EG3D, section 4 and supplement).

A step is a function of the state, the batch and the numbers (seed, images seen, rank): all random draws start from a seed made
of these, so a run that is resumed goes on bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dnnlib.console import UserError
from torch_utils.distributed import average_gradients, copy_from_first, rank, sum_over_processes, world_size
from torch_utils.ops import library
from torch_utils.stats import Statistics
from training import loss
from training.augment import AdaptiveProbability, AugmentPipe
from training.checks import check_config
from training.config import Config, TrainingConfig
from training.loss import Pictures, Schedule
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator, GeneratorOutput

FP16_DISCRIMINATOR_BLOCKS = 4  # of the highest resolutions, as published
MAX_BAD_STEPS = 20  # non-finite gradients in a row


@dataclass
class Progress:
    """How far a run is."""

    images: int = 0  # real images shown
    steps: int = 0
    bad_steps: dict[str, int] = field(default_factory=dict)  # by phase: updates skipped for non-finite gradients, in a row

    @property
    def kimg(self) -> float:
        """Thousands of real images shown."""
        return self.images / 1000


@dataclass
class Batch:
    """What a process's share of one step starts from."""

    real: Tensor  # (B, 3, H, W) in [-1, 1]
    real_c: Tensor  # (B, 25)
    z: Tensor  # (phases, B, z_dim)
    c: Tensor  # (phases, B, 25) cameras of the fakes
    neighbours: Tensor  # (phases, B, 25) cameras that may take their place in conditioning the mapping


class Trainer:
    """The networks in training. All processes hold the same weights; each handles its share of every batch."""

    def __init__(self, config: Config, camera_labels: Tensor, device: torch.device) -> None:
        """Build everything from `config.training.seed`.

        Args:
            camera_labels: (M, 25) labels of the data set, from which the cameras of fakes are drawn.

        Raises:
            UserError: for settings out of range, or a batch that does not divide among processes and micro-batches.
        """
        check_config(config, world_size())
        self.config, self.device = config, device
        self.camera_labels = camera_labels.to(device)
        self.progress = Progress()
        self.statistics = Statistics(device)
        torch.manual_seed(config.training.seed)
        self.G = Generator(config.model).train().requires_grad_(False).to(device)
        self.D = Discriminator(config.model).train().requires_grad_(False).to(device)
        self.G_ema = copy.deepcopy(self.G).eval()
        self.augment = AugmentPipe().to(device)
        self.adaptation = AdaptiveProbability(self.augment, config.augment)
        for module in (self.G, self.D, self.G_ema):
            copy_from_first(module)
        self.G_parameters = list(self.G.parameters())
        frozen = {id(p) for layer in self.D.layers()[: config.training.freeze_d] for p in layer.parameters()}
        self.D_parameters = [p for p in self.D.parameters() if id(p) not in frozen]
        options = config.training
        self.G_optimizer = lazy_adam(self.G_parameters, options, options.lr_generator, options.g_reg_interval)
        self.D_optimizer = lazy_adam(self.D_parameters, options, options.lr_discriminator, options.d_reg_interval)
        self._set_precision()
        if options.compile:
            self._compile()

    # ----------------------------------------------------------------------------------------------------------------
    # A step

    def step(self, real_images: Tensor, real_c: Tensor) -> None:
        """Train on this process's share of a batch.

        Args:
            real_images: (B, 3, H, W) in [-1, 1].
            real_c: (B, 25).

        Raises:
            UserError: after too many steps in a row whose gradients were not finite.
        """
        options = self.config.training
        torch.manual_seed(step_seed(options.seed, self.progress.images, rank()))
        schedule = loss.schedule_at(options, self.progress.images)
        batch = self._draw(real_images.to(self.device), real_c.to(self.device))
        fakes = self._generator_main(batch, schedule)
        if self.progress.steps % options.g_reg_interval == 0 and options.density_reg > 0:
            self._generator_regularisation(batch, schedule)
        self._discriminator_main(batch, schedule, fakes)
        if self.progress.steps % options.d_reg_interval == 0 and options.gamma > 0:
            self._discriminator_regularisation(batch, schedule)
        self.progress.images += options.batch
        self.progress.steps += 1
        self._update_average()
        self.adaptation.end_batch(options.batch, reduce=sum_over_processes)
        for name, value in schedule._asdict().items():
            self.statistics.report(f"Schedule/{name}", value)
        self.statistics.report("Augment/p", self.augment.p)

    def _draw(self, real: Tensor, real_c: Tensor) -> Batch:
        phases, size = 4, len(real)
        z = torch.randn(phases, size, self.config.model.generator.z_dim, device=self.device)
        c, others = (self.camera_labels[torch.randint(len(self.camera_labels), (phases, size), device=self.device)] for _ in range(2))
        # A share of one sample has no neighbours of its own.
        return Batch(real, real_c, z, c, c.roll(1, dims=1) if size > 1 else others)

    def _generator_main(self, batch: Batch, schedule: Schedule) -> list[GeneratorOutput]:
        """Make fakes look real to D. Returns the fakes, detached, if D's main phase is to use them too."""
        kept = []
        with self._training(self.G_parameters, self.G_optimizer, "G"):
            for part in self._micro_batches(len(batch.real)):
                shared = self.config.training.shared_fakes
                fakes = loss.generate(self.G, batch.z[0, part], batch.c[0, part], schedule, shared, batch.neighbours[0, part])
                pictures = loss.augment_pictures(self.augment, loss.fake_pictures(fakes, schedule))
                logits = self.D(*pictures, batch.c[0, part])
                losses = loss.loss_real(logits)
                self._backward(losses.mean(), part, len(batch.real))
                self.statistics.report("Loss/G", losses)
                self._report_depth(fakes)
                if shared:
                    kept.append(GeneratorOutput(*(value.detach() for value in fakes)))
        return kept

    def _generator_regularisation(self, batch: Batch, schedule: Schedule) -> None:
        """Smooth densities. Runs every `g_reg_interval` steps, with as much more weight."""
        options = self.config.training
        with self._training(self.G_parameters, self.G_optimizer, "Greg"):
            for part in self._micro_batches(len(batch.real)):
                points, distance = options.density_reg_points, options.density_reg_distance
                penalty = loss.density_regularisation(
                    self.G, batch.z[1, part], batch.c[1, part], schedule, points, distance, batch.neighbours[1, part]
                )
                self._backward(penalty * options.density_reg * options.g_reg_interval, part, len(batch.real))
                self.statistics.report("Loss/density", penalty)

    def _discriminator_main(self, batch: Batch, schedule: Schedule, fakes: list[GeneratorOutput]) -> None:
        """Tell real from fake."""
        with self._training(self.D_parameters, self.D_optimizer, "D"):
            for index, part in enumerate(self._micro_batches(len(batch.real))):
                if fakes:
                    fake, c = fakes[index], batch.c[0, part]
                else:
                    c = batch.c[2, part]
                    with torch.no_grad():
                        fake = loss.generate(self.G, batch.z[2, part], c, schedule, True, batch.neighbours[2, part])
                fakes_shown = loss.augment_pictures(self.augment, loss.fake_pictures(fake, schedule))
                reals_shown = loss.augment_pictures(self.augment, loss.real_pictures(batch.real[part], schedule))
                shown = (torch.cat(pair) for pair in zip(fakes_shown, reals_shown, strict=True))
                logits = self.D(*shown, torch.cat([c, batch.real_c[part]]), batches=2)
                fake_logits, real_logits = logits.chunk(2)
                fake_losses, real_losses = loss.loss_fake(fake_logits), loss.loss_real(real_logits)
                self._backward((fake_losses + real_losses).mean(), part, len(batch.real))
                self.adaptation.observe(real_logits)
                self.statistics.report("Loss/D", fake_losses.detach() + real_losses.detach())
                for name, logits in (("real", real_logits), ("fake", fake_logits)):
                    self.statistics.report(f"Logits/{name}", logits)
                    self.statistics.report(f"Logits/sign_{name}", logits.detach().sign())

    def _discriminator_regularisation(self, batch: Batch, schedule: Schedule) -> None:
        """R1 on real pictures, in fp32 where the rest is bf16. Runs every `d_reg_interval` steps, with as much more weight."""
        options = self.config.training
        with self._training(self.D_parameters, self.D_optimizer, "Dreg"), self._precise_discriminator():
            for part in self._micro_batches(len(batch.real)):
                with torch.no_grad():
                    real = loss.augment_pictures(self.augment, loss.real_pictures(batch.real[part], schedule))
                real = Pictures(*(value.detach().requires_grad_() for value in real))
                # Not through __call__, which may be compiled: AOTAutograd has no second derivatives.
                penalty = loss.r1_penalty(self.D.forward(*real, batch.real_c[part]), real)
                self._backward((penalty * (options.gamma / 2 * options.d_reg_interval)).mean(), part, len(batch.real))
                self.statistics.report("Loss/R1", penalty)

    def _micro_batches(self, size: int) -> list[slice]:
        step = self.config.training.batch_gpu or size
        return [slice(start, start + step) for start in range(0, size, step)]

    def _backward(self, value: Tensor, part: slice, size: int) -> None:
        """Accumulate the gradient of the mean over the whole batch."""
        (value * ((part.stop - part.start) / size)).backward()

    @contextlib.contextmanager
    def _training(self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, phase: str) -> Iterator[None]:
        """Let `parameters` collect gradients, then take one optimiser step, unless a gradient is not finite."""
        for p in parameters:
            p.requires_grad_(True)
        optimizer.zero_grad(set_to_none=True)
        yield
        for p in parameters:
            p.requires_grad_(False)
        average_gradients(parameters)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        is_finite = bool(norm.isfinite())
        self.statistics.report(f"Gradients/nonfinite_{phase}", 0.0 if is_finite else 1.0)
        if not is_finite:
            self._skip_step(phase)
            return
        self.statistics.report(f"Gradients/norm_{phase}", norm)
        self.progress.bad_steps[phase] = 0
        optimizer.step()

    def _skip_step(self, phase: str) -> None:
        self.progress.bad_steps[phase] = self.progress.bad_steps.get(phase, 0) + 1
        if self.progress.bad_steps[phase] >= MAX_BAD_STEPS:
            raise UserError(
                f"the gradients of {MAX_BAD_STEPS} updates in a row were not finite (phase {phase}, {self.progress.kimg:.1f} kimg); "
                "the last good checkpoint is kept: start from it by --init-from with a larger --gamma or a smaller learning rate"
            )

    def _report_depth(self, fakes: GeneratorOutput) -> None:
        """Spread of depth over a picture: near zero means the model paints on a flat card."""
        depth = fakes.image_depth.detach().flatten(1)
        self.statistics.report("Depth/spread", depth.std(dim=1))
        self.statistics.report("Depth/coverage", fakes.weights_sum)

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = loss.ema_decay(self.config.training, self.progress.images)
        torch._foreach_lerp_(list(self.G_ema.parameters()), list(self.G.parameters()), 1 - decay)
        w_avg = self.G.backbone.mapping.w_avg
        sum_over_processes(w_avg).div_(world_size())  # each process has seen its own fakes
        for kept, buffer in zip(self.G_ema.buffers(), self.G.buffers(), strict=True):
            kept.copy_(buffer)

    # ----------------------------------------------------------------------------------------------------------------
    # Precision

    def _set_precision(self) -> None:
        precision = self.config.training.precision
        if precision == "bf16":
            for generator in (self.G, self.G_ema):
                generator.set_conv_dtype(backbone=torch.bfloat16, superresolution=torch.bfloat16)
            self.D.set_conv_dtype(torch.bfloat16)
        elif precision == "fp16":
            for generator in (self.G, self.G_ema):
                generator.set_conv_dtype(backbone=torch.float32, superresolution=torch.float16)
            self.D.set_conv_dtype(torch.float16, highest=FP16_DISCRIMINATOR_BLOCKS)

    def _compile(self) -> None:
        """Let torch.compile make the forward passes and their gradients."""
        library.load("cuda" if self.device.type == "cuda" else "cpu")
        setattr(self.G, "synthesis", torch.compile(self.G.synthesis))  # noqa: B010 - a method, which mypy would not see assigned
        self.D.compile()

    @contextlib.contextmanager
    def _precise_discriminator(self) -> Iterator[None]:
        """Run D in fp32 meanwhile, except where the published fp16 recipe does not."""
        if self.config.training.precision == "fp16":
            yield
            return
        self.D.set_conv_dtype(torch.float32)
        try:
            yield
        finally:
            self._set_precision()

    # ----------------------------------------------------------------------------------------------------------------
    # State

    def state_dict(self) -> dict[str, Any]:
        """Everything a step changes, by the names of the checkpoint's sections."""
        return {
            "progress": asdict(self.progress),
            "G": self.G.state_dict(),
            "D": self.D.state_dict(),
            "G_ema": self.G_ema.state_dict(),
            "optimizers": {"G": self.G_optimizer.state_dict(), "D": self.D_optimizer.state_dict()},
            "augment": self.adaptation.state_dict(),
            "statistics": self.statistics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            UserError: if a part is missing, as in a file that holds nothing but a generator, or does not fit.
        """
        try:
            self.progress = Progress(**state["progress"])
            for name in ("G", "D", "G_ema"):
                getattr(self, name).load_state_dict(state[name])
            self.G_optimizer.load_state_dict(state["optimizers"]["G"])
            self.D_optimizer.load_state_dict(state["optimizers"]["D"])
            self.adaptation.load_state_dict(state["augment"])
            self.statistics.load_state_dict(state["statistics"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the checkpoint does not hold the whole state of a run ({type(error).__name__}: {reason}); "
                "start a new run from its weights with --init-from"
            ) from error


def step_seed(seed: int, images: int, process: int) -> int:
    """Seed of all random draws that one process makes in one step."""
    low, high = np.random.SeedSequence([seed % (1 << 64), images, process]).generate_state(2)
    return int(low) + (int(high) << 32)


def lazy_adam(parameters: list[nn.Parameter], options: TrainingConfig, lr: float, interval: int) -> torch.optim.Adam:
    """Adam for a network whose regulariser runs every `interval` steps as an update of its own (Karras et al. 2020, section 3.1)."""
    ratio = interval / (interval + 1)
    betas = (options.beta1**ratio, options.beta2**ratio)
    return torch.optim.Adam(parameters, lr=lr * ratio, betas=betas, eps=options.adam_eps, fused=True)
