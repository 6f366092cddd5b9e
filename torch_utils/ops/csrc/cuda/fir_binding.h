// What the bindings of upfirdn2d and filtered_lrelu share.
#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>

#include "cuda/binding.h"
#include "cuda/fir.h"

namespace open_eg3d::cuda {

// Factors and taps are counted in 32 bits with room for products.
inline int checked(int64_t number, const char* what) {
  TORCH_CHECK(number > 0 && number <= 1 << 14, what, " is ", number,
              "; CUDA kernels take 1 to 16384");
  return static_cast<int>(number);
}

// Sizes of the result; 0 where the filter does not fit.
inline int64_t filtered_size(int64_t size, int64_t taps, int64_t down) {
  return size < taps ? 0 : (size - taps) / down + 1;
}

inline FirAxis make_axis(int64_t size_in, int64_t size_out, int64_t up, int64_t down,
                         int64_t padding, int64_t taps) {
  return {size_in,
          size_out,
          checked(up, "a factor"),
          checked(down, "a factor"),
          padding,
          checked(taps, "the length of a filter")};
}

// The filter's numbers in the type that is computed in, to be kept as long as the kernel is
// launched.
inline at::Tensor wide_filter(const at::Tensor& x, const at::Tensor& filter) {
  TORCH_CHECK(filter.dim() == 1 || filter.dim() == 2, "the filter has ", filter.dim(),
              " dimensions instead of 1 or 2");
  check_devices(x, {filter});
  return filter.to(wide_type(x)).contiguous();
}

inline FirFilter make_filter(const at::Tensor& wide, bool flip, double gain) {
  return {wide.const_data_ptr(), wide.dim() == 1, flip, gain};
}

inline ImageStrides strides_of(const at::Tensor& x) {
  return {x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

// In the memory format of `x`: channels-last where the channels of a pixel are adjacent.
inline at::Tensor make_result(const at::Tensor& x, int64_t height, int64_t width) {
  const bool is_channels_last = x.size(1) > 1 && x.stride(1) == 1 && !x.is_contiguous();
  const auto format =
      is_channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  return at::empty(
      {x.size(0), x.size(1), std::max<int64_t>(height, 0), std::max<int64_t>(width, 0)},
      x.options(), format);
}

}  // namespace open_eg3d::cuda
