// CUDA kernels of decode_points: blocks take tiles of points or samples, decode them in shared
// memory, and go back the same way.
#include "cuda/decode_points.h"

#include "cuda/triplane/planes.h"

namespace open_eg3d::cuda {
namespace {

constexpr int kBlocks = 2048;  // that share the tiles, where nothing depends on it

// ------------------------------------------------------------------------------------------
// The decoder

template <class T>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const DecoderWeights from, const DecoderLayout layout, T* to) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= layout.total) return;
  const T *const w0 = static_cast<const T*>(from.w0), *const b0 = static_cast<const T*>(from.b0);
  const T *const w1 = static_cast<const T*>(from.w1), *const b1 = static_cast<const T*>(from.b1);
  const int features_row = DecoderLayout::row(layout.features4),
            hidden_row = DecoderLayout::row(layout.hidden4);
  T value = 0;
  if (i < layout.w1) {
    const int h = i / features_row, c = i % features_row;
    if (h < layout.hidden && c < layout.features) value = w0[h * layout.features + c] / kPlanes;
  } else if (i < layout.b0) {  // colours, then the density, which comes first in what is given
    const int k = i < layout.density ? (i - layout.w1) / hidden_row + 1 : 0,
              h = (i - layout.w1) % hidden_row;
    if (k <= layout.colors && h < layout.hidden) value = w1[k * layout.hidden + h];
  } else if (i < layout.b1) {
    if (i - layout.b0 < layout.hidden) value = b0[i - layout.b0];
  } else if (i < layout.density_bias) {
    if (i - layout.b1 < layout.colors) value = b1[i - layout.b1 + 1];
  } else if (i == layout.density_bias) {
    value = b1[0];
  }
  to[i] = value;
}

// The largest absolute sum over hidden units of what an output's gradient becomes on its way to any
// one feature. The softplus between has a slope of at most one.
template <class T>
__global__ void __launch_bounds__(kThreads)
    bound_decoder_kernel(const T* packed, const DecoderLayout layout, unsigned* bound) {
  const int features_row = DecoderLayout::row(layout.features4),
            hidden_row = DecoderLayout::row(layout.hidden4);
  const int k = blockIdx.x * kWarps + threadIdx.x / kLanes;
  float sum = 0;
  for (int h = threadIdx.x % kLanes; h < layout.hidden && k <= layout.colors; h += kLanes) {
    float largest = 0;
    for (int c = 0; c < layout.features; ++c)
      largest = max(largest, static_cast<float>(fabs(packed[layout.w0 + h * features_row + c])));
    const int row = k < layout.colors ? layout.w1 + k * hidden_row : layout.density;
    sum += largest * static_cast<float>(fabs(packed[row + h]));
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kLanes == 0 && isfinite(sum)) atomicMax(bound, __float_as_uint(sum));
}

// ------------------------------------------------------------------------------------------
// Forward

template <class P>
__global__ void __launch_bounds__(kThreads, kBlocksBeside)
    decode_kernel(const DecodePoints p, const int tile_size, const bool has_packs) {
  using T = compute_t<P>;
  OPEN_EG3D_DYNAMIC_SHARED(T, memory);
  SampleTile<T>& tile = take_head<SampleTile<T>>(memory);
  const DecoderLayout& layout = p.layout;
  const PlaneReader<P> reader(p.planes, layout.features4, has_packs);
  const int features_row = DecoderLayout::row(layout.features4),
            colors_row = DecoderLayout::row(layout.colors4);
  T* const narrow_rows = memory + layout.total;  // features, then colours
  const DecoderTile<T> decoder{layout,
                               tile_size,
                               memory,
                               narrow_rows,
                               narrow_rows + tile_size * max(features_row, colors_row),
                               narrow_rows};
  load_decoder(static_cast<const T*>(p.packed), layout.total, memory);
  for (int64_t first = int64_t(blockIdx.x) * tile_size; first < p.count;
       first += int64_t(gridDim.x) * tile_size) {
    const int count = static_cast<int>(min(int64_t(tile_size), p.count - first));
    __syncthreads();
    for (int s = threadIdx.x; s < tile_size; s += kThreads) {
      tile.planes[s] = s < count ? static_cast<int>((first + s) / p.per_sample) : -1;
      for (int a = 0; a < 3; ++a)
        tile.at[a][s] = s < count ? static_cast<const T*>(p.points)[(first + s) * 3 + a] : T(0);
    }
    __syncthreads();
    gather(reader, tile, tile_size, decoder.features, layout.features4, features_row);
    __syncthreads();
    decoder.to_hidden();
    __syncthreads();
    for (int s = threadIdx.x; s < count; s += kThreads) {
      static_cast<T*>(p.densities)[first + s] = decoder.density(s) * static_cast<T>(p.gain);
    }
    if (p.colors == nullptr) continue;
    decoder.to_colors([&](int s, int k, T y) {
      decoder.colors[s * colors_row + k] = y * T(kColorScale) + T(kColorShift);
    });
    __syncthreads();
    for (int i = threadIdx.x; i < count * layout.colors; i += kThreads) {
      static_cast<T*>(p.colors)[first * layout.colors + i] =
          decoder.colors[i / layout.colors * colors_row + i % layout.colors];
    }
  }
}

// ------------------------------------------------------------------------------------------
// Backward

template <class T>
__global__ void __launch_bounds__(kThreads) bound_outputs_kernel(const DecodeBackward p) {
  float largest = 0;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < p.at.rows;
       i += int64_t(gridDim.x) * kThreads) {
    T sum = p.density_gradients == nullptr
                ? T(0)
                : fabs(static_cast<const T*>(p.density_gradients)[i] * T(p.density_gain));
    for (int k = 0; k < p.layout.colors && p.color_gradients != nullptr; ++k) {
      sum += fabs(static_cast<const T*>(p.color_gradients)[i * p.layout.colors + k] *
                  T(p.color_gain)) *
             T(kColorScale / 4);
    }
    const float rounded = static_cast<float>(sum);
    if (isfinite(rounded)) largest = max(largest, rounded);
  }
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
  if (threadIdx.x % kLanes == 0) atomicMax(p.bounds.outputs, __float_as_uint(largest));
}

// The power of two by which gradients are multiplied before they are added as integers. A look-up's
// weights add up to one, so that no sum is beyond rows * bound; one more bit covers what rounding
// adds to the bounds.
__device__ __forceinline__ int sum_exponent(const Bounds& bounds, int64_t rows) {
  const int exponent = exponent_above(__uint_as_float(*bounds.outputs)) +
                       exponent_above(__uint_as_float(*bounds.decoder)) +
                       exponent_above(static_cast<float>(rows)) + 1;
  return max(-120, min(120, kSumBits - exponent));
}

// What a block of the backward pass works on.
template <class P>
struct BackwardTile {
  using T = compute_t<P>;

  const DecodeBackward& p;
  const PlaneReader<P>& reader;
  const DecoderTile<T>& decoder;
  SampleTile<T>& tile;

  __device__ __forceinline__ void locate_rows(int64_t first) const {
    for (int s = threadIdx.x; s < decoder.rows; s += kThreads) {
      const int64_t row = first + s, ray = row / p.at.per_ray;
      const bool is_seen = row < p.at.rows && (p.at.hit == nullptr || p.at.hit[ray]);
      tile.planes[s] = is_seen ? static_cast<int>(row / p.at.per_sample) : -1;
      tile.density[s] =
          is_seen && p.density_gradients != nullptr
              ? static_cast<const T*>(p.density_gradients)[row] * static_cast<T>(p.density_gain)
              : T(0);
      const T weight = p.color_weights == nullptr || !is_seen
                           ? T(1)
                           : static_cast<const T*>(p.color_weights)[row];
      tile.scale[s] = static_cast<T>(p.color_gain * kColorScale) * weight;
      for (int a = 0; a < 3; ++a) tile.at[a][s] = is_seen ? coordinate(row, ray, a) : T(0);
    }
  }

  __device__ __forceinline__ T coordinate(int64_t row, int64_t ray, int axis) const {
    if (p.at.points != nullptr) return static_cast<const T*>(p.at.points)[row * 3 + axis];
    const T depth = static_cast<const T*>(p.at.depths)[row];
    return static_cast<const T*>(p.at.origins)[ray * 3 + axis] +
           depth * static_cast<const T*>(p.at.directions)[ray * 3 + axis];
  }

  // Gradients of the colours before their sigmoid.
  __device__ __forceinline__ void color_gradients(int64_t first) const {
    const int row_length = decoder.colors_row(), colors = p.layout.colors;
    decoder.to_colors([&](int s, int k, T y) {
      T gradient = 0;
      if (k < colors && tile.planes[s] >= 0) {
        const T wanted =
            static_cast<const T*>(p.color_gradients)[(first + s) / p.at.per_ray * colors + k];
        gradient = wanted * tile.scale[s] * y * (1 - y);
      }
      decoder.colors[s * row_length + k] = gradient;
    });
  }

  // Adds to a block's sums those of the second layer. Each number of them is always added to by the
  // same thread.
  __device__ __forceinline__ void add_second_layer(T* sums, bool has_colors) const {
    const DecoderLayout& layout = p.layout;
    const int hidden_row = decoder.hidden_row(), colors_row = decoder.colors_row();
    const auto zero = [](int) { return T(0); };
    if (has_colors) {
      multiply<Along::kSide, Along::kSide, 4, T>(
          layout.colors4, layout.hidden4, decoder.rows, {decoder.colors, colors_row},
          {decoder.hidden, hidden_row}, zero,
          [&](int k, int h, T sum) { sums[layout.w1 + k * hidden_row + h] += sum; });
    }
    for (int i = threadIdx.x; i < layout.hidden4 + layout.colors4 + 1; i += kThreads) {
      const int k = i - layout.hidden4;
      T sum = 0;
      for (int s = 0; s < decoder.rows && (k < 0 || k == layout.colors4 || has_colors); ++s) {
        sum += k < 0                 ? tile.density[s] * decoder.hidden[s * hidden_row + i]
               : k == layout.colors4 ? tile.density[s]
                                     : decoder.colors[s * colors_row + k];
      }
      sums[k < 0 ? layout.density + i : layout.b1 + k] += sum;
    }
  }

  // From the gradients of the outputs to those of the hidden layer before its softplus, in place of
  // the hidden layer.
  __device__ __forceinline__ void hidden_gradients(bool has_colors) const {
    const DecoderLayout& layout = p.layout;
    const int hidden_row = decoder.hidden_row();
    multiply<Along::kSum, Along::kSide, 4, T>(
        decoder.rows, layout.hidden4, has_colors ? layout.colors4 : 0,
        {decoder.colors, decoder.colors_row()}, {decoder.weights + layout.w1, hidden_row},
        [](int) { return T(0); },
        [&](int s, int h, T sum) {
          T& hidden = decoder.hidden[s * hidden_row + h];
          hidden = (sum + tile.density[s] * decoder.weights[layout.density + h]) *
                   softplus_slope(hidden);
        });
  }

  __device__ __forceinline__ void add_first_layer(T* sums) const {
    const DecoderLayout& layout = p.layout;
    const int hidden_row = decoder.hidden_row(), features_row = decoder.features_row();
    multiply<Along::kSide, Along::kSide, 4, T>(
        layout.hidden4, layout.features4, decoder.rows, {decoder.hidden, hidden_row},
        {decoder.features, features_row}, [](int) { return T(0); },
        [&](int h, int c, T sum) { sums[layout.w0 + h * features_row + c] += sum; });
    for (int h = threadIdx.x; h < layout.hidden4; h += kThreads) {
      T sum = 0;
      for (int s = 0; s < decoder.rows; ++s) sum += decoder.hidden[s * hidden_row + h];
      sums[layout.b0 + h] += sum;
    }
  }

  // In place of the features.
  __device__ __forceinline__ void feature_gradients() const {
    const DecoderLayout& layout = p.layout;
    const int features_row = decoder.features_row();
    multiply<Along::kSum, Along::kSide, 4, T>(
        decoder.rows, layout.features4, layout.hidden4, {decoder.hidden, decoder.hidden_row()},
        {decoder.weights + layout.w0, features_row}, [](int) { return T(0); },
        [&](int s, int c, T sum) { decoder.features[s * features_row + c] = sum; });
  }

  __device__ __forceinline__ void run(int64_t first, T* weight_sums, T plane_scale) const {
    const bool has_colors = p.color_gradients != nullptr;
    const int features_row = decoder.features_row(), features4 = p.layout.features4;
    __syncthreads();
    locate_rows(first);
    __syncthreads();
    gather(reader, tile, decoder.rows, decoder.features, features4, features_row);
    __syncthreads();
    decoder.to_hidden();
    __syncthreads();
    if (has_colors) color_gradients(first);
    __syncthreads();
    if (weight_sums != nullptr) add_second_layer(weight_sums, has_colors);
    __syncthreads();
    hidden_gradients(has_colors);
    __syncthreads();
    if (weight_sums != nullptr) add_first_layer(weight_sums);
    if (p.plane_sums == nullptr && p.point_gradients == nullptr) return;
    __syncthreads();
    feature_gradients();
    __syncthreads();
    if (p.plane_sums != nullptr) {
      scatter(reader, tile, decoder.rows, decoder.features, features_row, plane_scale,
              PlaneSums{p.plane_sums, p.plane_marks});
    }
    if (p.point_gradients == nullptr) return;
    points_gradient(reader, tile, decoder.rows, decoder.features, features4, features_row,
                    [&](int s, const T(&gradient)[3]) {
                      for (int a = 0; a < 3 && first + s < p.at.rows; ++a)
                        static_cast<T*>(p.point_gradients)[(first + s) * 3 + a] = gradient[a];
                    });
  }
};

template <class P>
__global__ void __launch_bounds__(kThreads, kBlocksBeside)
    decode_backward_kernel(const DecodeBackward p, const int tile_size, const bool has_packs) {
  using T = compute_t<P>;
  OPEN_EG3D_DYNAMIC_SHARED(T, memory);
  SampleTile<T>& tile = take_head<SampleTile<T>>(memory);
  const PlaneReader<P> reader(p.planes, p.layout.features4, has_packs);
  T* const features = memory + p.layout.total;
  T* const hidden = features + tile_size * DecoderLayout::row(p.layout.features4);
  T* const colors = hidden + tile_size * DecoderLayout::row(p.layout.hidden4);
  const DecoderTile<T> decoder{p.layout, tile_size, memory, features, hidden, colors};
  load_decoder(static_cast<const T*>(p.packed), p.layout.total, memory);
  T* const weight_sums = p.weight_sums == nullptr ? nullptr
                                                  : static_cast<T*>(p.weight_sums) +
                                                        int64_t(blockIdx.x) * p.layout.total;
  const T plane_scale =
      p.plane_sums == nullptr ? T(1) : ldexp(T(1), sum_exponent(p.bounds, p.at.per_sample));
  const BackwardTile<P> worker{p, reader, decoder, tile};
  for (int64_t first = int64_t(blockIdx.x) * tile_size; first < p.at.rows;
       first += int64_t(gridDim.x) * tile_size) {
    worker.run(first, weight_sums, plane_scale);
  }
}

template <class P>
__global__ void __launch_bounds__(kThreads) finish_kernel(const PlaneGradient p) {
  using T = compute_t<P>;
  const T unit = ldexp(T(1), -sum_exponent(p.bounds, p.rows_per_sample));
  const int64_t count = p.samples * kPlanes * p.height * p.width * p.channels;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * kThreads) {
    const int64_t texel = i / p.channels, row = texel / p.width, plane = row / p.height,
                  sample = plane / kPlanes;
    const int64_t to = sample * p.sample_stride + (plane - sample * kPlanes) * p.plane_stride +
                       (row - plane * p.height) * p.row_stride +
                       (texel - row * p.width) * p.column_stride +
                       (i - texel * p.channels) * p.channel_stride;
    const bool is_marked = p.marks[i / 32] >> (i % 32) & 1;
    const T sum = static_cast<T>(static_cast<long long>(p.sums[i])) * unit;
    static_cast<P*>(p.result)[to] = narrow<P>(is_marked ? T(NAN) : sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const T* partial, const int64_t count, T* result) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  T sums[8] = {};  // several, since an addition waits for the one before
  for (int64_t block = 0; block < kPartialSums; block += 8)
#pragma unroll
    for (int j = 0; j < 8; ++j) sums[j] += partial[(block + j) * count + i];
  result[i] =
      ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

}  // namespace

void pack_decoder(const DecoderWeights& weights, const DecoderLayout& layout, void* packed,
                  Dtype type, Stream stream) {
  with_type(type, [&](auto zero) {
    using T = compute_t<decltype(zero)>;
    launch(pack_kernel<T>, {blocks_for(layout.total, kThreads)}, {kThreads}, 0, stream, weights,
           layout, static_cast<T*>(packed));
  });
}

void decode_points(const DecodePoints& p, Dtype type, Stream stream) {
  with_type(type, [&](auto zero) {
    using P = decltype(zero);
    const DecoderLayout& l = p.layout;
    using T = compute_t<P>;
    const int row = std::max(l.row(l.features4), l.row(l.colors4)) + l.row(l.hidden4);
    const TilePlan tile = plan_tile(l, row, sizeof(T), sizeof(SampleTile<T>));
    launch(decode_kernel<P>, {std::min<int64_t>(blocks_for(p.count, int64_t(tile.rows)), kBlocks)},
           {kThreads}, tile.bytes, stream, p, tile.rows, can_load_packs<P>(p.planes));
  });
}

void bound_outputs(const DecodeBackward& p, Dtype type, Stream stream) {
  const int64_t blocks = std::min<int64_t>(blocks_for(p.at.rows, int64_t(kThreads)), kBlocks);
  with_type(type, [&](auto zero) {
    launch(bound_outputs_kernel<compute_t<decltype(zero)>>, {blocks}, {kThreads}, 0, stream, p);
  });
}

void decode_backward(const DecodeBackward& p, Dtype type, Stream stream) {
  with_type(type, [&](auto zero) {
    using P = decltype(zero);
    using T = compute_t<P>;
    const DecoderLayout& l = p.layout;
    const int row = l.row(l.features4) + l.row(l.hidden4) + l.row(l.colors4);
    const TilePlan tile = plan_tile(l, row, sizeof(T), sizeof(SampleTile<T>));
    if (p.plane_sums != nullptr) {
      launch(bound_decoder_kernel<T>, {blocks_for(l.colors + 1, kWarps)}, {kThreads}, 0, stream,
             static_cast<const T*>(p.packed), l, p.bounds.decoder);
    }
    launch(decode_backward_kernel<P>,
           {std::min<int64_t>(blocks_for(p.at.rows, int64_t(tile.rows)), kPartialSums)}, {kThreads},
           tile.bytes, stream, p, tile.rows, can_load_packs<P>(p.planes));
  });
}

void finish_plane_gradient(const PlaneGradient& p, Dtype type, Stream stream) {
  const int64_t count = p.samples * kPlanes * p.height * p.width * p.channels;
  const int64_t blocks = std::min<int64_t>(blocks_for(count, int64_t(kThreads)), 16 * kBlocks);
  with_type(type, [&](auto zero) {
    launch(finish_kernel<decltype(zero)>, {blocks}, {kThreads}, 0, stream, p);
  });
}

void sum_weight_gradients(const void* partial_sums, int64_t count, void* result, Dtype type,
                          Stream stream) {
  with_type(type, [&](auto zero) {
    using T = compute_t<decltype(zero)>;
    launch(sum_kernel<T>, {blocks_for(count, int64_t(kThreads))}, {kThreads}, 0, stream,
           static_cast<const T*>(partial_sums), count, static_cast<T*>(result));
  });
}

}  // namespace open_eg3d::cuda
