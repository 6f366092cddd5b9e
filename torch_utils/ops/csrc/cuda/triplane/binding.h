// Tensors as operands of the kernels on tri-planes, and room for their gradients; for bindings.
#pragma once

#include <ATen/ops/as_strided.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <tuple>

#include "cuda/binding.h"
#include "cuda/decode_points.h"
#include "triplane_tensors.h"

namespace open_eg3d::cuda {

inline const void* data_of(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr() : nullptr;
}
inline void* room_of(const at::Tensor& x) {
  return x.defined() && x.numel() > 0 ? x.mutable_data_ptr() : nullptr;
}

// Planes whose texels' channels are neighbours.
inline Planes planes_of(const at::Tensor& x, double box_warp, bool has_released_axes) {
  TORCH_CHECK(box_warp > 0, "box_warp is ", box_warp);
  for (const int d : {0, 2, 3, 4})
    TORCH_CHECK(x.size(d) <= std::numeric_limits<int32_t>::max() / 2, "planes of ", x.sizes(),
                " are too large");
  return {x.const_data_ptr(), x.stride(0),    x.stride(1),    x.stride(3),       x.stride(4),
          int(x.size(2)),     int(x.size(3)), int(x.size(4)), has_released_axes, 2 / box_warp};
}

// All is double, or positions and the decoder are float and planes of any type.
inline void check_types(const at::Tensor& planes, const at::Tensor& positions) {
  const auto type = positions.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble, "positions are ", type,
              "; expected float or double");
  TORCH_CHECK((type == at::kDouble) == (planes.scalar_type() == at::kDouble), "planes are ",
              planes.scalar_type(), " where positions are ", type);
}

// The decoder in the layout that kernels read.
class PackedDecoder {
 public:
  PackedDecoder(const at::Tensor& planes, const at::Tensor& w0, const at::Tensor& b0,
                const at::Tensor& w1, const at::Tensor& b1, Stream stream)
      : layout(check(planes, w0, b0, w1, b1)), type_(dtype_of(planes)), stream_(stream) {
    const auto type = wide_type(planes);
    const at::Tensor weights[] = {w0.to(type).contiguous(), b0.to(type).contiguous(),
                                  w1.to(type).contiguous(), b1.to(type).contiguous()};
    packed_ = at::empty({layout.total}, w0.options().dtype(type));
    pack_decoder(
        {data_of(weights[0]), data_of(weights[1]), data_of(weights[2]), data_of(weights[3])},
        layout, room_of(packed_), type_, stream);
  }

  const void* data() const { return packed_.const_data_ptr(); }

  // Room for partial sums of the weights' gradients.
  at::Tensor partial_sums(bool is_wanted) const {
    return is_wanted ? at::zeros({kPartialSums, layout.total}, packed_.options()) : at::Tensor();
  }

  // Gradients of w0, b0, w1 and b1 from them; empty where there are none.
  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gradients(
      const at::Tensor& partial_sums) const {
    if (!partial_sums.defined()) {
      const auto none = [&] { return at::empty({0}, packed_.options()); };
      return {none(), none(), none(), none()};
    }
    const at::Tensor sum = at::empty_like(packed_);
    sum_weight_gradients(data_of(partial_sums), layout.total, room_of(sum), type_, stream_);
    const auto rows = [&](int64_t count, int64_t length, int64_t padded, int64_t first) {
      return sum.as_strided({count, length}, {DecoderLayout::row(padded), 1}, first);
    };
    const auto numbers = [&](int64_t count, int64_t first) { return sum.narrow(0, first, count); };
    return {rows(layout.hidden, layout.features, layout.features4, layout.w0).div(3),
            numbers(layout.hidden, layout.b0).clone(),
            at::cat({rows(1, layout.hidden, layout.hidden4, layout.density),
                     rows(layout.colors, layout.hidden, layout.hidden4, layout.w1)}),
            at::cat({numbers(1, layout.density_bias), numbers(layout.colors, layout.b1)})};
  }

  const DecoderLayout layout;

 private:
  static DecoderLayout check(const at::Tensor& planes, const at::Tensor& w0, const at::Tensor& b0,
                             const at::Tensor& w1, const at::Tensor& b1) {
    check_devices(planes, {w0, b0, w1, b1});
    check_decoder(planes, w0, b0, w1, b1);
    const int64_t features = planes.size(2), hidden = w0.size(0), outputs = w1.size(0);
    TORCH_CHECK(std::max({features, hidden, outputs}) < 1 << 14, "a decoder of ", w0.sizes(),
                " and ", w1.sizes(), " is too large");
    return DecoderLayout(features, hidden, outputs - 1);
  }

  at::Tensor packed_;
  Dtype type_;
  Stream stream_;
};

// Room for the integers that the planes' gradient is summed up in, where it is wanted.
class PlaneGradientSums {
 public:
  PlaneGradientSums(const at::Tensor& planes, int64_t rows_per_sample, bool is_wanted,
                    Stream stream)
      : planes_(planes), rows_per_sample_(rows_per_sample), stream_(stream) {
    if (!is_wanted) return;
    const int64_t count = planes.numel();
    sums_ = at::zeros({count}, planes.options().dtype(at::kLong));
    marks_ = at::zeros({count / 32 + 1}, planes.options().dtype(at::kInt));
    bounds_ = at::zeros({2}, planes.options().dtype(at::kInt));
  }

  Bounds bounds() const {
    auto* const both = static_cast<unsigned*>(room_of(bounds_));
    return {both, both == nullptr ? nullptr : both + 1};
  }
  unsigned long long* sums() const { return static_cast<unsigned long long*>(room_of(sums_)); }
  unsigned* marks() const { return static_cast<unsigned*>(room_of(marks_)); }

  at::Tensor finish() const {
    if (!sums_.defined()) return at::empty({0}, planes_.options());
    const at::Tensor result = at::empty_like(planes_);
    const PlaneGradient p{sums(),
                          marks(),
                          bounds(),
                          rows_per_sample_,
                          result.size(0),
                          int(result.size(2)),
                          int(result.size(3)),
                          int(result.size(4)),
                          room_of(result),
                          result.stride(0),
                          result.stride(1),
                          result.stride(2),
                          result.stride(3),
                          result.stride(4)};
    finish_plane_gradient(p, dtype_of(planes_), stream_);
    return result;
  }

 private:
  const at::Tensor planes_;
  const int64_t rows_per_sample_;
  Stream stream_;
  at::Tensor sums_, marks_, bounds_;
};

}  // namespace open_eg3d::cuda
