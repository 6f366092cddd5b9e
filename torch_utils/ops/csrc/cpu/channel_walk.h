// A walk over a dense tensor in memory order that knows the channel of every element, and sums
// each channel in a fixed order.
#pragma once

#include "common.h"

#include <ATen/Parallel.h>

#include <numeric>
#include <optional>
#include <vector>

namespace open_eg3d::pointwise {

constexpr int64_t kBlock = 1024;  // elements
constexpr int64_t kUnit =
    32 * 1024;  // elements that one thread takes at a time, and that a partial sum goes over
constexpr int64_t kLongRun = 256;  // from here on a run of one channel is a loop of its own

// In memory order a dense tensor repeats its channels, each a run of `inner` elements, whatever its
// memory format. Work is cut into units that depend on the sizes alone, so that sums come out the
// same on any number of threads. Long runs are cut into units of one channel; of short runs a unit
// holds many, and a pattern of `period` elements (a multiple of all channels' runs) repeats in it.
struct Walk {  // of a tensor that is not empty
  int64_t numel, channels, inner;
  bool is_long;
  int64_t period, unit, units_per_run, units;

  Walk(const at::Tensor& x, int64_t dim, bool has_channels) {
    numel = x.numel();
    const bool is_split = has_channels && x.size(dim) > 1;
    channels = is_split ? x.size(dim) : 1;
    inner = is_split ? x.stride(dim) : numel;
    is_long = inner >= kLongRun;
    const int64_t cycle = channels * inner;
    period = is_long ? std::min(inner, kBlock) : cycle * std::max<int64_t>(1, kBlock / cycle);
    unit = is_long ? std::min(inner, kUnit) : period * std::max<int64_t>(1, kUnit / period);
    units_per_run = is_long ? at::divup(inner, unit) : 1;
    units = is_long ? numel / inner * units_per_run : at::divup(numel, unit);
  }

  int64_t start(int64_t u) const {
    return is_long ? u / units_per_run * inner + u % units_per_run * unit : u * unit;
  }
  int64_t end(int64_t u) const {
    return std::min(start(u) + unit, is_long ? (u / units_per_run + 1) * inner : numel);
  }
  int64_t channel(int64_t u) const {
    return u / units_per_run % channels;
  }  // of a unit of a long run
  int64_t sums_per_unit() const { return is_long ? 1 : channels; }
};

// One value per channel, spread over a period.
template <typename T>
class Pattern {
  using acc_t = compute_t<T>;

 public:
  Pattern(const Walk& walk, const std::optional<at::Tensor>& values) : walk_(walk) {
    if (!values) {
      return;
    }
    const at::Tensor contiguous = values->contiguous();
    const T* data = contiguous.const_data_ptr<T>();
    values_.assign(data, data + walk.channels);
    if (!walk.is_long) {
      spread_.resize(walk.period);
      for (int64_t i = 0; i < walk.period; ++i) {
        spread_[i] = values_[i / walk.inner % walk.channels];
      }
    }
  }

  // What to add to unit `u`, kept in `room` where it differs from unit to unit; null = nothing.
  const acc_t* of_unit(int64_t u, std::vector<acc_t>& room) const {
    if (values_.empty()) {
      return nullptr;
    }
    if (!walk_.is_long) {
      return spread_.data();
    }
    room.assign(walk_.period, values_[walk_.channel(u)]);
    return room.data();
  }

 private:
  const Walk& walk_;
  std::vector<acc_t> values_, spread_;
};

inline int64_t grain(const Walk& walk) { return std::max<int64_t>(1, kUnit / walk.unit); }

// Calls body(first element, how many, offset in the period) for the blocks of unit `u`.
template <typename Body>
inline void for_blocks(const Walk& walk, int64_t u, Body body) {
  const int64_t begin = walk.start(u), end = walk.end(u);
  for (int64_t line = begin; line < end; line += walk.period) {
    const int64_t line_end = std::min(line + walk.period, end);
    for (int64_t i = line; i < line_end; i += kBlock) {
      body(i, std::min(kBlock, line_end - i), i - line);
    }
  }
}

template <typename acc_t>
inline void add_block(const acc_t* from, acc_t* to, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    to[i] += from[i];
  }
}

template <typename acc_t>
inline void multiply_block(const acc_t* a, const acc_t* b, acc_t* to, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    to[i] = a[i] * b[i];
  }
}

template <typename acc_t>
inline const acc_t* shifted(const acc_t* pattern, int64_t offset) {
  return pattern == nullptr ? nullptr : pattern + offset;
}

// Sums of gradients per channel: blocks are added to a period's worth of sums, a unit's sums
// folded, units added in their order.
template <typename T>
class ChannelSums {
  using acc_t = compute_t<T>;

 public:
  explicit ChannelSums(const Walk& walk)
      : walk_(walk), partial_(walk.units * walk.sums_per_unit(), 0) {}

  // Adds up `sums`, which it uses as scratch: halves upon halves where all are of one channel.
  void fold(int64_t u, std::vector<acc_t>& sums) {
    int64_t length = std::min(walk_.period, walk_.end(u) - walk_.start(u));
    double* target = partial_.data() + u * walk_.sums_per_unit();
    if (!walk_.is_long) {
      for (int64_t run = 0; run < length / walk_.inner; ++run) {
        const acc_t* of_run = sums.data() + run * walk_.inner;
        target[run % walk_.channels] += std::accumulate(of_run, of_run + walk_.inner, 0.0);
      }
      return;
    }
    while (length > 1) {
      const int64_t half = (length + 1) / 2;
      add_block(sums.data() + half, sums.data(), length - half);
      length = half;
    }
    *target = sums[0];
  }

  void write(const at::Tensor& result) const {
    std::vector<double> total(walk_.channels, 0);
    const int64_t width = walk_.sums_per_unit();
    for (int64_t u = 0; u < walk_.units; ++u) {
      for (int64_t k = 0; k < width; ++k) {
        total[walk_.is_long ? walk_.channel(u) : k] += partial_[u * width + k];
      }
    }
    T* data = result.mutable_data_ptr<T>();
    for (int64_t c = 0; c < walk_.channels; ++c) {
      data[c] = static_cast<T>(static_cast<acc_t>(total[c]));
    }
  }

 private:
  const Walk& walk_;
  std::vector<double> partial_;
};

}  // namespace open_eg3d::pointwise
