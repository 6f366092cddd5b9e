// upfirdn2d. A block loads the pixels that its tile of the result needs into shared memory once,
// and filters them there: along x and then y where the filter is a product, otherwise at once.
// Filters so long that no tile fits are applied from global memory.
#include "cuda/fir_tile.h"

namespace open_eg3d::cuda {
namespace {

constexpr int kBlockChannels = 32;  // of channels-last images
constexpr size_t kGoodBytes = 24 << 10,
                 kMostBytes =
                     48
                     << 10;  // of shared memory: two blocks at least on any multiprocessor, or one

// How the result is cut into tiles, and what their shared memory holds.
struct Tiling {
  int height, width;              // of a tile of the result
  int input_height, input_width;  // of what it reads
  int64_t down, across;           // tiles
  int64_t taps, input_numbers, mixed_numbers;

  size_t bytes(size_t number) const { return (taps + input_numbers + mixed_numbers) * number; }
};

template <class W>
Tiling make_tiling(const Upfirdn& p, int height, int width, int pixel) {
  Tiling t;
  t.height = height, t.width = width;
  t.input_height = inputs_for(p.y_axis, height), t.input_width = inputs_for(p.x_axis, width);
  t.down = blocks_for<int64_t>(p.y_axis.size_out, height),
  t.across = blocks_for<int64_t>(p.x_axis.size_out, width);
  t.taps = aligned_count<W>(tap_count(p.filter, p.x_axis, p.y_axis));
  t.input_numbers = aligned_count<W>(int64_t(t.input_height) * t.input_width * pixel);
  t.mixed_numbers = p.filter.is_separable ? int64_t(t.input_height) * width * pixel : 0;
  return t;
}

// The largest tile that leaves room for a second block; where there is none, for one.
template <class W>
Tiling choose_tiling(const Upfirdn& p, int height, int width, int pixel) {
  Tiling t = make_tiling<W>(p, height, width, pixel);
  while (t.bytes(sizeof(W)) > kGoodBytes && (height > 4 || width > 4)) {
    (height >= width ? height : width) /= 2;
    t = make_tiling<W>(p, height, width, pixel);
  }
  return t;
}

template <class T, int kLanes, int kPack>
__device__ __forceinline__ void load_tile(const Upfirdn& p, const Tiling& t,
                                          const TileThread<kLanes>& thread, const T* plane,
                                          int64_t channels, const Window& x_window,
                                          const Window& y_window,
                                          const Tile<compute_t<T>, kLanes, kPack>& to) {
  thread.for_each(t.input_height, t.input_width, [&](int row, int column) {
    const int64_t y = y_window.begin + row, x = x_window.begin + column;
    compute_t<T>* place = to.at(row, column, thread.lane);
    const bool is_inside = y >= 0 && y < p.y_axis.size_in && x >= 0 && x < p.x_axis.size_in &&
                           thread.lane * kPack < channels;
    Pack<T, kPack> pack{};
    if (is_inside) pack = load_pack<kPack>(plane + y * p.x_strides.row + x * p.x_strides.column);
    compute_t<T> numbers[kPack];
#pragma unroll
    for (int k = 0; k < kPack; ++k)
      numbers[k] = is_inside ? widen(pack.values[k]) : compute_t<T>(0);
    store_numbers(numbers, place);
  });
}

// A block's share: a tile of one plane, or of kLanes * kPack channels. Where kTaps is not 0, both
// axes have these factors and taps.
template <class T, int kLanes, int kPack, int kUp, int kDown, int kTaps>
__global__ void __launch_bounds__(kTileThreads)
    upfirdn2d_kernel(Upfirdn p, Tiling t, int64_t channel_blocks) {
  using W = compute_t<T>;
  OPEN_EG3D_DYNAMIC_SHARED(W, taps);
  constexpr int kChannels = kLanes * kPack;
  const int64_t block = blockIdx.x, tile = block % (t.down * t.across),
                group = block / (t.down * t.across);
  const int64_t sample = group / channel_blocks, channel = group % channel_blocks * kChannels;
  const int64_t first_row = tile / t.across * t.height, first_column = tile % t.across * t.width;
  const Window x_window(p.x_axis, first_column), y_window(p.y_axis, first_row);
  const TileThread<kLanes> thread;
  const Tile<W, kLanes, kPack> inputs{taps + t.taps, t.input_width},
      mixed{inputs.data + t.input_numbers, t.width};
  const int64_t own_channel = channel + thread.lane * kPack;

  load_taps(taps, p.filter, tap_count(p.filter, p.x_axis, p.y_axis));
  const T* plane =
      static_cast<const T*>(p.x) + sample * p.x_strides.sample + own_channel * p.x_strides.channel;
  load_tile(p, t, thread, plane, p.channels - channel, x_window, y_window, inputs);
  __syncthreads();
  const int height = static_cast<int>(min(int64_t(t.height), p.y_axis.size_out - first_row));
  const int width = static_cast<int>(min(int64_t(t.width), p.x_axis.size_out - first_column));
  if (kTaps == 0 && p.filter.is_separable) {
    thread.for_each(t.input_height, width, [&](int row, int column) {
      W sums[kPack] = {};
      filter_row(sums, inputs, row, thread.lane, p.x_axis, x_window, taps, column);
      store_numbers(sums, mixed.at(row, column, thread.lane));
    });
    __syncthreads();
  }
  if (own_channel >= p.channels) return;
  T* result =
      static_cast<T*>(p.y) + sample * p.y_strides.sample + own_channel * p.y_strides.channel;
  const W gain = static_cast<W>(p.filter.gain);
  thread.for_each(height, width, [&](int row, int column) {
    W sums[kPack] = {};
    if (kTaps == 0 && p.filter.is_separable) {
      filter_column(sums, mixed, column, thread.lane, p.y_axis, y_window, taps, row);
    } else {
      filter_square<kUp, kDown, kTaps>(sums, inputs, thread.lane, p.x_axis, p.y_axis, x_window,
                                       y_window, taps, row, column);
    }
    Pack<T, kPack> pack;
#pragma unroll
    for (int k = 0; k < kPack; ++k) pack.values[k] = narrow<T>(sums[k] * gain);
    store_pack(
        result + (first_row + row) * p.y_strides.row + (first_column + column) * p.y_strides.column,
        pack);
  });
}

// A number of the result a thread, nothing shared: for filters that fit into no tile.
template <class T>
__global__ void __launch_bounds__(kTileThreads) upfirdn2d_long_kernel(Upfirdn p, int64_t count) {
  using W = compute_t<T>;
  const int64_t number = int64_t(blockIdx.x) * kTileThreads + threadIdx.x;
  if (number >= count) return;
  const int64_t column = number % p.x_axis.size_out,
                row = number / p.x_axis.size_out % p.y_axis.size_out;
  const int64_t plane = number / p.x_axis.size_out / p.y_axis.size_out, sample = plane / p.channels,
                channel = plane % p.channels;
  const Window x_window(p.x_axis, column), y_window(p.y_axis, row);
  const Phase<0, 0> across(p.x_axis, x_window, 0), down(p.y_axis, y_window, 0);
  const T* from =
      static_cast<const T*>(p.x) + sample * p.x_strides.sample + channel * p.x_strides.channel;
  const W* taps = static_cast<const W*>(p.filter.taps);
  const int last = tap_count(p.filter, p.x_axis, p.y_axis) - 1;
  const auto tap_at = [&](int i) { return taps[p.filter.is_flipped ? i : last - i]; };
  W sum = 0;
  int64_t y = y_window.begin + down.input;
  for (int i = down.tap; i < p.y_axis.taps; i += down.step, ++y) {
    if (y < 0 || y >= p.y_axis.size_in) continue;
    W row_sum = 0;
    int64_t x = x_window.begin + across.input;
    for (int j = across.tap; j < p.x_axis.taps; j += across.step, ++x) {
      if (x < 0 || x >= p.x_axis.size_in) continue;
      row_sum += tap_at(p.filter.is_separable ? j : i * p.x_axis.taps + j) *
                 widen(from[y * p.x_strides.row + x * p.x_strides.column]);
    }
    sum += p.filter.is_separable ? row_sum * tap_at(i) : row_sum;
  }
  T* to = static_cast<T*>(p.y) + sample * p.y_strides.sample + channel * p.y_strides.channel;
  to[row * p.y_strides.row + column * p.y_strides.column] =
      narrow<T>(sum * static_cast<W>(p.filter.gain));
}

template <class T, int kLanes, int kPack, int kUp, int kDown, int kTaps>
void launch_tiles(const Upfirdn& p, const Tiling& t, Stream stream) {
  const int64_t channel_blocks = blocks_for<int64_t>(p.channels, kLanes * kPack);
  launch(upfirdn2d_kernel<T, kLanes, kPack, kUp, kDown, kTaps>,
         {p.samples * channel_blocks * t.down * t.across}, {kTileThreads},
         t.bytes(sizeof(compute_t<T>)), stream, p, t, channel_blocks);
}

// The three resamplings by four taps that networks spend their time in have loops of known length.
template <class T, int kLanes, int kPack>
void launch_known(const Upfirdn& p, const Tiling& t, Stream stream) {
  const auto& [x, y] = std::pair(p.x_axis, p.y_axis);
  const bool is_known =
      !p.filter.is_separable && x.taps == 4 && y.taps == 4 && x.up == y.up && x.down == y.down;
  if (is_known && x.up == 1 && x.down == 1)
    return launch_tiles<T, kLanes, kPack, 1, 1, 4>(p, t, stream);
  if (is_known && x.up == 2 && x.down == 1)
    return launch_tiles<T, kLanes, kPack, 2, 1, 4>(p, t, stream);
  if (is_known && x.up == 1 && x.down == 2)
    return launch_tiles<T, kLanes, kPack, 1, 2, 4>(p, t, stream);
  launch_tiles<T, kLanes, kPack, 0, 0, 0>(p, t, stream);
}

template <class T>
bool are_packs_aligned(const void* data, const ImageStrides& strides, int64_t channels) {
  constexpr int kPack = kWidestPack<T>;
  const T* numbers = static_cast<const T*>(data);
  return strides.channel == 1 && channels % kPack == 0 &&
         is_aligned(numbers, strides.column, kPack) && is_aligned(numbers, strides.row, kPack) &&
         is_aligned(numbers, strides.sample, kPack);
}

}  // namespace

void upfirdn2d(const Upfirdn& p, Dtype type, Stream stream) {
  const int64_t count = p.samples * p.channels * p.y_axis.size_out * p.x_axis.size_out;
  if (count == 0) return;
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using W = compute_t<T>;
    const bool is_channels_last =
        p.channels > 1 && p.x_strides.channel == 1 && p.y_strides.channel == 1;
    const Tiling t = is_channels_last ? choose_tiling<W>(p, 8, 16, kBlockChannels)
                                      : choose_tiling<W>(p, 32, 32, 1);
    if (t.bytes(sizeof(W)) > kMostBytes) {
      launch(upfirdn2d_long_kernel<T>, {blocks_for<int64_t>(count, kTileThreads)}, {kTileThreads},
             0, stream, p, count);
    } else if (!is_channels_last) {
      launch_known<T, 1, 1>(p, t, stream);
    } else if (are_packs_aligned<T>(p.x, p.x_strides, p.channels) &&
               are_packs_aligned<T>(p.y, p.y_strides, p.channels)) {
      launch_known<T, kBlockChannels / kWidestPack<T>, kWidestPack<T>>(p, t, stream);
    } else {
      launch_tiles<T, kBlockChannels, 1, 0, 0, 0>(p, t, stream);
    }
  });
}

}  // namespace open_eg3d::cuda
