// From densities along one ray to weights, depth and alpha, and back (Max 1995; NeRF, section 4;
// EG3D's midpoint rule).
#pragma once

#include <algorithm>

#include "simd.h"

namespace open_eg3d::triplane {

// The first `count` samples of a ray in depth order; both arrays have room for whole vectors and
// one more number.
template <class T>
struct Samples {
  const T* depths;
  const T* densities;
  int count;
};

template <class T>
class Compositor {
 public:
  explicit Compositor(int samples)
      : alphas_(samples + kLanes<T>),
        passing_(alphas_.size()),
        transmittance_(alphas_.size()),
        weights_(alphas_.size()) {}

  const T* weights() const { return weights_.data(); }
  T* weights() { return weights_.data(); }

  // Weights of the intervals from..to-1, from the transmittance in front of
  // interval `from`; returns that behind the last.
  double compute_weights(const Samples<T>& samples, int from, int to, double transmittance) {
    for (int i = from; i < to; i += kLanes<T>) {
      const Vec<T> alpha = 1 - exp(-softplus<T>(midpoint(samples, i)) * delta(samples, i));
      store(alphas_.data() + i, alpha);
      store(passing_.data() + i, 1 - alpha + T(kTransmittanceFloor));
    }
    for (int i = from; i < to; ++i) {
      transmittance_[i] = T(transmittance);
      weights_[i] = alphas_[i] * transmittance_[i];
      transmittance *= passing_[i];
    }
    return transmittance;
  }

  // Weight of the k-th sample: an interval shows the mean of its ends.
  T sample_weight(int k, int count) const {
    return ((k > 0 ? weights_[k - 1] : T(0)) + (k + 1 < count ? weights_[k] : T(0))) / 2;
  }

  // Sum of the weights, and of the weighted depths, over the intervals.
  struct Totals {
    T alpha, depth;
  };
  Totals totals(const Samples<T>& samples) const {
    double alpha[4] = {},
           depth[4] = {};  // several of each, since an addition waits for the one before
    const auto add = [&](int to, int i) {
      alpha[to] += weights_[i];
      depth[to] += weights_[i] * ((samples.depths[i + 1] + samples.depths[i]) / 2);
    };
    int i = 0;
    for (; i + 4 < samples.count; i += 4)
      for (int k = 0; k < 4; ++k) add(k, i + k);
    for (; i + 1 < samples.count; ++i) add(0, i);
    return {T((alpha[0] + alpha[1]) + (alpha[2] + alpha[3])),
            T((depth[0] + depth[1]) + (depth[2] + depth[3]))};
  }

  // From gradients of the weights to those of densities and depths, which are added to.
  // `weight_gradients` has room for whole vectors.
  void backward(const Samples<T>& samples, const T* weight_gradients, T* density_gradients,
                T* depth_gradients) {
    const int intervals = samples.count - 1;
    // What an interval transmits scales everything behind it.
    T behind = 0;
    for (int i = intervals - 1; i >= 0; --i) {
      const T before = weight_gradients[i] * alphas_[i] + passing_[i] * behind;
      transmittance_[i] *= weight_gradients[i] - behind;  // now the gradient of the alpha
      behind = before;
    }
    for (int i = 0; i < intervals; i += kLanes<T>) {
      const Vec<T> d = delta(samples, i);
      const Softplus<T> sigma = softplus_with_slope<T>(midpoint(samples, i));
      const Vec<T> common = load(transmittance_.data() + i) * exp(-sigma.value * d);
      store(alphas_.data() + i, common * d * sigma.slope * T(0.5));
      store(passing_.data() + i, common * sigma.value);
    }
    for (int i = 0; i < intervals; ++i) {
      density_gradients[i] += alphas_[i];
      density_gradients[i + 1] += alphas_[i];
      depth_gradients[i] -= passing_[i];
      depth_gradients[i + 1] += passing_[i];
    }
  }

 private:
  static Vec<T> delta(const Samples<T>& samples, int i) {
    return load(samples.depths + i + 1) - load(samples.depths + i);
  }
  static Vec<T> midpoint(const Samples<T>& samples, int i) {
    return (load(samples.densities + i + 1) + load(samples.densities + i)) * T(0.5) -
           T(kDensityShift);
  }

  Buffer<T> alphas_, passing_, transmittance_,
      weights_;  // of intervals; backward overwrites all but the weights
};

// Mean depth of what a ray sees, kept within its samples' range; the farthest sample where it sees
// nothing.
template <class T>
struct MeanDepth {
  T nearest, farthest, mean;
  bool is_empty;

  MeanDepth(const Samples<T>& samples, T alpha, T weighted_depth)
      : nearest(samples.depths[0]), farthest(samples.depths[0]), is_empty(alpha == 0) {
    Vec<T> low = splat(nearest), high = low;
    int i = 0;
    for (; i + kLanes<T> <= samples.count; i += kLanes<T>) {
      const Vec<T> depths = load(samples.depths + i);
      low = depths < low ? depths : low;
      high = high < depths ? depths : high;
    }
    for (; i < samples.count; ++i) include(samples.depths[i], samples.depths[i]);
    for (int lane = 0; lane < kLanes<T>; ++lane) include(low[lane], high[lane]);
    mean = is_empty ? farthest : weighted_depth / alpha;
  }

  T value() const { return mean < nearest ? nearest : mean > farthest ? farthest : mean; }

  // Gradient of the value with respect to the sample's depths and the intervals' weights; both are
  // added to.
  void backward(const Samples<T>& samples, const T* weights, T alpha, T gradient,
                T* weight_gradients, T* depth_gradients) const {
    if (is_empty || mean > farthest) {
      to_extreme(samples, farthest, gradient, depth_gradients);
    } else if (mean < nearest) {
      to_extreme(samples, nearest, gradient, depth_gradients);
    } else {
      for (int i = 0; i + 1 < samples.count; ++i) {
        const T middle = (samples.depths[i + 1] + samples.depths[i]) / 2, share = gradient / alpha;
        weight_gradients[i] += share * (middle - mean);
        depth_gradients[i] += share * weights[i] / 2;
        depth_gradients[i + 1] += share * weights[i] / 2;
      }
    }
  }

 private:
  void include(T low, T high) {
    nearest = std::min(nearest, low);
    farthest = std::max(farthest, high);
  }

  static void to_extreme(const Samples<T>& samples, T extreme, T gradient, T* depth_gradients) {
    const auto ties = std::count(samples.depths, samples.depths + samples.count, extreme);
    for (int i = 0; i < samples.count; ++i)
      if (samples.depths[i] == extreme) depth_gradients[i] += gradient / T(ties);
  }
};

}  // namespace open_eg3d::triplane
