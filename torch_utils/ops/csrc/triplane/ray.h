// One ray, both passes: sample, decode, compute weights, resample, decode, merge, composite; and
// back.
#pragma once

#include <vector>

#include "compositing.h"
#include "decoder.h"
#include "sampling.h"

namespace open_eg3d::triplane {

// What all rays of a call have in common.
template <class T>
struct Scene {
  Mapping mapping;
  int coarse, fine;  // samples of the two passes
  bool is_released_placement;
  T density_gain;
  bool has_background;
  T background[3];
  T stop;  // a ray ends where its transmittance falls below this, and samples that together show
           // less are not coloured; 0 = never

  int samples() const { return coarse + fine; }
  T fill(int channel) const { return channel < 3 ? background[channel] : T(1); }
};

template <class T>
struct Ray {
  const T* origin;
  const T* direction;
  T near, far;
  bool hit;
  const T* u_coarse;
  const T* u_fine;
  int64_t u_coarse_stride, u_fine_stride;
};

// Gradients of one ray's outputs, null where there are none, and of its inputs.
template <class T>
struct RayGradients {
  const T* features;
  const T* depth;
  const T* alpha;
  T* origin;  // null = none of these four are wanted
  T* direction;
  T* near;
  T* far;
};

template <class T, class P>
class RayTracer {
  static constexpr int kMarch = 24;  // samples decoded between two checks of the transmittance:
                                     // whole register tiles of the products

 public:
  RayTracer(const Scene<T>& scene, const Decoder<T>& decoder, bool keeps_features)
      : scene_(scene),
        decoder_(decoder),
        sampler_(scene.coarse, scene.fine, scene.is_released_placement),
        compositor_(scene.samples()),
        keeps_(keeps_features) {
    const int count = scene.samples(), room = count + 2 * kLanes<T> + kTile;
    for (auto* values : {&depths_, &densities_, &sorted_depths_, &sorted_densities_,
                         &new_densities_, &points_[0], &points_[1], &points_[2],
                         &density_gradients_, &depth_gradients_, &weight_gradients_, &shown_})
      values->assign(room, T(0));
    for (auto* numbers : {&order_, &slots_, &decoded_, &pending_, &rows_})
      numbers->assign(count, 0);
    features_.assign(static_cast<size_t>(keeps_ ? count : kTile) * decoder.features_padded, T(0));
    hidden_.assign(static_cast<size_t>(count) * decoder.hidden_padded, T(0));
    sigmoids_.assign(static_cast<size_t>(count) * decoder.colors_padded, T(0));
    color_gradients_.assign(decoder.colors_padded, T(0));
    if (keeps_) {
      slopes_.assign(hidden_.size(), T(0));
      hidden_gradients_.assign(hidden_.size(), T(0));
      output_gradients_.assign(static_cast<size_t>(count) * decoder.outputs_padded, T(0));
    }
  }

  // Features (K), depth and alpha of a ray.
  void render(const Planes<const P>& planes, const Ray<T>& ray, T* features, T* depth, T* alpha) {
    sampler_.coarse_depths(ray.near, ray.far, ray.u_coarse, ray.u_coarse_stride, depths_.data());
    std::fill(features, features + decoder_.colors, T(0));
    if (!ray.hit) {
      *alpha = 0;
      *depth = *std::max_element(depths_.begin(), depths_.begin() + scene_.coarse);
    } else {
      trace(planes, ray);
      const auto totals = compositor_.totals(seen());
      *alpha = totals.alpha;
      *depth =
          MeanDepth<T>({sorted(), nullptr, scene_.samples()}, totals.alpha, totals.depth).value();
      shade(features);
    }
    for (int k = 0; k < decoder_.colors; ++k) {
      const T color =
          scene_.has_background ? features[k] + (1 - *alpha) * scene_.fill(k) : features[k];
      features[k] = color * 2 - 1;
    }
  }

  // Gradients of the features at all samples of a ray, (samples, features_padded), where these lie
  // (x, y and z), and the rest where wanted.
  void backward(const Planes<const P>& planes, const Ray<T>& ray, const RayGradients<T>& gradients,
                T* feature_gradients, T* const points[3],
                typename Decoder<T>::Gradients* decoder_gradients) {
    const int count = scene_.samples();
    sampler_.coarse_depths(ray.near, ray.far, ray.u_coarse, ray.u_coarse_stride, depths_.data());
    std::fill(depth_gradients_.begin(), depth_gradients_.end(), T(0));
    if (!ray.hit) {
      backward_of_miss(gradients, feature_gradients, points);
      if (gradients.origin != nullptr) to_limits(ray, gradients);
      return;
    }
    trace(planes, ray);
    decoder_.sigmoids(hidden_.data(), nullptr, count, sigmoids_.data());
    composite_backward(gradients);
    output_gradients(gradients.features != nullptr);
    decoder_.backward(features_.data(), hidden_.data(), slopes_.data(), output_gradients_.data(),
                      count, gradients.features != nullptr ? 0 : decoder_.colors, feature_gradients,
                      decoder_gradients, hidden_gradients_.data());
    for (int a = 0; a < 3; ++a)
      std::copy(points_[a].begin(), points_[a].begin() + count, points[a]);
    if (gradients.origin != nullptr) {
      to_ray(planes, ray, gradients, feature_gradients);
      to_limits(ray, gradients);
    }
  }

 private:
  const T* sorted() const { return scene_.fine > 0 ? sorted_depths_.data() : depths_.data(); }
  Samples<T> seen() const {
    return {sorted(), scene_.fine > 0 ? sorted_densities_.data() : densities_.data(), used_};
  }

  // Samples a ray and computes the weights.
  void trace(const Planes<const P>& planes, const Ray<T>& ray) {
    const int coarse = scene_.coarse, count = scene_.samples();
    decoded_count_ = 0;
    std::fill(slots_.begin(), slots_.end(), -1);
    double transmittance = 1;
    const int coarse_step = scene_.stop > 0 ? kMarch : coarse;
    for (used_ = 0; used_ < coarse && transmittance >= scene_.stop;) {
      const int first = used_;
      used_ = std::min(first + coarse_step, coarse);
      for (int i = first; i < used_; ++i) pending_[i - first] = i;
      decode(planes, ray, used_ - first);
      transmittance = compositor_.compute_weights({depths_.data(), densities_.data(), used_},
                                                  std::max(first - 1, 0), used_ - 1, transmittance);
    }
    if (scene_.fine == 0) {
      for (int k = 0; k < used_; ++k) order_[k] = k;
      return;
    }
    std::fill(compositor_.weights() + used_ - 1, compositor_.weights() + coarse - 1, T(0));
    sampler_.fine_depths(compositor_.weights(), ray.u_fine, ray.u_fine_stride, depths_.data());
    sampler_.sort(depths_.data(), order_.data(), sorted_depths_.data());
    transmittance = 1;
    const int step = scene_.stop > 0 ? kMarch : count;
    for (used_ = 0; used_ < count && transmittance >= scene_.stop;) {
      const int first = used_;
      int pending = 0;
      for (; used_ < count && pending < step; ++used_)
        if (slots_[order_[used_]] < 0) pending_[pending++] = order_[used_];
      decode(planes, ray, pending);
      for (int k = first; k < used_; ++k) sorted_densities_[k] = densities_[order_[k]];
      transmittance =
          compositor_.compute_weights({sorted_depths_.data(), sorted_densities_.data(), used_},
                                      std::max(first - 1, 0), used_ - 1, transmittance);
    }
  }

  // Densities of the first `count` pending samples; what is computed on the way is kept in the next
  // free slots.
  void decode(const Planes<const P>& planes, const Ray<T>& ray, int count) {
    for (int start = 0; start < count; start += kTile) {
      const int tile = std::min(kTile, count - start), slot = decoded_count_;
      const int* const samples = pending_.data() + start;
      T* const at[3] = {points_[0].data() + slot, points_[1].data() + slot,
                        points_[2].data() + slot};
      for (int i = 0; i < tile; ++i) {
        const T depth = depths_[samples[i]];
        for (int a = 0; a < 3; ++a) at[a][i] = ray.origin[a] + depth * ray.direction[a];
      }
      T* const features =
          features_.data() + (keeps_ ? static_cast<int64_t>(slot) * decoder_.features_padded : 0);
      gather<T, P>(planes, scene_.mapping, at, tile, features, decoder_.features_padded);
      const int64_t row = static_cast<int64_t>(slot) * decoder_.hidden_padded;
      decoder_.densities(features, tile, hidden_.data() + row,
                         keeps_ ? slopes_.data() + row : nullptr, new_densities_.data());
      for (int i = 0; i < tile; ++i) {
        densities_[samples[i]] = new_densities_[i] * scene_.density_gain;
        slots_[samples[i]] = slot + i;
        decoded_[slot + i] = samples[i];
      }
      decoded_count_ += tile;
    }
  }

  // Adds the colours of what was seen, each by its weight.
  void shade(T* features) {
    const T least = scene_.stop / T(scene_.samples());
    int active = 0;
    T total = 0;
    for (int k = 0; k < used_; ++k) {
      const T weight = compositor_.sample_weight(k, used_);
      if (scene_.stop > 0 && weight < least) continue;
      rows_[active] = slots_[order_[k]];
      shown_[active++] = weight;
      total += weight;
    }
    for (int start = 0; start < active; start += kTile) {
      const int tile = std::min(kTile, active - start);
      decoder_.sigmoids(hidden_.data(), rows_.data() + start, tile, sigmoids_.data());
      for (int n = 0; n < decoder_.colors; n += kLanes<T>) {
        Vec<T> sums[4] = {};  // several, since an addition waits for the one before
        const auto add = [&](int to, int i) {
          sums[to] += shown_[start + i] * load(sigmoids_.data() + i * decoder_.colors_padded + n);
        };
        int i = 0;
        for (; i + 4 <= tile; i += 4)
          for (int k = 0; k < 4; ++k) add(k, i + k);
        for (; i < tile; ++i) add(0, i);
        const Vec<T> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        for (int k = 0; k < kLanes<T> && n + k < decoder_.colors; ++k)
          features[n + k] += T(kColorScale) * sum[k];
      }
    }
    for (int k = 0; k < decoder_.colors; ++k) features[k] += T(kColorShift) * total;
  }

  // Of the samples' densities and depths, from those of the outputs.
  void composite_backward(const RayGradients<T>& gradients) {
    const Samples<T> samples = seen();
    T alpha_gradient = gradients.alpha != nullptr ? *gradients.alpha : T(0), sum = 0;
    std::fill(color_gradients_.begin(), color_gradients_.end(), T(0));
    if (gradients.features != nullptr) {
      for (int k = 0; k < decoder_.colors; ++k) {
        color_gradients_[k] = 2 * gradients.features[k];
        sum += color_gradients_[k];
        if (scene_.has_background) alpha_gradient -= color_gradients_[k] * scene_.fill(k);
      }
    }
    for (int k = 0; k < samples.count; ++k) {
      const T* const row =
          sigmoids_.data() + static_cast<int64_t>(slots_[order_[k]]) * decoder_.colors_padded;
      Vec<T> dot{};
      for (int n = 0; n < decoder_.colors_padded; n += kLanes<T>)
        dot += load(color_gradients_.data() + n) * load(row + n);
      shown_[k] = T(kColorScale) * sum_lanes<T>(dot) + T(kColorShift) * sum;
    }
    for (int i = 0; i + 1 < samples.count; ++i)
      weight_gradients_[i] = (shown_[i] + shown_[i + 1]) / 2 + alpha_gradient;
    if (gradients.depth != nullptr) {
      const auto totals = compositor_.totals(samples);
      MeanDepth<T>(samples, totals.alpha, totals.depth)
          .backward(samples, compositor_.weights(), totals.alpha, *gradients.depth,
                    weight_gradients_.data(), depth_gradients_.data());
    }
    std::fill(density_gradients_.begin(), density_gradients_.end(), T(0));
    compositor_.backward(samples, weight_gradients_.data(), density_gradients_.data(),
                         depth_gradients_.data());
  }

  // Of the decoder's outputs before the colours' sigmoid, in the order of the slots.
  void output_gradients(bool has_colors) {
    const int colors = decoder_.colors, width = decoder_.outputs_padded;
    for (int k = 0; k < used_; ++k) {
      const int64_t slot = slots_[order_[k]];
      T* const row = output_gradients_.data() + slot * width;
      if (has_colors) {
        const Vec<T> weight = splat(compositor_.sample_weight(k, used_) * T(kColorScale));
        const T* const sigmoids = sigmoids_.data() + slot * decoder_.colors_padded;
        for (int n = 0; n < decoder_.colors_padded; n += kLanes<T>) {
          const Vec<T> y = load(sigmoids + n);
          store(row + n, load(color_gradients_.data() + n) * weight * y * (1 - y));
        }
      }
      row[colors] = scene_.density_gain * density_gradients_[k];
    }
  }

  void to_ray(const Planes<const P>& planes, const Ray<T>& ray, const RayGradients<T>& gradients,
              const T* feature_gradients) {
    for (int k = 0; k < used_; ++k) shown_[order_[k]] = depth_gradients_[k];
    std::copy(shown_.begin(), shown_.begin() + used_,
              depth_gradients_.begin());  // now by number of the sample
    alignas(64) T found[3][kTile];
    T* const tile_gradients[3] = {found[0], found[1], found[2]};
    for (int start = 0; start < used_; start += kTile) {
      const int tile = std::min(kTile, used_ - start);
      const T* const at[3] = {points_[0].data() + start, points_[1].data() + start,
                              points_[2].data() + start};
      points_gradient<T, P>(
          planes, scene_.mapping, at, tile,
          feature_gradients + static_cast<int64_t>(start) * decoder_.features_padded,
          decoder_.features_padded, tile_gradients);
      for (int i = 0; i < tile; ++i) {
        const int sample = decoded_[start + i];
        for (int a = 0; a < 3; ++a) {
          gradients.origin[a] += found[a][i];
          gradients.direction[a] += found[a][i] * depths_[sample];
          depth_gradients_[sample] += found[a][i] * ray.direction[a];
        }
      }
    }
  }

  // Coarse depths follow the limits; fine depths carry no gradient.
  void to_limits(const Ray<T>& ray, const RayGradients<T>& gradients) {
    for (int i = 0; i < scene_.coarse; ++i) {
      const T share = sampler_.far_share(i, ray.u_coarse[i * ray.u_coarse_stride]);
      *gradients.near += depth_gradients_[i] * (1 - share);
      *gradients.far += depth_gradients_[i] * share;
    }
  }

  // A ray that misses sees nothing; only its depth follows its farthest sample.
  void backward_of_miss(const RayGradients<T>& gradients, T* feature_gradients,
                        T* const points[3]) {
    const int count = scene_.samples();
    std::fill(feature_gradients,
              feature_gradients + static_cast<int64_t>(count) * decoder_.features_padded, T(0));
    for (int a = 0; a < 3; ++a)
      std::fill(points[a], points[a] + count, T(4 / scene_.mapping.scale));  // outside
    if (gradients.depth == nullptr) return;
    const Samples<T> samples = {depths_.data(), nullptr, scene_.coarse};
    MeanDepth<T>(samples, 0, 0)
        .backward(samples, nullptr, 0, *gradients.depth, nullptr, depth_gradients_.data());
  }

  const Scene<T>& scene_;
  const Decoder<T>& decoder_;
  DepthSampler<T> sampler_;
  Compositor<T> compositor_;
  const bool keeps_;              // features and slopes, for the backward pass
  int used_ = 0;                  // samples in depth order up to where the ray ends
  int decoded_count_ = 0;         // slots in use
  Buffer<T> depths_, densities_;  // by number of the sample: coarse ones, then fine ones
  Buffer<T> sorted_depths_, sorted_densities_;  // in depth order
  std::vector<int> order_;                      // number of the k-th sample in depth order
  std::vector<int> slots_, decoded_;  // row of a sample in the buffers below, -1 = none; and back
  Buffer<T> points_[3], features_, hidden_, slopes_, sigmoids_;  // by slot
  Buffer<T> new_densities_, shown_, color_gradients_;
  std::vector<int> pending_, rows_;
  Buffer<T> density_gradients_, depth_gradients_, weight_gradients_, output_gradients_,
      hidden_gradients_;
};

}  // namespace open_eg3d::triplane
