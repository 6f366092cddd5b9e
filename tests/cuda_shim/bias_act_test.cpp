// bias_act and its derivatives beside plain loops in double precision. With "quick", a few small
// cases.
#include "cuda/bias_act.h"

#include <limits>

#include "testing.h"

namespace {

using namespace open_eg3d::cuda;

bool has_straight(Activation a) {
  return a == Activation::kLinear || a == Activation::kRelu || a == Activation::kLrelu;
}

constexpr double kInfinity = std::numeric_limits<double>::infinity(),
                 kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kAlpha = 1.6732632423543772, kScale = 1.0507009873554805;
int cases = 0;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double value(Activation a, double x, double alpha) {
  switch (a) {
    case Activation::kLinear:
      return x;
    case Activation::kRelu:
      return std::isnan(x) ? x : std::fmax(x, 0);
    case Activation::kLrelu:
      return x > 0 ? x : alpha * x;
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kSigmoid:
      return sigmoid(x);
    case Activation::kElu:
      return x > 0 ? x : std::exp(x) - 1;
    case Activation::kSelu:
      return kScale * (x > 0 ? x : kAlpha * (std::exp(x) - 1));
    case Activation::kSoftplus:
      return x > 20 ? x : std::log(1 + std::exp(x));
    case Activation::kSwish:
      return x * sigmoid(x);
  }
  return kNan;
}

double first(Activation a, double x, double alpha) {
  const double s = sigmoid(x);
  switch (a) {
    case Activation::kLinear:
      return 1;
    case Activation::kRelu:
      return x <= 0 ? 0 : 1;
    case Activation::kLrelu:
      return x > 0 ? 1 : alpha;
    case Activation::kTanh:
      return 1 / (std::cosh(x) * std::cosh(x));
    case Activation::kSigmoid:
      return s * (1 - s);
    case Activation::kElu:
      return x > 0 ? 1 : std::exp(x);
    case Activation::kSelu:
      return kScale * (x > 0 ? 1 : kAlpha * std::exp(x));
    case Activation::kSoftplus:
      return x > 20 ? 1 : s;
    case Activation::kSwish:
      return s + x * s * (1 - s);
  }
  return kNan;
}

// By differences of the first derivative.
double second(Activation a, double x, double alpha) {
  if (has_straight(a)) return 0;
  constexpr double kStep = 1e-5;
  return (first(a, x + kStep, alpha) - first(a, x - kStep, alpha)) / (2 * kStep);
}

double clamped(const ActivationSettings& s, double y) {
  if (!s.has_clamp || std::isnan(y)) return y;
  return std::fmin(std::fmax(y, -s.clamp), s.clamp);
}

int64_t channel_of(const ChannelLayout& layout, int64_t i) {
  return i / layout.inner % layout.channels;
}

// A layout, and by how many numbers its tensors start behind an aligned address.
struct Case {
  ChannelLayout layout;
  int offset;
};

template <class T>
struct Data {
  std::vector<T> numbers;
  int offset;

  Data(const Case& c, uint64_t seed, double scale)
      : numbers(testing::random_numbers<T>(c.layout.count + c.offset, seed, scale)),
        offset(c.offset) {}
  T* data() { return numbers.data() + offset; }
  double at(int64_t i) const { return widen(numbers[i + offset]); }
  std::vector<T> cut() const { return {numbers.begin() + offset, numbers.end()}; }
};

template <class T>
struct Suite {
  Case c;
  ActivationSettings s;
  Dtype type;
  std::string name;
  std::vector<T> bias, shift;
  double tolerance = 8 * testing::kRounding<T>;

  Suite(Case c_, ActivationSettings s_, Dtype type_, bool has_bias) : c(c_), s(s_), type(type_) {
    ++cases;
    name = "activation " + std::to_string(int(s.activation)) + ", type " +
           std::to_string(int(type)) + ", " + std::to_string(c.layout.count) + " numbers, " +
           std::to_string(c.layout.channels) + " channels, inner " + std::to_string(c.layout.inner);
    if (!has_bias) return;
    bias = testing::random_numbers<T>(c.layout.channels, 11);
    shift = testing::random_numbers<T>(c.layout.channels, 12);
  }

  const T* bias_data() const { return bias.empty() ? nullptr : bias.data(); }
  double bias_of(int64_t i) const {
    return bias.empty() ? 0 : widen(bias[channel_of(c.layout, i)]);
  }
  double shift_of(int64_t i) const {
    return shift.empty() ? 0 : widen(shift[channel_of(c.layout, i)]);
  }

  void forward(const std::vector<double>& specials) {
    Data<T> x(c, 1, 3), y(c, 2, 1);
    for (size_t i = 0; i < specials.size() && int64_t(i) < c.layout.count; ++i)
      x.data()[i] = narrow<T>(static_cast<compute_t<T>>(specials[i]));
    std::vector<double> expected;
    for (int64_t i = 0; i < c.layout.count; ++i)
      expected.push_back(clamped(s, s.gain * value(s.activation, x.at(i) + bias_of(i), s.alpha)));
    bias_act(c.layout, s, x.data(), bias_data(), y.data(), type, Stream());
    testing::compare("forward, " + name, y.cut(), expected, tolerance);
  }

  double slope_at(Slope slope, double at) const {
    if (slope == Slope::kFromOutput) {
      const bool passes = !s.has_clamp || std::abs(at) < s.clamp;
      return passes ? s.gain * first(s.activation, at, s.alpha) : 0;
    }
    const double y = s.gain * value(s.activation, at, s.alpha);
    if (s.has_clamp && std::abs(y) > s.clamp) return 0;
    return s.gain * (slope == Slope::kSecond ? second(s.activation, at, s.alpha)
                                             : first(s.activation, at, s.alpha));
  }

  void backward(Slope slope, bool wants_sum) {
    using W = compute_t<T>;
    Data<T> grad(c, 3, 1), times(c, 4, 1), at(c, 5, 2), result(c, 6, 1);
    const bool has_bias = slope != Slope::kFromOutput;
    // Where rounding decides whether the clamp acts, or on which side of a kink a number lies, both
    // answers are right: keep away.
    for (int64_t i = 0; i < c.layout.count; ++i) {
      const double where = at.at(i) + (has_bias ? bias_of(i) : 0),
                   y = slope == Slope::kFromOutput ? where
                                                   : s.gain * value(s.activation, where, s.alpha);
      if (std::abs(std::abs(y) - s.clamp) < 0.05 || std::abs(where) < 0.05)
        at.data()[i] = narrow<T>(W(0.6));
      if (std::abs(where) < 0.05 && has_bias && std::abs(at.at(i) + bias_of(i)) < 0.05)
        at.data()[i] = narrow<T>(W(-0.6));
    }
    std::vector<double> expected, sums(c.layout.channels), magnitudes(c.layout.channels);
    for (int64_t i = 0; i < c.layout.count; ++i) {
      double number =
          (grad.at(i) + shift_of(i)) * slope_at(slope, at.at(i) + (has_bias ? bias_of(i) : 0));
      if (slope == Slope::kSecond) number *= times.at(i);
      expected.push_back(number);
      sums[channel_of(c.layout, i)] += number;
      magnitudes[channel_of(c.layout, i)] += std::abs(number);
    }
    const int64_t rows = partial_rows(c.layout, type);
    std::vector<W> partial(wants_sum ? rows * c.layout.channels : 0);
    const SlopeOperands operands{grad.data(), shift.empty() ? nullptr : shift.data(),
                                 slope == Slope::kSecond ? times.data() : nullptr, at.data(),
                                 has_bias ? bias_data() : nullptr};
    bias_act_slope(c.layout, s, slope, operands, result.data(),
                   wants_sum ? partial.data() : nullptr, type, Stream());
    const std::string title = "slope " + std::to_string(int(slope)) + ", " + name;
    testing::compare(title, result.cut(), expected,
                     slope == Slope::kSecond ? tolerance + 1e-4 : tolerance);
    if (!wants_sum) return;
    for (int64_t channel = 0; channel < c.layout.channels; ++channel) {
      double total = 0;
      for (int64_t row = 0; row < rows; ++row)
        total += double(partial[row * c.layout.channels + channel]);
      const double scale = 1 + magnitudes[channel];
      testing::compare("sums, " + title, std::vector<double>{total / scale},
                       {sums[channel] / scale}, slope == Slope::kSecond ? 1e-4 : 1e-5);
    }
  }
};

template <class T>
void run(const Case& c, Activation a, Dtype type, bool has_clamp, bool has_bias) {
  const ActivationSettings s{a, 0.25, 1.5, has_clamp, has_clamp ? 1.25 : -1};
  Suite<T> suite(c, s, type, has_bias);
  suite.forward({kNan, kInfinity, -kInfinity, 0});
  for (const bool wants_sum : {false, true}) {
    suite.backward(Slope::kFromInput, wants_sum);
    if (has_straight(a)) {
      suite.backward(Slope::kFromOutput, wants_sum);
    } else {
      suite.backward(Slope::kSecond, wants_sum);
    }
  }
}

void run_all_types(const Case& c, Activation a, bool has_clamp, bool has_bias) {
  run<float>(c, a, Dtype::kFloat, has_clamp, has_bias);
  run<half>(c, a, Dtype::kHalf, has_clamp, has_bias);
  run<bfloat16>(c, a, Dtype::kBfloat16, has_clamp, has_bias);
  run<double>(c, a, Dtype::kDouble, has_clamp, has_bias);
}

void run_two_types(const Case& c) {
  run<float>(c, Activation::kLrelu, Dtype::kFloat, true, true);
  run<bfloat16>(c, Activation::kRelu, Dtype::kBfloat16, false, true);
}

// samples x channels x inner; inner = 1: channels-last.
Case make_case(int64_t samples, int64_t channels, int64_t inner, int offset = 0) {
  return {{samples * channels * inner, channels, inner}, offset};
}

}  // namespace

int main(int count, char**) {
  if (count > 1) {
    for (const Case& c : {make_case(2, 3, 4100), make_case(260, 20, 1)}) {
      run<float>(c, Activation::kLrelu, Dtype::kFloat, true, true);
      run<half>(c, Activation::kSwish, Dtype::kHalf, false, false);
    }
    return testing::finish(cases);
  }
  // Around every edge: of a pack, of a thread's packs and a block's, of a warp's run, of a block's
  // rows and lanes.
  for (const int64_t inner : {2, 3, 8, 127})
    run_all_types(make_case(2, 3, inner), Activation::kLrelu, true, true);
  for (const int64_t inner : {4095, 4096, 4097}) run_two_types(make_case(1, 2, inner));
  for (const int64_t channels : {1, 3, 4, 8, 31, 33, 132, 264})
    run_two_types(make_case(40, channels, 1));
  for (const int64_t rows : {1, 255, 256, 257}) run_two_types(make_case(rows, 8, 1));
  for (const int64_t numbers : {1023, 1024, 1025, 8191, 8192})
    run<half>(make_case(1, 1, numbers), Activation::kLinear, Dtype::kHalf, true, false);
  for (const int offset : {1, 4})
    run_all_types(make_case(3, 16, 8, offset), Activation::kLrelu, true, true);
  run_all_types(make_case(0, 4, 16), Activation::kLrelu, true, true);
  run_two_types(make_case(5, 40, 2));
  for (int a = 0; a < 9; ++a) {
    run_all_types(make_case(5, 12, 1), static_cast<Activation>(a), true, true);
    run_all_types(make_case(2, 3, 40), static_cast<Activation>(a), false, true);
  }
  return testing::finish(cases);
}
