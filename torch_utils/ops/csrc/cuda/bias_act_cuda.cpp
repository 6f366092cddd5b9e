// bias_act and its derivatives for tensors on CUDA devices: checks, memory, launches.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "cuda/bias_act.h"
#include "cuda/binding.h"

namespace open_eg3d::cuda {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Backward = std::tuple<at::Tensor, at::Tensor>;

Activation find_activation(c10::string_view name) {
  constexpr const char* kNames[] = {"linear", "relu", "lrelu",    "tanh", "sigmoid",
                                    "elu",    "selu", "softplus", "swish"};
  for (int i = 0; i < 9; ++i)
    if (name == kNames[i]) return static_cast<Activation>(i);
  TORCH_CHECK(false, "bias_act: unknown activation ", name);
}

ActivationSettings make_settings(c10::string_view act, double alpha, double gain,
                                 std::optional<double> clamp) {
  return {find_activation(act), alpha, gain, clamp.has_value(), clamp.value_or(0)};
}

bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

at::Tensor dense(const at::Tensor& x) {
  return x.is_non_overlapping_and_dense() ? x : at::empty_like(x).copy_(x);
}

at::Tensor dense_like(const at::Tensor& x, const at::Tensor& model) {
  return same_layout(x, model) ? x : at::empty_like(model, x.options()).copy_(x);
}

// Of a tensor without gaps: what is right of `dim` in memory is what its stride counts.
ChannelLayout layout_of(const at::Tensor& x, int64_t dim) {
  if (x.dim() == 0 || x.numel() == 0) return {x.numel(), 1, 1};
  return {x.numel(), x.size(dim), x.size(dim) > 1 ? x.stride(dim) : 1};
}

const void* data_of(const OptionalTensor& x) {
  return x && x->defined() ? x->const_data_ptr() : nullptr;
}

void check_channels(const at::Tensor& x, const OptionalTensor& values, int64_t dim,
                    const char* what) {
  TORCH_CHECK(x.dim() == 0 || (dim >= 0 && dim < x.dim()), "bias_act: no dimension ", dim,
              " in a tensor of ", x.dim());
  check_devices(x, {values});
  if (!values) return;
  TORCH_CHECK(values->dim() == 1 && x.dim() > 0 && values->size(0) == x.size(dim) &&
                  values->scalar_type() == x.scalar_type(),
              "bias_act: ", what, " must have as many elements as dimension ", dim,
              ", and the same dtype");
}

void check_alike(const at::Tensor& x, const at::Tensor& other) {
  check_devices(x, {other});
  TORCH_CHECK(x.sizes() == other.sizes() && x.scalar_type() == other.scalar_type(),
              "bias_act: gradient of another size or dtype");
}

OptionalTensor contiguous(const OptionalTensor& x) {
  return x ? OptionalTensor(x->contiguous()) : x;
}

at::Tensor forward(const at::Tensor& x, const OptionalTensor& bias, int64_t dim,
                   c10::string_view act, double alpha, double gain, std::optional<double> clamp) {
  check_channels(x, bias, dim, "bias");
  const OnDeviceOf device(x);
  const at::Tensor y = at::empty_like(x);
  const at::Tensor from = dense_like(x, y);
  const OptionalTensor shift = contiguous(bias);
  bias_act(layout_of(y, dim), make_settings(act, alpha, gain, clamp), from.const_data_ptr(),
           data_of(shift), y.mutable_data_ptr(), dtype_of(x), device.stream());
  return y;
}

// What both derivatives do: the launch, and the sums of the partial sums.
Backward slope_and_sums(Slope slope, const at::Tensor& grad, const OptionalTensor& shift,
                        const OptionalTensor& times, const at::Tensor& at,
                        const OptionalTensor& bias, int64_t dim, const ActivationSettings& settings,
                        bool wants_sum) {
  const OnDeviceOf device(at);
  const at::Tensor where = dense(at), from = dense_like(grad, where),
                   result = at::empty_like(where);
  const OptionalTensor factor = times ? OptionalTensor(dense_like(*times, where)) : times;
  const OptionalTensor shifts = contiguous(shift), biases = contiguous(bias);
  const ChannelLayout layout = layout_of(where, dim);
  at::Tensor partial;
  if (wants_sum)
    partial = at::empty({partial_rows(layout, dtype_of(at)), at.size(dim)},
                        at.options().dtype(wide_type(at)));
  const SlopeOperands operands{from.const_data_ptr(), data_of(shifts), data_of(factor),
                               where.const_data_ptr(), data_of(biases)};
  bias_act_slope(layout, settings, slope, operands, result.mutable_data_ptr(),
                 wants_sum ? partial.mutable_data_ptr() : nullptr, dtype_of(at), device.stream());
  const at::Tensor sums = wants_sum ? partial.sum(0, false, at::kDouble).to(at.scalar_type())
                                    : at::empty({0}, at.options());
  return {result, sums};
}

Backward backward(const at::Tensor& grad, const OptionalTensor& shift, const at::Tensor& saved,
                  const OptionalTensor& bias, int64_t dim, c10::string_view act, double alpha,
                  double gain, std::optional<double> clamp, bool is_output, bool wants_sum) {
  check_channels(saved, bias, dim, "bias");
  check_channels(saved, shift, dim, "shift");
  check_alike(saved, grad);
  return slope_and_sums(is_output ? Slope::kFromOutput : Slope::kFromInput, grad, shift,
                        std::nullopt, saved, bias, dim, make_settings(act, alpha, gain, clamp),
                        wants_sum);
}

Backward double_backward(const at::Tensor& factor, const OptionalTensor& shift,
                         const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& bias,
                         int64_t dim, c10::string_view act, double alpha, double gain,
                         std::optional<double> clamp, bool wants_sum) {
  check_channels(x, bias, dim, "bias");
  check_channels(x, shift, dim, "shift");
  check_alike(x, grad);
  check_alike(x, factor);
  return slope_and_sums(Slope::kSecond, factor, shift, grad, x, bias, dim,
                        make_settings(act, alpha, gain, clamp), wants_sum);
}

}  // namespace
}  // namespace open_eg3d::cuda

TORCH_LIBRARY_IMPL(open_eg3d, OPEN_EG3D_CUDA_KEY, m) {
  m.impl("bias_act", open_eg3d::cuda::forward);
  m.impl("bias_act_backward", open_eg3d::cuda::backward);
  m.impl("bias_act_double_backward", open_eg3d::cuda::double_backward);
}
