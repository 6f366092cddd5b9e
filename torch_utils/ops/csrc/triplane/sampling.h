// Depths of the samples on a ray: even ones, depths drawn by importance (NeRF, section 5.2), and
// the order of both together.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>

#include "simd.h"

namespace open_eg3d::triplane {

// counts[j] += how many of `values` are below queries[j], or not above it. Queries and counts are
// padded to whole vectors.
template <class T, bool kOrEqual>
inline void count_below(const T* values, int count, const T* queries, int queried,
                        typename Simd<T>::Integer* counts) {
  for (int j = 0; j < queried; j += kLanes<T>) {
    const Vec<T> query = load(queries + j);
    IntVec<T> total;
    std::memcpy(&total, counts + j, sizeof total);
    for (int i = 0; i < count; ++i) total -= kOrEqual ? values[i] <= query : values[i] < query;
    std::memcpy(counts + j, &total, sizeof total);
  }
}

// counts[j] += the place of values[j] among `values` in stable order.
template <class T>
inline void count_ranks(const T* values, int count, typename Simd<T>::Integer* counts) {
  constexpr int L = kLanes<T>;
  IntVec<T> lane;
  for (int i = 0; i < L; ++i) lane[i] = i;
  for (int j = 0; j < count; j += L) {
    const int end = std::min(j + L, count);
    count_below<T, true>(values, j, values + j, 1, counts + j);
    count_below<T, false>(values + end, count - end, values + j, 1, counts + j);
    const Vec<T> query = load(values + j);
    IntVec<T> total;
    std::memcpy(&total, counts + j, sizeof total);
    for (int i = j; i < end; ++i)
      total -= (values[i] < query) | ((values[i] == query) & (lane > i - j));
    std::memcpy(counts + j, &total, sizeof total);
  }
}

// No value is below the one before it, and none of two or more is NaN.
template <class T>
inline bool is_ascending(const T* values, int count) {
  IntVec<T> good = IntVec<T>{} - 1;
  int i = 0;
  for (; i + kLanes<T> < count; i += kLanes<T>) good &= load(values + i) <= load(values + i + 1);
  bool all = true;
  for (; i + 1 < count; ++i) all &= values[i] <= values[i + 1];
  for (int lane = 0; lane < kLanes<T>; ++lane) all &= good[lane] != 0;
  return all;
}

template <class T>
inline bool has_nan(const T* values, int count) {
  bool found = false;
  for (int i = 0; i < count; ++i) found |= values[i] != values[i];
  return found;
}

// Draws depths of one ray and sorts them. Buffers have room for whole vectors.
template <class T>
class DepthSampler {
  using Integer = typename Simd<T>::Integer;

 public:
  DepthSampler(int coarse, int fine, bool is_released_placement)
      : coarse_(coarse),
        fine_(fine),
        is_released_(is_released_placement),
        smooth_(coarse + 1),
        cdf_(coarse + 1),
        edges_(coarse + 1),
        variates_(fine + kLanes<T>),
        counts_(std::max(coarse, fine) + 2 * kLanes<T>),
        even_(coarse) {
    for (int i = 0; i < coarse; ++i) even_[i] = even_position<T>(i, coarse);
  }

  // Weight of `far` (that of `near` is the rest) in coarse depth i with offset u.
  T far_share(int i, T u) const { return even_[i] + u / T(coarse_ - 1); }

  void coarse_depths(T near, T far, const T* u, int64_t u_stride, T* depths) const {
    const T range = far - near, step = range / T(coarse_ - 1);
    for (int i = 0; i < coarse_; ++i) depths[i] = near + range * even_[i] + u[i * u_stride] * step;
  }

  // Fine depths behind the coarse ones in `depths`, from the weights of the coarse intervals.
  void fine_depths(const T* weights, const T* u, int64_t u_stride, T* depths) {
    const int bins = build_cdf(weights, depths);
    const T* const edges = is_released_ ? edges_.data() : depths;
    for (int j = 0; j < fine_; ++j) variates_[j] = u[j * u_stride];
    std::fill(counts_.begin(), counts_.end(), 0);
    count_below<T, true>(cdf_.data(), bins + 1, variates_.data(), fine_, counts_.data());
    T* const fine = depths + coarse_;
    for (int first = 0; first < fine_; first += kLanes<T>) {
      Vec<T> start{}, end{}, near{}, far{};
      for (int lane = 0; lane < kLanes<T>; ++lane) {
        const int above = std::min<int>(static_cast<int>(counts_[first + lane]), bins),
                  below = std::max(above - 1, 0);
        start[lane] = cdf_[below], end[lane] = cdf_[above], near[lane] = edges[below],
        far[lane] = edges[above];
      }
      Vec<T> width = end - start;
      width = width < T(kCdfEpsilon) ? splat(T(1)) : width;
      store(fine + first, near + (load(variates_.data() + first) - start) / width * (far - near));
    }
  }

  // Stable order of all depths: order[k] is the number of the k-th nearest, sorted[k] its depth.
  // NaN come last.
  void sort(const T* depths, int* order, T* sorted) {
    const int count = coarse_ + fine_;
    if (is_ascending(depths, coarse_) && !has_nan(depths + coarse_, fine_)) {
      merge(depths, order);
    } else {
      std::iota(order, order + count, 0);
      std::stable_sort(order, order + count, [depths](int a, int b) {
        return depths[a] < depths[b] || (depths[a] == depths[a] && depths[b] != depths[b]);
      });
    }
    for (int k = 0; k < count; ++k) sorted[k] = depths[order[k]];
  }

 private:
  // Returns the number of bins; their edges are the coarse depths, or `edges_`.
  int build_cdf(const T* weights, const T* depths) {
    const int intervals = coarse_ - 1;
    T before = larger(T(0), weights[0]);
    for (int i = 0; i < intervals; ++i) {
      const T after = larger(weights[i], i + 1 < intervals ? weights[i + 1] : T(0));
      smooth_[i] = (before + after) / 2 + T(kWeightFloor);
      before = after;
    }
    const int first = is_released_ ? 1 : 0,
              bins = is_released_ ? std::max(coarse_ - 3, 0) : intervals;
    if (is_released_)
      for (int i = 0; i <= bins; ++i) edges_[i] = (depths[i] + depths[i + 1]) / 2;
    double total = 0, sum = 0;
    for (int i = 0; i < bins; ++i) total += smooth_[first + i] += T(kCdfEpsilon);
    cdf_[0] = 0;
    for (int i = 0; i < bins; ++i) {
      sum += smooth_[first + i] / T(total);
      cdf_[i + 1] = T(sum);
    }
    return bins;
  }

  void merge(const T* depths, int* order) {
    const T* const fine = depths + coarse_;
    std::fill(counts_.begin(), counts_.end(), 0);
    count_below<T, false>(fine, fine_, depths, coarse_, counts_.data());
    for (int i = 0; i < coarse_; ++i) order[i + counts_[i]] = i;
    std::fill(counts_.begin(), counts_.end(), 0);
    count_below<T, true>(depths, coarse_, fine, fine_, counts_.data());
    if (is_ascending(fine, fine_)) {
      for (int j = 0; j < fine_; ++j) counts_[j] += j;
    } else {
      count_ranks(fine, fine_, counts_.data());
    }
    for (int j = 0; j < fine_; ++j) order[counts_[j]] = coarse_ + j;
  }

  const int coarse_, fine_;
  const bool is_released_;
  Buffer<T> smooth_, cdf_, edges_, variates_;
  Buffer<Integer> counts_;
  Buffer<T> even_;
};

}  // namespace open_eg3d::triplane
