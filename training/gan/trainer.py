"""One training step and everything it changes: networks, averages, optimisers, augmentation (EG3D,
section 4 and supplement).

A step is a function of the state, the batch and the numbers (seed, images seen): what a sample
draws is a function of the seed and the sample's number in the run. So a run that is resumed goes on
bit for bit on the CPU, and on CUDA with `training.deterministic`, without which some of PyTorch's
sums there round differently each time. Neither the number of processes nor the size of
micro-batches changes what is computed, but for the rounding of sums.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dnnlib.console import UserError
from dnnlib.tables import look_up
from torch_utils.devices import is_asynchronous, upload
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
from training.gan.batches import (
    FAKE_PHASES,
    Phase,
    RankShard,
    RngStream,
    camera_std,
    draw_cameras,
    draw_seed,
)
from training.gan.loss import Judged, Pictures
from training.gan.pose_repair import PoseRepair
from training.gan.updates import Update, update_of
from training.networks.discriminator import make_discriminator
from training.networks.generator import Generator, GeneratorOutput

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


class FakeInputs(NamedTuple):
    """What the fakes of a phase are made from, of B samples of this process."""

    z: Tensor  # (B, z_dim)
    c: Tensor  # (B, 25) cameras that they are seen from
    swapped_c: Tensor  # (B, 25) cameras that may take their place in conditioning the mapping


@dataclass
class Batch:
    """What a process's share of one step starts from."""

    real: Tensor  # (B, 3, H, W) in [-1, 1]; with alpha (B, 4, H, W)
    real_c: Tensor  # (B, 25)
    fakes: dict[Phase, FakeInputs]
    # (1, 25) standard deviations of cameras over the samples of all processes: of the fakes by
    # phase, of the reals at Phase.D_REG; empty = not used
    c_std: dict[Phase, Tensor]
    background: Tensor | None  # (B, 3) in [-1, 1], behind the i-th real and fake; None = no alpha

    def behind(self, part: Tensor) -> Tensor | None:
        """The backgrounds of a micro-batch."""
        return None if self.background is None else self.background[part]


class Shown(NamedTuple):
    """Pictures as D sees them, and their cameras."""

    pictures: Pictures
    c: Tensor  # (N, 25)
    c_std: Tensor | None  # (1, 1, 25), of the cameras of all processes; None = not used


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
        self.repair: PoseRepair | None = None
        self.progress = Progress()
        self.shard = RankShard(config, rank(), world_size())
        self.statistics = Statistics(device)
        self.gan_loss = look_up(loss.GAN_LOSSES, config.training.loss, "training.loss")
        self.schedule = loss.schedule_at(config, 0)
        self.judges_alpha = config.model.rendering.alpha == "judge"
        self._outcomes = list[tuple[str, Tensor]]()  # of updates that are not counted yet
        torch.manual_seed(config.training.seed)
        self.G = Generator(config.model).train().requires_grad_(False).to(device)
        self.D = make_discriminator(config.model).train().requires_grad_(False).to(device)
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
        if config.data.poses == "repair":
            self.repair = PoseRepair(config, camera_labels, device)
            self.camera_labels = self.repair.cameras
        self._set_precision()
        self._discriminate: Callable[..., Tensor] = self.D
        if options.compile:
            self._compile()

    # ----------------------------------------------------------------------------------------------
    # A step

    def step(self, real_images: Tensor, real_c: Tensor) -> None:
        """Train on this process's share of a batch (EG3D, section 4; lazy regularisers: Karras et
        al. 2020, section 3.1).

        Args:
            real_images: (B, 3, H, W) in [-1, 1]; with alpha (B, 4, H, W).
            real_c: (B, 25).

        Raises:
            UserError: after too many updates in a row whose losses or gradients were not finite.
        """
        options, step = self.config.training, self.progress.steps
        self.schedule = loss.schedule_at(self.config, self.progress.images)
        self._set_learning_rates()
        real_images, real_c = (upload(value, self.device) for value in (real_images, real_c))
        if self.repair is not None:
            real_c = self.repair.put_right(real_images[:, :3], real_c, self.progress.images)
        batch = self._draw(real_images, real_c)
        fakes, real_logits = list[GeneratorOutput](), list[Tensor]()

        with self._one_move_of_w_avg():
            with self._update(Phase.G) as update:
                for part in self._micro_batches(Phase.G):
                    made = self._generate(batch, Phase.G, part, moves_w_avg=options.shared_fakes)
                    fake = self._judge(self._show_fakes(made, batch, Phase.G, part))
                    is_paired = self.gan_loss.is_paired
                    real = self._judge(self._show_reals(batch, part)) if is_paired else None
                    losses = self.gan_loss.generator(fake, real)
                    update.backward(losses.mean(), part)
                    update.report("Loss/G", losses)
                    report_depth(update, made, self.G.rendering.unit)
                    if options.shared_fakes:
                        fakes.append(GeneratorOutput(*(value.detach() for value in made)))

            if options.density_reg > 0 and step % options.g_reg_interval == 0:
                with self._update(Phase.G_REG) as update:
                    for part in self._micro_batches(Phase.G_REG):
                        penalty = self._density_penalty(batch, part)
                        weight = options.density_reg * options.g_reg_interval
                        update.backward(penalty * weight, part)
                        update.report("Loss/density", penalty)

            source = Phase.G if options.shared_fakes else Phase.D
            with self._update(Phase.D) as update:
                for index, part in enumerate(self._micro_batches(Phase.D)):
                    if not options.shared_fakes:
                        with torch.no_grad():
                            fakes.append(self._generate(batch, Phase.D, part, moves_w_avg=True))
                    fakes_shown = self._show_fakes(fakes[index], batch, source, part)
                    fake, real = self._judge_both(fakes_shown, self._show_reals(batch, part))
                    losses = self.gan_loss.discriminator(fake, real)
                    update.backward(losses.mean(), part)
                    update.report("Loss/D", losses)
                    report_logits(update, fake, real)
                    real_logits.append(real.logits.detach())
            for logits in real_logits:
                self.adaptation.observe(logits, where=update.applied)

        if max(options.gamma, options.gamma_fakes) > 0 and step % options.d_reg_interval == 0:
            with self._update(Phase.D_REG) as update, self._precise_discriminator():
                scale = self.schedule.penalty * options.d_reg_interval
                for index, part in enumerate(self._micro_batches(Phase.D_REG)):
                    penalty = torch.zeros((), device=self.device)
                    if options.gamma > 0:
                        slope = self._slope(self._show_reals(batch, part))
                        penalty = penalty + slope * (options.gamma / 2 * scale)
                        update.report("Loss/R1", slope)
                    if options.gamma_fakes > 0:
                        slope = self._slope(self._show_fakes(fakes[index], batch, source, part))
                        penalty = penalty + slope * (options.gamma_fakes / 2 * scale)
                        update.report("Loss/R2", slope)
                    update.backward(penalty.mean(), part)

        if self.repair is not None:
            self._learn_poses(fakes, batch.fakes[source])
        self._end_step()

    def _draw(self, real: Tensor, real_c: Tensor) -> Batch:
        """Draw the latents and cameras of a step's fakes."""
        seed, images = self.config.training.seed, self.progress.images
        # for code of others that draws from torch's own generator
        torch.manual_seed(draw_seed(seed, images, RngStream.CAMERAS))
        with samples_draw_from(self.shard.streams(seed, images, RngStream.LATENTS)):
            z = randn(
                len(self.shard),
                len(FAKE_PHASES),
                self.config.model.generator.z_dim,
                device=self.device,
            ).transpose(0, 1)
            background = loss.backgrounds(
                self.config.model.rendering.alpha, len(self.shard), self.device
            )
        c, swapped_c = draw_cameras(
            self.camera_labels, len(FAKE_PHASES), self.config.training.batch, seed, images
        )
        uses_all_reals = self.gan_loss.is_paired or self.D.c_noise > 0
        all_real_c = gather_batch(real_c) if uses_all_reals else real_c
        if self.gan_loss.is_paired:
            c = all_real_c.expand_as(c)
            swapped_c = c.roll(1, dims=1) if c.shape[1] > 1 else swapped_c
        mine, _ = self.shard.on(c.device)
        fakes = {
            phase: FakeInputs(z[row], c[row, mine], swapped_c[row, mine])
            for row, phase in enumerate(FAKE_PHASES)
        }
        deviations = {}
        if self.D.c_noise > 0:
            shown = dict(zip(FAKE_PHASES, c, strict=True)) | {Phase.D_REG: all_real_c}
            deviations = {phase: camera_std(cameras) for phase, cameras in shown.items()}
        return Batch(real, real_c, fakes, deviations, background)

    def _micro_batches(self, phase: Phase) -> Iterator[Tensor]:
        """Indices (M,) of the samples of each micro-batch, which draw from their own streams
        meanwhile.
        """
        seed, images = self.config.training.seed, self.progress.images
        _, parts = self.shard.on(self.device)
        for part, sent in zip(self.shard.micro_batches, parts, strict=True):
            with samples_draw_from(self.shard.streams(seed, images, phase.stream, part)):
                yield sent

    def _generate(
        self, batch: Batch, phase: Phase, part: Tensor, moves_w_avg: bool
    ) -> GeneratorOutput:
        """Fakes of a micro-batch; `moves_w_avg` counts them in the mean latent."""
        z, c, swapped_c = (value[part] for value in batch.fakes[phase])
        behind = batch.behind(part)
        fakes = loss.generate(self.G, z, c, self.schedule, moves_w_avg, swapped_c, behind)
        if moves_w_avg:
            w_avg = self.G.backbone.mapping.w_avg
            self._moved.append(w_avg.clone())
            w_avg.copy_(self._w_avg_before)
        return fakes

    def _show_fakes(
        self, fakes: GeneratorOutput, batch: Batch, phase: Phase, part: Tensor
    ) -> Shown:
        """The fakes of a micro-batch of `phase` as D sees them."""
        pictures = loss.fake_pictures(fakes, self.schedule, self.judges_alpha)
        return self._show(pictures, batch.fakes[phase].c[part], batch, phase)

    def _show_reals(self, batch: Batch, part: Tensor) -> Shown:
        """The real pictures of a micro-batch as D sees them."""
        pictures = loss.real_pictures(
            batch.real[part], self.schedule, batch.behind(part), self.judges_alpha
        )
        return self._show(pictures, batch.real_c[part], batch, Phase.D_REG)

    def _show(self, pictures: Pictures, c: Tensor, batch: Batch, phase: Phase) -> Shown:
        c_std = batch.c_std[phase][None] if batch.c_std else None
        return Shown(loss.augment_pictures(self.augment, pictures), c, c_std)

    def _judge(self, shown: Shown) -> Judged:
        pictures, c, c_std = shown
        return Judged(pictures, self._discriminate(*pictures, c, c_std=c_std))

    def _judge_both(self, fakes: Shown, reals: Shown) -> tuple[Judged, Judged]:
        """Fakes and reals in one pass, as two batches that know nothing of each other."""
        both = (torch.cat(pair) for pair in zip(fakes.pictures, reals.pictures, strict=True))
        c = torch.cat([fakes.c, reals.c])
        c_std = None
        if fakes.c_std is not None and reals.c_std is not None:
            c_std = torch.cat([fakes.c_std, reals.c_std])
        logits = self._discriminate(*both, c, batches=2, c_std=c_std)
        fake_logits, real_logits = logits.chunk(2)
        return Judged(fakes.pictures, fake_logits), Judged(reals.pictures, real_logits)

    def _learn_poses(self, fakes: list[GeneratorOutput], inputs: FakeInputs) -> None:
        """Show the step's fakes, with their cameras, to what tells the cameras of reals."""
        assert self.repair is not None
        _, parts = self.shard.on(self.device)
        order = torch.cat(parts).argsort()
        pictures = torch.cat([made.image for made in fakes])[order]
        self.repair.learn(pictures, inputs.c, self.progress.images, self.statistics)

    def _density_penalty(self, batch: Batch, part: Tensor) -> Tensor:
        z, c, swapped_c = (value[part] for value in batch.fakes[Phase.G_REG])
        return loss.density_regularisation(
            self.G, z, c, self.schedule, self.config.training, swapped_c
        )

    def _slope(self, shown: Shown) -> Tensor:
        """Penalty (M,) on D's slope at pictures."""
        # The discriminator itself, never compiled: AOTAutograd has no second derivatives.
        return loss.slope_penalty(
            lambda pictures: self.D(*pictures, shown.c, c_std=shown.c_std),
            shown.pictures,
            self.config.training,
        )

    def _set_learning_rates(self) -> None:
        options = self.config.training
        for optimizer, lr, interval in (
            (self.G_optimizer, options.lr_generator, options.g_reg_interval),
            (self.D_optimizer, options.lr_discriminator, options.d_reg_interval),
        ):
            for group in optimizer.param_groups:
                group["lr"] = lr * lazy_ratio(interval) * self.schedule.learning_rate

    def _end_step(self) -> None:
        """Count the batch; move the averaged weights and the probability of augmentation."""
        batch_size = self.config.training.batch
        self.progress.images += batch_size
        self.progress.steps += 1
        self._update_average()
        self.adaptation.end_batch(batch_size, reduce=sum_over_processes)
        for name, value in self.schedule._asdict().items():
            self.statistics.report(f"Schedule/{name}", value)
        self.statistics.report("Augment/p", self.augment.p)

    @contextlib.contextmanager
    def _one_move_of_w_avg(self) -> Iterator[None]:
        """Let the fakes of all micro-batches and processes meanwhile move the mean latent together,
        as one batch.
        """
        w_avg = self.G.backbone.mapping.w_avg
        self._w_avg_before, self._moved = w_avg.clone(), []
        yield
        moved = sum_over_processes(torch.stack(self._moved).mean(dim=0)) / world_size()
        w_avg.copy_(torch.where(moved.isfinite().all(), moved, self._w_avg_before))

    @contextlib.contextmanager
    def _update(self, phase: Phase) -> Iterator[Update]:
        """Update the network of `phase` by what is accumulated meanwhile; skip and count the update
        if a loss or a gradient is not finite.
        """
        average, optimizer = (
            (self.G_average, self.G_optimizer)
            if phase in (Phase.G, Phase.G_REG)
            else (self.D_average, self.D_optimizer)
        )
        with update_of(average, optimizer, len(self.shard), self.statistics) as update:
            yield update
        name, applied = phase.value, update.applied
        self.statistics.report(f"Gradients/nonfinite_{name}", ~applied)
        self.statistics.report(f"Gradients/norm_{name}", update.norm, where=applied)
        self._outcomes.append((name, applied))
        if not is_asynchronous(self.device):
            self.count_skipped()

    def count_skipped(self) -> None:
        """Count the updates that were skipped since this was called last; waits for a GPU, so it is
        called now and then. Where nothing has to be waited for, every update calls it.

        Raises:
            UserError: after too many in a row.
        """
        outcomes, self._outcomes = self._outcomes, []
        if not outcomes:
            return
        applied = torch.stack([applied for _, applied in outcomes]).tolist()
        for (phase, _), is_applied in zip(outcomes, applied, strict=True):
            if is_applied:
                self.progress.bad_steps[phase] = 0
            else:
                self._count_one_skipped(phase)

    def _count_one_skipped(self, phase: str) -> None:
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
        torch._foreach_copy_(list(self.G_ema.buffers()), list(self.G.buffers()))

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
        self._discriminate = torch.compile(self.D)

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
        self.count_skipped()
        return {
            "progress": asdict(self.progress),
            "G": self.G.state_dict(),
            "D": self.D.state_dict(),
            "G_ema": self.G_ema.state_dict(),
            "optimizers": {"G": self.G_optimizer.state_dict(), "D": self.D_optimizer.state_dict()},
            "augment": self.adaptation.state_dict(),
            "poses": self.repair.state_dict() if self.repair else {},
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
            if self.repair is not None:
                self.repair.load_state_dict(state["poses"])
                self.camera_labels = self.repair.cameras
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the checkpoint does not hold the whole state of a run ({type(error).__name__}:"
                f" {reason}); start a new run from its weights with --init-from"
            ) from error


def report_depth(update: Update, fakes: GeneratorOutput, unit: float) -> None:
    """Spread of depth over a picture, in the model's `unit` of length: near zero means the model
    paints on a flat card.
    """
    update.report("Depth/spread", fakes.image_depth.detach().flatten(1).std(dim=1) / unit)
    update.report("Depth/alpha", fakes.alpha)


def report_logits(update: Update, fake: Judged, real: Judged) -> None:
    """What D makes of real and fake pictures; the mean sign is twice its accuracy less one."""
    for name, logits in (("real", real.logits), ("fake", fake.logits)):
        update.report(f"Logits/{name}", logits)
        update.report(f"Logits/sign_{name}", logits.detach().sign())


def lazy_ratio(interval: int) -> float:
    """Share of the main updates among all updates of a network whose regulariser runs every
    `interval` steps as an update of its own (Karras et al. 2020, section 3.1).
    """
    return interval / (interval + 1)


def lazy_adam(
    parameters: list[nn.Parameter], options: TrainingConfig, lr: float, interval: int
) -> torch.optim.Adam:
    """Adam for such a network."""
    ratio = lazy_ratio(interval)
    betas = (options.beta1**ratio, options.beta2**ratio)
    return torch.optim.Adam(
        parameters, lr=lr * ratio, betas=betas, eps=options.adam_eps, fused=True
    )
