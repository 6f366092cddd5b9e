"""Writes pickles in the released snapshot layout, for tests: the same structure with any sizes, and
any source text inside.
"""

from __future__ import annotations

import math
import pickle
import re
import types
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

HOOKS = (
    "_backward_pre_hooks", "_backward_hooks", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
FILTER = torch.tensor([1.0, 3.0, 3.0, 1.0]).outer(torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64
Shapes = dict[str, tuple[int, ...]]
RELEASED_AXES = torch.tensor(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [0, 0, 1], [0, 1, 0]],
        [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
    ],
    dtype=torch.float32,
)
CORRECTED_AXES = torch.tensor(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [0, 0, 1], [0, 1, 0]],
        [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
    ],
    dtype=torch.float32,
)
# Class name -> output size, input size, output channels of both blocks, whether the first block
# doubles.
SUPERRESOLUTIONS = {
    "SuperresolutionHybrid8XDC": (512, 128, (256, 128), True),
    "SuperresolutionHybrid8X": (512, 128, (128, 64), True),
    "SuperresolutionHybrid4X": (256, 128, (128, 64), False),
    "SuperresolutionHybrid2X": (128, 64, (128, 64), False),
    "SuperresolutionHybridDeepfp32": (256, 128, (128, 64), False),
}


def rule_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight that every parameter or buffer called `name` has in the interoperability files."""
    value = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    if name.endswith(".weight") and "mapping" in name and re.search(r"\.fc\d", name):
        value = value * 100
    elif name.endswith("bias"):
        value = value * 0.1 + ("affine" in name)
    elif name.endswith(("noise_strength", "w_avg")):
        value = value * 0.1
    return torch.as_tensor(np.asarray(value, dtype=np.float32))


# --------------------------------------------------------------------------------------------------
# Pickles with chosen names


@dataclass(frozen=True)
class Ref:
    """Pickled as a mention of a class or function, whether or not such a thing exists."""

    module: str
    name: str

    def __call__(self, *_: Any) -> None:
        raise AssertionError("only mentioned, never called")


@dataclass(eq=False)
class Call:
    """Pickled as the call `target(*args)`, by REDUCE, or by NEWOBJ with a state as plain classes
    are.
    """

    target: Any  # a Ref, or what a hostile file would call
    args: tuple[Any, ...] = ()
    state: Any = None
    new: bool = False


# the pickler in Python, whose way of writing a type can be replaced
_PythonPickler: Any = vars(pickle)["_Pickler"]


class LayoutPickler(_PythonPickler):
    """Pickler for `Ref` and `Call`; can tag tensors as CUDA's and spell numpy's module as older
    versions did.
    """

    dispatch: ClassVar[dict[type, Any]] = dict(_PythonPickler.dispatch)

    def __init__(
        self,
        file: Any,
        protocol: int = 4,
        location: str = "cpu",
        numpy_module: str = "numpy._core.multiarray",
    ) -> None:
        super().__init__(file, protocol)
        self.location = location
        self.numpy_module = numpy_module

    def save_ref(self, ref: Ref) -> None:
        """Write a mention in the way of the protocol."""
        if self.proto < 4:
            self.write(pickle.GLOBAL + f"{ref.module}\n{ref.name}\n".encode())
        else:
            self.save(ref.module)
            self.save(ref.name)
            self.write(pickle.STACK_GLOBAL)
        self.memoize(ref)

    def save_call(self, call: Call) -> None:
        """Write a call, with its state if it has one."""
        self.save(call.target)
        self.save(call.args)
        self.write(pickle.NEWOBJ if call.new else pickle.REDUCE)
        self.memoize(call)
        if call.state is not None:
            self.save(call.state)
            self.write(pickle.BUILD)

    def save_storage(self, storage: Any) -> None:
        """Write tensor data as a nested torch file, tagged with the wanted device."""
        function, (payload,) = storage.__reduce__()
        tag = f"X{chr(len(self.location))}\0\0\0{self.location}".encode()
        self.save_reduce(function, (payload.replace(b"X\x03\0\0\0cpu", tag),), obj=storage)

    def save_function(self, function: Callable[..., Any], name: str | None = None) -> None:
        """Write a mention of a real function."""
        if function.__name__ == "scalar":
            self.save(Ref(self.numpy_module, "scalar"))
        else:
            self.save_global(function, name)

    dispatch[Ref] = save_ref
    dispatch[Call] = save_call
    dispatch[torch.storage.TypedStorage] = save_storage
    dispatch[types.BuiltinFunctionType] = save_function


# --------------------------------------------------------------------------------------------------
# Modules


@dataclass
class Layout:
    """What a written snapshot looks like. Sizes are small so that tests are fast; super-resolution
    channels follow from its class.
    """

    superresolution: str = "SuperresolutionHybrid2X"
    z_dim: int = 16
    w_dim: int = 24
    mapping_layers: int = 2
    plane_resolution: int = 16
    plane_channels: int = 32
    channel_base: int = 128
    channel_max: int = 12
    discriminator_channel_base: int = 512
    discriminator_channel_max: int = 8
    discriminator_mapping_layers: int = 3
    decoder_hidden: int = 20
    use_noise: bool = True
    backbone_clamp: float | None = None
    superresolution_clamp: float | None = 256
    discriminator_clamp: float | None = 256
    mbstd_group_size: int = 4
    disc_c_noise: float = 0
    neural_rendering_resolution: int = 64
    plane_axes: Tensor | None = field(default_factory=RELEASED_AXES.clone)
    # changes to rendering_kwargs; None removes an entry
    rendering: dict[str, Any] = field(default_factory=dict)
    module_src: str = ""
    frozen: bool = False  # parameters as buffers
    label_std: bool = False
    easy_dict: bool = False

    @property
    def resolution(self) -> int:
        """Size of the final image."""
        return SUPERRESOLUTIONS[self.superresolution][0]

    def rendering_kwargs(self) -> Any:
        """Scene settings as the file has them."""
        values: dict[str, Any] = {
            "image_resolution": self.resolution,
            "disparity_space_sampling": False,
            "clamp_mode": "softplus",
            "superresolution_module": f"training.superresolution.{self.superresolution}",
            "c_gen_conditioning_zero": False,
            "c_scale": 1,
            "superresolution_noise_mode": "none",
            "density_reg": 0.25,
            "decoder_lr_mul": 1,
            "sr_antialias": True,
            "depth_resolution": 48,
            "depth_resolution_importance": 40,
            "ray_start": 2.25,
            "ray_end": 3.3,
            "box_warp": 1,
            "avg_camera_radius": 2.7,
            "avg_camera_pivot": [0, 0, 0.2],
        }
        values = {
            key: value for key, value in {**values, **self.rendering}.items() if value is not None
        }
        if not self.easy_dict:
            return values
        return Call(
            Ref("collections", "OrderedDict"), ([[key, value] for key, value in values.items()],)
        )


class Builder:
    """Makes the modules of one snapshot."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def state(
        self,
        name: str,
        parameters: Shapes,
        buffers: dict[str, Any],
        modules: dict[str, Any],
        attributes: dict[str, Any],
    ) -> Any:
        """A module's state; parameters are given by shape and filled by the rule, buffers by shape
        or value.
        """

        def fill(key: str, value: Any) -> Tensor:
            return (
                value
                if isinstance(value, Tensor)
                else rule_tensor(f"{name}.{key}".lstrip("."), value)
            )

        tensors = {key: fill(key, shape) for key, shape in parameters.items()}
        held = {key: fill(key, value) for key, value in buffers.items()}
        if self.layout.frozen:
            tensors, held = {}, {**tensors, **held}
        return {
            "training": False,
            "_parameters": {
                key: torch.nn.Parameter(value, requires_grad=False)
                for key, value in tensors.items()
            },
            "_buffers": held,
            "_non_persistent_buffers_set": set(),
            **{hook: OrderedDict() for hook in HOOKS},
            "_is_full_backward_hook": None,
            "_modules": modules,
            **attributes,
        }

    def persistent(
        self,
        class_name: str,
        name: str,
        parameters: Shapes | None = None,
        buffers: dict[str, Any] | None = None,
        modules: dict[str, Any] | None = None,
        **attributes: Any,
    ) -> Call:
        """A module that carries its source."""
        state = self.state(
            name,
            parameters or {},
            buffers or {},
            modules or {},
            {"_init_args": (), "_init_kwargs": {}, **attributes},
        )
        meta = {
            "type": "class",
            "version": 6,
            "module_src": self.layout.module_src,
            "class_name": class_name,
            "state": state,
        }
        return Call(Ref("torch_utils.persistence", "_reconstruct_persistent_obj"), (meta,))

    def plain(self, path: str, modules: dict[str, Any] | None = None, **attributes: Any) -> Call:
        """A module of an ordinary class."""
        module, _, name = path.rpartition(".")
        return Call(
            Ref(module, name), (), self.state("", {}, {}, modules or {}, attributes), new=True
        )

    def linear(self, name: str, inputs: int, outputs: int, lr: float = 1) -> Call:
        return self.persistent(
            "FullyConnectedLayer",
            name,
            {"weight": (outputs, inputs), "bias": (outputs,)},
            in_features=inputs,
            out_features=outputs,
            activation="linear" if lr == 1 else "lrelu",
            weight_gain=lr / np.sqrt(inputs),
            bias_gain=lr,
        )

    def mapping(self, name: str, z_dim: int, width: int, layers: int, w_avg: bool) -> Call:
        modules = {"embed": self.linear(f"{name}.embed", 25, width)}
        for index in range(layers):
            modules[f"fc{index}"] = self.linear(
                f"{name}.fc{index}", z_dim + width if index == 0 else width, width, 0.01
            )
        return self.persistent(
            "MappingNetwork",
            name,
            {},
            {"w_avg": (width,)} if w_avg else {},
            modules,
            num_layers=layers,
            w_dim=width,
        )

    def synthesis_layer(
        self, name: str, inputs: int, outputs: int, size: int, clamp: float | None
    ) -> Call:
        noise = self.layout.use_noise
        return self.persistent(
            "SynthesisLayer",
            name,
            {
                "weight": (outputs, inputs, 3, 3),
                **({"noise_strength": ()} if noise else {}),
                "bias": (outputs,),
            },
            {"resample_filter": FILTER, **({"noise_const": (size, size)} if noise else {})},
            {"affine": self.linear(f"{name}.affine", self.layout.w_dim, inputs)},
            use_noise=noise,
            conv_clamp=clamp,
            resolution=size,
            act_gain=np.sqrt(2),
        )

    def torgb(self, name: str, inputs: int, outputs: int, clamp: float | None) -> Call:
        return self.persistent(
            "ToRGBLayer",
            name,
            {"weight": (outputs, inputs, 1, 1), "bias": (outputs,)},
            {},
            {"affine": self.linear(f"{name}.affine", self.layout.w_dim, inputs)},
            conv_clamp=clamp,
            weight_gain=1 / np.sqrt(inputs),
        )

    def synthesis_block(
        self, name: str, inputs: int, outputs: int, size: int, colors: int, clamp: float | None
    ) -> Call:
        modules = (
            {"conv0": self.synthesis_layer(f"{name}.conv0", inputs, outputs, size, clamp)}
            if inputs
            else {}
        )
        modules["conv1"] = self.synthesis_layer(f"{name}.conv1", outputs, outputs, size, clamp)
        modules["torgb"] = self.torgb(f"{name}.torgb", outputs, colors, clamp)
        parameters: Shapes = {} if inputs else {"const": (outputs, size, size)}
        buffers = {"resample_filter": FILTER}
        return self.persistent(
            "SynthesisBlock",
            name,
            parameters,
            buffers,
            modules,
            architecture="skip",
            resolution=size,
        )

    def synthesis(self, name: str) -> Call:
        layout = self.layout
        sizes = [4 << step for step in range(int(math.log2(layout.plane_resolution)) - 1)]
        widths = [min(layout.channel_base // size, layout.channel_max) for size in sizes]
        modules = {
            f"b{size}": self.synthesis_block(
                f"{name}.b{size}",
                inputs,
                outputs,
                size,
                3 * layout.plane_channels,
                layout.backbone_clamp,
            )
            for size, inputs, outputs in zip(sizes, [0, *widths], widths, strict=False)
        }
        kwargs = {"channel_base": layout.channel_base, "channel_max": layout.channel_max}
        return self.persistent(
            "SynthesisNetwork",
            name,
            {},
            {},
            modules,
            img_resolution=layout.plane_resolution,
            _init_kwargs=kwargs,
        )

    def superresolution(self) -> Call:
        layout, name = self.layout, "superresolution"
        resolution, input_size, (first, second), doubles = SUPERRESOLUTIONS[layout.superresolution]
        clamp = layout.superresolution_clamp
        modules = {
            "block0": self.synthesis_block(
                f"{name}.block0", layout.plane_channels, first, input_size * (1 + doubles), 3, clamp
            ),
            "block1": self.synthesis_block(f"{name}.block1", first, second, resolution, 3, clamp),
        }
        buffers = (
            {}
            if layout.superresolution == "SuperresolutionHybrid8XDC"
            else {"resample_filter": FILTER}
        )
        extra: dict[str, Any] = {}
        if layout.superresolution != "SuperresolutionHybridDeepfp32":
            extra["sr_antialias"] = layout.rendering.get("sr_antialias", True)
        return self.persistent(
            layout.superresolution, name, {}, buffers, modules, input_resolution=input_size, **extra
        )

    def decoder(self) -> Call:
        layout = self.layout
        net = {
            "0": self.linear("decoder.net.0", layout.plane_channels, layout.decoder_hidden),
            "1": self.plain("torch.nn.modules.activation.Softplus", beta=1.0, threshold=20.0),
            "2": self.linear("decoder.net.2", layout.decoder_hidden, 1 + layout.plane_channels),
        }
        return self.plain(
            "training.triplane.OSGDecoder",
            {"net": self.plain("torch.nn.modules.container.Sequential", net)},
            hidden_dim=64,
        )

    def renderer(self) -> Call:
        axes = {} if self.layout.plane_axes is None else {"plane_axes": self.layout.plane_axes}
        marcher = self.plain("training.volumetric_rendering.ray_marcher.MipRayMarcher2")
        return self.plain(
            "training.volumetric_rendering.renderer.ImportanceRenderer",
            {"ray_marcher": marcher},
            **axes,
        )

    def generator(self) -> Call:
        layout = self.layout
        backbone = {
            "synthesis": self.synthesis("backbone.synthesis"),
            "mapping": self.mapping(
                "backbone.mapping", layout.z_dim, layout.w_dim, layout.mapping_layers, w_avg=True
            ),
        }
        modules = {
            "renderer": self.renderer(),
            "ray_sampler": self.plain(
                "training.volumetric_rendering.ray_sampler.RaySampler", ray_directions=None
            ),
            "backbone": self.persistent("Generator", "backbone", {}, {}, backbone, num_ws=14),
            "superresolution": self.superresolution(),
            "decoder": self.decoder(),
        }
        return self.persistent(
            "TriPlaneGenerator",
            "",
            {},
            {},
            modules,
            z_dim=layout.z_dim,
            c_dim=25,
            w_dim=layout.w_dim,
            img_resolution=layout.resolution,
            img_channels=3,
            neural_rendering_resolution=layout.neural_rendering_resolution,
            rendering_kwargs=layout.rendering_kwargs(),
            _last_planes=None,
        )

    def conv(self, name: str, inputs: int, outputs: int, kernel: int, bias: bool = True) -> Call:
        parameters: Shapes = {"weight": (outputs, inputs, kernel, kernel)}
        if bias:
            parameters["bias"] = (outputs,)
        attributes = {} if bias else {"bias": None}
        clamp = self.layout.discriminator_clamp if bias else None
        return self.persistent(
            "Conv2dLayer",
            name,
            parameters,
            {"resample_filter": FILTER},
            {},
            conv_clamp=clamp,
            **attributes,
        )

    def discriminator_block(self, name: str, inputs: int, outputs: int, first: bool) -> Call:
        modules = {"fromrgb": self.conv(f"{name}.fromrgb", 6, inputs, 1)} if first else {}
        modules["conv0"] = self.conv(f"{name}.conv0", inputs, inputs, 3)
        modules["conv1"] = self.conv(f"{name}.conv1", inputs, outputs, 3)
        modules["skip"] = self.conv(f"{name}.skip", inputs, outputs, 1, bias=False)
        return self.persistent(
            "DiscriminatorBlock",
            name,
            {},
            {"resample_filter": FILTER},
            modules,
            architecture="resnet",
        )

    def epilogue(self, width: int) -> Call:
        modules = {
            "mbstd": self.persistent(
                "MinibatchStdLayer",
                "b4.mbstd",
                group_size=self.layout.mbstd_group_size,
                num_channels=1,
            ),
            "conv": self.conv("b4.conv", width + 1, width, 3),
            "fc": self.linear("b4.fc", width * 16, width),
            "out": self.linear("b4.out", width, width),
        }
        return self.persistent("DiscriminatorEpilogue", "b4", {}, {}, modules, resolution=4)

    def discriminator(self) -> Call:
        layout = self.layout
        kwargs = {
            "channel_base": layout.discriminator_channel_base,
            "channel_max": layout.discriminator_channel_max,
        }

        def width(size: int) -> int:
            return min(kwargs["channel_base"] // size, kwargs["channel_max"])

        sizes = [layout.resolution >> step for step in range(int(math.log2(layout.resolution)) - 2)]
        modules = {
            f"b{s}": self.discriminator_block(
                f"b{s}", width(s), width(s // 2), s == layout.resolution
            )
            for s in sizes
        }
        modules["mapping"] = self.mapping(
            "mapping", 0, width(4), layout.discriminator_mapping_layers, w_avg=False
        )
        modules["b4"] = self.epilogue(width(4))
        buffers: dict[str, Any] = {
            "resample_filter": FILTER,
            **({"dataset_label_std": (25,)} if layout.label_std else {}),
        }
        return self.persistent(
            "DualDiscriminator",
            "",
            {},
            buffers,
            modules,
            c_dim=25,
            img_resolution=layout.resolution,
            img_channels=6,
            disc_c_noise=layout.disc_c_noise,
            _init_kwargs=kwargs,
        )

    def snapshot(self) -> dict[str, Any]:
        """The whole file's content."""
        data: Any = {
            "class_name": "training.data.dataset.ImageFolderDataset",
            "path": "faces.zip",
            "use_labels": True,
        }
        if self.layout.easy_dict:
            data = Call(Ref("dnnlib.util", "EasyDict"), (), {}, new=True)
        return {
            "training_set_kwargs": data,
            "G": self.generator(),
            "D": self.discriminator(),
            "G_ema": self.generator(),
            "augment_pipe": None,
        }


def write_pickle(path: Path, content: Any, **options: Any) -> Path:
    """Pickle `content` (see `LayoutPickler` for the options)."""
    with open(path, "wb") as file:
        LayoutPickler(file, **options).dump(content)
    return path


def write_snapshot(path: Path, layout: Layout | None = None, **options: Any) -> Path:
    """Write a whole snapshot of the given layout."""
    return write_pickle(path, Builder(layout or Layout()).snapshot(), **options)
