// Index arithmetic of polyphase FIR filters on one axis. Free of torch, so that every device's
// kernels can share it.
//
// An axis inserts up - 1 zeros after each of `size_in` samples, pads, correlates with `taps` and
// keeps every `down`-th sample. Output o covers the fine positions o * down - padding + tap; only
// every up-th of them holds a sample, so only every up-th tap counts. Which taps those are repeats
// after `period` outputs, in which the inputs advance by `advance` samples.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

namespace open_eg3d::fir {

struct Axis {
  int64_t size_in, size_out;
  int64_t up, down;
  int64_t padding;  // zeros before the first fine sample; negative = cropped

  int64_t period() const { return up / std::gcd(up, down); }
  int64_t advance() const { return down / std::gcd(up, down); }
};

// The taps that meet samples at outputs phase, phase + period, ...: every up-th from `first_tap`,
// on consecutive inputs from `first_input` on for the first of these outputs.
template <class Number>
struct Phase {
  int64_t first_input, first_tap;
  std::vector<Number> weights;

  int64_t end_input() const { return first_input + static_cast<int64_t>(weights.size()); }
};

inline int64_t modulo(int64_t value, int64_t divisor) {
  return ((value % divisor) + divisor) % divisor;
}

// Numbers of rows or columns, first and one past the last.
struct Range {
  int64_t begin, end;
};

template <class Number>
std::vector<Phase<Number>> make_phases(const Axis& axis, const std::vector<Number>& taps) {
  std::vector<Phase<Number>> phases;
  for (int64_t output = 0; output < axis.period(); ++output) {
    const int64_t position = output * axis.down - axis.padding;
    const int64_t first_tap = modulo(-position, axis.up);
    Phase<Number> phase{(position + first_tap) / axis.up, first_tap, {}};
    for (int64_t tap = first_tap; tap < static_cast<int64_t>(taps.size()); tap += axis.up)
      phase.weights.push_back(taps[tap]);
    phases.push_back(std::move(phase));
  }
  return phases;
}

// Inputs that outputs `range` read, some of them perhaps outside the image. `range.begin` is a
// multiple of the period.
template <class Number>
Range inputs_of(const Axis& axis, const std::vector<Phase<Number>>& phases, Range range) {
  const int64_t periods = range.begin / axis.period(),
                last_periods = (range.end - 1) / axis.period();
  Range inputs{INT64_MAX, INT64_MIN};
  for (const auto& phase : phases) {
    inputs.begin = std::min(inputs.begin, phase.first_input + periods * axis.advance());
    inputs.end = std::max(inputs.end, phase.end_input() + last_periods * axis.advance());
  }
  return inputs;
}

}  // namespace open_eg3d::fir
