// CPU kernels of rasterize_gaussians: threads take tiles of pixels, whose Gaussians they composite
// one after the other, a row of the tile at a time.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <vector>

#include "common.h"

namespace open_eg3d {
namespace {

constexpr int64_t kTile = 16;         // pixels per side
constexpr double kLeast = 1.0 / 255;  // alphas below count as none
constexpr double kMost = 0.99;        // so that light is left to divide by
constexpr int64_t kGradients = 9;     // per Gaussian: mean 2, conic 3, opacity, colour 3

template <class T>
struct Gaussians {
  const T *means, *conics, *opacities, *colors;
  int64_t count;
};

// Which Gaussians touch which tile, from front to back: those of tile t are
// order[starts[t]] ... order[starts[t + 1] - 1].
struct Bins {
  int64_t height, width, rows, columns;
  std::vector<int64_t> starts;
  std::vector<int32_t> order;
};

// First and last tile, along one axis, of pixels whose centres lie within `reach` of `middle`.
inline std::pair<int64_t, int64_t> tile_span(double middle, double reach, int64_t pixels) {
  const double first = std::ceil(middle - reach - 0.5), last = std::floor(middle + reach - 0.5);
  if (!(first <= last && last >= 0 && first < static_cast<double>(pixels))) return {0, -1};
  return {static_cast<int64_t>(std::max(first, 0.0)) / kTile,
          static_cast<int64_t>(std::min(last, static_cast<double>(pixels - 1))) / kTile};
}

template <class T>
Bins sort_into_tiles(const Gaussians<T>& g, int64_t height, int64_t width) {
  Bins bins{height, width, (height + kTile - 1) / kTile, (width + kTile - 1) / kTile, {}, {}};
  bins.starts.assign(bins.rows * bins.columns + 1, 0);
  const auto visit = [&](const auto& body) {
    for (int64_t i = 0; i < g.count; ++i) {
      const double a = g.conics[3 * i], b = g.conics[3 * i + 1], c = g.conics[3 * i + 2];
      const double determinant = a * c - b * b, square = 2 * std::log(g.opacities[i] / kLeast);
      if (!(determinant > 0 && square >= 0)) continue;
      const auto [left, right] =
          tile_span(g.means[2 * i], std::sqrt(square * c / determinant), width);
      const auto [top, bottom] =
          tile_span(g.means[2 * i + 1], std::sqrt(square * a / determinant), height);
      for (int64_t y = top; y <= bottom; ++y)
        for (int64_t x = left; x <= right; ++x) body(y * bins.columns + x, i);
    }
  };
  visit([&](int64_t tile, int64_t) { ++bins.starts[tile + 1]; });
  for (size_t t = 1; t < bins.starts.size(); ++t) bins.starts[t] += bins.starts[t - 1];
  bins.order.resize(bins.starts.back());
  std::vector<int64_t> next(bins.starts.begin(), bins.starts.end() - 1);
  visit([&](int64_t tile, int64_t i) { bins.order[next[tile]++] = static_cast<int32_t>(i); });
  return bins;
}

// What one Gaussian does to the pixels of a tile.
template <class T>
struct Footprint {
  using V = Vectorized<T>;
  T mean_x, mean_y, a, b, c, opacity;
  int64_t first, last;  // rows of the tile that it may touch

  Footprint(const Gaussians<T>& g, int64_t i, int64_t top)
      : mean_x(g.means[2 * i]),
        mean_y(g.means[2 * i + 1]),
        a(g.conics[3 * i]),
        b(g.conics[3 * i + 1]),
        c(g.conics[3 * i + 2]),
        opacity(g.opacities[i]) {
    const double square = 2 * std::log(opacity / kLeast);
    const double reach = std::sqrt(square * a / (double(a) * c - double(b) * b));
    const double middle = double(mean_y) - 0.5 - static_cast<double>(top);
    first = std::max<int64_t>(0, static_cast<int64_t>(std::floor(std::max(middle - reach, 0.0))));
    last = static_cast<int64_t>(std::ceil(std::min(middle + reach, double(kTile - 1))));
  }

  // exp(-q / 2) at offsets from the mean.
  V falloff(V dx, T dy) const {
    const V q = (V(a) * dx + V(2 * b * dy)) * dx + V(c * dy * dy);
    return (q * V(T(-0.5))).exp();
  }
};

// Alphas of a falloff, and 1 where they change with it, else 0.
template <class T>
std::pair<Vectorized<T>, Vectorized<T>> alphas(Vectorized<T> falloff, T opacity) {
  using V = Vectorized<T>;
  const V raw = falloff * V(opacity), none(T(0));
  const V clamped = at::vec::minimum(raw, V(T(kMost)));
  const V shown = V::blendv(none, clamped, raw >= V(T(kLeast)));
  return {shown, V::blendv(none, V(T(1)), (raw >= V(T(kLeast))) & (raw <= V(T(kMost))))};
}

template <class T>
Vectorized<T> columns_from(int64_t left) {
  return Vectorized<T>::arange(static_cast<T>(left) + T(0.5), T(1));
}

template <class T>
struct Tile {
  alignas(64) std::array<T, kTile * kTile> light;
  alignas(64) std::array<T, kTile * kTile> color[3];
};

template <class T>
void composite(const Gaussians<T>& g, const Bins& bins, int64_t t, Tile<T>& tile) {
  using V = Vectorized<T>;
  const int64_t top = t / bins.columns * kTile, left = t % bins.columns * kTile;
  tile.light.fill(T(1));
  for (auto& channel : tile.color) channel.fill(T(0));
  for (int64_t k = bins.starts[t]; k < bins.starts[t + 1]; ++k) {
    const int64_t i = bins.order[k];
    const Footprint<T> print(g, i, top);
    for (int64_t y = print.first; y <= print.last; ++y) {
      const T dy = static_cast<T>(top + y) + T(0.5) - print.mean_y;
      for (int64_t x = 0; x < kTile; x += V::size()) {
        const V falloff = print.falloff(columns_from<T>(left + x) - V(print.mean_x), dy);
        const V alpha = alphas<T>(falloff, print.opacity).first;
        T* const light = tile.light.data() + y * kTile + x;
        const V weight = alpha * V::loadu(light);
        (V::loadu(light) - weight).store(light);
        for (int64_t n = 0; n < 3; ++n) {
          T* const color = tile.color[n].data() + y * kTile + x;
          (V::loadu(color) + weight * V(g.colors[3 * i + n])).store(color);
        }
      }
    }
  }
}

// Pixels of tile t that lie in the picture: body(index in the tile, index in the picture).
template <class Body>
void for_each_pixel(const Bins& bins, int64_t t, const Body& body) {
  const int64_t top = t / bins.columns * kTile, left = t % bins.columns * kTile;
  for (int64_t y = 0; y < std::min(kTile, bins.height - top); ++y)
    for (int64_t x = 0; x < std::min(kTile, bins.width - left); ++x)
      body(y * kTile + x, (top + y) * bins.width + left + x);
}

// Gradients of the tile's Gaussians, kGradients each, in the order of bins.order. Composites from
// front to back once more: what lies behind a Gaussian is the end's colour less that so far.
template <class T>
void composite_backward(const Gaussians<T>& g, const Bins& bins, int64_t t, const T* image,
                        const T* alpha_out, const T* grad_image, const T* grad_alpha,
                        T* gradients) {
  using V = Vectorized<T>;
  const int64_t top = t / bins.columns * kTile, left = t % bins.columns * kTile;
  Tile<T> grad;  // of the colours; `light` is the light that is left
  grad.light.fill(T(1));
  for (auto& channel : grad.color) channel.fill(T(0));
  // what is still to come of the picture times its gradient; less that of the light at the end
  alignas(64) std::array<T, kTile * kTile> behind{};
  for_each_pixel(bins, t, [&](int64_t here, int64_t pixel) {
    behind[here] = -grad_alpha[pixel] * (1 - alpha_out[pixel]);
    for (int64_t n = 0; n < 3; ++n) {
      grad.color[n][here] = grad_image[3 * pixel + n];
      behind[here] += grad_image[3 * pixel + n] * image[3 * pixel + n];
    }
  });
  for (int64_t k = bins.starts[t]; k < bins.starts[t + 1]; ++k) {
    const int64_t i = bins.order[k];
    const Footprint<T> print(g, i, top);
    std::array<V, kGradients> sums;
    sums.fill(V(T(0)));
    for (int64_t y = print.first; y <= print.last; ++y) {
      const T dy = static_cast<T>(top + y) + T(0.5) - print.mean_y;
      for (int64_t x = 0; x < kTile; x += V::size()) {
        const int64_t here = y * kTile + x;
        const V dx = columns_from<T>(left + x) - V(print.mean_x);
        const V falloff = print.falloff(dx, dy);
        const auto [alpha, moves] = alphas<T>(falloff, print.opacity);
        const V light = V::loadu(grad.light.data() + here), weight = alpha * light;
        V along(T(0));  // colour times gradient
        for (int64_t n = 0; n < 3; ++n) {
          const V grad_color = V::loadu(grad.color[n].data() + here);
          along = along + V(g.colors[3 * i + n]) * grad_color;
          sums[6 + n] = sums[6 + n] + weight * grad_color;
        }
        const V rest = V::loadu(behind.data() + here) - weight * along;
        rest.store(behind.data() + here);
        (light - weight).store(grad.light.data() + here);
        const V grad_shown = moves * (light * along - rest / (V(T(1)) - alpha));
        const V grad_q = grad_shown * alpha * V(T(-0.5));
        sums[0] = sums[0] - grad_q * (V(print.a) * dx + V(print.b * dy)) * V(T(2));
        sums[1] = sums[1] - grad_q * (V(print.b) * dx + V(print.c * dy)) * V(T(2));
        sums[2] = sums[2] + grad_q * dx * dx;
        sums[3] = sums[3] + grad_q * dx * V(2 * dy);
        sums[4] = sums[4] + grad_q * V(dy * dy);
        sums[5] = sums[5] + grad_shown * falloff;
      }
    }
    for (int64_t n = 0; n < kGradients; ++n)
      gradients[k * kGradients + n] =
          at::vec::vec_reduce_all<T>([](V& p, V& q) { return p + q; }, sums[n]);
  }
}

template <class T>
Gaussians<T> view(const at::Tensor& means, const at::Tensor& conics, const at::Tensor& opacities,
                  const at::Tensor& colors) {
  return {means.const_data_ptr<T>(), conics.const_data_ptr<T>(), opacities.const_data_ptr<T>(),
          colors.const_data_ptr<T>(), means.size(0)};
}

std::tuple<at::Tensor, at::Tensor> rasterize_gaussians(const at::Tensor& means,
                                                       const at::Tensor& conics,
                                                       const at::Tensor& opacities,
                                                       const at::Tensor& colors, int64_t height,
                                                       int64_t width) {
  const at::Tensor m = means.contiguous(), q = conics.contiguous(), o = opacities.contiguous(),
                   c = colors.contiguous();
  at::Tensor image = at::empty({height, width, 3}, m.options());
  at::Tensor alpha = at::empty({height, width}, m.options());
  AT_DISPATCH_FLOATING_TYPES(m.scalar_type(), "rasterize_gaussians", [&] {
    const auto g = view<scalar_t>(m, q, o, c);
    const Bins bins = sort_into_tiles(g, height, width);
    scalar_t* const to = image.data_ptr<scalar_t>();
    scalar_t* const covered = alpha.data_ptr<scalar_t>();
    at::parallel_for(0, bins.rows * bins.columns, 1, [&](int64_t begin, int64_t end) {
      Tile<scalar_t> tile;
      for (int64_t t = begin; t < end; ++t) {
        composite(g, bins, t, tile);
        for_each_pixel(bins, t, [&](int64_t here, int64_t pixel) {
          for (int64_t n = 0; n < 3; ++n) to[3 * pixel + n] = tile.color[n][here];
          covered[pixel] = 1 - tile.light[here];
        });
      }
    });
  });
  return {image, alpha};
}

// Pairs of Gaussian and tile have places of their own, so that sums do not depend on threads.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> rasterize_gaussians_backward(
    const at::Tensor& grad_image, const at::Tensor& grad_alpha, const at::Tensor& image,
    const at::Tensor& alpha, const at::Tensor& means, const at::Tensor& conics,
    const at::Tensor& opacities, const at::Tensor& colors) {
  const at::Tensor m = means.contiguous(), q = conics.contiguous(), o = opacities.contiguous(),
                   c = colors.contiguous(), gi = grad_image.contiguous(),
                   ga = grad_alpha.contiguous();
  at::Tensor gradients = at::zeros({m.size(0), kGradients}, m.options());
  AT_DISPATCH_FLOATING_TYPES(m.scalar_type(), "rasterize_gaussians_backward", [&] {
    const auto g = view<scalar_t>(m, q, o, c);
    const Bins bins = sort_into_tiles(g, image.size(0), image.size(1));
    std::vector<scalar_t> parts(bins.order.size() * kGradients);
    at::parallel_for(0, bins.rows * bins.columns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        composite_backward(g, bins, t, image.const_data_ptr<scalar_t>(),
                           alpha.const_data_ptr<scalar_t>(), gi.const_data_ptr<scalar_t>(),
                           ga.const_data_ptr<scalar_t>(), parts.data());
    });
    scalar_t* const sums = gradients.data_ptr<scalar_t>();
    for (size_t k = 0; k < bins.order.size(); ++k)
      for (int64_t n = 0; n < kGradients; ++n)
        sums[bins.order[k] * kGradients + n] += parts[k * kGradients + n];
  });
  return {gradients.slice(1, 0, 2), gradients.slice(1, 2, 5), gradients.select(1, 5),
          gradients.slice(1, 6, 9)};
}

TORCH_LIBRARY_IMPL(open_eg3d, CPU, m) {
  m.impl("rasterize_gaussians", &rasterize_gaussians);
  m.impl("rasterize_gaussians_backward", &rasterize_gaussians_backward);
}

}  // namespace
}  // namespace open_eg3d
