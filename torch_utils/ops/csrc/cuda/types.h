// What kernels (compiled by nvcc, without torch) and their bindings (compiled by a C++ compiler,
// without CUDA) both name.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace open_eg3d::cuda {

using Stream = CUstream_st*;  // CUDA's cudaStream_t

// How a tensor's numbers are stored.
enum class Dtype { kFloat, kHalf, kBfloat16, kDouble };

}  // namespace open_eg3d::cuda
