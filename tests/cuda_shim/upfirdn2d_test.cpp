// upfirdn2d beside its definition in double precision: insert zeros, pad, correlate, keep. With
// "quick", a few small cases.
#include <limits>

#include "fir_testing.h"

namespace {

using namespace fir_testing;

int cases = 0;

template <class T>
void run(const Images& images, const Resampling& x_axis, const Resampling& y_axis,
         bool is_separable, bool is_flipped, Dtype type) {
  ++cases;
  using W = compute_t<T>;
  const int64_t width = x_axis.size_out(images.width), height = y_axis.size_out(images.height);
  const int count = is_separable ? x_axis.taps : x_axis.taps * y_axis.taps;
  const auto taps = testing::random_numbers<W>(count, 5);
  Buffer<T> x(images, images.width, images.height, 7), y(images, width, height, 8);
  if (images.has_specials) x.spoil();
  const double gain = 1.5;
  Upfirdn p{images.samples,
            images.channels,
            x_axis.axis(images.width),
            y_axis.axis(images.height),
            {taps.data(), is_separable, is_flipped, gain},
            x.data(),
            y.data(),
            x.strides,
            y.strides};
  upfirdn2d(p, type, Stream());
  std::vector<double> expected;
  std::vector<T> results;
  for (int64_t n = 0; n < images.samples; ++n)
    for (int64_t c = 0; c < images.channels; ++c) {
      const Plane result =
          resample(x.plane(n, c), x_axis, y_axis, taps, is_separable, is_flipped, gain);
      expected.insert(expected.end(), result.numbers.begin(), result.numbers.end());
      for (int64_t i = 0; i < height; ++i)
        for (int64_t j = 0; j < width; ++j) results.push_back(y.at(n, c, i, j));
    }
  testing::compare(images.title() + x_axis.title() + y_axis.title() +
                       (is_separable ? " separable" : " full") + ", type " +
                       std::to_string(int(type)),
                   results, expected, testing::kRounding<T> * (20 + x_axis.taps));
}

void run_all_types(const Images& images, const Resampling& x, const Resampling& y,
                   bool is_separable, bool is_flipped = false) {
  run<float>(images, x, y, is_separable, is_flipped, Dtype::kFloat);
  run<half>(images, x, y, is_separable, is_flipped, Dtype::kHalf);
  run<bfloat16>(images, x, y, is_separable, is_flipped, Dtype::kBfloat16);
  run<double>(images, x, y, is_separable, is_flipped, Dtype::kDouble);
}

constexpr Resampling kBlur{1, 1, 2, 1, 4}, kUp{2, 1, 2, 1, 4}, kDown{1, 2, 1, 1, 4};

}  // namespace

int main(int count, char**) {
  if (count > 1) {
    run<float>({1, 2, 9, 40}, kUp, kUp, false, false, Dtype::kFloat);
    run<half>({1, 36, 9, 9, Format::kChannelsLast}, kDown, kDown, true, false, Dtype::kHalf);
    return testing::finish(cases);
  }
  for (const Format format : {Format::kPlanes, Format::kChannelsLast}) {
    for (const Resampling& known : {kBlur, kUp, kDown})
      run_all_types({2, 24, 9, 11, format}, known, known, false);
    // Sizes around a tile's edges: 32 x 32 pixels of a plane, 8 x 16 channels-last.
    for (const int64_t size : {1, 2, 15, 16, 17, 31, 32, 33})
      run<float>({1, 3, size, size + 1, format}, kBlur, kDown, false, true, Dtype::kFloat);
    for (const int64_t channels : {1, 2, 31, 32, 33, 40})
      run<half>({1, channels, 5, 6, format}, kUp, kUp, false, false, Dtype::kHalf);
    run_all_types({1, 5, 12, 13, format}, {3, 2, 4, -3, 5}, {2, 3, -2, 6, 5}, true,
                  true);  // odd factors, cropped
    run_all_types({1, 5, 6, 7, format}, {1, 1, 40, 50, 3}, {2, 2, 35, 60, 6},
                  false);  // padding far beyond the image
    run<float>({1, 5, 30, 30, format}, {1, 1, -14, -12, 1}, {1, 1, -29, 1, 2}, false, false,
               Dtype::kFloat);
    run<float>({1, 2, 4, 5, format}, {7, 1, 3, 3, 5}, {1, 9, 4, 5, 5}, true, false,
               Dtype::kFloat);  // some outputs meet no sample
    run<float>({1, 2, 40, 40, format}, {2, 1, 30, 30, 61}, {2, 1, 30, 30, 61}, true, false,
               Dtype::kFloat);
    run<float>({1, 2, 3, 9, format}, {1, 1, 90, 100, 180}, {1, 1, 90, 100, 180}, false, false,
               Dtype::kFloat);  // fits into no tile
    run<float>({1, 2, 3, 9, format}, {2, 3, 200, 150, 300}, {2, 3, 200, 150, 300}, true, true,
               Dtype::kFloat);
    Images special{1, 3, 20, 20, format};
    special.has_specials = true;
    run_all_types(special, kUp, kUp, false);
    run_all_types(special, {1, 2, 3, 3, 6}, {1, 2, 3, 3, 6}, true);
    Images odd{2, 8, 9, 11, format};
    odd.gap = 3;  // rows that do not follow each other
    run_all_types(odd, kUp, kDown, true);
    odd.gap = 16;
    run_all_types(odd, kBlur, kBlur, false);
  }
  run<float>({0, 3, 8, 8}, kBlur, kBlur, false, false, Dtype::kFloat);
  return testing::finish(cases);
}
