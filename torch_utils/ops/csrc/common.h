// What CPU kernels share: the instruction set of ATen's vectors, conversions, and dense tensors
// seen as runs of one channel.
#pragma once

// ATen's vector classes take their instruction set from these macros, which its
// headers expect to be defined.
#ifndef CPU_CAPABILITY
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__FMA__)
#define CPU_CAPABILITY AVX512
#define CPU_CAPABILITY_AVX512
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define CPU_CAPABILITY AVX2
#define CPU_CAPABILITY_AVX2
#else
#define CPU_CAPABILITY DEFAULT
#define CPU_CAPABILITY_DEFAULT
#endif
#endif

#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace open_eg3d {

using at::vec::Vectorized;

// The type that arithmetic on T is done in.
template <typename T>
using compute_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// to[i] = from[i] + shift[i] for i < n; no shift = plain conversion.
template <typename T>
inline void load_block(const T* from, const compute_t<T>* shift, compute_t<T>* to, int64_t n) {
  using V = Vectorized<compute_t<T>>;
  const auto put = [&](V value, int64_t i, int64_t count) {
    if (shift != nullptr) {
      value = value + (count == V::size() ? V::loadu(shift + i) : V::loadu(shift + i, count));
    }
    count == V::size() ? value.store(to + i) : value.store(to + i, static_cast<int>(count));
  };
  if constexpr (std::is_same_v<T, compute_t<T>>) {
    int64_t i = 0;
    for (; i + V::size() <= n; i += V::size()) {
      put(V::loadu(from + i), i, V::size());
    }
    if (i < n) {
      put(V::loadu(from + i, n - i), i, n - i);
    }
  } else {
    using Narrow = Vectorized<T>;
    int64_t i = 0;
    for (; i + Narrow::size() <= n; i += Narrow::size()) {
      const auto [low, high] = at::vec::convert_to_float<T>(Narrow::loadu(from + i));
      put(low, i, V::size());
      put(high, i + V::size(), V::size());
    }
    if (i < n) {
      const auto [low, high] = at::vec::convert_to_float<T>(Narrow::loadu(from + i, n - i));
      put(low, i, std::min<int64_t>(V::size(), n - i));
      if (n - i > V::size()) {
        put(high, i + V::size(), n - i - V::size());
      }
    }
  }
}

// The same numbers in `room`, or in place where there is nothing to convert or add.
template <typename T>
inline const compute_t<T>* view_block(const T* from, const compute_t<T>* shift, compute_t<T>* room,
                                      int64_t n) {
  if constexpr (std::is_same_v<T, compute_t<T>>) {
    if (shift == nullptr) {
      return from;
    }
  }
  load_block(from, shift, room, n);
  return room;
}

// to[i] = from[i], rounded to T, for i < n.
template <typename T>
inline void store_block(const float* from, T* to, int64_t n) {
  using V = Vectorized<float>;
  using Narrow = Vectorized<T>;
  int64_t i = 0;
  for (; i + Narrow::size() <= n; i += Narrow::size()) {
    at::vec::convert_from_float<T>(V::loadu(from + i), V::loadu(from + i + V::size()))
        .store(to + i);
  }
  if (i < n) {
    const int64_t low = std::min<int64_t>(V::size(), n - i);
    const int64_t high = n - i - low;
    const V second = high > 0 ? V::loadu(from + i + V::size(), high) : V(0.0f);
    at::vec::convert_from_float<T>(V::loadu(from + i, low), second)
        .store(to + i, static_cast<int>(n - i));
  }
}

// A tensor without gaps or overlaps; a copy only where `x` has them.
inline at::Tensor dense(const at::Tensor& x) {
  return x.is_non_overlapping_and_dense() ? x : at::empty_like(x).copy_(x);
}

inline bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) {
      return false;
    }
  }
  return true;
}

// `x` in the layout of the dense tensor `model`, which has its sizes; a copy only where the layouts
// differ.
inline at::Tensor dense_like(const at::Tensor& x, const at::Tensor& model) {
  return same_layout(x, model) ? x : at::empty_like(model, x.options()).copy_(x);
}

}  // namespace open_eg3d
