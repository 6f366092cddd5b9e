// render_rays on CUDA: tensors in, tensors out.
#include <torch/library.h>

#include "cuda/render_rays.h"
#include "cuda/triplane/binding.h"

namespace open_eg3d::cuda {
namespace {

using Background = std::optional<at::ArrayRef<double>>;

// All that describes a call, as contiguous tensors that live as long as the kernels' operands need
// them; offsets keep their strides, since fixed ones are expanded numbers.
class Call {
 public:
  Call(const at::Tensor& planes, const at::Tensor& w0, const at::Tensor& b0, const at::Tensor& w1,
       const at::Tensor& b1, const at::Tensor& ray_origins, const at::Tensor& ray_directions,
       const at::Tensor& near, const at::Tensor& far, const OptionalTensor& hit,
       const at::Tensor& u_coarse, const OptionalTensor& u_fine, Stream stream)
      : texels_(as_channels_last(planes)),
        origins_(ray_origins.contiguous()),
        directions_(ray_directions.contiguous()),
        near_(near.contiguous()),
        far_(far.contiguous()),
        hit_(contiguous_or_none(hit)),
        u_coarse_(u_coarse),
        u_fine_(u_fine.value_or(at::Tensor())) {
    check(planes);
    decoder.emplace(planes, w0, b0, w1, b1, stream);
  }

  RenderRays operands(double box_warp, bool released_axes, bool released_placement,
                      double density_gain, const Background& background, double stop) {
    TORCH_CHECK(!background.has_value() || background->size() == 3,
                "background must have three numbers");
    const int coarse = static_cast<int>(u_coarse_.size(2)),
              fine = u_fine_.defined() ? static_cast<int>(u_fine_.size(2)) : 0;
    const int64_t bytes = static_cast<int64_t>(workspace_bytes(coarse + fine, dtype_of(texels_)));
    workspace_ = at::empty({bytes}, texels_.options().dtype(at::kByte));
    workspace_.narrow(0, 0, 16).zero_();
    const auto offsets = [](const at::Tensor& u) {
      return u.defined() ? Offsets{u.const_data_ptr(), u.stride(0), u.stride(1), u.stride(2)}
                         : Offsets{};
    };
    RenderRays p{.planes = planes_of(texels_, box_warp, released_axes),
                 .layout = decoder->layout,
                 .packed = decoder->data(),
                 .origins = data_of(origins_),
                 .directions = data_of(directions_),
                 .near = data_of(near_),
                 .far = data_of(far_),
                 .hit = static_cast<const bool*>(data_of(hit_)),
                 .u_coarse = offsets(u_coarse_),
                 .u_fine = offsets(u_fine_),
                 .rays = origins_.size(0) * origins_.size(1),
                 .rays_per_sample = origins_.size(1),
                 .coarse = coarse,
                 .fine = fine,
                 .has_released_placement = released_placement,
                 .density_gain = density_gain,
                 .has_background = background.has_value(),
                 .background = {},
                 .stop = stop,
                 .workspace = room_of(workspace_)};
    for (int k = 0; k < 3 && background.has_value(); ++k) p.background[k] = (*background)[k];
    return p;
  }

  std::optional<PackedDecoder> decoder;

 private:
  void check(const at::Tensor& planes) const {
    check_rays(planes, origins_, directions_, near_, far_, hit_, u_coarse_, u_fine_);
    TORCH_CHECK(u_coarse_.size(2) + (u_fine_.defined() ? u_fine_.size(2) : 0) < 1 << 20,
                "a ray may have at most a million samples");
    check_types(planes, origins_);
    check_devices(planes, {origins_, directions_, near_, far_, hit_, u_coarse_, u_fine_});
    for (const at::Tensor& x : {directions_, near_, far_, u_coarse_, u_fine_}) {
      TORCH_CHECK(!x.defined() || x.scalar_type() == origins_.scalar_type(), "rays are ",
                  origins_.scalar_type(), " and ", x.scalar_type());
    }
  }

  at::Tensor texels_, origins_, directions_, near_, far_, hit_, u_coarse_, u_fine_, workspace_;
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> render(
    const at::Tensor& planes, const at::Tensor& w0, const at::Tensor& b0, const at::Tensor& w1,
    const at::Tensor& b1, const at::Tensor& ray_origins, const at::Tensor& ray_directions,
    const at::Tensor& near, const at::Tensor& far, const OptionalTensor& hit,
    const at::Tensor& u_coarse, const OptionalTensor& u_fine, double box_warp, bool released_axes,
    bool released_placement, double density_gain, Background background, double stop) {
  const OnDeviceOf on(planes);
  Call call(planes, w0, b0, w1, b1, ray_origins, ray_directions, near, far, hit, u_coarse, u_fine,
            on.stream());
  const RenderRays p =
      call.operands(box_warp, released_axes, released_placement, density_gain, background, stop);
  const auto room = [&](int64_t last) {
    return at::empty({ray_origins.size(0), ray_origins.size(1), last}, ray_origins.options());
  };
  const at::Tensor features = room(p.layout.colors), depth = room(1), alpha = room(1);
  render_rays(p, room_of(features), room_of(depth), room_of(alpha), dtype_of(planes), on.stream());
  return {features, depth, alpha};
}

NineTensors render_and_back(const OptionalTensor& grad_features, const OptionalTensor& grad_depth,
                            const OptionalTensor& grad_alpha, const at::Tensor& planes,
                            const at::Tensor& w0, const at::Tensor& b0, const at::Tensor& w1,
                            const at::Tensor& b1, const at::Tensor& ray_origins,
                            const at::Tensor& ray_directions, const at::Tensor& near,
                            const at::Tensor& far, const OptionalTensor& hit,
                            const at::Tensor& u_coarse, const OptionalTensor& u_fine,
                            double box_warp, bool released_axes, bool released_placement,
                            double density_gain, Background background, bool needs_planes,
                            bool needs_weights, bool needs_rays) {
  const OnDeviceOf on(planes);
  check_devices(planes, {grad_features, grad_depth, grad_alpha});
  Call call(planes, w0, b0, w1, b1, ray_origins, ray_directions, near, far, hit, u_coarse, u_fine,
            on.stream());
  const RenderRays p =
      call.operands(box_warp, released_axes, released_placement, density_gain, background, 0);
  const Dtype type = dtype_of(planes);
  const at::Tensor of_features = contiguous_or_none(grad_features),
                   of_depth = contiguous_or_none(grad_depth),
                   of_alpha = contiguous_or_none(grad_alpha);

  const int64_t count = p.coarse + p.fine, rows = p.rays * count;
  const at::Tensor numbers = at::empty({4, rows}, ray_origins.options()),
                   order = at::empty({rows}, ray_origins.options().dtype(at::kInt));
  const auto numbers_of = [&](int i) { return room_of(numbers.select(0, i)); };
  const PlaneGradientSums plane_sums(planes, p.rays_per_sample * count, needs_planes, on.stream());
  const TracedSamples traced{numbers_of(0),
                             numbers_of(1),
                             numbers_of(2),
                             numbers_of(3),
                             static_cast<int*>(room_of(order)),
                             plane_sums.bounds().outputs};
  trace_backward(p, data_of(of_features), data_of(of_depth), data_of(of_alpha), traced, type,
                 on.stream());

  const at::Tensor weight_sums = call.decoder->partial_sums(needs_weights);
  const at::Tensor of_points =
      needs_rays ? at::empty({rows, 3}, ray_origins.options()) : at::Tensor();
  const DecodeBackward back{.planes = p.planes,
                            .layout = p.layout,
                            .packed = p.packed,
                            .at = {.origins = p.origins,
                                   .directions = p.directions,
                                   .depths = traced.depths,
                                   .hit = p.hit,
                                   .rows = rows,
                                   .per_sample = p.rays_per_sample * count,
                                   .per_ray = static_cast<int>(count)},
                            .density_gradients = traced.density_gradients,
                            .density_gain = density_gain,
                            .color_gradients = data_of(of_features),
                            .color_gain = 2,
                            .color_weights = traced.weights,
                            .bounds = plane_sums.bounds(),
                            .plane_sums = plane_sums.sums(),
                            .plane_marks = plane_sums.marks(),
                            .weight_sums = room_of(weight_sums),
                            .point_gradients = room_of(of_points)};
  decode_backward(back, type, on.stream());
  const auto [grad_w0, grad_b0, grad_w1, grad_b1] = call.decoder->gradients(weight_sums);

  const at::Tensor none = at::empty({0}, ray_origins.options());
  const auto room = [&](int64_t last) {
    return needs_rays
               ? at::empty({ray_origins.size(0), p.rays_per_sample, last}, ray_origins.options())
               : none.clone();
  };
  const at::Tensor grad_origins = room(3), grad_directions = room(3), grad_near = room(1),
                   grad_far = room(1);
  if (needs_rays) {
    ray_gradients(p, traced,
                  {data_of(of_points), room_of(grad_origins), room_of(grad_directions),
                   room_of(grad_near), room_of(grad_far)},
                  type, on.stream());
  }
  return {plane_sums.finish(), grad_w0,         grad_b0,   grad_w1, grad_b1,
          grad_origins,        grad_directions, grad_near, grad_far};
}

}  // namespace

TORCH_LIBRARY_IMPL(open_eg3d, OPEN_EG3D_CUDA_KEY, m) {
  m.impl("render_rays", render);
  m.impl("render_rays_backward", render_and_back);
}

}  // namespace open_eg3d::cuda
