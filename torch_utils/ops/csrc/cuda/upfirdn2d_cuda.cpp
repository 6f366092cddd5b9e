// upfirdn2d for tensors on CUDA devices: checks, memory, launch.
#include <torch/library.h>

#include "cuda/fir_binding.h"

namespace open_eg3d::cuda {
namespace {

at::Tensor resample(const at::Tensor& x, const at::Tensor& filter, at::IntArrayRef up,
                    at::IntArrayRef down, at::IntArrayRef padding, bool flip_filter, double gain) {
  TORCH_CHECK(x.dim() == 4, "x has ", x.dim(), " dimensions instead of 4");
  TORCH_CHECK(up[0] > 0 && up[1] > 0 && down[0] > 0 && down[1] > 0, "factors are positive numbers");
  const OnDeviceOf device(x);
  const at::Tensor taps = wide_filter(x, filter);
  const int64_t taps_x = filter.size(-1), taps_y = filter.size(0);
  const int64_t height =
      filtered_size(x.size(2) * up[1] + padding[2] + padding[3], taps_y, down[1]);
  const int64_t width = filtered_size(x.size(3) * up[0] + padding[0] + padding[1], taps_x, down[0]);
  const at::Tensor y = make_result(x, height, width);
  if (y.numel() == 0) return y;
  const Upfirdn problem{x.size(0),
                        x.size(1),
                        make_axis(x.size(3), width, up[0], down[0], padding[0], taps_x),
                        make_axis(x.size(2), height, up[1], down[1], padding[2], taps_y),
                        make_filter(taps, flip_filter, gain),
                        x.const_data_ptr(),
                        y.mutable_data_ptr(),
                        strides_of(x),
                        strides_of(y)};
  upfirdn2d(problem, dtype_of(x), device.stream());
  return y;
}

}  // namespace
}  // namespace open_eg3d::cuda

TORCH_LIBRARY_IMPL(open_eg3d, OPEN_EG3D_CUDA_KEY, m) {
  m.impl("upfirdn2d", open_eg3d::cuda::resample);
}
