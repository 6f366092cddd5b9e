// bias_act and its derivatives on the CPU. Memory is walked in order, in blocks that stay in the
// first-level cache: a pass that loads and adds the bias, one for the activation, one that stores.
// What limits is the main memory, so that passes cost nothing.
#include "activations.h"
#include "channel_walk.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <vector>

namespace open_eg3d {
namespace {

using namespace pointwise;

template <typename T>
void forward_kernel(const at::Tensor& x, const std::optional<at::Tensor>& bias, int64_t dim,
                    std::string_view act, const Settings& s, const at::Tensor& y) {
  using acc_t = compute_t<T>;
  if (y.numel() == 0) {
    return;
  }
  const Walk walk(y, dim, bias.has_value());
  const Pattern<T> pattern(walk, bias);
  const auto pass = find_passes<acc_t>(act).value;
  const T* from = x.const_data_ptr<T>();
  T* to = y.mutable_data_ptr<T>();
  at::parallel_for(0, walk.units, grain(walk), [&](int64_t first, int64_t last) {
    std::vector<acc_t> room;
    std::array<acc_t, kBlock> block;
    for (int64_t u = first; u < last; ++u) {
      const acc_t* shift = pattern.of_unit(u, room);
      for_blocks(walk, u, [&](int64_t i, int64_t n, int64_t offset) {
        const acc_t* at = view_block(from + i, shifted(shift, offset), block.data(), n);
        if constexpr (std::is_same_v<T, acc_t>) {
          pass(at, to + i, n, s);
        } else {
          pass(at, block.data(), n, s);
          store_block(block.data(), to + i, n);
        }
      });
    }
  });
}

// result = (grad + shift) * times * slope(at + bias), and its sums per channel unless `sums` is
// empty; `times` is null for the first derivative.
template <typename T>
void slope_kernel(const at::Tensor& grad, const std::optional<at::Tensor>& shift,
                  const at::Tensor* times, const at::Tensor& at,
                  const std::optional<at::Tensor>& bias, int64_t dim,
                  typename Passes<compute_t<T>>::Slope pass, const Settings& s,
                  const at::Tensor& result, const at::Tensor& sums) {
  using acc_t = compute_t<T>;
  if (result.numel() == 0) {
    sums.zero_();
    return;
  }
  const bool wants_sum = sums.numel() > 0;
  const Walk walk(result, dim, bias || shift || wants_sum);
  const Pattern<T> biases(walk, bias), shifts(walk, shift);
  ChannelSums<T> channel_sums(walk);
  const T* from = grad.const_data_ptr<T>();
  const T* where = at.const_data_ptr<T>();
  const T* factors = times == nullptr ? nullptr : times->const_data_ptr<T>();
  T* to = result.mutable_data_ptr<T>();
  at::parallel_for(0, walk.units, grain(walk), [&](int64_t first, int64_t last) {
    std::vector<acc_t> bias_room, shift_room, unit_sums(walk.period);
    std::array<acc_t, kBlock> at_room, grad_room, factor_room;
    for (int64_t u = first; u < last; ++u) {
      const acc_t* bias_of_unit = biases.of_unit(u, bias_room);
      const acc_t* shift_of_unit = shifts.of_unit(u, shift_room);
      std::fill(unit_sums.begin(), unit_sums.end(), acc_t(0));
      for_blocks(walk, u, [&](int64_t i, int64_t n, int64_t offset) {
        const acc_t* at_block =
            view_block(where + i, shifted(bias_of_unit, offset), at_room.data(), n);
        const acc_t* grad_block =
            view_block(from + i, shifted(shift_of_unit, offset), grad_room.data(), n);
        if (factors != nullptr) {
          const acc_t* factor_block = view_block<T>(factors + i, nullptr, factor_room.data(), n);
          multiply_block(grad_block, factor_block, grad_room.data(), n);
          grad_block = grad_room.data();
        }
        if constexpr (std::is_same_v<T, acc_t>) {
          pass(at_block, grad_block, to + i, n, s);
          if (wants_sum) add_block(to + i, unit_sums.data() + offset, n);
        } else {
          pass(at_block, grad_block, grad_room.data(), n, s);
          if (wants_sum) add_block(grad_room.data(), unit_sums.data() + offset, n);
          store_block(grad_room.data(), to + i, n);
        }
      });
      if (wants_sum) channel_sums.fold(u, unit_sums);
    }
  });
  if (wants_sum) channel_sums.write(sums);
}

void check_channels(const at::Tensor& x, const std::optional<at::Tensor>& values, int64_t dim,
                    const char* what) {
  TORCH_CHECK(x.dim() == 0 || (dim >= 0 && dim < x.dim()), "bias_act: no dimension ", dim,
              " in a tensor of ", x.dim());
  if (values) {
    TORCH_CHECK(values->dim() == 1 && x.dim() > 0 && values->size(0) == x.size(dim) &&
                    values->scalar_type() == x.scalar_type(),
                "bias_act: ", what, " must have as many elements as dimension ", dim,
                ", and the same dtype");
  }
}

// Sizes and dtype of a second operand are checked, for its memory is read by the layout of the
// first.
void check_alike(const at::Tensor& x, const at::Tensor& other) {
  TORCH_CHECK(x.sizes() == other.sizes() && x.scalar_type() == other.scalar_type(),
              "bias_act: gradient of another size or dtype");
}

// The clamp's bound as numbers of type T have it, so that a saved output that was clamped is known
// again.
template <typename T>
Settings rounded_settings(double alpha, double gain, std::optional<double> clamp) {
  return {
      alpha, gain,
      clamp ? std::optional<double>(static_cast<double>(static_cast<T>(*clamp))) : std::nullopt};
}

#define DISPATCH(DTYPE, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, DTYPE, "bias_act", __VA_ARGS__)

at::Tensor bias_act(const at::Tensor& x, const std::optional<at::Tensor>& bias, int64_t dim,
                    c10::string_view act, double alpha, double gain, std::optional<double> clamp) {
  check_channels(x, bias, dim, "bias");
  const at::Tensor y = at::empty_like(x);
  const bool is_dense = same_layout(x, y);
  if (!is_dense) {
    y.copy_(x);  // then in place: no second buffer
  }
  DISPATCH(x.scalar_type(), [&] {
    forward_kernel<scalar_t>(is_dense ? x : y, bias, dim, act,
                             rounded_settings<scalar_t>(alpha, gain, clamp), y);
  });
  return y;
}

at::Tensor empty_sums(const at::Tensor& x, int64_t dim, bool wants_sum) {
  return at::empty({wants_sum ? x.size(dim) : 0}, x.options());
}

std::tuple<at::Tensor, at::Tensor> bias_act_backward(
    const at::Tensor& grad, const std::optional<at::Tensor>& shift, const at::Tensor& saved,
    const std::optional<at::Tensor>& bias, int64_t dim, c10::string_view act, double alpha,
    double gain, std::optional<double> clamp, bool is_output, bool wants_sum) {
  check_channels(saved, bias, dim, "bias");
  check_channels(saved, shift, dim, "shift");
  check_alike(saved, grad);
  const at::Tensor at = dense(saved);
  const at::Tensor g = dense_like(grad, at);
  const at::Tensor result = at::empty_like(at);
  const at::Tensor sums = empty_sums(saved, dim, wants_sum);
  DISPATCH(saved.scalar_type(), [&] {
    const auto passes = find_passes<compute_t<scalar_t>>(act);
    const auto pass = is_output ? passes.from_output : passes.from_input;
    slope_kernel<scalar_t>(g, shift, nullptr, at, bias, dim, pass,
                           rounded_settings<scalar_t>(alpha, gain, clamp), result, sums);
  });
  return {result, sums};
}

std::tuple<at::Tensor, at::Tensor> bias_act_double_backward(
    const at::Tensor& factor, const std::optional<at::Tensor>& shift, const at::Tensor& grad,
    const at::Tensor& x, const std::optional<at::Tensor>& bias, int64_t dim, c10::string_view act,
    double alpha, double gain, std::optional<double> clamp, bool wants_sum) {
  check_channels(x, bias, dim, "bias");
  check_channels(x, shift, dim, "shift");
  check_alike(x, grad);
  check_alike(x, factor);
  const at::Tensor at = dense(x);
  const at::Tensor f = dense_like(factor, at);
  const at::Tensor g = dense_like(grad, at);
  const at::Tensor result = at::empty_like(at);
  const at::Tensor sums = empty_sums(x, dim, wants_sum);
  DISPATCH(x.scalar_type(), [&] {
    const auto pass = find_passes<compute_t<scalar_t>>(act).second;
    slope_kernel<scalar_t>(f, shift, &g, at, bias, dim, pass,
                           rounded_settings<scalar_t>(alpha, gain, clamp), result, sums);
  });
  return {result, sums};
}

}  // namespace
}  // namespace open_eg3d

TORCH_LIBRARY_IMPL(open_eg3d, CPU, m) {
  m.impl("bias_act", open_eg3d::bias_act);
  m.impl("bias_act_backward", open_eg3d::bias_act_backward);
  m.impl("bias_act_double_backward", open_eg3d::bias_act_double_backward);
}
