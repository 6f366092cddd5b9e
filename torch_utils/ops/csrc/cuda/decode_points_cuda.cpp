// decode_points on CUDA: tensors in, tensors out.
#include <torch/library.h>

#include "cuda/triplane/binding.h"

namespace open_eg3d::cuda {
namespace {

void check_operands(const at::Tensor& planes, const at::Tensor& points) {
  check_points(planes, points);
  check_devices(planes, {points});
  check_types(planes, points);
}

std::tuple<at::Tensor, at::Tensor> decode(const at::Tensor& planes, const at::Tensor& w0,
                                          const at::Tensor& b0, const at::Tensor& w1,
                                          const at::Tensor& b1, const at::Tensor& points,
                                          double box_warp, bool released_axes, double density_gain,
                                          bool with_colors) {
  check_operands(planes, points);
  const OnDeviceOf on(planes);
  const at::Tensor texels = as_channels_last(planes), where = points.contiguous();
  const PackedDecoder decoder(planes, w0, b0, w1, b1, on.stream());
  const int64_t samples = points.size(0), count = points.size(1);
  at::Tensor densities = at::empty({samples, count, 1}, points.options());
  at::Tensor colors =
      at::empty({samples, count, with_colors ? decoder.layout.colors : 0}, points.options());
  const DecodePoints p{planes_of(texels, box_warp, released_axes),
                       decoder.layout,
                       decoder.data(),
                       data_of(where),
                       samples * count,
                       count,
                       density_gain,
                       room_of(densities),
                       room_of(colors)};
  decode_points(p, dtype_of(planes), on.stream());
  return {densities, colors};
}

SixTensors decode_and_back(const OptionalTensor& grad_densities, const OptionalTensor& grad_colors,
                           const at::Tensor& planes, const at::Tensor& w0, const at::Tensor& b0,
                           const at::Tensor& w1, const at::Tensor& b1, const at::Tensor& points,
                           double box_warp, bool released_axes, double density_gain,
                           bool needs_planes, bool needs_weights, bool needs_points) {
  check_operands(planes, points);
  check_devices(planes, {grad_densities, grad_colors});
  const OnDeviceOf on(planes);
  const at::Tensor texels = as_channels_last(planes), where = points.contiguous();
  const at::Tensor of_densities = contiguous_or_none(grad_densities),
                   of_colors = contiguous_or_none(grad_colors);
  const PackedDecoder decoder(planes, w0, b0, w1, b1, on.stream());
  const int64_t count = points.size(1);
  const PlaneGradientSums plane_sums(planes, count, needs_planes, on.stream());
  const at::Tensor weight_sums = decoder.partial_sums(needs_weights);
  const at::Tensor grad_points =
      needs_points ? at::empty_like(where) : at::empty({0}, points.options());
  const DecodeBackward p{.planes = planes_of(texels, box_warp, released_axes),
                         .layout = decoder.layout,
                         .packed = decoder.data(),
                         .at = {.points = data_of(where),
                                .rows = points.size(0) * count,
                                .per_sample = count,
                                .per_ray = 1},
                         .density_gradients = data_of(of_densities),
                         .density_gain = density_gain,
                         .color_gradients = data_of(of_colors),
                         .color_gain = 1,
                         .color_weights = nullptr,
                         .bounds = plane_sums.bounds(),
                         .plane_sums = plane_sums.sums(),
                         .plane_marks = plane_sums.marks(),
                         .weight_sums = room_of(weight_sums),
                         .point_gradients = room_of(grad_points)};
  if (needs_planes) bound_outputs(p, dtype_of(planes), on.stream());
  decode_backward(p, dtype_of(planes), on.stream());
  const auto [grad_w0, grad_b0, grad_w1, grad_b1] = decoder.gradients(weight_sums);
  return {plane_sums.finish(), grad_w0, grad_b0, grad_w1, grad_b1, grad_points};
}

}  // namespace

TORCH_LIBRARY_IMPL(open_eg3d, OPEN_EG3D_CUDA_KEY, m) {
  m.impl("decode_points", decode);
  m.impl("decode_points_backward", decode_and_back);
}

}  // namespace open_eg3d::cuda
