// Resampling of images by FIR filters: what bindings and tests give to the kernels of upfirdn2d and
// filtered_lrelu.
#pragma once

#include "cuda/types.h"

namespace open_eg3d::cuda {

// An axis inserts up - 1 zeros after each of `size_in` samples, pads, correlates with `taps` taps
// and keeps every `down`-th sample.
struct FirAxis {
  int64_t size_in, size_out;
  int up, down;
  int64_t padding;  // zeros before the first fine sample; negative = cropped
  int taps;
};

// Numbers of the type that is computed in: taps_y rows of taps_x, or where `is_separable` one row
// for both axes.
struct FirFilter {
  const void* taps;
  bool is_separable;
  bool is_flipped;  // as correlation takes them; otherwise they are turned by half a turn
  double gain;
};

struct ImageStrides {
  int64_t sample, channel, row, column;
};

struct Upfirdn {
  int64_t samples, channels;
  FirAxis x_axis, y_axis;
  FirFilter filter;
  const void* x;
  void* y;
  ImageStrides x_strides, y_strides;
};

void upfirdn2d(const Upfirdn& problem, Dtype type, Stream stream);

enum class Signs { kNone, kWrite, kRead };

// The first resampling makes fine pixels, which pass the leaky ReLU; the second, which pads with
// zeros, makes the result. Its size_in is the fine grid's. Both filters are of gain one.
//
// Signs: a word for each of blocks x fine rows x fine columns; bit l = plane l of the block was not
// positive, bit 16 + l = clamped.
struct FilteredLrelu {
  int64_t samples, channels;
  FirAxis first_x, first_y, second_x, second_y;
  FirFilter first, second;
  double gain, slope;
  bool has_clamp;
  double clamp;
  const void* x;
  const void* bias;  // (channels,) of the type that is computed in, or null
  void* y;
  ImageStrides x_strides, y_strides;
  int32_t* signs;
  Signs use;
};

// Blocks of sixteen planes: of a sample where it has as many, otherwise samples share them.
constexpr int64_t kPlanesPerWord = 16;

inline int64_t sign_blocks(int64_t samples, int64_t channels) {
  return channels >= kPlanesPerWord ? samples * ((channels + kPlanesPerWord - 1) / kPlanesPerWord)
                                    : (samples * channels + kPlanesPerWord - 1) / kPlanesPerWord;
}

// Throws std::runtime_error where filters are so long that not even a small tile fits into a
// multiprocessor's memory.
void filtered_lrelu(const FilteredLrelu& problem, Dtype type, Stream stream);

}  // namespace open_eg3d::cuda
