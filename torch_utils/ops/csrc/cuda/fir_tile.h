// FIR filters on tiles of images in shared memory. A pixel of a tile is `kLanes` packs of `kPack`
// numbers: one number of an NCHW plane, or adjacent channels of a channels-last image. Inserted
// zeros are never multiplied: of the taps, those count that meet samples.
#pragma once

#include "cuda/fir.h"
#include "cuda/numbers.h"

namespace open_eg3d::cuda {

constexpr int kTileThreads = 256;

// Which lane and which pixels of a tile a thread works on.
template <int kLanes>
struct TileThread {
  static constexpr int kStepX = kLanes == 1 ? 32 : 8, kStepY = kTileThreads / kLanes / kStepX;
  int lane = threadIdx.x % kLanes, x = threadIdx.x / kLanes % kStepX,
      y = threadIdx.x / kLanes / kStepX;

  template <class Body>
  __device__ __forceinline__ void for_each(int height, int width, const Body& body) const {
    for (int row = y; row < height; row += kStepY)
      for (int column = x; column < width; column += kStepX) body(row, column);
  }
};

template <class W, int kLanes, int kPack>
struct Tile {
  W* data;
  int width;

  __device__ __forceinline__ W* at(int row, int column, int lane) const {
    return data + ((row * width + column) * kLanes + lane) * kPack;
  }
};

// Inputs that `outputs` neighbouring outputs read at most.
__host__ __device__ __forceinline__ int inputs_for(const FirAxis& axis, int outputs) {
  return ((outputs - 1) * axis.down + axis.taps + axis.up - 1) / axis.up;
}

// The inputs of a run of outputs: the first one, and by how many fine samples it lies behind the
// first fine sample under the filter.
struct Window {
  int64_t begin;
  int rest;

  __device__ __forceinline__ Window(const FirAxis& axis, int64_t first_output) {
    const int64_t base = first_output * axis.down - axis.padding;
    const int64_t below = base < 0 ? -(-base / axis.up)
                                   : (base + axis.up - 1) / axis.up;  // base / up, rounded upwards
    begin = below;
    rest = static_cast<int>(below * axis.up - base);
  }
};

// The first tap that meets a sample at output `output` of a run, and which input of its window that
// sample is. Factors known to the compiler (not 0) save divisions.
template <int kUp, int kDown>
struct Phase {
  int tap, input, step;

  __device__ __forceinline__ Phase(const FirAxis& axis, const Window& window, int output) {
    const int up = kUp > 0 ? kUp : axis.up, down = kDown > 0 ? kDown : axis.down;
    const int position = output * down - window.rest + up;
    tap = (up - position % up) % up;
    input = (position + tap) / up - 1;
    step = up;
  }
};

// Numbers of a pack that one access to shared memory takes.
template <class W, int kPack>
constexpr int kSharedStep = kPack < kWidestPack<W> ? kPack : kWidestPack<W>;

template <int kPack, class W>
__device__ __forceinline__ void add_weighted(W (&sums)[kPack], W weight, const W* from) {
  constexpr int kStep = kSharedStep<W, kPack>;
#pragma unroll
  for (int k = 0; k < kPack; k += kStep) {
    const Pack<W, kStep> numbers = load_pack<kStep>(from + k);
#pragma unroll
    for (int i = 0; i < kStep; ++i) sums[k + i] += weight * numbers.values[i];
  }
}

template <int kPack, class W>
__device__ __forceinline__ void store_numbers(const W (&numbers)[kPack], W* to) {
  constexpr int kStep = kSharedStep<W, kPack>;
#pragma unroll
  for (int k = 0; k < kPack; k += kStep) {
    Pack<W, kStep> pack;
#pragma unroll
    for (int i = 0; i < kStep; ++i) pack.values[i] = numbers[k + i];
    store_pack(to + k, pack);
  }
}

// Sums along one axis; input i is at from(i).
template <int kPack, class W, class From>
__device__ __forceinline__ void filter_axis(W (&sums)[kPack], const FirAxis& axis,
                                            const Window& window, const W* taps, int output,
                                            const From& from) {
  const Phase<0, 0> phase(axis, window, output);
  int input = phase.input;
  for (int tap = phase.tap; tap < axis.taps; tap += phase.step, ++input)
    add_weighted(sums, taps[tap], from(input));
}

// Sums along x.
template <int kPack, int kLanes, class W>
__device__ __forceinline__ void filter_row(W (&sums)[kPack], const Tile<W, kLanes, kPack>& from,
                                           int row, int lane, const FirAxis& axis,
                                           const Window& window, const W* taps, int output) {
  filter_axis(sums, axis, window, taps, output, [&](int i) { return from.at(row, i, lane); });
}

// Sums along y.
template <int kPack, int kLanes, class W>
__device__ __forceinline__ void filter_column(W (&sums)[kPack], const Tile<W, kLanes, kPack>& from,
                                              int column, int lane, const FirAxis& axis,
                                              const Window& window, const W* taps, int output) {
  filter_axis(sums, axis, window, taps, output, [&](int i) { return from.at(i, column, lane); });
}

// Sums along both axes with a filter that is no product. Factors and taps of both axes that the
// compiler knows (not 0) unroll the loops.
template <int kUp, int kDown, int kTaps, int kPack, int kLanes, class W>
__device__ __forceinline__ void filter_square(W (&sums)[kPack], const Tile<W, kLanes, kPack>& from,
                                              int lane, const FirAxis& x_axis,
                                              const FirAxis& y_axis, const Window& x_window,
                                              const Window& y_window, const W* taps, int row,
                                              int column) {
  const Phase<kUp, kDown> down(y_axis, y_window, row), across(x_axis, x_window, column);
  if constexpr (kTaps > 0) {
    static_assert(kTaps % kUp == 0);
#pragma unroll
    for (int i = 0; i < kTaps / kUp; ++i)
#pragma unroll
      for (int j = 0; j < kTaps / kUp; ++j) {
        const W weight = taps[(down.tap + i * kUp) * kTaps + across.tap + j * kUp];
        add_weighted(sums, weight, from.at(down.input + i, across.input + j, lane));
      }
  } else {
    int y = down.input;
    for (int i = down.tap; i < y_axis.taps; i += down.step, ++y) {
      int x = across.input;
      for (int j = across.tap; j < x_axis.taps; j += across.step, ++x) {
        add_weighted(sums, taps[i * x_axis.taps + j], from.at(y, x, lane));
      }
    }
  }
}

__host__ __device__ __forceinline__ int tap_count(const FirFilter& filter, const FirAxis& x_axis,
                                                  const FirAxis& y_axis) {
  return filter.is_separable ? x_axis.taps : x_axis.taps * y_axis.taps;
}

// The filter as a correlation kernel, by all threads of the block; its gain is left to others.
template <class W>
__device__ __forceinline__ void load_taps(W* to, const FirFilter& filter, int count) {
  const W* from = static_cast<const W*>(filter.taps);
  for (int i = threadIdx.x; i < count; i += kTileThreads)
    to[i] = from[filter.is_flipped ? i : count - 1 - i];
}

// Numbers that keep what follows them in shared memory aligned to 16 bytes.
template <class W>
constexpr int64_t aligned_count(int64_t count) {
  constexpr int64_t kStep = 16 / sizeof(W);
  return (count + kStep - 1) / kStep * kStep;
}

}  // namespace open_eg3d::cuda
