// Sums of weighted rows, the inner loops of the FIR kernels, and the shuffling of rows between
// pixels and phases.
#pragma once

#include "cpu/numbers.h"

namespace open_eg3d {

constexpr int kRowsAtOnce = 4;

// to[i] (+)= sum of weights[k] * rows[k][i], for a number of rows that the compiler knows.
template <int kCount, bool kAdd, class Stored>
inline void add_rows(const Stored* const* rows, const Sum<Stored>* weights,
                     Sum<Stored>* __restrict__ to, int64_t size) {
  const Stored* row[kCount];
  Sum<Stored> weight[kCount];
  for (int k = 0; k < kCount; ++k) row[k] = rows[k], weight[k] = weights[k];
  for (int64_t i = 0; i < size; ++i) {
    Sum<Stored> sum = kAdd ? to[i] : 0;
    for (int k = 0; k < kCount; ++k) sum += weight[k] * widen(row[k][i]);
    to[i] = sum;
  }
}

template <bool kAdd, class Stored>
inline void add_some_rows(int count, const Stored* const* rows, const Sum<Stored>* weights,
                          Sum<Stored>* to, int64_t size) {
  static_assert(kRowsAtOnce == 4);
  if (count == 1) add_rows<1, kAdd>(rows, weights, to, size);
  if (count == 2) add_rows<2, kAdd>(rows, weights, to, size);
  if (count == 3) add_rows<3, kAdd>(rows, weights, to, size);
  if (count == 4) add_rows<4, kAdd>(rows, weights, to, size);
}

// to = (to if `add`) + sum of count rows, each times its weight. No row may overlap `to`.
template <class Stored>
inline void weigh_rows(int64_t count, const Stored* const* rows, const Sum<Stored>* weights,
                       Sum<Stored>* to, int64_t size, bool add) {
  if (count == 0 && !add) std::fill(to, to + size, Sum<Stored>(0));
  for (int64_t k = 0; k < count; k += kRowsAtOnce) {
    const int some = static_cast<int>(std::min<int64_t>(kRowsAtOnce, count - k));
    if (add || k > 0) {
      add_some_rows<true>(some, rows + k, weights + k, to, size);
    } else {
      add_some_rows<false>(some, rows + k, weights + k, to, size);
    }
  }
}

// Pixels of `pixel` numbers, from every `step`-th place to consecutive ones.
template <class Number>
inline void take_every(const Number* __restrict__ from, int64_t step, Number* __restrict__ to,
                       int64_t count, int64_t pixel) {
  if (pixel == 1 && step == 2) {
    for (int64_t j = 0; j < count; ++j) to[j] = from[2 * j];
  } else if (pixel == 3) {
    for (int64_t j = 0; j < count; ++j)
      for (int c = 0; c < 3; ++c) to[3 * j + c] = from[3 * step * j + c];
  } else {
    for (int64_t j = 0; j < count; ++j)
      for (int64_t c = 0; c < pixel; ++c) to[pixel * j + c] = from[pixel * step * j + c];
  }
}

// Pixels of `pixel` numbers, from consecutive places to every `step`-th.
template <class Number>
inline void put_every(const Number* __restrict__ from, Number* __restrict__ to, int64_t step,
                      int64_t count, int64_t pixel) {
  if (pixel == 3) {
    for (int64_t j = 0; j < count; ++j)
      for (int c = 0; c < 3; ++c) to[3 * step * j + c] = from[3 * j + c];
  } else {
    for (int64_t j = 0; j < count; ++j)
      for (int64_t c = 0; c < pixel; ++c) to[pixel * step * j + c] = from[pixel * j + c];
  }
}

// Two rows of single numbers, taken in turn.
template <class Number>
inline void zip(const Number* __restrict__ even, const Number* __restrict__ odd,
                Number* __restrict__ to, int64_t pairs) {
  for (int64_t j = 0; j < pairs; ++j) {
    to[2 * j] = even[j];
    to[2 * j + 1] = odd[j];
  }
}

}  // namespace open_eg3d
