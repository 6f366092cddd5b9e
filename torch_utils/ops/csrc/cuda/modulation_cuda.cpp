// Element-wise parts of modulated convolutions for tensors on CUDA devices: checks, memory,
// launches.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "cuda/binding.h"
#include "cuda/modulation.h"

namespace open_eg3d::cuda {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor as_channels_last(const at::Tensor& x) {
  return x.contiguous(at::MemoryFormat::ChannelsLast);
}

PixelLayout layout_of(const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 4, "x has ", x.dim(), " dimensions instead of 4");
  return {x.size(0), x.size(2) * x.size(3), x.size(1)};
}

// The small operands in the type that is computed in, as long as the kernel is launched.
struct Operands {
  at::Tensor scale, noise, bias;

  Operands(const at::Tensor& x, const OptionalTensor& s, const OptionalTensor& n,
           const OptionalTensor& b) {
    check_devices(x, {s, n, b});
    const auto prepare = [&](const OptionalTensor& value) {
      return value ? value->to(wide_type(x)).contiguous() : at::Tensor();
    };
    scale = prepare(s), noise = prepare(n), bias = prepare(b);
    TORCH_CHECK(!s || (s->numel() == x.size(0) * x.size(1)),
                "scale needs a number for each sample and channel");
    TORCH_CHECK(!n || (n->dim() == 4 && (n->size(0) == 1 || n->size(0) == x.size(0)) &&
                       n->numel() == n->size(0) * x.size(2) * x.size(3)),
                "noise needs a number for each pixel, of one sample or all");
    TORCH_CHECK(!b || b->numel() == x.size(1), "bias needs a number for each channel");
  }

  static const void* data(const at::Tensor& values) {
    return values.defined() ? values.const_data_ptr() : nullptr;
  }

  bool is_noise_shared() const { return noise.defined() && noise.size(0) == 1; }

  Modulation modulation(const at::Tensor& x, double slope, double gain,
                        std::optional<double> clamp) const {
    return {layout_of(x), data(scale), data(noise),       is_noise_shared(), data(bias),
            slope,        gain,        clamp.has_value(), clamp.value_or(0)};
  }
};

at::Tensor chunk_sums(const at::Tensor& x) {
  return at::empty({x.size(0), modulation_chunks(layout_of(x)), x.size(1)},
                   x.options().dtype(wide_type(x)));
}

at::Tensor total(const at::Tensor& sums, at::IntArrayRef dims) {
  return sums.sum(dims, false, at::kDouble).to(sums.scalar_type());
}

at::Tensor forward(const at::Tensor& x, const OptionalTensor& scale, const OptionalTensor& noise,
                   const OptionalTensor& bias, double slope, double gain,
                   std::optional<double> clamp) {
  const OnDeviceOf device(x);
  const at::Tensor images = as_channels_last(x),
                   y = at::empty_like(images, at::MemoryFormat::ChannelsLast);
  const Operands operands(x, scale, noise, bias);
  modulated_lrelu(operands.modulation(x, slope, gain, clamp), images.const_data_ptr(),
                  y.mutable_data_ptr(), dtype_of(x), device.stream());
  return y;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& scale,
    const OptionalTensor& noise, const OptionalTensor& bias, double slope, double gain,
    std::optional<double> clamp) {
  check_devices(x, {grad});
  TORCH_CHECK(grad.sizes() == x.sizes(), "a gradient of another size");
  const OnDeviceOf device(x);
  const at::Tensor images = as_channels_last(x),
                   gradients = as_channels_last(grad.to(x.scalar_type()));
  const Operands operands(x, scale, noise, bias);
  const at::Tensor grad_x = at::empty_like(images, at::MemoryFormat::ChannelsLast),
                   scale_sums = chunk_sums(x), bias_sums = chunk_sums(x);
  const bool has_noise = operands.noise.defined();
  at::Tensor grad_noise =
      has_noise ? at::empty({x.size(0), 1, x.size(2), x.size(3)}, scale_sums.options())
                : at::empty({0}, scale_sums.options());
  if (has_noise && x.size(1) == 0) grad_noise.zero_();
  modulated_lrelu_backward(
      operands.modulation(x, slope, gain, clamp),
      {gradients.const_data_ptr(), images.const_data_ptr(), grad_x.mutable_data_ptr(),
       scale_sums.mutable_data_ptr(), bias_sums.mutable_data_ptr(),
       has_noise ? grad_noise.mutable_data_ptr() : nullptr},
      dtype_of(x), device.stream());
  if (operands.is_noise_shared() && x.size(0) != 1) grad_noise = grad_noise.sum(0, true);
  return {grad_x, total(scale_sums, {1}), grad_noise, total(bias_sums, {0, 1})};
}

at::Tensor scale(const at::Tensor& x, const at::Tensor& factors) {
  const OnDeviceOf device(x);
  const at::Tensor images = as_channels_last(x),
                   y = at::empty_like(images, at::MemoryFormat::ChannelsLast);
  const Operands operands(x, factors, {}, {});
  scale_channels(layout_of(x), images.const_data_ptr(), operands.scale.const_data_ptr(),
                 y.mutable_data_ptr(), dtype_of(x), device.stream());
  return y;
}

std::tuple<at::Tensor, at::Tensor> scale_backward(const at::Tensor& grad, const at::Tensor& x,
                                                  const at::Tensor& factors) {
  check_devices(x, {grad});
  TORCH_CHECK(grad.sizes() == x.sizes(), "a gradient of another size");
  const OnDeviceOf device(x);
  const at::Tensor images = as_channels_last(x),
                   gradients = as_channels_last(grad.to(x.scalar_type()));
  const Operands operands(x, factors, {}, {});
  const at::Tensor grad_x = at::empty_like(images, at::MemoryFormat::ChannelsLast),
                   sums = chunk_sums(x);
  scale_channels_backward(layout_of(x), operands.scale.const_data_ptr(),
                          {gradients.const_data_ptr(), images.const_data_ptr(),
                           grad_x.mutable_data_ptr(), sums.mutable_data_ptr(), nullptr, nullptr},
                          dtype_of(x), device.stream());
  return {grad_x, total(sums, {1})};
}

}  // namespace
}  // namespace open_eg3d::cuda

TORCH_LIBRARY_IMPL(open_eg3d, OPEN_EG3D_CUDA_KEY, m) {
  m.impl("modulated_lrelu", open_eg3d::cuda::forward);
  m.impl("modulated_lrelu_backward", open_eg3d::cuda::backward);
  m.impl("scale_channels", open_eg3d::cuda::scale);
  m.impl("scale_channels_backward", open_eg3d::cuda::scale_backward);
}
