"""CUDA kernels without a GPU: their bodies run on the CPU beside plain loops, under sanitizers;
nvcc compiles them for every GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import cuda_resources
from dnnlib import files
from tests import cuda_on_cpu, operators
from torch_utils.ops import builder, cuda_builder, library
from torch_utils.ops.filtered_lrelu import fits_gpu

# the module, behind the function of its name
filtered_lrelu = sys.modules["torch_utils.ops.filtered_lrelu"]
OPERATORS = ("bias_act", "upfirdn2d", "filtered_lrelu", "modulation")
pytestmark = pytest.mark.skipif(
    operators.missing_toolchain() is not None, reason=str(operators.missing_toolchain())
)


def program(name: str, sanitizer: str, kernels: list[str]) -> Path:
    return cuda_on_cpu.build_program(
        cuda_on_cpu.SHIM / f"{name}.cpp", kernels, sanitizer, files.cache_dir() / "ops" / "tests"
    )


def check_operator(operator: str, sanitizer: str, *arguments: str) -> None:
    run = cuda_on_cpu.run_program(program(f"{operator}_test", sanitizer, [operator]), *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " cases, 0 failures" in run.stdout


@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_against_plain_loops_under_address_and_undefined_behaviour_sanitizers(
    operator: str,
) -> None:
    check_operator(operator, "address")


def test_filters_that_are_too_large_are_known() -> None:
    """Those that the kernels refuse, forwards or backwards, and no others up to 32 taps."""
    run = cuda_on_cpu.run_program(
        program("filtered_lrelu_test", "address", ["filtered_lrelu"]), "fits"
    )
    assert run.returncode == 0, run.stderr
    rows = [tuple(map(int, line.split())) for line in run.stdout.splitlines()]
    launched = {row[:-1]: bool(row[-1]) for row in rows}
    assert len(launched) == 540
    assert 0 < list(launched.values()).count(False) < 270
    for (separable, up_taps, up, down_taps, down, size), is_launched in launched.items():
        backwards = (separable, down_taps, down, up_taps, up, size)
        first, second = (torch.ones((n,) if separable else (n, n)) for n in (up_taps, down_taps))
        dtype = torch.float64 if size == 8 else torch.float16
        fits = is_launched and launched.get(backwards, True)
        if backwards in launched or not is_launched:
            assert fits_gpu(dtype, first, second, up, down) == fits


def test_filters_that_are_too_large_are_served_by_plain_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served: list[str] = []
    monkeypatch.setattr(library, "use_kernels", lambda *_: True)
    for name in ("_filtered_lrelu_chain", "_filtered_lrelu_kernel"):
        monkeypatch.setattr(filtered_lrelu, name, lambda *_, name=name: served.append(name))
    with FakeTensorMode():
        x = torch.empty(1, 3, 8, 8, device="cuda")
    for down in (2, 80):
        filtered_lrelu.filtered_lrelu(x, torch.ones(12, 12), torch.ones(4), down=down)
    assert served == ["_filtered_lrelu_kernel", "_filtered_lrelu_chain"]


@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_have_no_races(operator: str) -> None:
    check_operator(operator, "thread", "quick")


@pytest.mark.parametrize(
    ("sanitizer", "mistake", "finding"),
    [
        ("address", "bounds", "AddressSanitizer: heap-buffer-overflow"),
        ("address", "shared", "runtime error: index 64 out of bounds"),
        ("address", "race", "FAILED reverse"),  # what is not written yet is NaN
        ("address", "uninitialized", "FAILED uninitialized"),
        ("address", "divergence", "a thread ends while others of its block wait at a barrier"),
        ("address", "alignment", "a load of several numbers is not aligned"),
        ("thread", "race", "ThreadSanitizer: data race"),
        ("thread", "blocks", "ThreadSanitizer: data race"),
        ("thread", "divergence", "a thread ends while others of its block wait at a barrier"),
    ],
)
def test_planted_mistakes_are_found(sanitizer: str, mistake: str, finding: str) -> None:
    run = cuda_on_cpu.run_program(program("planted", sanitizer, []), mistake)
    assert run.returncode != 0
    assert finding in run.stdout + run.stderr


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_the_same_kernels_without_mistakes_pass(sanitizer: str) -> None:
    run = cuda_on_cpu.run_program(program("planted", sanitizer, []))
    assert run.returncode == 0, run.stdout + run.stderr


def test_half_precision_numbers_of_the_shim(tmp_path: Path) -> None:
    """All 16-bit patterns to float, and floats around every rounding edge back, as torch does
    it.
    """
    source = tmp_path / "scalars.cpp"
    source.write_text(
        '#include <cstdio>\n#include "scalars.h"\nint main() {\n  for (uint32_t i = 0; i < 65536;'
        " ++i) {\n    const float values[2] = {__half2float({uint16_t(i)}),"
        " __bfloat162float({uint16_t(i)})};\n    std::fwrite(values, 4, 2, stdout);\n  }\n  float"
        " x;\n  while (std::fread(&x, 4, 1, stdin) == 1) {\n    const uint16_t bits[2] ="
        " {__float2half_rn(x).bits, __float2bfloat16_rn(x).bits};\n    std::fwrite(bits, 2, 2,"
        " stdout);\n  }\n}\n"
    )
    compiled = cuda_on_cpu.build_program(source, [], "none", tmp_path)
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    halves, bfloats = patterns.view(torch.float16).float(), patterns.view(torch.bfloat16).float()
    between = torch.cat([halves, bfloats])
    between = between[between.isfinite()]
    middles = (between + torch.nextafter(between.half().float(), torch.tensor(9e9))) / 2
    edges = torch.cat(
        [
            between,
            middles,
            torch.nextafter(middles, torch.tensor(9e9)),
            torch.nextafter(middles, torch.tensor(-9e9)),
        ]
    )
    run = subprocess.run([compiled], input=edges.numpy().tobytes(), capture_output=True, check=True)
    widened = torch.frombuffer(bytearray(run.stdout[: 65536 * 8]), dtype=torch.float32).view(-1, 2)
    narrowed = torch.frombuffer(bytearray(run.stdout[65536 * 8 :]), dtype=torch.int16).view(-1, 2)
    torch.testing.assert_close(
        widened, torch.stack([halves, bfloats], 1), rtol=0, atol=0, equal_nan=True
    )
    expected = torch.stack([edges.half().view(torch.int16), edges.bfloat16().view(torch.int16)], 1)
    is_number = ~edges.isnan()
    assert torch.equal(narrowed[is_number], expected[is_number])


def test_kernels_and_bindings_keep_to_their_headers() -> None:
    """No file needs more of a toolkit than nvcc, and kernels nothing of torch."""
    for path in [*cuda_builder.sources(), *cuda_builder.headers()]:
        text = path.read_text()
        assert "#include <ATen/cuda" not in text
        assert "#include <torch/extension.h" not in text
        if path.suffix == ".cu":
            assert not any(
                word in text for word in ("#include <ATen", "#include <torch", "#include <c10")
            )


def test_atomics_are_of_integers() -> None:
    """Sums of floats by atomics would round in another way each time."""
    kinds = ("to.sums + index, static_cast<unsigned long long>", "static_cast<unsigned long long*>")
    sums = [
        line.strip()
        for path in [*cuda_builder.kernel_sources(), *cuda_builder.headers()]
        for line in path.read_text().splitlines()
        if "atomicAdd(" in line
    ]
    assert len(sums) == 2
    assert all(any(kind in line for kind in kinds) for line in sums)


def test_every_kernel_is_recorded() -> None:
    """docs/kernels.md has a row for each kernel; else run python -m benchmarks.cuda_resources."""
    sources = cuda_builder.kernel_sources()
    kernels = {kernel for path in sources for kernel in cuda_resources.threads_per_block(path)}
    assert set(cuda_resources.recorded()) == kernels
    assert len(kernels) == sum(path.read_text().count("__global__ void") for path in sources)
    page = cuda_resources.PAGE.read_text(encoding="utf-8")
    assert f"| {' | '.join(f'sm_{number}' for number in cuda_builder.ARCHITECTURES)} |" in page


def test_ptxas_output_is_read() -> None:
    log = (
        "ptxas info    : Compiling entry function '_Z1fPf' for 'sm_75'\nptxas info    : Function"
        " properties for _Z1fPf\n    24 bytes stack frame, 20 bytes spill stores, 16 bytes spill"
        " loads\nptxas info    : Used 64 registers, used 1 barriers, 8192 bytes smem, 456 bytes"
        " cmem[0]\nptxas info    : Compiling entry function '_Z1gPf' for 'sm_90'\n    0 bytes stack"
        " frame, 0 bytes spill stores, 0 bytes spill loads\nptxas info    : Used 40 registers, used"
        " 0 barriers, 456 bytes cmem[0]\n"
    )
    first, second = cuda_resources.parse(log)
    assert first == cuda_resources.Usage("_Z1fPf", "75", 64, 8192, 20, 16)
    # four blocks of 256 by registers, seven by shared memory, four by threads
    assert first.occupancy == 1
    assert second == cuda_resources.Usage("_Z1gPf", "90", 40, 0, 0, 0)
    assert second.occupancy == 6 * 256 / 2048


# --------------------------------------------------------------------------------------------------
# With nvcc


@pytest.fixture(scope="module")
def toolkit() -> cuda_builder.Toolkit:
    try:
        return cuda_builder.find_toolkit()
    except builder.BuildError as error:
        pytest.skip(str(error))


def test_the_toolkit_of_an_nvcc_that_is_a_script(
    toolkit: cuda_builder.Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "nvcc"
    script.write_text(f'#!/bin/sh\nexec "{toolkit.nvcc}" "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = cuda_builder.find_toolkit()
    assert found == cuda_builder.Toolkit(str(script), toolkit.root, toolkit.version)
    assert (found.root / "include" / "cuda_runtime_api.h").is_file()


def make_toolkit(root: Path, release: str, lines: str = "") -> Path:
    """A folder that looks like a toolkit; its nvcc says where it belongs, then runs `lines`."""
    (root / "bin").mkdir(parents=True)
    (root / "include").mkdir(exist_ok=True)
    (root / "include" / "cuda_runtime_api.h").touch()
    nvcc = root / "bin" / "nvcc"
    script = (
        f'#!/bin/sh\necho "#$ TOP={root}" >&2\necho "release {release}, V{release}.1"\n{lines}\n'
    )
    nvcc.write_text(script)
    nvcc.chmod(0o755)
    return nvcc


@pytest.fixture
def no_toolkits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any, whose PyTorch is of CUDA 13.2; returns a folder for one."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    for name in ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cuda_builder, "TOOLKITS", str(tmp_path / "local" / "cuda*"))
    monkeypatch.setattr(cuda_builder, "_wheels", list)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    return tmp_path


def test_toolkits_that_do_not_serve(no_toolkits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(builder.BuildError, match=r"there is no nvcc; pip install 'open-eg3d\[cuda"):
        cuda_builder.find_toolkit()
    script = no_toolkits / "empty" / "nvcc"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho broken >&2\n")
    script.chmod(0o755)
    with pytest.raises(
        builder.BuildError, match="does not say which toolkit it belongs to: broken"
    ):
        cuda_builder.find_toolkit()
    bare = cuda_builder.Toolkit("nvcc", no_toolkits, "13.0")
    with pytest.raises(builder.BuildError, match="beside no headers of the CUDA runtime; pip"):
        cuda_builder.check_version(bare)
    (no_toolkits / "include").mkdir()
    (no_toolkits / "include" / "cuda_runtime_api.h").touch()
    cuda_builder.check_version(bare)
    other = cuda_builder.Toolkit("nvcc", no_toolkits, "12.4")
    with pytest.raises(
        builder.BuildError,
        match=r"nvcc is of CUDA 12.4, PyTorch was built with CUDA 13.2; install the toolkit 13.2",
    ):
        cuda_builder.check_version(other)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(builder.BuildError, match="built without CUDA"):
        cuda_builder.check_version(other)


def test_where_nvcc_is_looked_for(no_toolkits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the last place to the first; another major version is passed by."""
    wheels = no_toolkits / "site" / "nvidia"
    monkeypatch.setattr(cuda_builder, "_wheels", lambda: [wheels])
    expected = make_toolkit(wheels / "cu13", "13.0")
    assert cuda_builder.find_toolkit().nvcc == str(expected)
    old = make_toolkit(no_toolkits / "local" / "cuda-12.4", "12.4")
    assert cuda_builder.find_toolkit().nvcc == str(expected)
    expected = make_toolkit(no_toolkits / "local" / "cuda-13.1", "13.1")
    assert cuda_builder.find_toolkit().nvcc == str(expected)
    for variable, folder in (("CONDA_PREFIX", "conda"), ("CUDA_HOME", "chosen")):
        expected = make_toolkit(no_toolkits / folder, "13.3")
        monkeypatch.setenv(variable, str(no_toolkits / folder))
        assert cuda_builder.find_toolkit().nvcc == str(expected)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert cuda_builder.find_toolkit().nvcc == str(old)


def test_headers_and_runtime_of_a_conda_environment_and_of_wheels(
    no_toolkits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """conda keeps both by target; wheels have the library under its versioned name alone."""
    make_toolkit(no_toolkits / "conda", "13.0")
    target = no_toolkits / "conda" / "targets" / "x86_64-linux"
    for name in ("include", "lib"):
        (target / name).mkdir(parents=True)
    monkeypatch.setenv("CONDA_PREFIX", str(no_toolkits / "conda"))
    toolkit = cuda_builder.find_toolkit()
    assert target / "include" in toolkit.folders("include")
    assert toolkit.runtime() is None
    wheel = no_toolkits / "site" / "nvidia" / "cu13" / "lib"
    wheel.mkdir(parents=True)
    monkeypatch.setattr(cuda_builder, "_wheels", lambda: [no_toolkits / "site" / "nvidia"])
    for name in ("libcudart.so.12", "libcudart.so.13"):
        (wheel / name).touch()
    assert toolkit.runtime() == wheel / "libcudart.so.13"
    (target / "lib" / "libcudart.so.13").touch()
    assert toolkit.runtime() == target / "lib" / "libcudart.so.13"


def test_a_compiler_that_is_too_new_for_nvcc_gives_way_to_an_older_one(
    no_toolkits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = "host_config.h:132: error: unsupported GNU version! gcc later than 14"
    lines = f'case "$*" in *"-ccbin g++-13"*) exit 0;; *) echo "{refusal}" >&2; exit 1;; esac'
    make_toolkit(no_toolkits / "local" / "cuda", "13.0", lines)
    toolkit = cuda_builder.find_toolkit()
    with pytest.raises(builder.BuildError, match=r"none of this machine's C.* unsupported GNU"):
        cuda_builder.host_compiler_flags(toolkit, "c++")
    tools = no_toolkits / "tools"
    tools.mkdir()
    for name in ("c++", "g++-14", "g++-13", "g++-12"):
        (tools / name).write_text("#!/bin/sh\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    assert cuda_builder.host_compiler_flags(toolkit, "c++") == ["-ccbin", "g++-13"]


def test_nvcc_takes_its_own_choice_of_compiler(toolkit: cuda_builder.Toolkit) -> None:
    compiler = builder.find_toolchain().compiler
    assert cuda_builder.host_compiler_flags(toolkit, compiler) in ([], ["-ccbin", compiler])
    assert toolkit.runtime() is not None


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([(8, 0)], ("80",)),
        ([(9, 0), (7, 5), (9, 0)], ("75", "90")),
        ([(99, 0)], ("121",)),
        ([(1, 0)], None),
        ([(1, 0), (9, 0)], ("90",)),
    ],
)
def test_architectures_of_the_devices(
    toolkit: cuda_builder.Toolkit,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: list[tuple[int, int]],
    expected: tuple[str, ...] | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
    if expected is None:
        with pytest.raises(
            builder.BuildError, match=r"does not compile for GPUs of compute capability 1\.0"
        ):
            cuda_builder.device_architectures(toolkit)
    else:
        found = cuda_builder.device_architectures(toolkit)
        assert found[:-1] == expected[:-1]
        assert int(found[-1]) >= int(expected[-1])


@pytest.mark.slow
@pytest.mark.parametrize("source", cuda_builder.kernel_sources(), ids=lambda path: path.stem)
def test_nvcc_compiles_for_every_gpu_without_warnings(
    toolkit: cuda_builder.Toolkit, source: Path
) -> None:
    usages = cuda_resources.measure(cuda_builder.ARCHITECTURES, source)
    assert {usage.architecture for usage in usages} == set(cuda_builder.ARCHITECTURES)
    assert cuda_resources.rows(usages).items() <= cuda_resources.recorded().items(), (
        f"docs/kernels.md is out of date: python -m benchmarks.cuda_resources {source.stem}"
    )
    assert max(usage.spill_stores for usage in usages) <= 256
    assert toolkit.version


LOAD = """
import sys, torch
from torch_utils.ops import library
assert library.load()
torch.ops.load_library(sys.argv[1])
for name in sys.argv[2:]:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("open_eg3d::" + name, "CUDA"), name
"""


@pytest.mark.slow
def test_the_library_links_and_registers_every_operator(toolkit: cuda_builder.Toolkit) -> None:
    built = builder.build_recipe(cuda_builder.recipe(("75",), toolkit))
    schemas = "".join(path.read_text() for path in builder.SOURCE_DIR.glob("*.cpp"))
    names = [
        part.split("(")[0].strip().strip('"')
        for part in schemas.replace("\n", " ").split("m.def(")[1:]
    ]
    names = [part.split('"')[-1] for part in names]
    names = [name.split("(")[0] for name in names]
    run = subprocess.run(
        [sys.executable, "-c", LOAD, built.library, *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


# --------------------------------------------------------------------------------------------------
# The operators' own tests, with the CUDA kernels and bindings in the place of the CPU's


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["gpu", *(f"torch_utils/ops/test_{name}.py" for name in (*OPERATORS, "render_rays"))]
)
def test_the_operators_tests_pass_on_cuda_kernels(path: str) -> None:
    # On GPUs a filter of another number type than the images' is converted, on CPUs it is not.
    command = [sys.executable, "-m", "tests.cuda_on_cpu", f"tests/{path}", "-k", "not no_copies"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
