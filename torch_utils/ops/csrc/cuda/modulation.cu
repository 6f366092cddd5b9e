// Element-wise parts of modulated convolutions, each in one pass over channels-last images, 16
// bytes an access where channels allow it. Sums leave a block as one row of partial sums, so that
// nothing depends on the order of the blocks.
#include "cuda/modulation.h"

#include "cuda/numbers.h"

namespace open_eg3d::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kPacksPerThread = 4;
constexpr int kChunk = 128;  // pixels of a block that sums

template <class W>
struct Operands {
  const W *scale, *noise, *bias;
  bool is_noise_shared;
  W slope, gain, bound;
  bool has_clamp;

  // What enters the leaky ReLU.
  __device__ __forceinline__ W pre_activation(W x, W scale_, W offset, W bias_) const {
    return x * scale_ + offset + bias_;
  }

  __device__ __forceinline__ W value(W z) const {
    const W y = (z > W(0) ? z : z * slope) * gain;
    if (!has_clamp) return y;
    const W lowered = y > bound ? bound : y;  // by comparisons: NaN stays
    return lowered < -bound ? -bound : lowered;
  }

  __device__ __forceinline__ W derivative(W z) const {
    const W factor = z > W(0) ? gain : gain * slope;
    if (!has_clamp) return factor;
    const W y = (z > W(0) ? z : z * slope) * gain;
    return y > bound || y < -bound ? W(0) : factor;
  }
};

template <class T>
Operands<compute_t<T>> make_operands(const Modulation& m) {
  using W = compute_t<T>;
  const auto typed = [](const void* numbers) { return static_cast<const W*>(numbers); };
  return {
      typed(m.scale),          typed(m.noise),         typed(m.bias),           m.is_noise_shared,
      static_cast<W>(m.slope), static_cast<W>(m.gain), static_cast<W>(m.clamp), m.has_clamp};
}

template <class W, int kPack>
__device__ __forceinline__ void load_row(const W* row, W otherwise, W (&to)[kPack]) {
#pragma unroll
  for (int k = 0; k < kPack; ++k) to[k] = row == nullptr ? otherwise : row[k];
}

// blockIdx.y = sample; with kOnlyScale nothing but x * scale.
template <class T, int kPack, bool kOnlyScale>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(PixelLayout layout, int64_t first_sample, Operands<compute_t<T>> o, const T* x,
                   T* y) {
  using W = compute_t<T>;
  const int64_t sample = first_sample + blockIdx.y, row_packs = layout.channels / kPack,
                packs = layout.pixels * row_packs;
  const int64_t first = int64_t(blockIdx.x) * (kThreads * kPacksPerThread) + threadIdx.x,
                base = sample * layout.pixels * layout.channels;
  const W* scales = o.scale == nullptr ? nullptr : o.scale + sample * layout.channels;
  const W* noise =
      o.noise == nullptr ? nullptr : o.noise + (o.is_noise_shared ? 0 : sample * layout.pixels);
  for (int i = 0; i < kPacksPerThread; ++i) {
    const int64_t pack = first + i * kThreads;
    if (pack >= packs) break;
    const bool is_small = packs <= 0x7fffffff;
    const int64_t pixel = is_small ? static_cast<uint32_t>(pack) / static_cast<uint32_t>(row_packs)
                                   : pack / row_packs;
    const int64_t channel = (pack - pixel * row_packs) * kPack;
    W scale[kPack], bias[kPack];
    load_row<W, kPack>(scales == nullptr ? nullptr : scales + channel, W(1), scale);
    load_row<W, kPack>(o.bias == nullptr ? nullptr : o.bias + channel, W(0), bias);
    const W offset = noise == nullptr ? W(0) : noise[pixel];
    Pack<T, kPack> numbers = load_pack<kPack>(x + base + pack * kPack);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const W number = widen(numbers.values[k]);
      numbers.values[k] =
          narrow<T>(kOnlyScale ? number * widen(narrow<T>(scale[k]))
                               : o.value(o.pre_activation(number, scale[k], offset, bias[k])));
    }
    store_pack(y + base + pack * kPack, numbers);
  }
}

template <class T>
struct Gradients {
  const T *grad, *x;
  T* grad_x;
  compute_t<T>*scale_sums, *bias_sums, *grad_noise;
};

// A block takes kChunk pixels of a sample and goes through their channels, 32 packs at a time; a
// warp takes every kWarps-th pixel, so that what it sums over channels is its own.
template <class T, int kPack, bool kOnlyScale>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(PixelLayout layout, int64_t chunks, Operands<compute_t<T>> o, Gradients<T> g) {
  using W = compute_t<T>;
  constexpr int kWidth = 32 * kPack;
  OPEN_EG3D_SHARED(scale_sums, W[kWarps][kWidth]);
  OPEN_EG3D_SHARED(bias_sums, W[kWarps][kWidth]);
  OPEN_EG3D_SHARED(noise_sums, W[kChunk]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t sample = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const int64_t first = chunk * kChunk;
  const int count = static_cast<int>(min(int64_t(kChunk), layout.pixels - first));
  const W* noise = o.noise == nullptr
                       ? nullptr
                       : o.noise + (o.is_noise_shared ? 0 : sample * layout.pixels) + first;
  const int64_t base = (sample * layout.pixels + first) * layout.channels;
  for (int64_t start = 0; start < layout.channels; start += kWidth) {
    const int64_t channel = start + lane * kPack;
    const bool is_there = channel < layout.channels;
    W scale[kPack] = {}, bias[kPack] = {}, of_scale[kPack] = {}, of_bias[kPack] = {};
    if (is_there) {
      load_row<W, kPack>(
          o.scale == nullptr ? nullptr : o.scale + sample * layout.channels + channel, W(1), scale);
      load_row<W, kPack>(o.bias == nullptr ? nullptr : o.bias + channel, W(0), bias);
    }
    for (int pixel = warp; pixel < count; pixel += kWarps) {
      const W offset = noise == nullptr ? W(0) : noise[pixel];
      W total = 0;
      if (is_there) {
        const int64_t place = base + pixel * layout.channels + channel;
        const Pack<T, kPack> grads = load_pack<kPack>(g.grad + place),
                             numbers = load_pack<kPack>(g.x + place);
        Pack<T, kPack> results;
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
          const W x = widen(numbers.values[k]);
          const W slope =
              kOnlyScale ? W(1) : o.derivative(o.pre_activation(x, scale[k], offset, bias[k]));
          const W delta = widen(grads.values[k]) * slope;
          results.values[k] = narrow<T>(delta * scale[k]);
          of_scale[k] += delta * x;
          of_bias[k] += delta;
          total += delta;
        }
        store_pack(g.grad_x + place, results);
      }
      if (g.grad_noise != nullptr) {
        total = warp_sum(total);
        if (lane == 0) noise_sums[pixel] = start == 0 ? total : noise_sums[pixel] + total;
      }
    }
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      scale_sums[warp][lane * kPack + k] = of_scale[k];
      bias_sums[warp][lane * kPack + k] = of_bias[k];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kWidth && start + i < layout.channels; i += kThreads) {
      W scale_total = 0, bias_total = 0;
      for (int w = 0; w < kWarps; ++w)
        scale_total += scale_sums[w][i], bias_total += bias_sums[w][i];
      const int64_t place = blockIdx.x * layout.channels + start + i;
      g.scale_sums[place] = scale_total;
      if (g.bias_sums != nullptr) g.bias_sums[place] = bias_total;
    }
    __syncthreads();  // before the next channels' sums take the place of these
  }
  if (g.grad_noise == nullptr) return;
  for (int pixel = threadIdx.x; pixel < count; pixel += kThreads)
    g.grad_noise[sample * layout.pixels + first + pixel] = noise_sums[pixel];
}

template <class T, bool kOnlyScale>
void run_forward(const PixelLayout& layout, const Operands<compute_t<T>>& o, const void* from,
                 void* to, Stream stream) {
  constexpr int kWide = kWidestPack<T>;
  const T* x = static_cast<const T*>(from);
  T* y = static_cast<T*>(to);
  const bool is_wide =
      layout.channels % kWide == 0 && is_aligned(x, 0, kWide) && is_aligned(y, 0, kWide);
  const int64_t blocks = blocks_for<int64_t>(
      layout.pixels * layout.channels / (is_wide ? kWide : 1), kThreads * kPacksPerThread);
  for (int64_t sample = 0; sample < layout.samples; sample += kMostBlocksYZ) {
    const Extent grid{blocks, std::min(kMostBlocksYZ, layout.samples - sample)};
    if (is_wide) {
      launch(forward_kernel<T, kWide, kOnlyScale>, grid, {kThreads}, 0, stream, layout, sample, o,
             x, y);
    } else {
      launch(forward_kernel<T, 1, kOnlyScale>, grid, {kThreads}, 0, stream, layout, sample, o, x,
             y);
    }
  }
}

template <class T, bool kOnlyScale>
void run_backward(const PixelLayout& layout, const Operands<compute_t<T>>& o,
                  const ModulationGradients& gradients, Stream stream) {
  using W = compute_t<T>;
  constexpr int kWide = kWidestPack<T>;
  const Gradients<T> g{
      static_cast<const T*>(gradients.grad), static_cast<const T*>(gradients.x),
      static_cast<T*>(gradients.grad_x),     static_cast<W*>(gradients.scale_sums),
      static_cast<W*>(gradients.bias_sums),  static_cast<W*>(gradients.grad_noise)};
  const bool fits = layout.channels % kWide == 0 && is_aligned(g.grad, 0, kWide) &&
                    is_aligned(g.x, 0, kWide) && is_aligned(g.grad_x, 0, kWide);
  // With few channels, wide packs would leave most lanes of a warp without work.
  const bool is_wide = fits && layout.channels >= 16 * kWide;
  if (layout.channels == 0) return;
  const int64_t chunks = modulation_chunks(layout);
  const Extent grid{layout.samples * chunks};
  if (is_wide) {
    launch(backward_kernel<T, kWide, kOnlyScale>, grid, {kThreads}, 0, stream, layout, chunks, o,
           g);
  } else {
    launch(backward_kernel<T, 1, kOnlyScale>, grid, {kThreads}, 0, stream, layout, chunks, o, g);
  }
}

Modulation only_scale(const PixelLayout& layout, const void* scale) {
  return {layout, scale, nullptr, false, nullptr, 1, 1, false, 0};
}

}  // namespace

int64_t modulation_chunks(const PixelLayout& layout) {
  return blocks_for<int64_t>(layout.pixels, kChunk);
}

void modulated_lrelu(const Modulation& modulation, const void* x, void* y, Dtype type,
                     Stream stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    run_forward<T, false>(modulation.layout, make_operands<T>(modulation), x, y, stream);
  });
}

void scale_channels(const PixelLayout& layout, const void* x, const void* scale, void* y,
                    Dtype type, Stream stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    run_forward<T, true>(layout, make_operands<T>(only_scale(layout, scale)), x, y, stream);
  });
}

void modulated_lrelu_backward(const Modulation& modulation, const ModulationGradients& gradients,
                              Dtype type, Stream stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    run_backward<T, false>(modulation.layout, make_operands<T>(modulation), gradients, stream);
  });
}

void scale_channels_backward(const PixelLayout& layout, const void* scale,
                             const ModulationGradients& gradients, Dtype type, Stream stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    run_backward<T, true>(layout, make_operands<T>(only_scale(layout, scale)), gradients, stream);
  });
}

}  // namespace open_eg3d::cuda
