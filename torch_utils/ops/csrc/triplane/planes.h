// Bilinear look-ups in three axis-aligned planes, and the two gradients of it (EG3D, section 3.2).
//
// Planes lie channels-last: the channels of a texel are neighbours in memory. The sum over the
// planes is formed, not the mean; the factor 1/3 is part of the decoder's first layer (decoder.h).
#pragma once

#include <algorithm>

#include "simd.h"

namespace open_eg3d::triplane {

// World coordinates along the width and the height of each plane.
using Axes = int[kPlanes][2];
constexpr Axes kCorrectedAxes = {{0, 1}, {0, 2}, {2, 1}};
constexpr Axes kReleasedAxes = {{0, 1}, {0, 2}, {2, 0}};

// One sample's planes; strides in elements.
template <class P>
struct Planes {
  P* data;
  int64_t plane_stride, row_stride, column_stride;
  int channels, height, width;
};

// How world coordinates become texels; the same for all samples of a call.
struct Mapping {
  const Axes* axes;
  double scale;  // 2 / box_warp

  // Factor and summand from a world coordinate to texels along a side of `side` texels.
  double factor(int side) const { return scale * side / 2; }
  double shift(int side) const { return (side - 1) / 2.0; }
};

constexpr int kTile = 48;  // points handled at once: whole vectors, and whole register tiles of the
                           // decoder's products

// Where a tile of points falls in one plane: the first of four texels, how far towards the next
// ones, and the texels' weights.
template <class T>
struct Located {
  alignas(64) typename Simd<T>::Integer x[kTile], y[kTile];
  alignas(64) T fx[kTile], fy[kTile], weights[4][kTile];
};

// One coordinate of `count` points, padded to whole vectors, to texel indices and fractions.
template <class T>
inline void locate_axis(const T* points, int count, const Mapping& mapping, int side,
                        typename Simd<T>::Integer* index, T* fraction) {
  const Vec<T> factor = splat(T(mapping.factor(side))), shift = splat(T(mapping.shift(side)));
  for (int i = 0; i < count; i += kLanes<T>) {
    Vec<T> x = load(points + i) * factor + shift;
    x = x < -2 ? splat(T(-2)) : x;  // far outside, where indices might overflow; a NaN stays
    x = x > T(side + 1) ? splat(T(side + 1)) : x;
    IntVec<T> k = __builtin_convertvector(x, IntVec<T>);
    k += x < __builtin_convertvector(k, Vec<T>);  // truncated towards zero; a true comparison is -1
    const Vec<T> f = x - __builtin_convertvector(k, Vec<T>);
    std::memcpy(index + i, &k, sizeof k);
    store(fraction + i, f);
  }
}

template <class T, class P>
inline void locate(const T* const points[3], int count, const Mapping& mapping,
                   const Planes<P>& planes, int plane, Located<T>& at) {
  locate_axis(points[(*mapping.axes)[plane][0]], count, mapping, planes.width, at.x, at.fx);
  locate_axis(points[(*mapping.axes)[plane][1]], count, mapping, planes.height, at.y, at.fy);
  for (int i = 0; i < count; i += kLanes<T>) {
    const Vec<T> fx = load(at.fx + i), fy = load(at.fy + i), x[2] = {1 - fx, fx},
                 y[2] = {1 - fy, fy};
    for (int k = 0; k < 4; ++k) store(at.weights[k] + i, x[k % 2] * y[k / 2]);
  }
}

// The four texels around a point and their weights. A texel outside has weight zero and points to
// one inside.
template <class P, class T>
struct Taps {
  P* texel[4];
  T weight[4];

  Taps(const Planes<P>& planes, int plane, const Located<T>& at, int i) {
    const int64_t x = at.x[i], y = at.y[i];
    P* const base = planes.data + plane * planes.plane_stride;
    P* const first = base + y * planes.row_stride + x * planes.column_stride;
    const bool is_inside =
        uint64_t(x) < uint64_t(planes.width - 1) && uint64_t(y) < uint64_t(planes.height - 1);
    if (__builtin_expect(is_inside, 1)) {
      texel[0] = first, texel[1] = first + planes.column_stride;
      texel[2] = first + planes.row_stride, texel[3] = texel[2] + planes.column_stride;
      for (int k = 0; k < 4; ++k) weight[k] = at.weights[k][i];
      return;
    }
    for (int k = 0; k < 4; ++k) {
      const int64_t tx = x + k % 2, ty = y + k / 2;
      const bool exists = tx >= 0 && tx < planes.width && ty >= 0 && ty < planes.height;
      texel[k] = exists ? base + ty * planes.row_stride + tx * planes.column_stride : base;
      const T w = at.weights[k][i];
      weight[k] = exists || w != w ? w : 0;
    }
  }
};

// A few vectors of the features of a tile of points, from channel `first` on.
template <class T, class P, int Vectors>
inline void gather_vectors(const Planes<const P>& planes, const Located<T> (&at)[kPlanes],
                           int count, int first, T* features, int stride) {
  for (int i = 0; i < count; ++i) {
    Vec<T> acc[Vectors] = {};
    for (int plane = 0; plane < kPlanes; ++plane) {
      const Taps<const P, T> taps(planes, plane, at[plane], i);
      for (int k = 0; k < 4; ++k)
        for (int j = 0; j < Vectors; ++j)
          acc[j] += taps.weight[k] * load_wide<T>(taps.texel[k] + first + j * kLanes<T>);
    }
    for (int j = 0; j < Vectors; ++j)
      store(features + static_cast<int64_t>(i) * stride + first + j * kLanes<T>, acc[j]);
  }
}

// The last channels, which do not fill a vector.
template <class T, class P>
inline void gather_rest(const Planes<const P>& planes, const Located<T> (&at)[kPlanes], int count,
                        int first, T* features, int stride) {
  for (int i = 0; i < count; ++i) {
    Vec<T> acc{};
    for (int plane = 0; plane < kPlanes; ++plane) {
      const Taps<const P, T> taps(planes, plane, at[plane], i);
      for (int k = 0; k < 4; ++k)
        acc += taps.weight[k] * load_wide_part<T>(taps.texel[k] + first, planes.channels - first);
    }
    store(features + static_cast<int64_t>(i) * stride + first, acc);
  }
}

// Features (count, stride) of points, summed over the planes; channels are padded by zeros to whole
// vectors. At most kTile points, given as x, y and z of all, each padded to whole vectors.
template <class T, class P>
inline void gather(const Planes<const P>& planes, const Mapping& mapping, const T* const points[3],
                   int count, T* features, int stride) {
  constexpr int L = kLanes<T>;
  Located<T> at[kPlanes];
  for (int plane = 0; plane < kPlanes; ++plane)
    locate(points, count, mapping, planes, plane, at[plane]);
  int first = 0;
  for (; first + 2 * L <= planes.channels; first += 2 * L)
    gather_vectors<T, P, 2>(planes, at, count, first, features, stride);
  for (; first + L <= planes.channels; first += L)
    gather_vectors<T, P, 1>(planes, at, count, first, features, stride);
  if (first < planes.channels) gather_rest(planes, at, count, first, features, stride);
}

// Gradient with respect to the points: adds nothing, writes x, y and z of all points.
template <class T, class P>
inline void points_gradient(const Planes<const P>& planes, const Mapping& mapping,
                            const T* const points[3], int count, const T* feature_gradients,
                            int stride, T* const gradients[3]) {
  constexpr int L = kLanes<T>;
  for (int a = 0; a < 3; ++a) std::fill(gradients[a], gradients[a] + count, T(0));
  Located<T> at;
  for (int plane = 0; plane < kPlanes; ++plane) {
    locate(points, count, mapping, planes, plane, at);
    const T factor_x = T(mapping.factor(planes.width)), factor_y = T(mapping.factor(planes.height));
    for (int i = 0; i < count; ++i) {
      const Taps<const P, T> taps(planes, plane, at, i);
      const T* const row = feature_gradients + static_cast<int64_t>(i) * stride;
      T dot[4];
      for (int k = 0; k < 4; ++k) {
        Vec<T> acc{};
        int c = 0;
        for (; c + L <= planes.channels; c += L)
          acc += load(row + c) * load_wide<T>(taps.texel[k] + c);
        if (c < planes.channels)
          acc += load(row + c) * load_wide_part<T>(taps.texel[k] + c, planes.channels - c);
        const bool exists = at.x[i] + k % 2 >= 0 && at.x[i] + k % 2 < planes.width &&
                            at.y[i] + k / 2 >= 0 && at.y[i] + k / 2 < planes.height;
        dot[k] = exists ? sum_lanes<T>(acc) : 0;
      }
      const T fx = at.fx[i], fy = at.fy[i];
      gradients[(*mapping.axes)[plane][0]][i] +=
          factor_x * ((dot[1] - dot[0]) * (1 - fy) + (dot[3] - dot[2]) * fy);
      gradients[(*mapping.axes)[plane][1]][i] +=
          factor_y * ((dot[2] - dot[0]) * (1 - fx) + (dot[3] - dot[1]) * fx);
    }
  }
}

constexpr int kBlockBytes = 64;  // a cache line of one texel: what one thread adds to
template <class T>
constexpr int kBlockChannels = kBlockBytes / static_cast<int>(sizeof(T));

constexpr int kWindow = 16;     // points of a ray that are added together before the next ray's are
constexpr int64_t kGroup = 64;  // rays that take turns

// The order in which points are added to a plane: rays near each other pass the same texels at
// about the same depth, so they take turns, a window of depths at a time. `run` points follow each
// other on a ray. body(first, count, located points)
template <class T, class Body>
inline void for_each_window(const Planes<T>& planes, int plane, const Mapping& mapping,
                            const T* const points[3], int64_t count, int64_t run,
                            const Body& body) {
  Located<T> at;
  const int64_t rays = count / run;
  for (int64_t group = 0; group < rays; group += kGroup) {
    for (int64_t window = 0; window < run; window += kWindow) {
      const int here = static_cast<int>(std::min<int64_t>(kWindow, run - window));
      for (int64_t ray = group; ray < std::min(rays, group + kGroup); ++ray) {
        const int64_t first = ray * run + window;
        const T* const window_points[3] = {points[0] + first, points[1] + first, points[2] + first};
        locate(window_points, here, mapping, planes, plane, at);
        body(first, here, at);
      }
    }
  }
}

// Adds the gradients of features at points to a block of one plane's channels from channel `first`
// on. Points that follow each other often share their four texels; their sum is kept in registers
// until the texels change.
template <class T, int Vectors>
inline void scatter_block(const Planes<T>& planes, int plane, const Mapping& mapping,
                          const T* const points[3], int64_t count, int64_t run, int first_channel,
                          const T* feature_gradients, int stride) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[4][Vectors] = {};
  alignas(64) T nowhere[Vectors * L] = {};  // where gradients of texels outside go
  T* texel[4] = {nowhere, nowhere, nowhere, nowhere};
  T* const base = planes.data + plane * planes.plane_stride + first_channel;
  int64_t last_x = INT64_MIN, last_y = INT64_MIN;
  const auto flush = [&] {
    for (int k = 0; k < 4; ++k) {
      for (int j = 0; j < Vectors; ++j) {
        store(texel[k] + j * L, load(texel[k] + j * L) + acc[k][j]);
        acc[k][j] = Vec<T>{};
      }
    }
  };
  for_each_window(planes, plane, mapping, points, count, run,
                  [&](int64_t first, int here, const Located<T>& at) {
                    for (int i = 0; i < here; ++i) {
                      const int64_t x = at.x[i], y = at.y[i];
                      if (x != last_x || y != last_y) {
                        flush();
                        last_x = x, last_y = y;
                        texel[0] = base + y * planes.row_stride + x * planes.column_stride;
                        for (int k = 1; k < 4; ++k)
                          texel[k] = texel[0] + (k / 2) * planes.row_stride +
                                     (k % 2) * planes.column_stride;
                        const bool is_inside = uint64_t(x) < uint64_t(planes.width - 1) &&
                                               uint64_t(y) < uint64_t(planes.height - 1);
                        for (int k = 0; k < 4 && !is_inside; ++k) {
                          const int64_t tx = x + k % 2, ty = y + k / 2;
                          if (tx < 0 || tx >= planes.width || ty < 0 || ty >= planes.height)
                            texel[k] = nowhere;
                        }
                      }
                      const T* const row = feature_gradients + (first + i) * stride + first_channel;
                      for (int j = 0; j < Vectors; ++j) {
                        const Vec<T> gradient = load(row + j * L);
                        for (int k = 0; k < 4; ++k) acc[k][j] += at.weights[k][i] * gradient;
                      }
                    }
                  });
  flush();
}

// The same for channels at the end that do not fill a block: other threads may be at work on the
// memory behind them.
template <class T>
inline void scatter_rest(const Planes<T>& planes, int plane, const Mapping& mapping,
                         const T* const points[3], int64_t count, int64_t run, int first_channel,
                         const T* feature_gradients, int stride) {
  for_each_window(planes, plane, mapping, points, count, run,
                  [&](int64_t first, int here, const Located<T>& at) {
                    for (int i = 0; i < here; ++i) {
                      const Taps<T, T> taps(planes, plane, at, i);
                      const T* const row = feature_gradients + (first + i) * stride;
                      for (int k = 0; k < 4; ++k)
                        for (int c = first_channel; c < planes.channels; ++c)
                          taps.texel[k][c] += taps.weight[k] * row[c];
                    }
                  });
}

// One block of channels of one plane; `block` counts from 0 to blocks(channels) - 1.
template <class T>
inline int scatter_blocks(int channels) {
  return (channels + kBlockChannels<T> - 1) / kBlockChannels<T>;
}

template <class T>
inline void scatter(const Planes<T>& planes, int plane, int block, const Mapping& mapping,
                    const T* const points[3], int64_t count, int64_t run,
                    const T* feature_gradients, int stride) {
  const int first = block * kBlockChannels<T>;
  if (first + kBlockChannels<T> <= planes.channels) {
    scatter_block<T, kBlockBytes / kVectorBytes>(planes, plane, mapping, points, count, run, first,
                                                 feature_gradients, stride);
  } else {
    scatter_rest(planes, plane, mapping, points, count, run, first, feature_gradients, stride);
  }
}

}  // namespace open_eg3d::triplane
