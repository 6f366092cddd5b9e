// CPU kernels of render_rays: threads take blocks of rays, each ray is followed through both passes
// in a thread's own buffers.
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <cmath>

#include "cpu/triplane_cpu.h"
#include "triplane/ray.h"

namespace open_eg3d::triplane {
namespace {

constexpr int64_t kForwardBlock = 64, kBackwardBlock = 32;  // rays that a thread takes at a time

// The order in which a sample's rays are followed: in strips of a few columns, each from top to
// bottom, so that rays near each other, which read the same texels, come soon after each other:
// those of a column share what they read of the plane of x and z, which for so few columns stays in
// the cache. Rays that are not a square picture, row by row, are taken as they come; results are
// the same.
class RayOrder {
 public:
  explicit RayOrder(int64_t rays)
      : side_(std::llround(std::sqrt(static_cast<double>(rays)))), width_(8) {
    while (width_ > 1 && (side_ * side_ != rays || side_ % width_ != 0)) width_ /= 2;
  }

  // Number of the ray that is followed as the i-th.
  int64_t operator()(int64_t i) const {
    if (width_ == 1) return i;
    const int64_t strip = i / (width_ * side_), inside = i % (width_ * side_);
    return inside / width_ * side_ + strip * width_ + inside % width_;
  }

 private:
  int64_t side_, width_;
};

// The arguments that describe rays, as contiguous tensors; offsets keep their strides, since fixed
// ones are expanded numbers.
template <class T>
struct RayTensors {
  int64_t rays;  // of a sample
  RayOrder order;
  at::Tensor origins, directions, near, far, hit, u_coarse, u_fine;

  RayTensors(const at::Tensor& planes, const at::Tensor& origins, const at::Tensor& directions,
             const at::Tensor& near, const at::Tensor& far, const OptionalTensor& hit,
             const at::Tensor& u_coarse, const OptionalTensor& u_fine)
      : rays(origins.size(1)),
        order(rays),
        origins(origins.contiguous()),
        directions(directions.contiguous()),
        near(near.contiguous()),
        far(far.contiguous()),
        hit(contiguous_or_none(hit)),
        u_coarse(u_coarse),
        u_fine(u_fine.value_or(at::Tensor())) {
    check_rays(planes, origins, directions, near, far, this->hit, u_coarse, this->u_fine);
  }

  Ray<T> at(int64_t index) const {
    const int64_t n = index / rays, r = index % rays;
    const bool has_fine = u_fine.defined();
    return {origins.const_data_ptr<T>() + index * 3,
            directions.const_data_ptr<T>() + index * 3,
            near.const_data_ptr<T>()[index],
            far.const_data_ptr<T>()[index],
            !hit.defined() || hit.const_data_ptr<bool>()[index],
            u_coarse.const_data_ptr<T>() + n * u_coarse.stride(0) + r * u_coarse.stride(1),
            has_fine ? u_fine.const_data_ptr<T>() + n * u_fine.stride(0) + r * u_fine.stride(1)
                     : nullptr,
            u_coarse.stride(2),
            has_fine ? u_fine.stride(2) : 0};
  }

  int64_t count() const { return origins.size(0) * rays; }

  // Index, over all samples, of the ray that is followed as the i-th.
  int64_t index(int64_t i) const { return i / rays * rays + order(i % rays); }
};

template <class T>
Scene<T> make_scene(const RayTensors<T>& tensors, double box_warp, bool released_axes,
                    bool released_placement, double density_gain,
                    const std::optional<at::ArrayRef<double>>& background, double stop) {
  TORCH_CHECK(!background.has_value() || background->size() == 3,
              "background must have three numbers");
  Scene<T> scene{};
  scene.mapping = make_mapping(box_warp, released_axes);
  scene.coarse = static_cast<int>(tensors.u_coarse.size(2));
  scene.fine = tensors.u_fine.defined() ? static_cast<int>(tensors.u_fine.size(2)) : 0;
  scene.is_released_placement = released_placement;
  scene.density_gain = T(density_gain);
  scene.has_background = background.has_value();
  for (int k = 0; k < 3 && background.has_value(); ++k) scene.background[k] = T((*background)[k]);
  scene.stop = T(stop);
  return scene;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> render_rays(
    const at::Tensor& planes, const at::Tensor& w0, const at::Tensor& b0, const at::Tensor& w1,
    const at::Tensor& b1, const at::Tensor& ray_origins, const at::Tensor& ray_directions,
    const at::Tensor& near, const at::Tensor& far, const OptionalTensor& hit,
    const at::Tensor& u_coarse, const OptionalTensor& u_fine, double box_warp, bool released_axes,
    bool released_placement, double density_gain, std::optional<at::ArrayRef<double>> background,
    double stop) {
  const at::Tensor texels = as_channels_last(planes);
  const auto shape = [&](int64_t last) {
    return std::vector<int64_t>{ray_origins.size(0), ray_origins.size(1), last};
  };
  const int64_t colors = w1.size(0) - 1;
  at::Tensor features = at::empty(shape(colors), ray_origins.options());
  at::Tensor depth = at::empty(shape(1), ray_origins.options()), alpha = at::empty_like(depth);
  dispatch_types(planes, ray_origins, [&](auto compute, auto stored) {
    using T = decltype(compute);
    using P = decltype(stored);
    const RayTensors<T> rays(planes, ray_origins, ray_directions, near, far, hit, u_coarse, u_fine);
    const Scene<T> scene = make_scene<T>(rays, box_warp, released_axes, released_placement,
                                         density_gain, background, stop);
    const Decoder<T> decoder = make_decoder<T>(planes, w0, b0, w1, b1);
    const P* const data = static_cast<const P*>(texels.const_data_ptr());
    T* const results[] = {features.data_ptr<T>(), depth.data_ptr<T>(), alpha.data_ptr<T>()};
    for_each_block((rays.count() + kForwardBlock - 1) / kForwardBlock,
                   [&] { return RayTracer<T, P>(scene, decoder, false); },
                   [&](RayTracer<T, P>& tracer, int64_t block) {
                     for (int64_t k = block * kForwardBlock;
                          k < std::min(rays.count(), (block + 1) * kForwardBlock); ++k) {
                       const int64_t i = rays.index(k);
                       tracer.render(planes_of(texels, data, i / rays.rays), rays.at(i),
                                     results[0] + i * colors, results[1] + i, results[2] + i);
                     }
                   });
  });
  return {features, depth, alpha};
}

// Gradients of the rays and their limits; empty where not wanted.
struct RayGradientTensors {
  at::Tensor origins, directions, near, far;

  RayGradientTensors(const at::Tensor& like, bool is_wanted) {
    const std::vector<int64_t> none{0}, vectors = like.sizes().vec(),
                                        numbers{like.size(0), like.size(1), 1};
    origins = at::zeros(is_wanted ? vectors : none, like.options()),
    directions = at::zeros_like(origins);
    near = at::zeros(is_wanted ? numbers : none, like.options()), far = at::zeros_like(near);
  }

  template <class T>
  void write_to(RayGradients<T>& ray, int64_t index) const {
    if (origins.dim() != 3) return;
    ray.origin = origins.data_ptr<T>() + index * 3,
    ray.direction = directions.data_ptr<T>() + index * 3;
    ray.near = near.data_ptr<T>() + index, ray.far = far.data_ptr<T>() + index;
  }
};

NineTensors render_rays_backward(const OptionalTensor& grad_features,
                                 const OptionalTensor& grad_depth, const OptionalTensor& grad_alpha,
                                 const at::Tensor& planes, const at::Tensor& w0,
                                 const at::Tensor& b0, const at::Tensor& w1, const at::Tensor& b1,
                                 const at::Tensor& ray_origins, const at::Tensor& ray_directions,
                                 const at::Tensor& near, const at::Tensor& far,
                                 const OptionalTensor& hit, const at::Tensor& u_coarse,
                                 const OptionalTensor& u_fine, double box_warp, bool released_axes,
                                 bool released_placement, double density_gain,
                                 std::optional<at::ArrayRef<double>> background, bool needs_planes,
                                 bool needs_weights, bool needs_rays) {
  const at::Tensor texels = as_channels_last(planes);
  at::Tensor grad_planes = at::empty({0}, planes.options());
  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> grad_weights;
  const RayGradientTensors grad_rays(ray_origins, needs_rays);
  const at::Tensor of_features = contiguous_or_none(grad_features),
                   of_depth = contiguous_or_none(grad_depth),
                   of_alpha = contiguous_or_none(grad_alpha);
  dispatch_types(planes, ray_origins, [&](auto compute, auto stored) {
    using T = decltype(compute);
    using P = decltype(stored);
    const RayTensors<T> rays(planes, ray_origins, ray_directions, near, far, hit, u_coarse, u_fine);
    const Scene<T> scene = make_scene<T>(rays, box_warp, released_axes, released_placement,
                                         density_gain, background, 0);
    const Decoder<T> decoder = make_decoder<T>(planes, w0, b0, w1, b1);
    const P* const data = static_cast<const P*>(texels.const_data_ptr());
    const int64_t count = rays.count(), samples = scene.samples(),
                  block_bytes = kBackwardBlock * samples * decoder.features_padded * sizeof(T);
    const int64_t chunk_blocks = std::max<int64_t>(
        1, std::min((count + kBackwardBlock - 1) / kBackwardBlock, kChunkBytes / block_bytes));
    PlaneGradient<T> plane_gradient(needs_planes ? planes : texels.narrow(0, 0, 0), scene.mapping,
                                    chunk_blocks * kBackwardBlock * samples,
                                    decoder.features_padded);
    WeightGradient<T> weight_gradient(decoder, chunk_blocks, needs_weights);
    const auto at_ray = [](const at::Tensor& x, int64_t offset) {
      return x.defined() ? x.const_data_ptr<T>() + offset : nullptr;
    };
    for (int64_t first = 0; first < count; first += chunk_blocks * kBackwardBlock) {
      const int64_t end = std::min(count, first + chunk_blocks * kBackwardBlock),
                    blocks = (end - first + kBackwardBlock - 1) / kBackwardBlock;
      for_each_block(
          blocks, [&] { return RayTracer<T, P>(scene, decoder, true); },
          [&](RayTracer<T, P>& tracer, int64_t block) {
            for (int64_t k = first + block * kBackwardBlock;
                 k < std::min(end, first + (block + 1) * kBackwardBlock); ++k) {
              const int64_t i = rays.index(k), row = (k - first) * samples;
              RayGradients<T> gradients{at_ray(of_features, i * decoder.colors),
                                        at_ray(of_depth, i), at_ray(of_alpha, i)};
              grad_rays.write_to(gradients, i);
              T* const points[3] = {plane_gradient.points(0, row), plane_gradient.points(1, row),
                                    plane_gradient.points(2, row)};
              tracer.backward(planes_of(texels, data, i / rays.rays), rays.at(i), gradients,
                              plane_gradient.features(row), points, weight_gradient.part(block));
            }
          });
      if (needs_planes)
        plane_gradient.add(first * samples, end * samples, rays.rays * samples, samples);
      weight_gradient.add(blocks);
    }
    if (needs_planes) grad_planes = plane_gradient.finish();
    grad_weights = weight_gradient.finish(ray_origins.options());
  });
  const auto& [grad_w0, grad_b0, grad_w1, grad_b1] = grad_weights;
  return {grad_planes,          grad_w0,        grad_b0,      grad_w1, grad_b1, grad_rays.origins,
          grad_rays.directions, grad_rays.near, grad_rays.far};
}

}  // namespace

TORCH_LIBRARY_IMPL(open_eg3d, CPU, m) {
  m.impl("render_rays", render_rays);
  m.impl("render_rays_backward", render_rays_backward);
}

}  // namespace open_eg3d::triplane
