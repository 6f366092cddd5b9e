// filtered_lrelu for tensors on CUDA devices: checks, memory, launches.
#include <torch/library.h>

#include <tuple>

#include "cuda/fir_binding.h"

namespace open_eg3d::cuda {
namespace {

FilteredLrelu make_problem(const at::Tensor& x, const at::Tensor& y, const at::Tensor& first,
                           const at::Tensor& second, bool flip) {
  FilteredLrelu problem{};
  problem.samples = x.size(0), problem.channels = x.size(1);
  problem.first = make_filter(first, flip, 1), problem.second = make_filter(second, flip, 1);
  problem.x = x.const_data_ptr(), problem.y = y.mutable_data_ptr();
  problem.x_strides = strides_of(x), problem.y_strides = strides_of(y);
  return problem;
}

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& x, const at::Tensor& up_filter,
                                           const at::Tensor& down_filter,
                                           const std::optional<at::Tensor>& bias, int64_t up,
                                           int64_t down, at::IntArrayRef padding, double gain,
                                           double slope, std::optional<double> clamp,
                                           bool flip_filter, bool keep_signs) {
  TORCH_CHECK(x.dim() == 4, "x has ", x.dim(), " dimensions instead of 4");
  TORCH_CHECK(up > 0 && down > 0, "factors are positive numbers");
  TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == x.size(1)),
              "bias needs one number for each of ", x.size(1), " channels");
  check_devices(x, {bias});
  const OnDeviceOf device(x);
  const at::Tensor first = wide_filter(x, up_filter), second = wide_filter(x, down_filter);
  const int64_t up_x = first.size(-1), up_y = first.size(0), down_x = second.size(-1),
                down_y = second.size(0);
  const int64_t height =
      filtered_size(filtered_size(x.size(2) * up + padding[2] + padding[3], up_y, 1), down_y, down);
  const int64_t width =
      filtered_size(filtered_size(x.size(3) * up + padding[0] + padding[1], up_x, 1), down_x, down);
  const int64_t fine_height = std::max<int64_t>((height - 1) * down + down_y, 0);
  const int64_t fine_width = std::max<int64_t>((width - 1) * down + down_x, 0);
  const at::Tensor y = make_result(x, height, width);
  const bool is_empty = y.numel() == 0;
  const int64_t kept = keep_signs && !is_empty ? sign_blocks(x.size(0), x.size(1)) : 0;
  const at::Tensor signs = at::empty({kept, fine_height, fine_width}, x.options().dtype(at::kInt));
  if (is_empty) return {y, signs};
  FilteredLrelu problem = make_problem(x, y, first, second, flip_filter);
  problem.first_x = make_axis(x.size(3), fine_width, up, 1, padding[0], up_x);
  problem.first_y = make_axis(x.size(2), fine_height, up, 1, padding[2], up_y);
  problem.second_x = make_axis(fine_width, width, 1, down, 0, down_x);
  problem.second_y = make_axis(fine_height, height, 1, down, 0, down_y);
  problem.gain = gain * static_cast<double>(up * up), problem.slope = slope;
  problem.has_clamp = clamp.has_value(), problem.clamp = clamp.value_or(0);
  const at::Tensor wide_bias = bias ? bias->to(wide_type(x)).contiguous() : at::Tensor();
  if (bias) problem.bias = wide_bias.const_data_ptr();
  problem.use = keep_signs ? Signs::kWrite : Signs::kNone;
  if (keep_signs) problem.signs = signs.mutable_data_ptr<int32_t>();
  filtered_lrelu(problem, dtype_of(x), device.stream());
  return {y, signs};
}

at::Tensor by_signs(const at::Tensor& x, const at::Tensor& signs, const at::Tensor& first_filter,
                    const at::Tensor& second_filter, int64_t up, int64_t down,
                    at::IntArrayRef first_padding, at::IntArrayRef second_padding,
                    at::IntArrayRef size, double gain, double slope, bool flip_filter) {
  check_devices(x, {signs});
  const OnDeviceOf device(x);
  const at::Tensor y = make_result(x, size[1], size[0]);
  if (y.numel() == 0) return y;
  if (x.numel() == 0) return y.zero_();
  TORCH_CHECK(signs.dim() == 3 && signs.size(0) == sign_blocks(x.size(0), x.size(1)) &&
                  signs.scalar_type() == at::kInt && signs.is_contiguous(),
              "signs of other images, or none kept");
  const at::Tensor first = wide_filter(x, first_filter), second = wide_filter(x, second_filter);
  FilteredLrelu problem = make_problem(x, y, first, second, flip_filter);
  problem.first_x = make_axis(x.size(3), signs.size(2), up, 1, first_padding[0], first.size(-1));
  problem.first_y = make_axis(x.size(2), signs.size(1), up, 1, first_padding[1], first.size(0));
  problem.second_x = make_axis(signs.size(2), size[0], 1, down, second_padding[0], second.size(-1));
  problem.second_y = make_axis(signs.size(1), size[1], 1, down, second_padding[1], second.size(0));
  problem.gain = gain, problem.slope = slope;
  problem.use = Signs::kRead;
  problem.signs = const_cast<int32_t*>(signs.const_data_ptr<int32_t>());
  filtered_lrelu(problem, dtype_of(x), device.stream());
  return y;
}

}  // namespace
}  // namespace open_eg3d::cuda

TORCH_LIBRARY_IMPL(open_eg3d, OPEN_EG3D_CUDA_KEY, m) {
  m.impl("filtered_lrelu", open_eg3d::cuda::forward);
  m.impl("filtered_lrelu_by_signs", open_eg3d::cuda::by_signs);
}
