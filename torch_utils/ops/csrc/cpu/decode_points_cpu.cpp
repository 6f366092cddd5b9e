// CPU kernels of decode_points: threads take blocks of points.
#include <torch/library.h>

#include "triplane_cpu.h"

namespace open_eg3d::triplane {
namespace {

constexpr int64_t kBlockPoints = 512;

// Buffers for one tile of points and what becomes of it.
template <class T, class P>
class PointDecoder {
 public:
  PointDecoder(const Decoder<T>& decoder, const Mapping& mapping, T density_gain)
      : decoder_(decoder),
        mapping_(mapping),
        gain_(density_gain),
        features_(kTile * decoder.features_padded),
        hidden_(kTile * decoder.hidden_padded),
        slopes_(hidden_.size()),
        hidden_gradients_(hidden_.size()),
        sigmoids_(kTile * decoder.colors_padded),
        output_gradients_(kTile * decoder.outputs_padded) {}

  // Densities (count) and, unless null, colours (count, K) at points (count, 3).
  void decode(const Planes<const P>& planes, const T* points, int count, T* densities, T* colors) {
    forward(planes, points, count, nullptr);
    for (int i = 0; i < count; ++i) densities[i] = densities_[i] * gain_;
    if (colors == nullptr) return;
    decoder_.sigmoids(hidden_.data(), nullptr, count, sigmoids_.data());
    for (int i = 0; i < count; ++i)
      for (int k = 0; k < decoder_.colors; ++k)
        colors[i * decoder_.colors + k] =
            sigmoids_[i * decoder_.colors_padded + k] * T(kColorScale) + T(kColorShift);
  }

  // Gradients of the features (count, features_padded) and, where wanted, of weights and points
  // (count, 3), from those of densities (count) and colours (count, K), null where there are none.
  // `at` receives the points' coordinates.
  void backward(const Planes<const P>& planes, const T* points, int count,
                const T* density_gradients, const T* color_gradients, T* feature_gradients,
                T* const at[3], typename Decoder<T>::Gradients* weights, T* point_gradients) {
    forward(planes, points, count, slopes_.data());
    if (color_gradients != nullptr)
      decoder_.sigmoids(hidden_.data(), nullptr, count, sigmoids_.data());
    for (int i = 0; i < count; ++i) {
      T* const row = output_gradients_.data() + i * decoder_.outputs_padded;
      for (int k = 0; k < decoder_.colors && color_gradients != nullptr; ++k) {
        const T y = sigmoids_[i * decoder_.colors_padded + k];
        row[k] = color_gradients[i * decoder_.colors + k] * T(kColorScale) * y * (1 - y);
      }
      row[decoder_.colors] = density_gradients != nullptr ? density_gradients[i] * gain_ : T(0);
    }
    decoder_.backward(features_.data(), hidden_.data(), slopes_.data(), output_gradients_.data(),
                      count, color_gradients != nullptr ? 0 : decoder_.colors, feature_gradients,
                      weights, hidden_gradients_.data());
    for (int a = 0; a < 3; ++a) std::copy(at_[a], at_[a] + count, at[a]);
    if (point_gradients == nullptr) return;
    T* const tile_gradients[3] = {gradients_[0], gradients_[1], gradients_[2]};
    const T* const here[3] = {at_[0], at_[1], at_[2]};
    points_gradient<T, P>(planes, mapping_, here, count, feature_gradients,
                          decoder_.features_padded, tile_gradients);
    for (int i = 0; i < count; ++i)
      for (int a = 0; a < 3; ++a) point_gradients[i * 3 + a] = gradients_[a][i];
  }

 private:
  void forward(const Planes<const P>& planes, const T* points, int count, T* slopes) {
    for (int i = 0; i < count; ++i)
      for (int a = 0; a < 3; ++a) at_[a][i] = points[i * 3 + a];
    const T* const here[3] = {at_[0], at_[1], at_[2]};
    gather<T, P>(planes, mapping_, here, count, features_.data(), decoder_.features_padded);
    decoder_.densities(features_.data(), count, hidden_.data(), slopes, densities_);
  }

  const Decoder<T>& decoder_;
  const Mapping& mapping_;
  const T gain_;
  alignas(64) T at_[3][kTile] = {}, gradients_[3][kTile] = {}, densities_[kTile] = {};
  Buffer<T> features_, hidden_, slopes_, hidden_gradients_, sigmoids_, output_gradients_;
};

// Points of all samples in turn, cut into tiles that lie in one sample and in one block.
struct Tiles {
  int64_t per_sample, total;

  template <class Body>
  void for_each(int64_t begin, int64_t end, const Body& body) const {
    for (int64_t i = begin; i < std::min(end, total);) {
      const int64_t sample = i / per_sample,
                    stop = std::min({i + kTile, end, (sample + 1) * per_sample});
      body(sample, i, static_cast<int>(stop - i));
      i = stop;
    }
  }
};

std::tuple<at::Tensor, at::Tensor> decode_points(const at::Tensor& planes, const at::Tensor& w0,
                                                 const at::Tensor& b0, const at::Tensor& w1,
                                                 const at::Tensor& b1, const at::Tensor& points,
                                                 double box_warp, bool released_axes,
                                                 double density_gain, bool with_colors) {
  check_points(planes, points);
  const at::Tensor texels = as_channels_last(planes), where = points.contiguous();
  at::Tensor densities = at::empty({points.size(0), points.size(1), 1}, points.options());
  at::Tensor colors = at::empty({points.size(0), points.size(1), with_colors ? w1.size(0) - 1 : 0},
                                points.options());
  dispatch_types(planes, points, [&](auto compute, auto stored) {
    using T = decltype(compute);
    using P = decltype(stored);
    const Mapping mapping = make_mapping(box_warp, released_axes);
    const Decoder<T> decoder = make_decoder<T>(planes, w0, b0, w1, b1);
    const P* const data = static_cast<const P*>(texels.const_data_ptr());
    const T* const at = where.const_data_ptr<T>();
    T* const density = densities.data_ptr<T>();
    T* const color = with_colors ? colors.data_ptr<T>() : nullptr;
    const Tiles tiles{points.size(1), points.size(0) * points.size(1)};
    const auto make = [&] { return PointDecoder<T, P>(decoder, mapping, T(density_gain)); };
    for_each_block((tiles.total + kBlockPoints - 1) / kBlockPoints, make,
                   [&](PointDecoder<T, P>& worker, int64_t block) {
                     tiles.for_each(block * kBlockPoints, (block + 1) * kBlockPoints,
                                    [&](int64_t sample, int64_t i, int count) {
                                      worker.decode(
                                          planes_of(texels, data, sample), at + i * 3, count,
                                          density + i,
                                          color == nullptr ? nullptr : color + i * decoder.colors);
                                    });
                   });
  });
  return {densities, colors};
}

SixTensors decode_points_backward(const OptionalTensor& grad_densities,
                                  const OptionalTensor& grad_colors, const at::Tensor& planes,
                                  const at::Tensor& w0, const at::Tensor& b0, const at::Tensor& w1,
                                  const at::Tensor& b1, const at::Tensor& points, double box_warp,
                                  bool released_axes, double density_gain, bool needs_planes,
                                  bool needs_weights, bool needs_points) {
  check_points(planes, points);
  const at::Tensor texels = as_channels_last(planes), where = points.contiguous();
  at::Tensor grad_planes = at::empty({0}, planes.options());
  at::Tensor grad_points = needs_points ? at::empty_like(where) : at::empty({0}, points.options());
  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> grad_weights;
  const at::Tensor of_densities = contiguous_or_none(grad_densities),
                   of_colors = contiguous_or_none(grad_colors);
  dispatch_types(planes, points, [&](auto compute, auto stored) {
    using T = decltype(compute);
    using P = decltype(stored);
    const Mapping mapping = make_mapping(box_warp, released_axes);
    const Decoder<T> decoder = make_decoder<T>(planes, w0, b0, w1, b1);
    const P* const data = static_cast<const P*>(texels.const_data_ptr());
    const Tiles tiles{points.size(1), points.size(0) * points.size(1)};
    const int64_t block_bytes = kBlockPoints * decoder.features_padded * sizeof(T);
    const int64_t chunk_blocks = std::max<int64_t>(
        1, std::min((tiles.total + kBlockPoints - 1) / kBlockPoints, kChunkBytes / block_bytes));
    PlaneGradient<T> plane_gradient(needs_planes ? planes : texels.narrow(0, 0, 0), mapping,
                                    chunk_blocks * kBlockPoints, decoder.features_padded);
    WeightGradient<T> weight_gradient(decoder, chunk_blocks, needs_weights);
    const auto at_point = [](const at::Tensor& x, int64_t offset) {
      return x.defined() ? x.const_data_ptr<T>() + offset : nullptr;
    };
    const auto make = [&] { return PointDecoder<T, P>(decoder, mapping, T(density_gain)); };
    for (int64_t first = 0; first < tiles.total; first += chunk_blocks * kBlockPoints) {
      const int64_t end = std::min(tiles.total, first + chunk_blocks * kBlockPoints),
                    blocks = (end - first + kBlockPoints - 1) / kBlockPoints;
      for_each_block(blocks, make, [&](PointDecoder<T, P>& worker, int64_t block) {
        const int64_t begin = first + block * kBlockPoints;
        tiles.for_each(
            begin, std::min(end, begin + kBlockPoints), [&](int64_t sample, int64_t i, int count) {
              T* const at[3] = {plane_gradient.points(0, i - first),
                                plane_gradient.points(1, i - first),
                                plane_gradient.points(2, i - first)};
              worker.backward(planes_of(texels, data, sample), where.const_data_ptr<T>() + i * 3,
                              count, at_point(of_densities, i),
                              at_point(of_colors, i * decoder.colors),
                              plane_gradient.features(i - first), at, weight_gradient.part(block),
                              needs_points ? grad_points.data_ptr<T>() + i * 3 : nullptr);
            });
      });
      if (needs_planes) plane_gradient.add(first, end, tiles.per_sample, 0);
      weight_gradient.add(blocks);
    }
    if (needs_planes) grad_planes = plane_gradient.finish();
    grad_weights = weight_gradient.finish(points.options());
  });
  const auto& [grad_w0, grad_b0, grad_w1, grad_b1] = grad_weights;
  return {grad_planes, grad_w0, grad_b0, grad_w1, grad_b1, grad_points};
}

}  // namespace

TORCH_LIBRARY_IMPL(open_eg3d, CPU, m) {
  m.impl("decode_points", decode_points);
  m.impl("decode_points_backward", decode_points_backward);
}

}  // namespace open_eg3d::triplane
