// What bindings of CUDA kernels need of torch: the tensor's device and its current stream, number
// types, and checks of operands. Includes nothing of ATen/cuda, whose headers need all libraries of
// a CUDA toolkit.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "cuda/types.h"

#ifdef OPEN_EG3D_CUDA_ON_CPU  // in tests, which run kernels without a GPU
#define OPEN_EG3D_CUDA_KEY CPU
#else
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define OPEN_EG3D_CUDA_KEY CUDA
#endif

namespace open_eg3d::cuda {

// As long as it lives, the device of `x` is the current one.
class OnDeviceOf {
 public:
#ifdef OPEN_EG3D_CUDA_ON_CPU
  explicit OnDeviceOf(const at::Tensor&) {}
  Stream stream() const { return nullptr; }
#else
  explicit OnDeviceOf(const at::Tensor& x) : guard_(x.device()) {}
  Stream stream() const { return c10::cuda::getCurrentCUDAStream().stream(); }

 private:
  c10::cuda::CUDAGuard guard_;
#endif
};

inline Dtype dtype_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return Dtype::kFloat;
    case at::kHalf:
      return Dtype::kHalf;
    case at::kBFloat16:
      return Dtype::kBfloat16;
    case at::kDouble:
      return Dtype::kDouble;
    default:
      TORCH_CHECK(false, "CUDA kernels take float32, float16, bfloat16 and float64, not ",
                  x.scalar_type());
  }
}

// The type that numbers of `x` are computed in.
inline at::ScalarType wide_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_devices(const at::Tensor& x,
                          std::initializer_list<std::optional<at::Tensor>> others) {
  for (const auto& other : others) {
    if (!other || !other->defined()) continue;
    TORCH_CHECK(other->device() == x.device(), "operands on two devices, ", x.device(), " and ",
                other->device());
  }
}

}  // namespace open_eg3d::cuda
