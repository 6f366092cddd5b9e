// bias_act and its derivatives. Memory is walked in order, 16 bytes per thread and access where
// channels allow it. The backward pass sums the bias' gradient on the way: a block (or warp) leaves
// one row of partial sums, so that nothing depends on the order of the blocks.
#include "cuda/bias_act.h"

#include "cuda/activations.h"
#include "cuda/numbers.h"

namespace open_eg3d::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPacksPerThread = 4;
constexpr int kRowsPerBlock = 256;     // pixels of channels-last tensors whose sums one block makes
constexpr int64_t kRunPerWarp = 4096;  // numbers of one channel whose sum one warp makes

// Which channel a number is of: by products where numbers can be counted in 32 bits.
struct Channels {
  int64_t channels, inner;
  bool is_small;
  Divider by_inner, by_channels;

  explicit Channels(const ChannelLayout& layout)
      : channels(layout.channels),
        inner(layout.inner),
        is_small(layout.count <= 0x7fffffff),
        by_inner(is_small ? static_cast<uint32_t>(layout.inner) : 1),
        by_channels(is_small ? static_cast<uint32_t>(layout.channels) : 1) {}

  __device__ __forceinline__ int64_t of(int64_t i) const {
    if (is_small) return by_channels.modulo(by_inner.divide(static_cast<uint32_t>(i)));
    return i / inner % channels;
  }
};

// The per-channel numbers of a pack: one for all where a pack lies in one channel, else adjacent
// ones.
template <class T, int kPack>
__device__ __forceinline__ void load_channels(const T* numbers, int64_t channel, bool is_one,
                                              compute_t<T> (&to)[kPack]) {
#pragma unroll
  for (int k = 0; k < kPack; ++k)
    to[k] = numbers == nullptr ? compute_t<T>(0) : widen(numbers[channel + (is_one ? 0 : k)]);
}

template <class T, int kPack, bool kIsStraight>
__global__ void __launch_bounds__(kThreads)
    value_kernel(int64_t packs, Channels channels, Curve<compute_t<T>, kIsStraight> curve,
                 const T* x, const T* bias, T* y) {
  using W = compute_t<T>;
  const int64_t first = int64_t(blockIdx.x) * (kThreads * kPacksPerThread) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kPacksPerThread; ++i) {
    const int64_t pack = first + i * kThreads;
    if (pack >= packs) break;
    W shifts[kPack];
    load_channels<T, kPack>(bias, bias == nullptr ? 0 : channels.of(pack * kPack),
                            channels.inner > 1, shifts);
    Pack<T, kPack> numbers = load_pack<kPack>(x + pack * kPack);
#pragma unroll
    for (int k = 0; k < kPack; ++k)
      numbers.values[k] = narrow<T>(curve.value(widen(numbers.values[k]) + shifts[k]));
    store_pack(y + pack * kPack, numbers);
  }
}

template <class T>
struct Operands {
  const T *grad, *shift, *times, *at, *bias;
  T* result;
};

// One pack of the result; `sums` gains its numbers before rounding.
template <class T, int kPack, bool kIsStraight>
__device__ __forceinline__ void slope_pack(const Operands<T>& o,
                                           const Curve<compute_t<T>, kIsStraight>& curve,
                                           Slope slope, int64_t place,
                                           const compute_t<T> (&shifts)[kPack],
                                           const compute_t<T> (&biases)[kPack],
                                           compute_t<T> (&sums)[kPack]) {
  using W = compute_t<T>;
  const Pack<T, kPack> grads = load_pack<kPack>(o.grad + place),
                       ats = load_pack<kPack>(o.at + place);
  Pack<T, kPack> times{}, results;
  if (o.times != nullptr) times = load_pack<kPack>(o.times + place);
#pragma unroll
  for (int k = 0; k < kPack; ++k) {
    W grad = widen(grads.values[k]) + shifts[k];
    if (o.times != nullptr) grad *= widen(times.values[k]);
    const W at = widen(ats.values[k]) + biases[k];
    const W value = slope == Slope::kFromOutput  ? curve.from_output(grad, at)
                    : slope == Slope::kFromInput ? curve.from_input(grad, at)
                                                 : curve.from_second(grad, at);
    sums[k] += value;
    results.values[k] = narrow<T>(value);
  }
  store_pack(o.result + place, results);
}

// Without sums.
template <class T, int kPack, bool kIsStraight>
__global__ void __launch_bounds__(kThreads)
    slope_kernel(int64_t packs, Channels channels, Curve<compute_t<T>, kIsStraight> curve,
                 Slope slope, Operands<T> o) {
  const int64_t first = int64_t(blockIdx.x) * (kThreads * kPacksPerThread) + threadIdx.x;
  const bool has_channels = o.bias != nullptr || o.shift != nullptr;
  for (int i = 0; i < kPacksPerThread; ++i) {
    const int64_t pack = first + i * kThreads;
    if (pack >= packs) break;
    const int64_t channel = has_channels ? channels.of(pack * kPack) : 0;
    compute_t<T> shifts[kPack], biases[kPack], sums[kPack] = {};
    load_channels<T, kPack>(o.shift, channel, channels.inner > 1, shifts);
    load_channels<T, kPack>(o.bias, channel, channels.inner > 1, biases);
    slope_pack<T, kPack>(o, curve, slope, pack * kPack, shifts, biases, sums);
  }
}

// Channels-last: a block takes kRowsPerBlock pixels and `lanes` packs of channels (a power of two),
// kThreads / lanes pixels at a time.
template <class T, int kPack, bool kIsStraight>
__global__ void __launch_bounds__(kThreads)
    slope_rows_kernel(int64_t rows, int64_t channels, int lanes,
                      Curve<compute_t<T>, kIsStraight> curve, Slope slope, Operands<T> o,
                      compute_t<T>* partial_sums) {
  using W = compute_t<T>;
  OPEN_EG3D_SHARED(shared, W[kThreads * kPack]);
  const int lane = threadIdx.x % lanes, strip = threadIdx.x / lanes, strips = kThreads / lanes;
  const int64_t channel = (int64_t(blockIdx.y) * lanes + lane) * kPack,
                first = int64_t(blockIdx.x) * kRowsPerBlock;
  W sums[kPack] = {};
  if (channel < channels) {
    W shifts[kPack], biases[kPack];
    load_channels<T, kPack>(o.shift, channel, false, shifts);
    load_channels<T, kPack>(o.bias, channel, false, biases);
    const int64_t end = min(first + kRowsPerBlock, rows);
    for (int64_t row = first + strip; row < end; row += strips) {
      slope_pack<T, kPack>(o, curve, slope, row * channels + channel, shifts, biases, sums);
    }
  }
#pragma unroll
  for (int k = 0; k < kPack; ++k) shared[threadIdx.x * kPack + k] = sums[k];
  __syncthreads();
  const int width = lanes * kPack;
  for (int i = threadIdx.x; i < width; i += kThreads) {
    const int64_t target = int64_t(blockIdx.y) * width + i;
    if (target >= channels) continue;
    W total = 0;
    for (int s = 0; s < strips; ++s) total += shared[s * width + i];
    partial_sums[blockIdx.x * channels + target] = total;
  }
}

// Any other layout: a warp takes kRunPerWarp numbers of one channel, which are adjacent. Runs are
// counted outer, segment, channel.
template <class T, int kPack, bool kIsStraight>
__global__ void __launch_bounds__(kThreads)
    slope_runs_kernel(int64_t warps, int64_t segments, int64_t channels, int64_t inner,
                      Curve<compute_t<T>, kIsStraight> curve, Slope slope, Operands<T> o,
                      compute_t<T>* partial_sums) {
  using W = compute_t<T>;
  const int64_t warp = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  W sums[kPack] = {};
  if (warp < warps) {
    const int64_t channel = warp % channels, segment = warp / channels % segments,
                  outer = warp / channels / segments;
    const int64_t run = (outer * channels + channel) * inner, begin = segment * kRunPerWarp,
                  end = min(begin + kRunPerWarp, inner);
    W shifts[kPack], biases[kPack];
    load_channels<T, kPack>(o.shift, channel, true, shifts);
    load_channels<T, kPack>(o.bias, channel, true, biases);
    for (int64_t i = begin + int64_t(threadIdx.x % 32) * kPack; i < end; i += 32 * kPack) {
      slope_pack<T, kPack>(o, curve, slope, run + i, shifts, biases, sums);
    }
  }
  W total = 0;
#pragma unroll
  for (int k = 0; k < kPack; ++k) total += sums[k];
  total = warp_sum(total);
  if (warp < warps && threadIdx.x % 32 == 0) partial_sums[warp] = total;
}

template <class T>
Curve<compute_t<T>, true> make_curve(const ActivationSettings& s, std::true_type) {
  return Curve<compute_t<T>, true>(s, widen(narrow<T>(static_cast<compute_t<T>>(s.clamp))));
}

template <class T>
Curve<compute_t<T>, false> make_curve(const ActivationSettings& s, std::false_type) {
  return Curve<compute_t<T>, false>(s, widen(narrow<T>(static_cast<compute_t<T>>(s.clamp))));
}

// Calls body(curve) with a curve of the right kind.
template <class T, class Body>
void with_curve(const ActivationSettings& s, const Body& body) {
  if (has_straight_pieces(s.activation)) {
    body(make_curve<T>(s, std::true_type()));
  } else {
    body(make_curve<T>(s, std::false_type()));
  }
}

// Calls body(integral_constant) with the numbers that one access takes.
template <class T, class Body>
void with_pack(bool is_wide, const Body& body) {
  if (is_wide) {
    body(std::integral_constant<int, kWidestPack<T>>());
  } else {
    body(std::integral_constant<int, 1>());
  }
}

// A pack is of one channel, or of adjacent ones of one pixel.
bool packs_fit(const ChannelLayout& layout, int pack) {
  return layout.count % pack == 0 &&
         (layout.inner > 1 ? layout.inner % pack == 0 : layout.channels % pack == 0);
}

int lanes_for(int64_t channels, int pack) {
  int lanes = 1;
  while (lanes < 32 && int64_t(lanes) * pack < channels) lanes *= 2;
  return lanes;
}

int64_t segments_of(const ChannelLayout& layout) { return blocks_for(layout.inner, kRunPerWarp); }

}  // namespace

int64_t partial_rows(const ChannelLayout& layout, Dtype) {
  if (layout.count == 0) return 0;
  if (layout.inner == 1) return blocks_for<int64_t>(layout.count / layout.channels, kRowsPerBlock);
  return layout.count / (layout.channels * layout.inner) * segments_of(layout);
}

void bias_act(const ChannelLayout& layout, const ActivationSettings& settings, const void* x,
              const void* bias, void* y, Dtype type, Stream stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const auto *from = static_cast<const T*>(x), *shift = static_cast<const T*>(bias);
    auto* to = static_cast<T*>(y);
    constexpr int kWide = kWidestPack<T>;
    const bool fits = shift == nullptr ? layout.count % kWide == 0 : packs_fit(layout, kWide);
    with_pack<T>(fits && is_aligned(from, 0, kWide) && is_aligned(to, 0, kWide), [&](auto pack) {
      const int64_t packs = layout.count / pack();
      with_curve<T>(settings, [&]<bool kIsStraight>(const Curve<compute_t<T>, kIsStraight>& curve) {
        launch(value_kernel<T, pack(), kIsStraight>,
               {blocks_for<int64_t>(packs, kThreads * kPacksPerThread)}, {kThreads}, 0, stream,
               packs, Channels(layout), curve, from, shift, to);
      });
    });
  });
}

void bias_act_slope(const ChannelLayout& layout, const ActivationSettings& settings, Slope slope,
                    const SlopeOperands& operands, void* result, void* partial_sums, Dtype type,
                    Stream stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const auto typed = [](const void* numbers) { return static_cast<const T*>(numbers); };
    const Operands<T> o{typed(operands.grad), typed(operands.shift), typed(operands.times),
                        typed(operands.at),   typed(operands.bias),  static_cast<T*>(result)};
    auto* sums = static_cast<compute_t<T>*>(partial_sums);
    constexpr int kWide = kWidestPack<T>;
    const bool is_wide = packs_fit(layout, kWide) && is_aligned(o.grad, 0, kWide) &&
                         is_aligned(o.times, 0, kWide) && is_aligned(o.at, 0, kWide) &&
                         is_aligned(o.result, 0, kWide);
    with_pack<T>(is_wide, [&](auto pack) {
      with_curve<T>(settings, [&]<bool kIsStraight>(const Curve<compute_t<T>, kIsStraight>& curve) {
        if (sums == nullptr) {
          const int64_t packs = layout.count / pack();
          launch(slope_kernel<T, pack(), kIsStraight>,
                 {blocks_for<int64_t>(packs, kThreads * kPacksPerThread)}, {kThreads}, 0, stream,
                 packs, Channels(layout), curve, slope, o);
        } else if (layout.inner == 1) {
          const int lanes = lanes_for(layout.channels, pack());
          const int64_t rows = layout.channels == 0 ? 0 : layout.count / layout.channels;
          launch(slope_rows_kernel<T, pack(), kIsStraight>,
                 {partial_rows(layout, type), blocks_for<int64_t>(layout.channels, lanes * pack())},
                 {kThreads}, 0, stream, rows, layout.channels, lanes, curve, slope, o, sums);
        } else {
          const int64_t warps = partial_rows(layout, type) * layout.channels;
          launch(slope_runs_kernel<T, pack(), kIsStraight>,
                 {blocks_for<int64_t>(warps, kThreads / 32)}, {kThreads}, 0, stream, warps,
                 segments_of(layout), layout.channels, layout.inner, curve, slope, o, sums);
        }
      });
    });
  });
}

}  // namespace open_eg3d::cuda
