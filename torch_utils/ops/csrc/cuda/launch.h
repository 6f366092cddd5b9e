// The base of CUDA kernels, free of torch. A kernel is written once, in CUDA C++, in a file
// that includes this header and nothing else of CUDA; nvcc makes GPU code of it, and a plain C++
// compiler that finds cuda_on_cpu.h (tests/cuda_shim) makes a program of it whose threads can be
// watched by sanitizers.
//
//   __global__ void __launch_bounds__(256) sum_kernel(const float* x, float* y) {
//     OPEN_EG3D_SHARED(tile, float[8][33]);     // declared before anything else happens; its
//     contents are undefined
//     ...
//   }
//   launch(sum_kernel, {blocks, 1, 1}, {256, 1, 1}, 0, stream, x, y);
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "cuda/types.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// A shared variable of the type that follows its name.
#define OPEN_EG3D_SHARED(name, ...) __shared__ std::type_identity_t<__VA_ARGS__> name
// A shared array of `type`, of the length given to launch.
#define OPEN_EG3D_DYNAMIC_SHARED(type, name)                    \
  extern __shared__ __align__(16) unsigned char shared_bytes[]; \
  type* name = reinterpret_cast<type*>(shared_bytes)

namespace open_eg3d::cuda {

using half = __half;
using bfloat16 = __nv_bfloat16;

}  // namespace open_eg3d::cuda
#else
#include <cuda_on_cpu.h>
#endif

namespace open_eg3d::cuda {

constexpr int64_t kMostBlocksX = 0x7fffffff, kMostBlocksYZ = 65535;
// Shared memory of a block beyond 48 KB, static arrays and the dynamic one together, has to be
// asked for. A launch does not know of static ones, so it asks early, and leaves 24 KB to them.
constexpr size_t kModestSharedBytes = 24 << 10;

// Blocks that cover `count` elements.
template <class Integer>
constexpr Integer blocks_for(Integer count, Integer per_block) {
  return (count + per_block - 1) / per_block;
}

struct Extent {
  int64_t x = 1, y = 1, z = 1;
};

// Runs `kernel` on a grid of blocks; nothing happens where the grid is empty.
//
// Throws std::runtime_error where the grid is too large or the driver refuses.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Extent grid, Extent block, size_t shared_bytes,
            Stream stream, Arguments&&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4000, "a kernel's parameters have 4 KiB");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (grid.x > kMostBlocksX || grid.y > kMostBlocksYZ || grid.z > kMostBlocksYZ) {
    throw std::runtime_error("CUDA kernel: a grid of " + std::to_string(grid.x) + " x " +
                             std::to_string(grid.y) + " x " + std::to_string(grid.z) +
                             " blocks is too large; split the batch");
  }
  const dim3 blocks(grid.x, grid.y, grid.z), threads(block.x, block.y, block.z);
#ifdef __CUDACC__
  const auto check = [](cudaError_t status) {
    if (status != cudaSuccess)
      throw std::runtime_error(std::string("CUDA kernel: ") + cudaGetErrorString(status));
  };
  if (shared_bytes > kModestSharedBytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)));
  }
  kernel<<<blocks, threads, shared_bytes, stream>>>(std::forward<Arguments>(arguments)...);
  check(cudaGetLastError());
#else
  static_cast<void>(stream);
  cuda_on_cpu::run(blocks, threads, {shared_bytes, shared_bytes > kModestSharedBytes},
                   [&] { kernel(arguments...); });
#endif
}

}  // namespace open_eg3d::cuda
