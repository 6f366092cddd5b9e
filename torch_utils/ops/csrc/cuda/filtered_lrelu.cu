// filtered_lrelu, and the linear map that it is around a point. A block makes a tile of the result
// for sixteen planes, one after another (or a few at once where they are adjacent in memory),
// entirely in shared memory: input, upsampled along x, upsampled along y, leaky ReLU, downsampled
// along x, downsampled along y. Two bits per fine pixel and plane are kept in words that the
// sixteen planes share.
#include <algorithm>

#include "cuda/fir_tile.h"

namespace open_eg3d::cuda {
namespace {

constexpr int kChannelsLastLanes = 4;
constexpr size_t kGoodBytes = 32 << 10,
                 kMostBytes =
                     64 << 10;  // of shared memory; what every multiprocessor has for a block

struct Size {
  int height, width;

  __host__ __device__ int64_t count() const { return int64_t(height) * width; }
};

// A tile of the result and what it takes. Two buffers serve in turn: fine pixels are in `first`,
// what they are made of and what is made of them in `second`; the input is where the step after it
// does not write.
struct Tiling {
  Size result, fine, input;
  int64_t down, across;  // tiles
  int64_t first_taps, second_taps, first, second;

  size_t bytes(size_t number) const {
    return (first_taps + second_taps + first + second) * number + fine.count() * sizeof(uint32_t);
  }
};

// Fine pixels of `outputs` outputs: what the filter covers, and what lies between it and the next
// tile's.
int fine_for(const FirAxis& axis, int outputs) {
  return (outputs - 1) * axis.down + (axis.taps > axis.down ? axis.taps : axis.down);
}

template <class W>
Tiling make_tiling(const FilteredLrelu& p, Size result, int lanes) {
  Tiling t;
  t.result = result;
  t.fine = {fine_for(p.second_y, result.height), fine_for(p.second_x, result.width)};
  t.input = {inputs_for(p.first_y, t.fine.height), inputs_for(p.first_x, t.fine.width)};
  t.down = blocks_for<int64_t>(p.second_y.size_out, result.height);
  t.across = blocks_for<int64_t>(p.second_x.size_out, result.width);
  t.first_taps = aligned_count<W>(tap_count(p.first, p.first_x, p.first_y));
  t.second_taps = aligned_count<W>(tap_count(p.second, p.second_x, p.second_y));
  const Size upsampled_in_x{t.input.height, t.fine.width}, summed_in_x{t.fine.height, result.width};
  t.first = aligned_count<W>(lanes * std::max(t.input.count(), t.fine.count()));
  t.second = aligned_count<W>(
      lanes * std::max(p.first.is_separable ? upsampled_in_x.count() : t.input.count(),
                       summed_in_x.count()));
  return t;
}

template <class W>
Tiling choose_tiling(const FilteredLrelu& p, int lanes) {
  Size size{16, lanes == 1 ? 32 : 16};
  Tiling t = make_tiling<W>(p, size, lanes);
  while (t.bytes(sizeof(W)) > kGoodBytes && (size.height > 4 || size.width > 4)) {
    (size.height >= size.width ? size.height : size.width) /= 2;
    t = make_tiling<W>(p, size, lanes);
  }
  while (t.bytes(sizeof(W)) > kMostBytes && size.count() > 1) {
    (size.height >= size.width ? size.height : size.width) /= 2;
    t = make_tiling<W>(p, size, lanes);
  }
  return t;
}

template <class W>
struct LeakyRelu {
  W positive, negative, bound;
  bool has_clamp;
  Signs use;

  // Leaky ReLU of `value`; `word` gains the signs of `lane`, or gives them.
  __device__ __forceinline__ W operator()(W value, int lane, uint32_t& word) const {
    if (use == Signs::kRead) {
      const bool is_clamped = word >> (16 + lane) & 1, is_negative = word >> lane & 1;
      return is_clamped ? W(0) : value * (is_negative ? negative : positive);
    }
    const bool is_negative = !(value > W(0));
    value *= is_negative ? negative : positive;
    word |= uint32_t(is_negative) << lane;
    if (!has_clamp) return value;
    word |= uint32_t(!(value <= bound && value >= -bound)) << (16 + lane);  // NaN counts as clamped
    const W lowered = value > bound ? bound : value;
    return lowered < -bound ? -bound : lowered;
  }
};

// Where a block's tile lies on the three grids.
struct TilePosition {
  int64_t word_block, first_plane, planes;  // planes = of the word, up to sixteen
  int64_t row, column, fine_row, fine_column;

  __device__ __forceinline__ TilePosition(const FilteredLrelu& p, const Tiling& t) {
    const int64_t block = blockIdx.x, tile = block % (t.down * t.across);
    word_block = block / (t.down * t.across);
    const int64_t group = p.channels >= kPlanesPerWord ? p.channels : p.samples * p.channels;
    const int64_t words = (group + kPlanesPerWord - 1) / kPlanesPerWord,
                  at = word_block % words * kPlanesPerWord;
    first_plane = word_block / words * group + at;
    planes = min(kPlanesPerWord, group - at);
    row = tile / t.across * t.result.height, column = tile % t.across * t.result.width;
    fine_row = row * p.second_y.down - p.second_y.padding,
    fine_column = column * p.second_x.down - p.second_x.padding;
  }
};

// Signs of the tile's fine pixels, from memory or to it. Each fine pixel is written by the tile
// whose outputs begin nearest before it.
__device__ __forceinline__ void load_words(const FilteredLrelu& p, const Tiling& t,
                                           const TilePosition& at, uint32_t* words) {
  TileThread<1>().for_each(t.fine.height, t.fine.width, [&](int row, int column) {
    const int64_t y = at.fine_row + row, x = at.fine_column + column;
    const bool is_read = p.use == Signs::kRead && y >= 0 && y < p.second_y.size_in && x >= 0 &&
                         x < p.second_x.size_in;
    const int64_t place = (at.word_block * p.second_y.size_in + y) * p.second_x.size_in + x;
    words[row * t.fine.width + column] = is_read ? static_cast<uint32_t>(p.signs[place]) : 0;
  });
}

__device__ __forceinline__ void store_words(const FilteredLrelu& p, const Tiling& t,
                                            const TilePosition& at, const uint32_t* words) {
  const bool is_last_row = at.row + t.result.height >= p.second_y.size_out,
             is_last_column = at.column + t.result.width >= p.second_x.size_out;
  const int64_t end_row =
      is_last_row ? p.second_y.size_in : at.fine_row + int64_t(t.result.height) * p.second_y.down;
  const int64_t end_column = is_last_column
                                 ? p.second_x.size_in
                                 : at.fine_column + int64_t(t.result.width) * p.second_x.down;
  TileThread<1>().for_each(t.fine.height, t.fine.width, [&](int row, int column) {
    const int64_t y = at.fine_row + row, x = at.fine_column + column;
    if (y >= end_row || x >= end_column) return;
    p.signs[(at.word_block * p.second_y.size_in + y) * p.second_x.size_in + x] =
        static_cast<int32_t>(words[row * t.fine.width + column]);
  });
}

// The plane that a thread's lane works on.
template <class T>
struct Plane {
  bool is_there;
  const T* from;
  T* to;
  compute_t<T> bias;

  __device__ __forceinline__ Plane(const FilteredLrelu& p, const TilePosition& at, int64_t number)
      : is_there(number < at.planes) {
    const int64_t plane = at.first_plane + (is_there ? number : 0), sample = plane / p.channels,
                  channel = plane % p.channels;
    from = static_cast<const T*>(p.x) + sample * p.x_strides.sample + channel * p.x_strides.channel;
    to = static_cast<T*>(p.y) + sample * p.y_strides.sample + channel * p.y_strides.channel;
    bias = p.bias == nullptr ? compute_t<T>(0) : static_cast<const compute_t<T>*>(p.bias)[channel];
  }
};

template <class T, int kLanes>
__global__ void __launch_bounds__(kTileThreads)
    filtered_lrelu_kernel(FilteredLrelu p, Tiling t, LeakyRelu<compute_t<T>> leaky_relu) {
  using W = compute_t<T>;
  OPEN_EG3D_DYNAMIC_SHARED(W, first_taps);
  W *second_taps = first_taps + t.first_taps, *first = second_taps + t.second_taps,
    *second = first + t.first;
  auto* words = reinterpret_cast<uint32_t*>(second + t.second);
  const TilePosition at(p, t);
  const Window x_window(p.first_x, at.fine_column), y_window(p.first_y, at.fine_row);
  const Window second_x_window(p.second_x, at.column), second_y_window(p.second_y, at.row);
  const TileThread<kLanes> thread;
  const int lane = thread.lane;
  const Tile<W, kLanes, 1> inputs{p.first.is_separable ? first : second, t.input.width},
      wide{second, t.fine.width}, fine{first, t.fine.width}, narrowed{second, t.result.width};
  const int height = static_cast<int>(min(int64_t(t.result.height), p.second_y.size_out - at.row));
  const int width = static_cast<int>(min(int64_t(t.result.width), p.second_x.size_out - at.column));

  load_taps(first_taps, p.first, tap_count(p.first, p.first_x, p.first_y));
  load_taps(second_taps, p.second, tap_count(p.second, p.second_x, p.second_y));
  load_words(p, t, at, words);
  for (int64_t number = 0; number < at.planes; number += kLanes) {
    const Plane<T> plane(p, at, number + lane);
    thread.for_each(t.input.height, t.input.width, [&](int row, int column) {
      const int64_t y = y_window.begin + row, x = x_window.begin + column;
      const bool is_inside =
          plane.is_there && y >= 0 && y < p.first_y.size_in && x >= 0 && x < p.first_x.size_in;
      *inputs.at(row, column, lane) =
          is_inside ? widen(plane.from[y * p.x_strides.row + x * p.x_strides.column]) + plane.bias
                    : W(0);
    });
    __syncthreads();
    if (p.first.is_separable) {
      thread.for_each(t.input.height, t.fine.width, [&](int row, int column) {
        W sums[1] = {};
        filter_row(sums, inputs, row, lane, p.first_x, x_window, first_taps, column);
        *wide.at(row, column, lane) = sums[0];
      });
      __syncthreads();
    }
    // A thread takes all lanes of a fine pixel, so that the pixel's word is its own.
    TileThread<1>().for_each(t.fine.height, t.fine.width, [&](int row, int column) {
      const int64_t y = at.fine_row + row, x = at.fine_column + column;
      const bool is_inside = y >= 0 && y < p.second_y.size_in && x >= 0 && x < p.second_x.size_in;
      uint32_t word = words[row * t.fine.width + column];
#pragma unroll
      for (int l = 0; l < kLanes; ++l) {
        W sums[1] = {};
        if (p.first.is_separable) {
          filter_column(sums, wide, column, l, p.first_y, y_window, first_taps, row);
        } else {
          filter_square<0, 0, 0>(sums, inputs, l, p.first_x, p.first_y, x_window, y_window,
                                 first_taps, row, column);
        }
        *fine.at(row, column, l) =
            is_inside ? leaky_relu(sums[0], static_cast<int>(number) + l, word) : W(0);
      }
      words[row * t.fine.width + column] = word;
    });
    __syncthreads();
    if (p.second.is_separable) {
      thread.for_each(t.fine.height, width, [&](int row, int column) {
        W sums[1] = {};
        filter_row(sums, fine, row, lane, p.second_x, second_x_window, second_taps, column);
        *narrowed.at(row, column, lane) = sums[0];
      });
      __syncthreads();
    }
    thread.for_each(height, width, [&](int row, int column) {
      W sums[1] = {};
      if (p.second.is_separable) {
        filter_column(sums, narrowed, column, lane, p.second_y, second_y_window, second_taps, row);
      } else {
        filter_square<0, 0, 0>(sums, fine, lane, p.second_x, p.second_y, second_x_window,
                               second_y_window, second_taps, row, column);
      }
      if (!plane.is_there) return;
      plane.to[(at.row + row) * p.y_strides.row + (at.column + column) * p.y_strides.column] =
          narrow<T>(sums[0]);
    });
    __syncthreads();  // the next planes go where this thread's neighbours may still read
  }
  if (p.use == Signs::kWrite) store_words(p, t, at, words);
}

}  // namespace

void filtered_lrelu(const FilteredLrelu& p, Dtype type, Stream stream) {
  if (p.samples * p.channels == 0 || p.second_y.size_out <= 0 || p.second_x.size_out <= 0) return;
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using W = compute_t<T>;
    bool are_lanes_adjacent =
        p.channels > 1 && p.x_strides.channel == 1 && p.y_strides.channel == 1;
    Tiling t = choose_tiling<W>(p, are_lanes_adjacent ? kChannelsLastLanes : 1);
    if (are_lanes_adjacent && t.bytes(sizeof(W)) > kMostBytes) {
      are_lanes_adjacent = false;
      t = choose_tiling<W>(p, 1);
    }
    if (t.bytes(sizeof(W)) > kMostBytes) {
      throw std::runtime_error(
          "filtered_lrelu: filters of these lengths need " + std::to_string(t.bytes(sizeof(W))) +
          " bytes of shared memory; OPEN_EG3D_OPS=reference serves any filter");
    }
    const W gain = static_cast<W>(p.gain);
    const LeakyRelu<W> leaky_relu{gain, gain * static_cast<W>(p.slope), static_cast<W>(p.clamp),
                                  p.has_clamp, p.use};
    const int64_t blocks = sign_blocks(p.samples, p.channels) * t.down * t.across;
    const auto run = [&](auto kernel) {
      launch(kernel, {blocks}, {kTileThreads}, t.bytes(sizeof(W)), stream, p, t, leaky_relu);
    };
    are_lanes_adjacent ? run(filtered_lrelu_kernel<T, kChannelsLastLanes>)
                       : run(filtered_lrelu_kernel<T, 1>);
  });
}

}  // namespace open_eg3d::cuda
