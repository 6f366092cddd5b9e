// From densities along one ray to weights, depth and alpha, and back (Max 1995; NeRF, section 4;
// EG3D's midpoint rule). One warp per ray.
#pragma once

#include "cuda/triplane/sampling.h"

namespace open_eg3d::cuda {

template <class T>
__device__ __forceinline__ T warp_min(T value) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    value = min(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}
template <class T>
__device__ __forceinline__ T warp_max(T value) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    value = max(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

// A ray's samples in depth order. Densities lie in the order of sampling.
template <class T>
struct Samples {
  const T* depths;
  const T* densities;
  const int* order;  // null where both orders are the same

  __device__ __forceinline__ int number(int k) const { return order == nullptr ? k : order[k]; }
  __device__ __forceinline__ T density(int k) const { return densities[number(k)]; }
};

// What lies between a sample and the next.
template <class T>
struct Interval {
  T delta, middle, density, sigma, passed, passing;  // `middle` in depth; raw density less its
                                                     // shift; what passes, without and with a floor

  __device__ __forceinline__ Interval(const Samples<T>& samples, int i) {
    const T near = samples.depths[i], far = samples.depths[i + 1];
    delta = far - near, middle = (far + near) / 2;
    density = (samples.density(i + 1) + samples.density(i)) * T(0.5) - T(kDensityShift);
    sigma = softplus(density);
    passed = exponential(-sigma * delta);
    passing = 1 - alpha() + T(kTransmittanceFloor);
  }

  __device__ __forceinline__ T alpha() const { return 1 - passed; }
};

// Weights of the intervals from..to-1, from the transmittance in front of the first; returns that
// behind the last. `transmittances` gets that in front of each unless it is null.
template <class T>
__device__ __forceinline__ T compute_weights(const Samples<T>& samples, int from, int to,
                                             T transmittance, T* weights, T* transmittances) {
  for (int base = from; base < to; base += kLanes) {
    const int i = base + lane_index();
    T alpha = 0, product = 1;
    if (i < to) {
      const Interval<T> interval(samples, i);
      alpha = interval.alpha(), product = interval.passing;
    }
    for (int offset = 1; offset < kLanes; offset *= 2) {
      const T other = __shfl_up_sync(kAllLanes, product, offset);
      if (lane_index() >= offset) product *= other;
    }
    const T before = __shfl_up_sync(kAllLanes, product, 1),
            here = lane_index() == 0 ? transmittance : transmittance * before;
    if (i < to) {
      weights[i] = alpha * here;
      if (transmittances != nullptr) transmittances[i] = here;
    }
    transmittance *= __shfl_sync(kAllLanes, product, kLanes - 1);
  }
  __syncwarp();
  return transmittance;
}

// Weight of the k-th of `count` samples: an interval shows the mean of its ends.
template <class T>
__device__ __forceinline__ T sample_weight(const T* weights, int k, int count) {
  return ((k > 0 ? weights[k - 1] : T(0)) + (k + 1 < count ? weights[k] : T(0))) / 2;
}

// Mean depth of what a ray sees, kept within its samples' range; the farthest sample where it sees
// nothing. In every lane.
template <class T>
struct MeanDepth {
  T nearest, farthest, mean, alpha;

  // `seen` samples have weights, of `count` there are.
  __device__ __forceinline__ MeanDepth(const T* depths, const T* weights, int seen, int count)
      : nearest(depths[0]), farthest(depths[0]) {
    T weighted = 0;
    alpha = 0;
    for (int k = lane_index(); k < count; k += kLanes) {
      nearest = min(nearest, depths[k]), farthest = max(farthest, depths[k]);
      if (k + 1 < seen) {
        alpha += weights[k];
        weighted += weights[k] * ((depths[k + 1] + depths[k]) / 2);
      }
    }
    nearest = warp_min(nearest), farthest = warp_max(farthest);
    alpha = warp_sum(alpha), weighted = warp_sum(weighted);
    mean = alpha == 0 ? farthest : weighted / alpha;
  }

  __device__ __forceinline__ T value() const {
    return mean < nearest ? nearest : mean > farthest ? farthest : mean;
  }
  __device__ __forceinline__ bool is_extreme() const {
    return alpha == 0 || mean > farthest || mean < nearest;
  }

  // Gradient of the value with respect to an interval's weight, where the value is the mean.
  __device__ __forceinline__ T weight_gradient(T middle) const {
    return is_extreme() ? T(0) : (middle - mean) / alpha;
  }

  // And with respect to the k-th sample's depth; `share` is one over the number of samples at the
  // extreme.
  __device__ __forceinline__ T depth_gradient(const T* depths, const T* weights, int k, int count,
                                              T share) const {
    if (is_extreme()) return depths[k] == value() ? share : T(0);
    return sample_weight(weights, k, count) / alpha;
  }

  // Of the samples at the value; 1 where there are none.
  __device__ __forceinline__ T tie_share(const T* depths, int count) const {
    int ties = 0;
    for (int k = lane_index(); k < count; k += kLanes) ties += depths[k] == value();
    ties = warp_sum(ties);
    return T(1) / T(max(ties, 1));
  }
};

// From gradients of the intervals' weights, gradient(i, interval), to terms that are added to both
// ends of each: of a density, and of a depth with opposite signs. `transmittances` is what
// `compute_weights` kept; the depths' terms take its place.
template <class T, class Gradient>
__device__ __forceinline__ void composite_backward(const Samples<T>& samples, int intervals,
                                                   const Gradient& gradient, T* transmittances,
                                                   T* density_terms) {
  T carried = 0;  // gradient of the transmittance behind the intervals already done
  for (int base = 0; base < intervals; base += kLanes) {
    const int i =
        intervals - 1 - base - lane_index();  // from the farthest on, for what an interval lets
                                              // pass counts in all behind it
    // Light in front of an interval as a function of that behind it: factor * behind + summand.
    T factor = 1, summand = 0, of_weight = 0;
    if (i >= 0) {
      const Interval<T> interval(samples, i);
      of_weight = gradient(i, interval);
      factor = interval.passing, summand = of_weight * interval.alpha();
    }
    for (int offset = 1; offset < kLanes; offset *= 2) {
      const T other_factor = __shfl_up_sync(kAllLanes, factor, offset),
              other_summand = __shfl_up_sync(kAllLanes, summand, offset);
      if (lane_index() >= offset) {
        summand += factor * other_summand;
        factor *= other_factor;
      }
    }
    const T behind_factor = __shfl_up_sync(kAllLanes, factor, 1),
            behind_summand = __shfl_up_sync(kAllLanes, summand, 1);
    const T behind = lane_index() == 0 ? carried : behind_summand + behind_factor * carried;
    carried = __shfl_sync(kAllLanes, summand, kLanes - 1) +
              __shfl_sync(kAllLanes, factor, kLanes - 1) * carried;
    if (i >= 0) {
      const Interval<T> interval(samples, i);
      const T common = transmittances[i] * (of_weight - behind) * interval.passed;
      density_terms[i] = common * interval.delta * sigmoid(interval.density) * T(0.5);
      transmittances[i] = common * interval.sigma;
    }
  }
  __syncwarp();
}

}  // namespace open_eg3d::cuda
