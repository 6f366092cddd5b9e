"""Work of the CUDA kernels: tiles as the kernels choose them, and counts of small cases by hand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import kernel_work
from tests import cuda_on_cpu, operators

# The kernels' own choice of tiles, of the file that holds it.
TILES = """
#include "cuda/upfirdn2d.cu"
#include <cstdio>
using namespace open_eg3d::cuda;
constexpr int kShapes[][4] = {{513, 512, 1, 1}, {128, 256, 2, 1}, {512, 256, 1, 2}};
int main() {
  for (auto [in, out, up, down] : kShapes) {
    Upfirdn p{};
    p.x_axis = p.y_axis = {in, out, up, down, 1, 4};
    const Tiling t = choose_tiling<float>(p, FIRST, kBlockChannels);
    std::printf("%ld ", long(t.down * t.across * t.input_height * t.input_width));
  }
}
"""
LRELU = """
#include "cuda/filtered_lrelu.cu"
#include <cstdio>
using namespace open_eg3d::cuda;
int main() {
  FilteredLrelu p{};
  p.first.is_separable = p.second.is_separable = true;
  p.first_x = p.first_y = {532, 1064, 2, 1, 6, 12};
  p.second_x = p.second_y = {1064, 532, 1, 2, 5, 12};
  const Tiling t = choose_tiling<float>(p, kChannelsLastLanes);
  std::printf("%ld", long(t.down * t.across * t.input.height * t.input.width));
}
"""


def inputs_of_blocks(text: str, folder: Path) -> list[int]:
    """What a program of the kernels' own functions prints."""
    source = folder / "tiles.cpp"
    source.write_text("#include <cstdint>\n" + text)
    compiled = cuda_on_cpu.build_program(source, [], "none", folder)
    run = subprocess.run([compiled], capture_output=True, text=True, check=True)
    return [int(word) for word in run.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(operators.missing_toolchain() is not None, reason="no compiler")
def test_tiles_are_those_that_the_kernels_choose(tmp_path: Path) -> None:
    first = "8, 16"
    assert kernel_work.constant("upfirdn2d.cu", r"choose_tiling<W>\(p, (\d+), \d+, kBl") == 8
    shapes = [(513, 512, 1, 1), (128, 256, 2, 1), (512, 256, 1, 2)]
    expected = inputs_of_blocks(TILES.replace("FIRST", first), tmp_path)
    for (size, result, up, down), inputs in zip(shapes, expected, strict=True):
        work = kernel_work.upfirdn2d(1, 32, size, result, up=up, down=down)
        assert work.moved == 4 * 32 * (inputs + result**2)
    (inputs,) = inputs_of_blocks(LRELU, tmp_path)
    work = kernel_work.filtered_lrelu(1, 1, 532)
    assert work.moved == 2 * (inputs + 532**2)


def test_work_of_one_tile_by_hand() -> None:
    """Of 8 x 8 outputs, 4 x 4 taps read 11 x 11 inputs."""
    assert kernel_work.upfirdn2d(1, 32, 8, 8) == kernel_work.KernelWork(
        4 * 32 * (64 + 64), 4 * 32 * (121 + 64), 2 * 16 * 64 * 32
    )
    assert kernel_work.sample_flops(1, 2, 3, backward=False) == 2 * (2 * (12 + 2) + 2 + 6)
    assert kernel_work.sample_flops(1, 2, 3, backward=True) == 2 * 4 * (12 + 2 + 2 + 6)
    forward = kernel_work.render_rays(1, 10, 4, 1, 2, hidden=2, colors=3)
    assert forward.bytes == 4 * (3 * 4 + 10 * 5)
    assert forward.flops == 40 * 72
