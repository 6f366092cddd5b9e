// Checks and memory layouts of the tensors that operators on tri-planes take, on any device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "triplane/formulas.h"

namespace open_eg3d {

using OptionalTensor = std::optional<at::Tensor>;
using SixTensors =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using NineTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                               at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

inline at::Tensor contiguous_or_none(const OptionalTensor& x) {
  return x.has_value() ? x->contiguous() : at::Tensor();
}

// The tensor itself where a texel's channels are neighbours in memory, else a copy where they are.
inline at::Tensor as_channels_last(const at::Tensor& planes) {
  TORCH_CHECK(planes.dim() == 5 && planes.size(1) == kPlanes,
              "planes must be (N, 3, C, H, W), not ", planes.sizes());
  if (planes.stride(2) == 1 || planes.size(2) == 1) return planes;
  return planes.permute({0, 1, 3, 4, 2}).contiguous().permute({0, 1, 4, 2, 3});
}

// Throws where the decoder's layers do not fit the planes or each other.
inline void check_decoder(const at::Tensor& planes, const at::Tensor& w0, const at::Tensor& b0,
                          const at::Tensor& w1, const at::Tensor& b1) {
  const int64_t features = planes.size(2), hidden = w0.size(0), outputs = w1.size(0);
  TORCH_CHECK(w0.dim() == 2 && w0.size(1) == features && b0.sizes() == at::IntArrayRef({hidden}),
              "first layer ", w0.sizes(), " and ", b0.sizes(), " does not fit ", features,
              " features");
  TORCH_CHECK(w1.dim() == 2 && w1.size(1) == hidden && outputs >= 2 &&
                  b1.sizes() == at::IntArrayRef({outputs}),
              "second layer ", w1.sizes(), " and ", b1.sizes(), " does not fit ", hidden,
              " hidden units");
}

inline void check_points(const at::Tensor& planes, const at::Tensor& points) {
  TORCH_CHECK(points.dim() == 3 && points.size(2) == 3 && points.size(0) == planes.size(0),
              "points must be (N, M, 3) for ", planes.size(0), " samples of planes, not ",
              points.sizes());
}

// `hit` and `u_fine` may be undefined.
inline void check_rays(const at::Tensor& planes, const at::Tensor& origins,
                       const at::Tensor& directions, const at::Tensor& near, const at::Tensor& far,
                       const at::Tensor& hit, const at::Tensor& u_coarse,
                       const at::Tensor& u_fine) {
  TORCH_CHECK(origins.dim() == 3 && origins.size(2) == 3 && directions.sizes() == origins.sizes(),
              "rays must be (N, R, 3), not ", origins.sizes(), " and ", directions.sizes());
  const auto fits = [&](const at::Tensor& x) {
    return x.dim() == 3 && x.size(0) == origins.size(0) && x.size(1) == origins.size(1);
  };
  TORCH_CHECK(fits(near) && near.size(2) == 1 && near.sizes() == far.sizes(),
              "limits must be (N, R, 1), not ", near.sizes(), " and ", far.sizes());
  TORCH_CHECK(!hit.defined() || (hit.sizes() == near.sizes() && hit.scalar_type() == at::kBool),
              "hit must be bool (N, R, 1)");
  TORCH_CHECK(fits(u_coarse) && u_coarse.size(2) >= 2,
              "u_coarse must be (N, R, S), S at least 2, not ", u_coarse.sizes());
  TORCH_CHECK(!u_fine.defined() || fits(u_fine), "u_fine must be (N, R, F)");
  TORCH_CHECK(planes.size(0) == origins.size(0), "planes of ", planes.size(0), " samples, rays of ",
              origins.size(0));
}

}  // namespace open_eg3d
