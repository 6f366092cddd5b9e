// What bindings hand to the kernels on tri-planes: plain pointers, sizes and strides. Free of torch
// and of CUDA.
#pragma once

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>

#include "cuda/types.h"

namespace open_eg3d::cuda {

// T is float, or double where the planes are double; numbers of planes have the type that `Dtype`
// names.

// Planes whose texels' channels are neighbours in memory; strides in elements.
struct Planes {
  const void* data;
  int64_t sample_stride, plane_stride, row_stride, column_stride;
  int channels, height, width;
  bool has_released_axes;
  double scale;  // 2 / box_warp
};

// Where each part of the packed decoder lies, in numbers of type T from its start. Rows are padded
// by zeros to whole packs of four, and their lengths are odd numbers of packs, so that packs of
// neighbouring rows lie in different banks of shared memory.
struct DecoderLayout {
  int features, hidden, colors;     // C, H, K
  int features4, hidden4, colors4;  // whole packs
  int w0, w1, density, b0, b1, density_bias, total;

  DecoderLayout(int64_t features_, int64_t hidden_, int64_t colors_)
      : features(features_), hidden(hidden_), colors(colors_) {
    features4 = whole_packs(features), hidden4 = whole_packs(hidden), colors4 = whole_packs(colors);
    w0 = 0;  // (H, C), divided by the number of planes, whose features are summed
    w1 = w0 + hidden4 * row(features4);     // (K, H)
    density = w1 + colors4 * row(hidden4);  // (H)
    b0 = density + row(hidden4);            // (H)
    b1 = b0 + hidden4;                      // (K)
    density_bias = b1 + colors4;            // a single number
    total = density_bias + 4;
  }

  static constexpr int whole_packs(int count) { return (count + 3) / 4 * 4; }
#ifdef __CUDACC__
  __host__ __device__
#endif
      static constexpr int row(int padded) {
    return padded / 4 % 2 == 1 ? padded : padded + 4;
  }
};

constexpr int kMostTileRows = 64;
constexpr size_t kMostSharedMemory = 64 << 10;  // of a block on the smallest GPU, all of it counted

// The samples that a block decodes at once, and its shared memory.
struct TilePlan {
  int rows;
  size_t bytes;
};

// As many samples as fit into shared memory beside the decoder and `fixed_bytes`, where a sample
// takes `row_numbers`.
//
// Throws std::runtime_error where even 16 do not fit.
inline TilePlan plan_tile(const DecoderLayout& layout, int row_numbers, size_t number_bytes,
                          size_t fixed_bytes) {
  for (int rows = kMostTileRows; rows >= 16; rows /= 2) {
    const size_t bytes = fixed_bytes + (layout.total + size_t(rows) * row_numbers) * number_bytes;
    if (bytes <= kMostSharedMemory) return {rows, bytes};
  }
  throw std::runtime_error(
      "a decoder of " + std::to_string(layout.features) + " features, " +
      std::to_string(layout.hidden) + " hidden units and " + std::to_string(layout.colors) +
      " colours does not fit into a GPU's shared memory; OPEN_EG3D_OPS=reference renders it");
}

// A decoder as its linear layers are given: w0 (H, C), b0 (H), w1 (1 + K, H), b1 (1 + K), all T,
// contiguous.
struct DecoderWeights {
  const void *w0, *b0, *w1, *b1;
};

// Sums of gradients over blocks or texels must not depend on which block comes first. Those of the
// decoder are kept apart for each of this many blocks, whatever the GPU, and added up in turn.
constexpr int64_t kPartialSums = 2048;

}  // namespace open_eg3d::cuda
