"""One training step and everything it changes: networks, averages, optimisers, augmentation (EG3D,
section 4 and supplement).

A step is a function of the state, the batch and the numbers (seed, images seen): what a sample
draws is a function of the seed and the sample's number in the run. So a run that is resumed goes on
bit for bit, and neither the number of processes nor the size of micro-batches changes what is
computed, but for the rounding of sums.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dnnlib.console import UserError
from torch_utils.distributed.collectives import (
    copy_from_first,
    gather_batch,
    rank,
    sum_over_processes,
    world_size,
)
from torch_utils.distributed.reduction import GradientAverage
from torch_utils.ops import library
from torch_utils.sample_random import randn, samples_draw_from
from torch_utils.stats import Statistics
from training.config.checks import check_config
from training.config.settings import Config, TrainingConfig
from training.gan import loss
from training.gan.augment import AugmentPipe
from training.gan.augment_adaptation import AdaptiveProbability
from training.gan.batches import Draw, Share, camera_spread, draw_cameras, draw_seed
from training.gan.loss import Pictures, Schedule
from training.gan.updates import Update, update_of
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator, GeneratorOutput

PHASES = 4
FP16_DISCRIMINATOR_BLOCKS = 4  # of the highest resolutions, as published
MAX_BAD_STEPS = 20  # non-finite losses or gradients in a row


@dataclass
class Progress:
    """How far a run is."""

    images: int = 0  # real images shown
    steps: int = 0
    # by phase: updates skipped for non-finite losses or gradients, in a row
    bad_steps: dict[str, int] = field(default_factory=dict)
    skipped: int = 0  # such updates since the run began

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
    # (phases, B, 25) cameras that may take their place in conditioning the mapping
    neighbours: Tensor
    # (phases + 1, 1, 25) deviation of c over the samples of all processes, last of real_c; None =
    # not used
    c_spread: Tensor | None


class Trainer:
    """The networks in training. All processes hold the same weights; each handles its share of
    every batch.
    """

    def __init__(self, config: Config, camera_labels: Tensor, device: torch.device) -> None:
        """Build everything from `config.training.seed`.

        Args:
            camera_labels: (M, 25) labels of the data set, from which the cameras of fakes are
                drawn.

        Raises:
            UserError: for settings out of range, or a batch that does not divide among processes
                and micro-batches.
        """
        check_config(config, world_size())
        self.config, self.device = config, device
        self.camera_labels = camera_labels.to(device)
        self.progress = Progress()
        self.share = Share(config, rank(), world_size())
        self.statistics = Statistics(device)
        torch.manual_seed(config.training.seed)
        self.G = Generator(config.model).train().requires_grad_(False).to(device)
        self.D = Discriminator(config.model).train().requires_grad_(False).to(device)
        self.G_ema = copy.deepcopy(self.G).eval()
        self._w_avg_before, self._moved = self.G.backbone.mapping.w_avg.clone(), list[Tensor]()
        self.augment = AugmentPipe().to(device)
        self.adaptation = AdaptiveProbability(self.augment, config.augment)
        for module in (self.G, self.D, self.G_ema):
            copy_from_first(module)
        self.G_parameters = list(self.G.parameters())
        frozen = {
            id(p)
            for layer in self.D.layers()[: config.training.freeze_d]
            for p in layer.parameters()
        }
        self.D_parameters = [p for p in self.D.parameters() if id(p) not in frozen]
        options = config.training
        self.G_optimizer = lazy_adam(
            self.G_parameters, options, options.lr_generator, options.g_reg_interval
        )
        self.D_optimizer = lazy_adam(
            self.D_parameters, options, options.lr_discriminator, options.d_reg_interval
        )
        self.G_average, self.D_average = (
            GradientAverage(self.G_parameters),
            GradientAverage(self.D_parameters),
        )
        self._set_precision()
        if options.compile:
            self._compile()

    # ----------------------------------------------------------------------------------------------
    # A step

    def step(self, real_images: Tensor, real_c: Tensor) -> None:
        """Train on this process's share of a batch.

        Args:
            real_images: (B, 3, H, W) in [-1, 1].
            real_c: (B, 25).

        Raises:
            UserError: after too many updates in a row whose losses or gradients were not finite.
        """
        options = self.config.training
        # for parts of others that know no streams
        torch.manual_seed(draw_seed(options.seed, self.progress.images, Draw.CAMERAS))
        schedule = loss.schedule_at(self.config, self.progress.images)
        batch = self._draw(real_images.to(self.device), real_c.to(self.device))
        with self._one_move_of_w_avg():
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
        seed, images = self.config.training.seed, self.progress.images
        with samples_draw_from(self.share.streams(seed, images, Draw.LATENTS)):
            z = randn(
                len(self.share), PHASES, self.config.model.generator.z_dim, device=self.device
            ).transpose(0, 1)
        c, neighbours = draw_cameras(
            self.camera_labels, PHASES, self.config.training.batch, seed, images
        )
        spread = camera_spread([*c, gather_batch(real_c)]) if self.D.c_noise > 0 else None
        mine = self.share.positions.to(c.device)
        return Batch(real, real_c, z, c[:, mine], neighbours[:, mine], spread)

    def _generator_main(self, batch: Batch, schedule: Schedule) -> list[GeneratorOutput]:
        """Make fakes look real to D. Returns the fakes, detached, if D's main phase is to use them
        too.
        """
        kept = []
        with self._update("G") as update:
            for part in self.share.parts:
                with self._draws(Draw.G, part):
                    shared = self.config.training.shared_fakes
                    fakes = self._generate(batch, 0, part, schedule, moves_w_avg=shared)
                    pictures = loss.augment_pictures(
                        self.augment, loss.fake_pictures(fakes, schedule)
                    )
                    logits = self.D(*pictures, batch.c[0, part], c_spread=spread_of(batch, 0))
                    losses = loss.loss_real(logits)
                update.backward(losses.mean(), part)
                update.report("Loss/G", losses)
                report_depth(update, fakes)
                if shared:
                    kept.append(GeneratorOutput(*(value.detach() for value in fakes)))
        return kept

    def _generator_regularisation(self, batch: Batch, schedule: Schedule) -> None:
        """Smooth densities. Runs every `g_reg_interval` steps, with as much more weight."""
        options = self.config.training
        with self._update("Greg") as update:
            for part in self.share.parts:
                points, distance = options.density_reg_points, options.density_reg_distance
                with self._draws(Draw.GREG, part):
                    penalty = loss.density_regularisation(
                        self.G,
                        batch.z[1, part],
                        batch.c[1, part],
                        schedule,
                        points,
                        distance,
                        batch.neighbours[1, part],
                    )
                update.backward(penalty * options.density_reg * options.g_reg_interval, part)
                update.report("Loss/density", penalty)

    def _discriminator_main(
        self, batch: Batch, schedule: Schedule, fakes: list[GeneratorOutput]
    ) -> None:
        """Tell real from fake."""
        said = []
        with self._update("D") as update:
            for index, part in enumerate(self.share.parts):
                phase = 0 if fakes else 2
                with self._draws(Draw.D, part):
                    if fakes:
                        fake = fakes[index]
                    else:
                        with torch.no_grad():
                            fake = self._generate(batch, phase, part, schedule, moves_w_avg=True)
                    logits = self._compare(batch, phase, part, fake, schedule)
                fake_logits, real_logits = logits.chunk(2)
                fake_losses, real_losses = loss.loss_fake(fake_logits), loss.loss_real(real_logits)
                update.backward((fake_losses + real_losses).mean(), part)
                said.append(real_logits.detach())
                update.report("Loss/D", fake_losses.detach() + real_losses.detach())
                for name, logits in (("real", real_logits), ("fake", fake_logits)):
                    update.report(f"Logits/{name}", logits)
                    update.report(f"Logits/sign_{name}", logits.detach().sign())
        if update.is_taken:
            for real_logits in said:
                self.adaptation.observe(real_logits)

    def _compare(
        self, batch: Batch, phase: int, part: Tensor, fake: GeneratorOutput, schedule: Schedule
    ) -> Tensor:
        """D's logits (2 M, 1) for the fakes and the reals of a micro-batch, as two batches that
        know nothing of each other.
        """
        fakes_shown = loss.augment_pictures(self.augment, loss.fake_pictures(fake, schedule))
        reals_shown = loss.augment_pictures(
            self.augment, loss.real_pictures(batch.real[part], schedule)
        )
        shown = (torch.cat(pair) for pair in zip(fakes_shown, reals_shown, strict=True))
        c = torch.cat([batch.c[phase, part], batch.real_c[part]])
        return self.D(*shown, c, batches=2, c_spread=spread_of(batch, phase, PHASES))

    def _discriminator_regularisation(self, batch: Batch, schedule: Schedule) -> None:
        """R1 on real pictures, in fp32 where the rest is bf16. Runs every `d_reg_interval` steps,
        with as much more weight.
        """
        options = self.config.training
        with self._update("Dreg") as update, self._precise_discriminator():
            for part in self.share.parts:
                with self._draws(Draw.DREG, part):
                    with torch.no_grad():
                        real = loss.augment_pictures(
                            self.augment, loss.real_pictures(batch.real[part], schedule)
                        )
                    real = Pictures(*(value.detach().requires_grad_() for value in real))
                    # Not through __call__, which may be compiled: AOTAutograd has no second
                    # derivatives.
                    logits = self.D.forward(
                        *real, batch.real_c[part], c_spread=spread_of(batch, PHASES)
                    )
                penalty = loss.r1_penalty(logits, real)
                update.backward(
                    (penalty * (options.gamma / 2 * options.d_reg_interval)).mean(), part
                )
                update.report("Loss/R1", penalty)

    def _generate(
        self, batch: Batch, phase: int, part: Tensor, schedule: Schedule, moves_w_avg: bool
    ) -> GeneratorOutput:
        z, c, neighbours = batch.z[phase, part], batch.c[phase, part], batch.neighbours[phase, part]
        fakes = loss.generate(self.G, z, c, schedule, moves_w_avg, neighbours)
        if moves_w_avg:
            w_avg = self.G.backbone.mapping.w_avg
            self._moved.append(w_avg.clone())
            w_avg.copy_(self._w_avg_before)
        return fakes

    def _draws(self, draw: Draw, part: Tensor) -> contextlib.AbstractContextManager[None]:
        """Let the samples of a micro-batch draw from their own streams."""
        return samples_draw_from(
            self.share.streams(self.config.training.seed, self.progress.images, draw, part)
        )

    @contextlib.contextmanager
    def _one_move_of_w_avg(self) -> Iterator[None]:
        """Let the fakes of all micro-batches and processes meanwhile move the mean latent together,
        as one batch.
        """
        w_avg = self.G.backbone.mapping.w_avg
        self._w_avg_before, self._moved = w_avg.clone(), []
        yield
        moved = sum_over_processes(torch.stack(self._moved).mean(dim=0)) / world_size()
        if bool(moved.isfinite().all()):
            w_avg.copy_(moved)

    @contextlib.contextmanager
    def _update(self, phase: str) -> Iterator[Update]:
        """An update of the network that `phase` belongs to; it is skipped, and counted, if a loss
        or a gradient is not finite.
        """
        average, optimizer = (
            (self.G_average, self.G_optimizer)
            if phase[0] == "G"
            else (self.D_average, self.D_optimizer)
        )
        with update_of(average, optimizer, len(self.share), self.statistics) as update:
            yield update
        self.statistics.report(f"Gradients/nonfinite_{phase}", 0.0 if update.is_taken else 1.0)
        if update.is_taken:
            self.statistics.report(f"Gradients/norm_{phase}", update.norm)
            self.progress.bad_steps[phase] = 0
        else:
            self._count_skipped(phase)

    def _count_skipped(self, phase: str) -> None:
        self.progress.skipped += 1
        self.progress.bad_steps[phase] = self.progress.bad_steps.get(phase, 0) + 1
        if self.progress.bad_steps[phase] >= MAX_BAD_STEPS:
            raise UserError(
                f"the losses or gradients of {MAX_BAD_STEPS} updates in a row were not finite"
                f" (phase {phase}, {self.progress.kimg:.1f} kimg); the last good checkpoint is"
                " kept: start from it by --init-from with a larger --gamma or a smaller learning"
                " rate"
            )

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = loss.ema_decay(self.config.training, self.progress.images)
        torch._foreach_lerp_(list(self.G_ema.parameters()), list(self.G.parameters()), 1 - decay)
        for kept, buffer in zip(self.G_ema.buffers(), self.G.buffers(), strict=True):
            kept.copy_(buffer)

    # ----------------------------------------------------------------------------------------------
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

    # ----------------------------------------------------------------------------------------------
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
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            UserError: if a part is missing, as in a file that holds nothing but a generator, or
                does not fit.
        """
        try:
            self.progress = Progress(**state["progress"])
            for name in ("G", "D", "G_ema"):
                getattr(self, name).load_state_dict(state[name])
            self.G_optimizer.load_state_dict(state["optimizers"]["G"])
            self.D_optimizer.load_state_dict(state["optimizers"]["D"])
            self.adaptation.load_state_dict(state["augment"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the checkpoint does not hold the whole state of a run ({type(error).__name__}:"
                f" {reason}); start a new run from its weights with --init-from"
            ) from error


def spread_of(batch: Batch, *rows: int) -> Tensor | None:
    """Deviations (len(rows), 1, 25) of the cameras of some phases' fakes (row PHASES: of the
    reals).
    """
    return None if batch.c_spread is None else batch.c_spread[list(rows)]


def report_depth(update: Update, fakes: GeneratorOutput) -> None:
    """Spread of depth over a picture: near zero means the model paints on a flat card."""
    update.report("Depth/spread", fakes.image_depth.detach().flatten(1).std(dim=1))
    update.report("Depth/alpha", fakes.alpha)


def lazy_adam(
    parameters: list[nn.Parameter], options: TrainingConfig, lr: float, interval: int
) -> torch.optim.Adam:
    """Adam for a network whose regulariser runs every `interval` steps as an update of its own
    (Karras et al. 2020, section 3.1).
    """
    ratio = interval / (interval + 1)
    betas = (options.beta1**ratio, options.beta2**ratio)
    return torch.optim.Adam(
        parameters, lr=lr * ratio, betas=betas, eps=options.adam_eps, fused=True
    )
