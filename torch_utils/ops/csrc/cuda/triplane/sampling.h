// Depths of the samples on a ray: even ones, depths drawn by importance (NeRF, section 5.2), and
// the order of both together. One warp per ray; its numbers are in memory that all lanes see.
#pragma once

#include "cuda/triplane/decoder.h"

namespace open_eg3d::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_index() { return threadIdx.x % kLanes; }
__device__ __forceinline__ int warp_index() { return threadIdx.x / kLanes; }

// How many of ascending values are below x, or not above it.
template <bool or_equal, class T>
__device__ __forceinline__ int search(const T* values, int count, T x) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (or_equal ? values[middle] <= x : values[middle] < x) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// No value is below the one before it, and none is NaN.
template <class T>
__device__ __forceinline__ bool is_ascending(const T* values, int count) {
  bool is_good = true;
  for (int i = lane_index(); i < count; i += kLanes)
    is_good = is_good && (i + 1 < count ? values[i] <= values[i + 1] : values[i] == values[i]);
  return __all_sync(kAllLanes, is_good);
}

// The cumulated distribution of the coarse samples' weights; returns the number of bins.
template <class T>
__device__ __forceinline__ int build_cdf(const T* weights, int intervals,
                                         bool has_released_placement, T* cdf) {
  const int first = has_released_placement ? 1 : 0, bins = max(intervals - 2 * first, 0);
  // Larger of neighbours, mean of neighbours, plus a floor (mip-NeRF, section 3.1).
  const auto smooth = [&](int i) {
    const T before = i > 0 ? weights[i - 1] : T(0), here = weights[i],
            after = i + 1 < intervals ? weights[i + 1] : T(0);
    return (larger(before, here) + larger(here, after)) / 2 + T(kWeightFloor) + T(kCdfEpsilon);
  };
  T total = 0;
  for (int i = lane_index(); i < bins; i += kLanes) total += smooth(first + i);
  total = warp_sum(total);
  T before = 0;
  if (lane_index() == 0) cdf[0] = 0;
  for (int base = 0; base < bins; base += kLanes) {
    const int i = base + lane_index();
    T sum = i < bins ? smooth(first + i) / total : T(0);
    for (int offset = 1; offset < kLanes; offset *= 2) {
      const T other = __shfl_up_sync(kAllLanes, sum, offset);
      if (lane_index() >= offset) sum += other;
    }
    if (i < bins) cdf[i + 1] = before + sum;
    before += __shfl_sync(kAllLanes, sum, kLanes - 1);
  }
  __syncwarp();
  return bins;
}

// Where in the cumulated distribution u lies, as a depth.
template <class T>
__device__ __forceinline__ T invert_cdf(const T* cdf, int bins, const T* depths,
                                        bool has_released_placement, T u) {
  const int above = min(search<true>(cdf, bins + 1, u), bins), below = max(above - 1, 0);
  const auto edge = [&](int i) {
    return has_released_placement ? (depths[i] + depths[i + 1]) / 2 : depths[i];
  };
  const T width = cdf[above] - cdf[below], near = edge(below);
  return near + (u - cdf[below]) / (width < T(kCdfEpsilon) ? T(1) : width) * (edge(above) - near);
}

// Stable order of all depths, coarse ones and then fine ones: order[k] is the number of the k-th
// nearest, sorted[k] its depth. NaN come last.
template <class T>
__device__ __forceinline__ void sort_depths(const T* depths, int coarse, int fine, int* order,
                                            T* sorted) {
  const T* const drawn = depths + coarse;
  bool has_nan = false;
  for (int j = lane_index(); j < fine; j += kLanes) has_nan = has_nan || drawn[j] != drawn[j];
  const bool are_merged = is_ascending(depths, coarse) && !__any_sync(kAllLanes, has_nan),
             is_drawn_ascending = is_ascending(drawn, fine);
  for (int i = lane_index(); i < coarse + fine; i += kLanes) {
    const T depth = depths[i];
    int rank = 0;
    if (!are_merged) {
      for (int j = 0; j < coarse + fine; ++j) {
        const T other = depths[j];
        const bool is_tie = other == depth || (other != other && depth != depth);
        rank += (is_tie && j < i) || other < depth || (depth != depth && other == other);
      }
    } else if (i < coarse) {
      rank = i;
      if (is_drawn_ascending) {
        rank += search<false>(drawn, fine, depth);
      } else {
        for (int j = 0; j < fine; ++j) rank += drawn[j] < depth;
      }
    } else {
      rank = search<true>(depths, coarse, depth);
      if (is_drawn_ascending) {
        rank += i - coarse;
      } else {
        for (int j = 0; j < fine; ++j)
          rank += drawn[j] < depth || (drawn[j] == depth && coarse + j < i);
      }
    }
    order[rank] = i;
    sorted[rank] = depth;
  }
  __syncwarp();
}

}  // namespace open_eg3d::cuda
