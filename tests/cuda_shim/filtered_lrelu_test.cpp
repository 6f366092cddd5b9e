// filtered_lrelu, and the map by signs, beside a chain of plain steps in double precision. With
// "quick", a small case; with "fits", which filters are launched.
#include "fir_testing.h"

namespace {

using namespace fir_testing;

int cases = 0;

struct Layer {
  Resampling first_x, first_y, second_x, second_y;
  bool first_separable, second_separable;
  double slope, gain, clamp;  // clamp < 0: none
};

template <class T>
struct Suite {
  using W = compute_t<T>;
  Images images;
  Layer layer;
  Dtype type;
  int64_t fine_width, fine_height, width, height;
  std::vector<W> first, second, bias;
  Buffer<T> x;
  std::vector<int32_t> signs;

  Suite(const Images& images_, const Layer& layer_, Dtype type_)
      : images(images_),
        layer(layer_),
        type(type_),
        width(layer.second_x.size_out(layer.first_x.size_out(images.width))),
        height(layer.second_y.size_out(layer.first_y.size_out(images.height))),
        bias(testing::random_numbers<W>(images.channels, 4)),
        x(images, images.width, images.height, 5) {
    ++cases;
    fine_width = (width - 1) * layer.second_x.down + layer.second_x.taps,
    fine_height = (height - 1) * layer.second_y.down + layer.second_y.taps;
    first = make_taps(layer.first_x, layer.first_y, layer.first_separable, 6);
    second = make_taps(layer.second_x, layer.second_y, layer.second_separable, 7);
    if (images.has_specials) x.spoil();
  }

  static std::vector<W> make_taps(const Resampling& x_axis, const Resampling& y_axis,
                                  bool is_separable, uint64_t seed) {
    auto taps =
        testing::random_numbers<W>(is_separable ? x_axis.taps : x_axis.taps * y_axis.taps, seed);
    W sum = 0;
    for (auto& tap : taps) tap = std::abs(tap) + W(0.1), sum += tap;
    for (auto& tap : taps) tap /= sum;
    return taps;
  }

  FilteredLrelu problem(Buffer<T>& y, Signs use) {
    FirAxis first_x = layer.first_x.axis(images.width), first_y = layer.first_y.axis(images.height);
    first_x.size_out = fine_width, first_y.size_out = fine_height;
    signs.resize(use == Signs::kWrite
                     ? sign_blocks(images.samples, images.channels) * fine_width * fine_height
                     : signs.size(),
                 0x55555555);
    return {images.samples,
            images.channels,
            first_x,
            first_y,
            layer.second_x.axis(fine_width),
            layer.second_y.axis(fine_height),
            {first.data(), layer.first_separable, false, 1},
            {second.data(), layer.second_separable, false, 1},
            layer.gain,
            layer.slope,
            layer.clamp >= 0,
            layer.clamp,
            x.data(),
            bias.data(),
            y.data(),
            x.strides,
            y.strides,
            signs.data(),
            use};
  }

  // Bit `bit` of the word of a fine pixel of plane (n, c).
  bool sign(int64_t n, int64_t c, int64_t y, int64_t x_, int shift) const {
    const int64_t plane = n * images.channels + c, per_sample = (images.channels + 15) / 16;
    const int64_t block = images.channels >= 16 ? n * per_sample + c / 16 : plane / 16;
    const int lane = static_cast<int>(images.channels >= 16 ? c % 16 : plane % 16);
    return static_cast<uint32_t>(signs[(block * fine_height + y) * fine_width + x_]) >>
               (lane + shift) &
           1;
  }

  Plane fine_plane(int64_t n, int64_t c) {
    Plane image = x.plane(n, c);
    for (auto& number : image.numbers) number += bias[c];
    return resample(image, layer.first_x, layer.first_y, first, layer.first_separable, false, 1);
  }

  // Of the kernel's own signs where `by_signs`, which must be the right ones wherever rounding does
  // not decide.
  Plane expected(int64_t n, int64_t c, bool by_signs) {
    Plane fine = fine_plane(n, c);
    for (int64_t y = 0; y < fine_height; ++y)
      for (int64_t i = 0; i < fine_width; ++i) {
        double& number = fine.at(y, i);
        const bool is_negative = by_signs ? sign(n, c, y, i, 0) : !(number > 0);
        const double activated = number * layer.gain * (is_negative ? layer.slope : 1);
        const bool is_clamped = layer.clamp >= 0 && !(std::abs(activated) <= layer.clamp);
        if (by_signs) {
          if (is_negative != !(number > 0) && std::abs(number) > 1e-5) differ("sign", n, c, y, i);
          if (sign(n, c, y, i, 16) != is_clamped &&
              !(std::abs(std::abs(activated) - layer.clamp) < 1e-4))
            differ("clamp", n, c, y, i);
          number = sign(n, c, y, i, 16) ? 0 : activated;
        } else {
          number = layer.clamp < 0 || std::isnan(activated)
                       ? activated
                       : std::fmin(std::fmax(activated, -layer.clamp), layer.clamp);
        }
      }
    return resample(fine, layer.second_x, layer.second_y, second, layer.second_separable, false, 1);
  }

  void differ(const char* what, int64_t n, int64_t c, int64_t y, int64_t i) {
    if (testing::failures++ == 0)
      std::printf("FAILED %s of fine pixel %d %d %d %d, %s\n", what, int(n), int(c), int(y), int(i),
                  images.title().c_str());
  }

  void check(Buffer<T>& y, bool by_signs, const char* title) {
    std::vector<double> expectations;
    std::vector<T> results;
    for (int64_t n = 0; n < images.samples; ++n)
      for (int64_t c = 0; c < images.channels; ++c) {
        const Plane plane = expected(n, c, by_signs);
        expectations.insert(expectations.end(), plane.numbers.begin(), plane.numbers.end());
        for (int64_t i = 0; i < height; ++i)
          for (int64_t j = 0; j < width; ++j) results.push_back(y.at(n, c, i, j));
      }
    testing::compare(title + images.title() + layer.first_x.title() + layer.second_x.title() +
                         ", type " + std::to_string(int(type)),
                     results, expectations, testing::kRounding<T> * 20);
  }

  void run() {
    Buffer<T> y(images, width, height, 8), signed_y(images, width, height, 9),
        again(images, width, height, 10);
    filtered_lrelu(problem(y, Signs::kNone), type, Stream());
    if (width == 0 || height == 0) return;
    check(y, false, "forward ");
    filtered_lrelu(problem(signed_y, Signs::kWrite), type, Stream());
    check(signed_y, false, "with signs ");
    filtered_lrelu(problem(again, Signs::kRead), type, Stream());
    check(again, true, "by signs ");
  }
};

template <class T>
void run(const Images& images, const Layer& layer, Dtype type) {
  Suite<T>(images, layer, type).run();
}

void run_all_types(const Images& images, const Layer& layer) {
  run<float>(images, layer, Dtype::kFloat);
  run<half>(images, layer, Dtype::kHalf);
  run<bfloat16>(images, layer, Dtype::kBfloat16);
  run<double>(images, layer, Dtype::kDouble);
}

Layer square(const Resampling& first, const Resampling& second, bool is_separable, double clamp) {
  return {first, first, second, second, is_separable, is_separable, 0.2, 1.4, clamp};
}

// A pixel of the result by filters of these sizes: launched, or refused for want of shared memory?
template <class T>
void tell_fit(bool is_separable, int up_taps, int up, int down_taps, int down, Dtype type) {
  const int64_t side = 2, padding = up_taps + down_taps - 1 - side * up;
  Suite<T> suite({1, 1, side, side},
                 square({up, 1, padding, 0, up_taps}, {1, down, 0, 0, down_taps}, is_separable, -1),
                 type);
  Buffer<T> y(suite.images, suite.width, suite.height, 8);
  bool is_launched = true;
  try {
    filtered_lrelu(suite.problem(y, Signs::kNone), type, Stream());
  } catch (const std::runtime_error&) {
    is_launched = false;
  }
  std::printf("%d %d %d %d %d %d %d\n", is_separable, up_taps, up, down_taps, down,
              int(sizeof(compute_t<T>)), is_launched);
}

void tell_fits() {
  for (const bool is_separable : {true, false})
    for (const int up_taps : {4, 12, 32})
      for (const int up : {1, 2, 8})
        for (const int down_taps : {4, 12, 32})
          for (const int down : {1, 2, 8, 48, 64}) {
            tell_fit<float>(is_separable, up_taps, up, down_taps, down, Dtype::kFloat);
            tell_fit<double>(is_separable, up_taps, up, down_taps, down, Dtype::kDouble);
          }
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && std::string(arguments[1]) == "fits") {
    tell_fits();
    return 0;
  }
  const Layer usual = square({2, 1, 9, 8, 12}, {1, 2, 0, 0, 12}, true, 0.5);
  if (count > 1) {
    run<float>({1, 3, 10, 18}, usual, Dtype::kFloat);
    return testing::finish(cases);
  }
  for (const Format format : {Format::kPlanes, Format::kChannelsLast}) {
    run_all_types({2, 3, 9, 11, format}, usual);
    run_all_types({1, 18, 6, 7, format}, square({2, 1, 4, 4, 6}, {1, 1, 0, 0, 3}, false, -1));
    for (const int64_t size : {1, 7, 8, 9, 17, 33})
      run<float>({1, 2, size, size + 1, format}, usual, Dtype::kFloat);
    for (const int64_t channels : {1, 15, 16, 17, 33})
      run<half>({2, channels, 3, 4, format}, square({2, 1, 2, 2, 4}, {1, 2, 0, 0, 4}, true, 0.3),
                Dtype::kHalf);
    run<float>({1, 3, 12, 9, format}, square({1, 1, 1, 1, 1}, {1, 4, 0, 0, 2}, true, 0.3),
               Dtype::kFloat);  // a filter shorter than the factor
    run<float>({1, 2, 14, 15, format},
               {{2, 1, -5, 3, 5},
                {3, 1, 30, -2, 5},
                {1, 3, 0, 0, 4},
                {1, 2, 0, 0, 4},
                true,
                true,
                -0.5,
                2,
                -1},
               Dtype::kFloat);
    run<double>({1, 6, 5, 5, format}, square({1, 1, 31, 31, 32}, {1, 2, 0, 0, 32}, true, 0.1),
                Dtype::kDouble);
    Images special{1, 3, 12, 12, format};
    special.has_specials = true;
    run<float>(special, square({2, 1, 2, 2, 4}, {1, 2, 0, 0, 4}, true, -1), Dtype::kFloat);
    Images odd{2, 5, 9, 10, format};
    odd.gap = 3;
    run<bfloat16>(odd, usual, Dtype::kBfloat16);
  }
  return testing::finish(cases);
}
