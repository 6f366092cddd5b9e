// Element-wise parts of modulated convolutions beside plain loops in double precision. With
// "quick", a small case.
#include "cuda/modulation.h"

#include <limits>

#include "testing.h"

namespace {

using namespace open_eg3d::cuda;

int cases = 0;

struct Case {
  PixelLayout layout;
  bool has_scale, has_noise, is_noise_shared, has_bias, has_clamp;
  int offset = 0;
};

template <class T>
struct Suite {
  using W = compute_t<T>;
  Case c;
  Dtype type;
  int64_t count, rows;
  double slope = 0.2, gain = 1.5, clamp = 0.75;
  std::vector<W> scale, noise, bias;
  std::vector<T> x, grad;

  Suite(const Case& c_, Dtype type_)
      : c(c_),
        type(type_),
        count(c.layout.samples * c.layout.pixels * c.layout.channels),
        rows(c.layout.samples) {
    ++cases;
    const auto& l = c.layout;
    scale = testing::random_numbers<W>(l.samples * l.channels, 1);
    noise = testing::random_numbers<W>((c.is_noise_shared ? 1 : l.samples) * l.pixels, 2);
    bias = testing::random_numbers<W>(l.channels, 3);
    x = testing::random_numbers<T>(count + c.offset, 4, 2),
    grad = testing::random_numbers<T>(count + c.offset, 5);
  }

  std::string title(const char* what) const {
    return std::string(what) + ", " + std::to_string(c.layout.samples) + " x " +
           std::to_string(c.layout.pixels) + " x " + std::to_string(c.layout.channels) + ", type " +
           std::to_string(int(type));
  }

  Modulation modulation() const {
    return {c.layout,
            c.has_scale ? scale.data() : nullptr,
            c.has_noise ? noise.data() : nullptr,
            c.is_noise_shared,
            c.has_bias ? bias.data() : nullptr,
            slope,
            gain,
            c.has_clamp,
            c.has_clamp ? clamp : 0};
  }

  int64_t sample(int64_t i) const { return i / c.layout.channels / c.layout.pixels; }
  int64_t pixel(int64_t i) const { return i / c.layout.channels % c.layout.pixels; }
  int64_t channel(int64_t i) const { return i % c.layout.channels; }
  double scale_at(int64_t i) const {
    return c.has_scale ? scale[sample(i) * c.layout.channels + channel(i)] : 1;
  }
  double x_at(int64_t i) const { return widen(x[i + c.offset]); }

  double pre_activation(int64_t i) const {
    double z = x_at(i) * scale_at(i);
    if (c.has_noise) z += noise[(c.is_noise_shared ? 0 : sample(i) * c.layout.pixels) + pixel(i)];
    if (c.has_bias) z += bias[channel(i)];
    return z;
  }

  double activated(double z) const { return gain * (z > 0 ? z : slope * z); }

  void forward() {
    std::vector<T> y(count + c.offset);
    std::vector<double> expected;
    for (int64_t i = 0; i < count; ++i) {
      const double value = activated(pre_activation(i));
      expected.push_back(
          c.has_clamp && !std::isnan(value) ? std::fmin(std::fmax(value, -clamp), clamp) : value);
    }
    modulated_lrelu(modulation(), x.data() + c.offset, y.data() + c.offset, type, Stream());
    testing::compare(title("forward"), std::vector<T>(y.begin() + c.offset, y.end()), expected,
                     testing::kRounding<T> * 8);
  }

  void scaling() {
    std::vector<T> y(count + c.offset);
    std::vector<double> expected;
    for (int64_t i = 0; i < count; ++i)
      expected.push_back(
          x_at(i) * double(widen(narrow<T>(scale[sample(i) * c.layout.channels + channel(i)]))));
    scale_channels(c.layout, x.data() + c.offset, scale.data(), y.data() + c.offset, type,
                   Stream());
    testing::compare(title("scale"), std::vector<T>(y.begin() + c.offset, y.end()), expected,
                     testing::kRounding<T> * 4);
  }

  // Numbers whose slope rounding decides are moved away.
  void keep_from_bends() {
    for (int64_t i = 0; i < count; ++i) {
      for (int tries = 0; tries < 40; ++tries) {
        const double z = pre_activation(i);
        if (std::abs(z) > 0.02 && std::abs(std::abs(activated(z)) - clamp) > 0.02) break;
        x[i + c.offset] = narrow<T>(static_cast<W>(x_at(i) + 0.125));
      }
      if (std::abs(pre_activation(i)) <= 0.02 ||
          std::abs(std::abs(activated(pre_activation(i))) - clamp) <= 0.02)
        grad[i + c.offset] = narrow<T>(W(0));
    }
  }

  void backward(bool is_scaling) {
    const auto& l = c.layout;
    const int64_t chunks = modulation_chunks(l);
    std::vector<T> result(count + c.offset);
    std::vector<W> scale_sums(l.samples * chunks * l.channels), bias_sums(scale_sums.size()),
        grad_noise(l.samples * l.pixels);
    std::vector<double> expected, of_scale(l.samples * l.channels), of_bias(l.channels),
        of_noise(l.samples * l.pixels);
    for (int64_t i = 0; i < count; ++i) {
      const double z = pre_activation(i),
                   factor = is_scaling ? scale[sample(i) * l.channels + channel(i)] : scale_at(i);
      const double slope_here = is_scaling ? 1
                                : c.has_clamp && std::abs(activated(z)) > clamp
                                    ? 0
                                    : gain * (z > 0 ? 1 : slope);
      const double delta = double(widen(grad[i + c.offset])) * slope_here;
      expected.push_back(delta * factor);
      of_scale[sample(i) * l.channels + channel(i)] += delta * x_at(i);
      of_bias[channel(i)] += delta;
      of_noise[sample(i) * l.pixels + pixel(i)] += delta;
    }
    ModulationGradients gradients{grad.data() + c.offset,
                                  x.data() + c.offset,
                                  result.data() + c.offset,
                                  scale_sums.data(),
                                  nullptr,
                                  nullptr};
    if (is_scaling) {
      scale_channels_backward(l, scale.data(), gradients, type, Stream());
    } else {
      gradients.bias_sums = bias_sums.data(),
      gradients.grad_noise = c.has_noise ? grad_noise.data() : nullptr;
      modulated_lrelu_backward(modulation(), gradients, type, Stream());
    }
    testing::compare(title("gradient"), std::vector<T>(result.begin() + c.offset, result.end()),
                     expected, testing::kRounding<T> * 8);
    std::vector<double> scale_totals(of_scale.size()), bias_totals(l.channels);
    for (size_t i = 0; i < scale_sums.size(); ++i) {
      scale_totals[int64_t(i) / l.channels / std::max<int64_t>(chunks, 1) * l.channels +
                   i % l.channels] += double(scale_sums[i]);
      bias_totals[i % l.channels] += double(bias_sums[i]);
    }
    testing::compare(title("gradient of the scale"), scale_totals, of_scale, 2e-5);
    if (is_scaling) return;
    testing::compare(title("gradient of the bias"), bias_totals, of_bias, 2e-5);
    if (c.has_noise) testing::compare(title("gradient of the noise"), grad_noise, of_noise, 2e-5);
  }

  void run() {
    forward();
    scaling();
    keep_from_bends();
    backward(false);
    backward(true);
  }
};

template <class T>
void run(const Case& c, Dtype type) {
  Suite<T>(c, type).run();
}

void run_all_types(const Case& c) {
  run<float>(c, Dtype::kFloat);
  run<half>(c, Dtype::kHalf);
  run<bfloat16>(c, Dtype::kBfloat16);
  run<double>(c, Dtype::kDouble);
}

}  // namespace

int main(int count, char**) {
  if (count > 1) {
    run<float>({{1, 140, 70}, true, true, false, true, true}, Dtype::kFloat);
    return testing::finish(cases);
  }
  run_all_types({{2, 35, 20}, true, true, false, true, true});
  run_all_types({{3, 9, 8}, false, false, false, false, false});
  for (const int64_t channels : {1, 3, 31, 32, 33, 63, 64, 65, 132})
    run<float>({{1, 12, channels}, true, true, true, true, true}, Dtype::kFloat);
  for (const int64_t channels : {128, 136, 260})
    run<half>({{2, 9, channels}, true, false, true, true, false}, Dtype::kHalf);
  for (const int64_t pixels : {1, 127, 128, 129})
    run<float>({{2, pixels, 5}, true, true, true, false, true}, Dtype::kFloat);
  run<bfloat16>({{1, 20, 128}, true, true, false, true, true, 1}, Dtype::kBfloat16);
  run<float>({{0, 4, 4}, true, true, false, true, true}, Dtype::kFloat);
  Suite<float> special({{1, 4, 8}, true, true, false, true, true}, Dtype::kFloat);
  special.x[3] = std::numeric_limits<float>::quiet_NaN(),
  special.x[9] = std::numeric_limits<float>::infinity();
  special.forward();
  return testing::finish(cases);
}
