// Element-wise parts of modulated convolutions on channels-last images, each in one pass over
// memory.
//
// Work is cut into blocks of pixels of one sample whose size depends on the tensor alone. Sums are
// kept per block and added in the order of the blocks, so results do not depend on the number of
// threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/numbers.h"

namespace open_eg3d {
namespace {

constexpr int64_t kBlockElements = 1 << 15;

template <typename T>
void widen_row(const T* __restrict from, Sum<T>* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]);
}

// An image tensor cut into blocks of pixels.
struct Blocks {
  int64_t samples, channels, pixels, block_pixels, per_sample;

  explicit Blocks(const at::Tensor& x)
      : samples(x.size(0)),
        channels(x.size(1)),
        pixels(x.size(2) * x.size(3)),
        block_pixels(std::max<int64_t>(1, kBlockElements / std::max<int64_t>(1, channels))),
        per_sample((pixels + block_pixels - 1) / block_pixels) {}

  int64_t count() const { return channels == 0 ? 0 : samples * per_sample; }

  // body(block, sample, first pixel of the sample, one past the last)
  template <typename Body>
  void for_each(const Body& body) const {
    at::parallel_for(0, count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block % per_sample * block_pixels;
        body(block, block / per_sample, first, std::min(first + block_pixels, pixels));
      }
    });
  }
};

at::Tensor as_channels_last(const at::Tensor& x) {
  return x.contiguous(at::MemoryFormat::ChannelsLast);
}

// A row of `count` numbers for one sample out of (rows, count), or `value` where the tensor is
// absent.
template <typename W>
void fill_row(const at::Tensor& values, int64_t row, W value, std::vector<W>& target) {
  const auto count = static_cast<int64_t>(target.size());
  if (values.defined()) {
    const W* source = values.const_data_ptr<W>() + row * count;
    std::copy(source, source + count, target.begin());
  } else {
    std::fill(target.begin(), target.end(), value);
  }
}

// The small operands of modulated_lrelu in the type that is computed in.
struct Operands {
  at::Tensor scale, noise, bias;  // (N, C), (N or 1, pixels), (C), or undefined

  Operands(const std::optional<at::Tensor>& s, const std::optional<at::Tensor>& n,
           const std::optional<at::Tensor>& b, at::ScalarType type) {
    const auto prepare = [type](const std::optional<at::Tensor>& value) {
      return value.has_value() && value->defined() ? value->to(type).contiguous() : at::Tensor();
    };
    scale = prepare(s), noise = prepare(n), bias = prepare(b);
  }

  template <typename W>
  const W* noise_of(int64_t sample, int64_t pixels) const {
    return noise.defined() ? noise.const_data_ptr<W>() + (noise.size(0) == 1 ? 0 : sample * pixels)
                           : nullptr;
  }
};

template <typename W>
struct LeakyRelu {
  W slope, gain, limit;

  W operator()(W z) const {
    const W y = (z > 0 ? z : z * slope) * gain;
    return y > limit ? limit : (y < -limit ? -limit : y);  // a NaN stays
  }

  W derivative(W z) const {
    const W y = (z > 0 ? z : z * slope) * gain;
    const W d = z > 0 ? gain : gain * slope;
    return std::abs(y) > limit ? W(0) : d;
  }
};

template <typename W>
LeakyRelu<W> make_activation(double slope, double gain, std::optional<double> clamp) {
  return {static_cast<W>(slope), static_cast<W>(gain),
          clamp ? static_cast<W>(*clamp) : std::numeric_limits<W>::infinity()};
}

template <typename T>
void forward(const at::Tensor& x, const Operands& operands, LeakyRelu<Sum<T>> act, at::Tensor& y) {
  using W = Sum<T>;
  const Blocks blocks(x);
  const int64_t channels = blocks.channels;
  const T* source = x.const_data_ptr<T>();
  T* target = y.mutable_data_ptr<T>();
  blocks.for_each([&](int64_t, int64_t sample, int64_t first, int64_t last) {
    std::vector<W> scale(channels), bias(channels), row(channels);
    fill_row(operands.scale, sample, W(1), scale);
    fill_row(operands.bias, 0, W(0), bias);
    const W* noise = operands.noise_of<W>(sample, blocks.pixels);
    const W *s = scale.data(), *b = bias.data();
    W* r = row.data();
    for (int64_t pixel = first; pixel < last; ++pixel) {
      const int64_t at = (sample * blocks.pixels + pixel) * channels;
      const W offset = noise ? noise[pixel] : W(0);
      widen_row(source + at, r, channels);
      for (int64_t c = 0; c < channels; ++c) r[c] = act(r[c] * s[c] + offset + b[c]);
      narrow_row(r, target + at, channels);
    }
  });
}

template <typename T>
void backward(const at::Tensor& grad, const at::Tensor& x, const Operands& operands,
              LeakyRelu<Sum<T>> act, at::Tensor& grad_x, at::Tensor& scale_sums,
              at::Tensor& bias_sums, at::Tensor& grad_noise) {
  using W = Sum<T>;
  const Blocks blocks(x);
  const int64_t channels = blocks.channels;
  const T *gradient = grad.const_data_ptr<T>(), *source = x.const_data_ptr<T>();
  T* target = grad_x.mutable_data_ptr<T>();
  W *all_scale = scale_sums.mutable_data_ptr<W>(), *all_bias = bias_sums.mutable_data_ptr<W>();
  W* all_noise = grad_noise.defined() ? grad_noise.mutable_data_ptr<W>() : nullptr;
  blocks.for_each([&](int64_t block, int64_t sample, int64_t first, int64_t last) {
    std::vector<W> scale(channels), bias(channels), rows(channels);
    fill_row(operands.scale, sample, W(1), scale);
    fill_row(operands.bias, 0, W(0), bias);
    const W* noise = operands.noise_of<W>(sample, blocks.pixels);
    const W* __restrict s = scale.data(), * __restrict b = bias.data();
    W* __restrict out = rows.data();
    W* __restrict scale_sum = all_scale + block * channels;
    W* __restrict bias_sum = all_bias + block * channels;
    for (int64_t pixel = first; pixel < last; ++pixel) {
      const int64_t at = (sample * blocks.pixels + pixel) * channels;
      const T* __restrict x_row = source + at, * __restrict d_row = gradient + at;
      const W offset = noise ? noise[pixel] : W(0);
      W total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t c = 0; c < channels; ++c) {
        const W value = widen(x_row[c]);
        const W delta = widen(d_row[c]) * act.derivative(value * s[c] + offset + b[c]);
        out[c] = delta * s[c];
        scale_sum[c] += delta * value;
        bias_sum[c] += delta;
        total += delta;
      }
      narrow_row(out, target + at, channels);
      if (all_noise) all_noise[sample * blocks.pixels + pixel] = total;
    }
  });
}

template <typename T>
void scale_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                    at::Tensor& grad_x, at::Tensor& scale_sums) {
  using W = Sum<T>;
  const Blocks blocks(x);
  const int64_t channels = blocks.channels;
  const T *gradient = grad.const_data_ptr<T>(), *source = x.const_data_ptr<T>();
  T* target = grad_x.mutable_data_ptr<T>();
  W* all_scale = scale_sums.mutable_data_ptr<W>();
  blocks.for_each([&](int64_t block, int64_t sample, int64_t first, int64_t last) {
    std::vector<W> rows(3 * channels);
    const W* s = scale.const_data_ptr<W>() + sample * channels;
    W* __restrict value = rows.data();
    W* __restrict d = value + channels;
    W* __restrict out = d + channels;
    W* __restrict scale_sum = all_scale + block * channels;
    for (int64_t pixel = first; pixel < last; ++pixel) {
      const int64_t at = (sample * blocks.pixels + pixel) * channels;
      widen_row(source + at, value, channels);
      widen_row(gradient + at, d, channels);
      for (int64_t c = 0; c < channels; ++c) {
        out[c] = d[c] * s[c];
        scale_sum[c] += d[c] * value[c];
      }
      narrow_row(out, target + at, channels);
    }
  });
}

at::ScalarType wide_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor block_sums(const at::Tensor& x) {
  const Blocks blocks(x);
  return at::zeros({blocks.samples, blocks.per_sample, blocks.channels},
                   x.options().dtype(wide_type(x)).memory_format(at::MemoryFormat::Contiguous));
}

// Sums over `dims` in double precision, which at these sizes costs nothing.
at::Tensor total(const at::Tensor& sums, at::IntArrayRef dims) {
  return sums.sum(dims, false, at::kDouble).to(sums.scalar_type());
}

at::Tensor modulated_lrelu(const at::Tensor& x, const std::optional<at::Tensor>& scale,
                           const std::optional<at::Tensor>& noise,
                           const std::optional<at::Tensor>& bias, double slope, double gain,
                           std::optional<double> clamp) {
  const at::Tensor images = as_channels_last(x);
  const Operands operands(scale, noise, bias, wide_type(x));
  at::Tensor y = at::empty_like(images, at::MemoryFormat::ChannelsLast);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "modulated_lrelu", [&] {
        forward<scalar_t>(images, operands, make_activation<Sum<scalar_t>>(slope, gain, clamp), y);
      });
  return y;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> modulated_lrelu_backward(
    const at::Tensor& grad, const at::Tensor& x, const std::optional<at::Tensor>& scale,
    const std::optional<at::Tensor>& noise, const std::optional<at::Tensor>& bias, double slope,
    double gain, std::optional<double> clamp) {
  const at::Tensor images = as_channels_last(x),
                   gradients = as_channels_last(grad.to(x.scalar_type()));
  const Operands operands(scale, noise, bias, wide_type(x));
  at::Tensor grad_x = at::empty_like(images, at::MemoryFormat::ChannelsLast);
  at::Tensor scale_sums = block_sums(x), bias_sums = block_sums(x), grad_noise;
  const bool has_noise = operands.noise.defined();
  if (has_noise) grad_noise = at::zeros({x.size(0), 1, x.size(2), x.size(3)}, scale_sums.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "modulated_lrelu_backward", [&] {
        const auto act = make_activation<Sum<scalar_t>>(slope, gain, clamp);
        backward<scalar_t>(gradients, images, operands, act, grad_x, scale_sums, bias_sums,
                           grad_noise);
      });
  if (has_noise && operands.noise.size(0) == 1 && x.size(0) != 1)
    grad_noise = grad_noise.sum(0, true);
  if (!has_noise) grad_noise = at::empty({0}, scale_sums.options());
  return {grad_x, total(scale_sums, {1}), grad_noise, total(bias_sums, {0, 1})};
}

at::Tensor scale_channels(const at::Tensor& x, const at::Tensor& scale) {
  return as_channels_last(x).mul(scale.to(x.scalar_type()).unsqueeze(-1).unsqueeze(-1));
}

std::tuple<at::Tensor, at::Tensor> scale_channels_backward(const at::Tensor& grad,
                                                           const at::Tensor& x,
                                                           const at::Tensor& scale) {
  const at::Tensor images = as_channels_last(x),
                   gradients = as_channels_last(grad.to(x.scalar_type()));
  const at::Tensor factors = scale.to(wide_type(x)).contiguous();
  at::Tensor grad_x = at::empty_like(images, at::MemoryFormat::ChannelsLast),
             scale_sums = block_sums(x);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "scale_channels_backward",
      [&] { scale_backward<scalar_t>(gradients, images, factors, grad_x, scale_sums); });
  return {grad_x, total(scale_sums, {1})};
}

}  // namespace
}  // namespace open_eg3d

TORCH_LIBRARY_IMPL(open_eg3d, CPU, m) {
  m.impl("modulated_lrelu", open_eg3d::modulated_lrelu);
  m.impl("modulated_lrelu_backward", open_eg3d::modulated_lrelu_backward);
  m.impl("scale_channels", open_eg3d::scale_channels);
  m.impl("scale_channels_backward", open_eg3d::scale_channels_backward);
}
