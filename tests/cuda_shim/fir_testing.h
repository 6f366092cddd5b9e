// Resampling by its definition, and images of odd layouts, for tests of upfirdn2d and
// filtered_lrelu.
#pragma once

#include <limits>

#include "cuda/fir.h"
#include "testing.h"

namespace fir_testing {

using namespace open_eg3d::cuda;

enum class Format { kPlanes, kChannelsLast };

struct Images {
  int64_t samples, channels, height, width;
  Format format = Format::kPlanes;
  int64_t gap = 0;  // numbers between rows
  bool has_specials = false;

  std::string title() const {
    return std::to_string(samples) + "x" + std::to_string(channels) + "x" + std::to_string(height) +
           "x" + std::to_string(width) +
           (format == Format::kPlanes ? " planes" : " channels-last") + ", gap " +
           std::to_string(gap);
  }
};

struct Resampling {
  int up, down;
  int64_t before, after;  // padding
  int taps;

  int64_t size_out(int64_t size) const {
    const int64_t padded = size * up + before + after;
    return padded < taps ? 0 : (padded - taps) / down + 1;
  }
  FirAxis axis(int64_t size) const { return {size, size_out(size), up, down, before, taps}; }
  std::string title() const {
    return ", up " + std::to_string(up) + " down " + std::to_string(down) + " padding " +
           std::to_string(before) + " " + std::to_string(after) + " taps " + std::to_string(taps);
  }
};

struct Plane {
  int64_t height, width;
  std::vector<double> numbers;

  Plane(int64_t height_, int64_t width_)
      : height(height_), width(width_), numbers(height_ * width_) {}
  double& at(int64_t y, int64_t x) { return numbers[y * width + x]; }
  double at(int64_t y, int64_t x) const { return numbers[y * width + x]; }
};

template <class T>
struct Buffer {
  ImageStrides strides;
  int64_t width, height;
  std::vector<T> numbers;

  Buffer(const Images& images, int64_t width_, int64_t height_, uint64_t seed)
      : width(width_), height(height_) {
    const bool is_last = images.format == Format::kChannelsLast;
    const int64_t column = is_last ? images.channels : 1, row = width * column + images.gap;
    const int64_t channel = is_last ? 1 : height * row,
                  sample = is_last ? height * row : images.channels * channel;
    strides = {sample, channel, row, column};
    // Without the last gap, so that a read behind the image is one behind the buffer.
    numbers = testing::random_numbers<T>(std::max<int64_t>(images.samples * sample - images.gap, 0),
                                         seed);
  }

  T* data() { return numbers.data(); }
  T& at(int64_t n, int64_t c, int64_t y, int64_t x) {
    return numbers[n * strides.sample + c * strides.channel + y * strides.row + x * strides.column];
  }

  Plane plane(int64_t n, int64_t c) {
    Plane result(height, width);
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x) result.at(y, x) = widen(at(n, c, y, x));
    return result;
  }

  // NaN and infinities in places that do not see each other.
  void spoil() {
    using W = compute_t<T>;
    at(0, 0, 2, 2) = narrow<T>(std::numeric_limits<W>::quiet_NaN());
    at(0, 0, height - 2, width - 3) = narrow<T>(std::numeric_limits<W>::infinity());
    at(0, 1, 0, 0) = narrow<T>(-std::numeric_limits<W>::infinity());
  }
};

// Insert zeros, pad or crop, correlate, keep every down-th. Inserted and padded zeros meet taps as
// zeros.
template <class W>
Plane resample(const Plane& image, const Resampling& x_axis, const Resampling& y_axis,
               const std::vector<W>& taps, bool is_separable, bool is_flipped, double gain) {
  const int64_t fine_height = image.height * y_axis.up + y_axis.before + y_axis.after,
                fine_width = image.width * x_axis.up + x_axis.before + x_axis.after;
  Plane fine(std::max<int64_t>(fine_height, 0), std::max<int64_t>(fine_width, 0));
  for (int64_t y = 0; y < image.height; ++y)
    for (int64_t x = 0; x < image.width; ++x) {
      const int64_t to_y = y * y_axis.up + y_axis.before, to_x = x * x_axis.up + x_axis.before;
      if (to_y >= 0 && to_y < fine_height && to_x >= 0 && to_x < fine_width)
        fine.at(to_y, to_x) = image.at(y, x);
    }
  const auto tap = [&](int i, int j) {
    const int y = is_flipped ? i : y_axis.taps - 1 - i, x = is_flipped ? j : x_axis.taps - 1 - j;
    return is_separable ? double(taps[y]) * double(taps[x]) : double(taps[y * x_axis.taps + x]);
  };
  Plane result(y_axis.size_out(image.height), x_axis.size_out(image.width));
  for (int64_t y = 0; y < result.height; ++y)
    for (int64_t x = 0; x < result.width; ++x) {
      double sum = 0;
      for (int i = 0; i < y_axis.taps; ++i)
        for (int j = 0; j < x_axis.taps; ++j) {
          const double number = fine.at(y * y_axis.down + i, x * x_axis.down + j);
          if (number != 0) sum += number * tap(i, j);
        }
      result.at(y, x) = sum * gain;
    }
  return result;
}

}  // namespace fir_testing
