"""The generator: latent and camera to planes, planes to rays, rays to the final picture (EG3D,
figure 2).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dnnlib.tables import look_up
from torch_utils.ops.decode_points import DecoderWeights
from training.cameras import LABEL_SIZE, unpack_label
from training.config.settings import GeneratorConfig, ModelConfig, RenderingConfig
from training.networks.alias_free import AliasFreeSuperResolution
from training.networks.arguments import (
    check_labels,
    check_rendering,
    check_tensor,
    check_views,
)
from training.networks.layers import FullyConnected, camera_condition, resize_image
from training.networks.stylegan2 import MappingNetwork, NoiseMode, SynthesisBlock, SynthesisNetwork
from training.networks.superresolution import NoSuperResolution, SuperResolution
from training.rendering import renderer
from training.rendering.compositing import lay_over
from training.rendering.rays import sample_rays
from training.rendering.sampling import FINE_SAMPLERS

NUM_PLANES = 3
SUPERRESOLUTIONS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "standard": SuperResolution,
    "alias_free": AliasFreeSuperResolution,
    "none": NoSuperResolution,
}
"""By name in `superresolution.kind`. A module has `forward(features, ws, noise_mode)` as
`SuperResolution`, and `set_conv_dtype`.
"""


class GeneratorOutput(NamedTuple):
    """Pictures of one camera each."""

    image: Tensor  # (N, 3, resolution, resolution) in [-1, 1] up to overshoot
    image_raw: Tensor  # (N, 3, r, r) the rendering before super-resolution
    image_depth: Tensor  # (N, 1, r, r) mean distance along the ray, world units
    alpha: Tensor  # (N, 1, r, r) in [0, 1]


class Backbone(nn.Module):
    """Mapping and synthesis network of the planes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        options = config.generator
        self.synthesis = SynthesisNetwork(
            options.w_dim,
            options.plane_resolution,
            NUM_PLANES * options.plane_channels,
            options.channel_base,
            options.channel_max,
            use_noise=options.use_noise,
            conv_clamp=options.conv_clamp,
        )
        c_dim = LABEL_SIZE if options.pose_conditioning or options.constant_embedding else 0
        self.mapping = MappingNetwork(
            options.z_dim,
            c_dim,
            options.w_dim,
            self.synthesis.num_ws,
            options.mapping_layers,
            options.mapping_lr_multiplier,
        )


class TriPlaneDecoder(nn.Module):
    """Two-layer perceptron from plane features to raw density and colours (EG3D, supplement)."""

    def __init__(self, features: int, hidden: int, colors: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            FullyConnected(features, hidden), nn.Softplus(), FullyConnected(hidden, 1 + colors)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, M, C) -> raw densities (N, M, 1) and colours (N, M, K) slightly beyond [0, 1]
        (mip-NeRF, section 3.1).
        """
        x = self.net(features)
        return x[..., :1], torch.sigmoid(x[..., 1:]) * 1.002 - 0.001

    def two_layer_weights(self) -> DecoderWeights | None:
        """What compiled operators need to do this module's work; None if anything about it was
        changed, so that it must be called.

        Changed is a subclass with a `forward` of its own, another layer or activation in `net`, a
        parametrisation, and whatever asks to be called on the way: hooks and replaced methods.
        """
        net: Any = self.net
        if (
            type(self).forward is not TriPlaneDecoder.forward
            or type(net) is not nn.Sequential
            or len(net) != 3
        ):
            return None
        first, activation, second = net
        is_softplus = (
            type(activation) is nn.Softplus and activation.beta == 1 and activation.threshold == 20
        )
        is_linear = all(
            type(layer) is FullyConnected and layer.activation == "linear"
            for layer in (first, second)
        )
        if (
            not is_softplus
            or not is_linear
            or any(self._is_observed(module) for module in (self, net, *net))
        ):
            return None
        return DecoderWeights(*self._effective(first), *self._effective(second))

    @staticmethod
    def _effective(layer: Any) -> tuple[Tensor, Tensor]:
        """What a `FullyConnected` multiplies by and adds."""
        return (
            layer.weight * layer.weight_gain,
            layer.bias if layer.bias_gain == 1 else layer.bias * layer.bias_gain,
        )

    @staticmethod
    def _is_observed(module: nn.Module) -> bool:
        """Whether calling `module` does more than its class's `forward`."""
        hooks = (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        return any(len(hook) > 0 for hook in hooks) or "forward" in module.__dict__


def two_layer_decoder(options: GeneratorConfig) -> TriPlaneDecoder:
    """The published decoder, whose colours are the features that super-resolution takes."""
    colors = options.decoder_colors or options.plane_channels
    return TriPlaneDecoder(options.plane_channels, options.decoder_hidden, colors)


DECODERS: dict[str, Callable[[GeneratorConfig], nn.Module]] = {"two_layer": two_layer_decoder}
"""By name in `generator.decoder`. A module takes features (N, M, plane_channels) and gives raw
densities (N, M, 1) and colours (N, M, K), K = decoder_colors or plane_channels.
"""


class Generator(nn.Module):
    """EG3D generator. `config` fixes the parameters; `rendering` is the live scene description and
    may be changed at any time. `cameras`, `latents`, `directions` and the weights of an `encoder`
    are what its file tells beside its own weights: plain values and tensors on the CPU.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = copy.deepcopy(config)
        self.cameras: dict[str, Any] | None = None
        self.latents: dict[str, Any] = {}
        self.directions: dict[str, Tensor] = {}
        self.encoder: dict[str, Tensor] = {}
        self._checked_rendering: RenderingConfig | None = None
        options = self.config.generator
        self.z_dim, self.c_dim, self.w_dim = options.z_dim, LABEL_SIZE, options.w_dim
        self.backbone = Backbone(self.config)
        enlarge = self.config.superresolution.kind
        self.superresolution: Any = look_up(SUPERRESOLUTIONS, enlarge, "superresolution.kind")(
            self.config
        )
        look_up(FINE_SAMPLERS, self.config.rendering.fine_sampling, "rendering.fine_sampling")
        self.decoder: Any = look_up(DECODERS, options.decoder, "generator.decoder")(options)

    @property
    def rendering(self) -> RenderingConfig:
        """Scene and sampling settings; a change takes effect at the next picture."""
        return self.config.rendering

    @property
    def num_ws(self) -> int:
        """Latents a sample has, one for each layer."""
        return self.backbone.synthesis.num_ws

    def mapping(
        self,
        z: Tensor,
        c: Tensor,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_w_avg: bool = False,
    ) -> Tensor:
        """Latents z (N, z_dim) and the camera c (N, 25) they are conditioned on to ws (N, num_ws,
        w_dim).

        Raises:
            UserError: for arguments of another shape or type, as all methods.
        """
        dtype = self.backbone.mapping.w_avg.dtype
        check_tensor("z", z, "N", self.z_dim, dtype=dtype)
        check_labels(c, dtype)
        return self.backbone.mapping(
            z, self._mapped_camera(c), truncation_psi, truncation_cutoff, update_w_avg
        )

    def _mapped_camera(self, c: Tensor) -> Tensor | None:
        """What the mapping network gets of cameras c (N, 25)."""
        if self.config.generator.pose_conditioning:
            return camera_condition(c, self.rendering) * self.config.generator.c_scale
        return torch.zeros_like(c) if self.backbone.mapping.c_dim else None

    def planes(self, ws: Tensor, noise_mode: NoiseMode = "const") -> Tensor:
        """Feature planes (N, 3, C, H, W) of ws (N, num_ws, w_dim)."""
        check_tensor("ws", ws, "N", self.num_ws, self.w_dim)
        return self.backbone.synthesis(ws, noise_mode).unflatten(1, (NUM_PLANES, -1))

    def render(
        self,
        planes: Tensor,
        ws: Tensor,
        c: Tensor,
        neural_rendering_resolution: int | None = None,
        deterministic: bool = True,
        background: Tensor | None = None,
    ) -> GeneratorOutput:
        """Pictures of planes (N, 3, C, H, W) from cameras c (N, 25), or of one sample's planes and
        ws from any number of cameras.

        Args:
            ws: (N, num_ws, w_dim), for the super-resolution.
            neural_rendering_resolution: Pixels of the volume rendering; None = the model's own.
            deterministic: Fixed instead of random offsets of the samples along rays.
            background: Colours (N, 3) in [-1, 1] that models trained with alpha lay their pictures
                over, each its own; None = `rendering.background`.
        """
        self._check_rendering()
        check_views(planes, ws, c, (self.num_ws, self.w_dim))
        resolution = neural_rendering_resolution or self.rendering.resolution
        planes, ws = (value.expand(len(c), *value.shape[1:]) for value in (planes, ws))
        cam2world, intrinsics = unpack_label(c.float())
        ray_origins, ray_directions = sample_rays(cam2world, intrinsics, resolution)
        has_alpha = self.rendering.alpha != "ignore"
        rendering = replace(self.rendering, background=None) if has_alpha else self.rendering
        rays = renderer.render(
            planes, self.decoder, ray_origins, ray_directions, rendering, deterministic
        )
        features, depth, alpha = (
            value.transpose(1, 2).unflatten(2, (resolution, resolution)) for value in rays
        )
        image = self.superresolution(features, ws, self.config.superresolution.noise_mode)
        raw = features[:, :3]
        if has_alpha:
            if background is None:
                plain = torch.tensor(self.rendering.background or (0.0, 0.0, 0.0)).to(image)
                background = (plain * 2 - 1).expand(len(c), 3)
            image = lay_over(image, resize_image(alpha, image.shape[-1]), background)
            raw = lay_over(raw, alpha, background)
        return GeneratorOutput(image, raw, depth, alpha)

    def synthesis(
        self,
        ws: Tensor,
        c: Tensor,
        neural_rendering_resolution: int | None = None,
        noise_mode: NoiseMode = "const",
        deterministic: bool = True,
        background: Tensor | None = None,
    ) -> GeneratorOutput:
        """Pictures of ws (N, num_ws, w_dim) from cameras c (N, 25)."""
        planes = self.planes(ws, noise_mode)
        return self.render(planes, ws, c, neural_rendering_resolution, deterministic, background)

    def forward(
        self,
        z: Tensor,
        c: Tensor,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        neural_rendering_resolution: int | None = None,
        noise_mode: NoiseMode = "const",
        deterministic: bool = True,
    ) -> GeneratorOutput:
        """Pictures of z (N, z_dim), conditioned on and seen from cameras c (N, 25)."""
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff)
        return self.synthesis(ws, c, neural_rendering_resolution, noise_mode, deterministic)

    def query(self, points: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Raw density (N, M, 1), before softplus(x - 1), and colours (N, M, C) at points (N, M, 3)
        in the world.
        """
        self._check_query(points, planes)
        return renderer.query(planes, points, self.decoder, self.rendering)

    def query_density(self, points: Tensor, planes: Tensor) -> Tensor:
        """The densities of `query`, (N, M, 1), without the colours: faster."""
        self._check_query(points, planes)
        return renderer.query_density(planes, points, self.decoder, self.rendering)

    def _check_query(self, points: Tensor, planes: Tensor) -> None:
        self._check_rendering()
        check_tensor("points", points, "N", "M", 3)
        check_tensor("planes", planes, "N", NUM_PLANES, "C", "H", "W")

    def _check_rendering(self) -> None:
        self._checked_rendering = check_rendering(self.rendering, self._checked_rendering)

    def set_conv_dtype(self, backbone: torch.dtype, superresolution: torch.dtype) -> None:
        """Run convolutions in these dtypes; mapping, decoder and rays stay fp32."""
        for block in self.backbone.synthesis.children():
            assert isinstance(block, SynthesisBlock)
            block.conv_dtype = backbone
        self.superresolution.set_conv_dtype(superresolution)
