// What standalone tests of kernels share: numbers to test with, and comparisons that say where they
// fail.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/numbers.h"

namespace testing {

using namespace open_eg3d::cuda;

inline int failures = 0;

// The same numbers in [-1, 1) on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}

  double operator()() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return double(state_ >> 11) * 0x1p-52 - 1;
  }

 private:
  uint64_t state_;
};

template <class T>
std::vector<T> random_numbers(size_t count, uint64_t seed, double scale = 1) {
  Random random(seed);
  std::vector<T> numbers(count);
  for (auto& number : numbers) number = narrow<T>(static_cast<compute_t<T>>(random() * scale));
  return numbers;
}

// Largest rounding error of a T of magnitude one.
template <class T>
constexpr double kRounding = std::is_same_v<T, double>  ? 1e-15
                             : std::is_same_v<T, float> ? 1.2e-7
                             : std::is_same_v<T, half>  ? 1e-3
                                                        : 8e-3;

template <class T>
bool is_close(T result, double expected, double tolerance) {
  const double value = widen(result);
  if (std::isnan(expected)) return std::isnan(value);
  const double stored =
      widen(narrow<T>(static_cast<compute_t<T>>(expected)));  // an infinity where T ends
  return value == stored || std::abs(value - expected) <= tolerance * (1 + std::abs(expected));
}

// Every result beside what is expected, up to `tolerance` absolute and relative; the first
// difference is told.
template <class T>
void compare(const std::string& what, const std::vector<T>& results,
             const std::vector<double>& expected, double tolerance) {
  if (results.size() != expected.size()) {
    std::printf("FAILED %s: %zu numbers instead of %zu\n", what.c_str(), results.size(),
                expected.size());
    ++failures;
    return;
  }
  for (size_t i = 0; i < results.size(); ++i) {
    if (!is_close(results[i], expected[i], tolerance)) {
      std::printf("FAILED %s: number %zu is %g instead of %g\n", what.c_str(), i,
                  double(widen(results[i])), expected[i]);
      ++failures;
      return;
    }
  }
}

// What main returns.
inline int finish(int count) {
  std::printf("%d cases, %d failures\n", count, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace testing
