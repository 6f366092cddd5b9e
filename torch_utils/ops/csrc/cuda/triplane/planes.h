// Bilinear look-ups in three axis-aligned planes, and the two gradients of it (EG3D, section 3.2),
// for tiles of samples.
//
// The sum over the planes is formed, not the mean; the factor 1/3 is part of the decoder's first
// layer.
#pragma once

#include "cuda/triplane/decoder.h"

namespace open_eg3d::cuda {

// The samples of a tile, at the start of a block's shared memory: all of it is one array, of whose
// length a launch knows.
template <class T>
struct SampleTile {
  T at[3][kMostTileRows];                          // in the world
  T density[kMostTileRows], scale[kMostTileRows];  // set and read by kernels
  int planes[kMostTileRows];  // whose planes; -1 = none: no such sample, or it is not seen
};

// `Head` at the start of shared memory, of which the rest goes on where packs may be read.
template <class Head, class T>
__device__ __forceinline__ Head& take_head(T*& shared) {
  static_assert(sizeof(Head) % 16 == 0);
  Head* const head = reinterpret_cast<Head*>(shared);
  shared += sizeof(Head) / sizeof(T);
  return *head;
}

// True where four channels of every texel can be read at once.
template <class P>
bool can_load_packs(const Planes& planes) {
  const auto* const data = static_cast<const P*>(planes.data);
  const int count = std::min(4, kWidestPack<P>);
  bool are_aligned = planes.channels % 4 == 0;
  for (const int64_t stride :
       {planes.sample_stride, planes.plane_stride, planes.row_stride, planes.column_stride}) {
    are_aligned = are_aligned && is_aligned(data, stride, count);
  }
  return are_aligned;
}

// Planes as kernels see them.
template <class P>
struct PlaneReader {
  using T = compute_t<P>;

  const Planes& planes;
  const T factor_x, factor_y, shift_x, shift_y;  // from the world to texels
  const int lanes;                               // threads that share a sample, four channels each
  const bool has_packs;                          // four channels can be read at once

  __device__ __forceinline__ PlaneReader(const Planes& from, int features4, bool has_packs_)
      : planes(from),
        factor_x(static_cast<T>(from.scale * from.width / 2)),
        factor_y(static_cast<T>(from.scale * from.height / 2)),
        shift_x(static_cast<T>(from.width - 1) / 2),
        shift_y(static_cast<T>(from.height - 1) / 2),
        lanes(features4 > 64   ? 32
              : features4 > 32 ? 16
              : features4 > 16 ? 8
              : features4 > 8  ? 4
              : features4 > 4  ? 2
                               : 1),
        has_packs(has_packs_) {}

  __device__ __forceinline__ const P* data(int sample, int plane) const {
    return static_cast<const P*>(planes.data) + sample * planes.sample_stride +
           plane * planes.plane_stride;
  }

  // Axes along the width and the height of a plane: xy, xz, zy, the last zx in the released models.
  __device__ __forceinline__ int axis_x(int plane) const { return plane == 2 ? 2 : 0; }
  __device__ __forceinline__ int axis_y(int plane) const {
    return plane == 1 ? 2 : plane == 0 || !planes.has_released_axes ? 1 : 0;
  }

  // Channels c..c+3 of a texel; zeros beyond the last.
  __device__ __forceinline__ void load(const P* texel, int c, T (&to)[4]) const {
    if (has_packs) {
      P four[4];
      load_four(texel + c, four);
#pragma unroll
      for (int j = 0; j < 4; ++j) to[j] = widen(four[j]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) to[j] = c + j < planes.channels ? widen(texel[c + j]) : T(0);
    }
  }
};

// The first of the four texels around a point, and how far the point lies towards the next ones.
template <class T>
struct Cell {
  int x, y;
  T fx, fy;

  __device__ __forceinline__ T weight(int k) const {
    return (k % 2 == 0 ? 1 - fx : fx) * (k / 2 == 0 ? 1 - fy : fy);
  }
  __device__ __forceinline__ bool exists(int k, const Planes& planes) const {
    const int tx = x + k % 2, ty = y + k / 2;
    return tx >= 0 && tx < planes.width && ty >= 0 && ty < planes.height;
  }
};

// A coordinate in texels as an index and a fraction. Far outside, where indices might overflow, it
// is drawn near; a NaN is outside, and stays in the fraction.
template <class T>
__device__ __forceinline__ int locate_axis(T x, int side, T& fraction) {
  x = x < -2 ? T(-2) : x;
  x = x > T(side + 1) ? T(side + 1) : x;
  const T lower = floor(x);
  fraction = x - lower;
  return x == x ? static_cast<int>(lower) : -3;
}

template <class P, class T>
__device__ __forceinline__ Cell<T> locate(const PlaneReader<P>& reader, int plane,
                                          const SampleTile<T>& tile, int s) {
  Cell<T> cell;
  cell.x = locate_axis(tile.at[reader.axis_x(plane)][s] * reader.factor_x + reader.shift_x,
                       reader.planes.width, cell.fx);
  cell.y = locate_axis(tile.at[reader.axis_y(plane)][s] * reader.factor_y + reader.shift_y,
                       reader.planes.height, cell.fy);
  return cell;
}

// The two texels around a point along one axis: where they lie and how much they count. One outside
// counts nothing and lies inside; for a NaN both count as NaN.
template <class T>
struct AxisTaps {
  int64_t offset[2];
  T weight[2];

  __device__ __forceinline__ AxisTaps(int index, T fraction, int side, int64_t stride) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const bool exists = index + k >= 0 && index + k < side;
      const T share = k == 0 ? 1 - fraction : fraction;
      offset[k] = (exists ? index + k : 0) * stride;
      weight[k] = exists || share != share ? share : T(0);
    }
  }
};

// Features (count, C) of a tile, rows `stride` apart, padded by zeros; zeros for samples without
// planes. A few lanes share a sample.
template <class P, class T>
__device__ __forceinline__ void gather(const PlaneReader<P>& reader, const SampleTile<T>& tile,
                                       int count, T* features, int features4, int stride) {
  const int first = threadIdx.x % reader.lanes * 4;
  for (int s = threadIdx.x / reader.lanes; s < count; s += kThreads / reader.lanes) {
    for (int c = first; c < features4; c += reader.lanes * 4) {
      T sums[4] = {};
#pragma unroll
      for (int plane = 0; plane < kPlanes && tile.planes[s] >= 0; ++plane) {
        const Cell<T> cell = locate(reader, plane, tile, s);
        const AxisTaps<T> x(cell.x, cell.fx, reader.planes.width, reader.planes.column_stride);
        const AxisTaps<T> y(cell.y, cell.fy, reader.planes.height, reader.planes.row_stride);
        const P* const data = reader.data(tile.planes[s], plane);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const T weight = x.weight[k % 2] * y.weight[k / 2];
          T values[4];
          reader.load(data + x.offset[k % 2] + y.offset[k / 2], c, values);
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[j] += weight * values[j];
        }
      }
      store_four(features + s * stride + c, sums);
    }
  }
}

// finish(sample, gradient of x, y and z), from the gradients of features. The lanes of a sample add
// up in a fixed order.
template <class P, class T, class Finish>
__device__ __forceinline__ void points_gradient(const PlaneReader<P>& reader,
                                                const SampleTile<T>& tile, int count,
                                                const T* gradients, int features4, int stride,
                                                const Finish& finish) {
  const int lanes = reader.lanes, first = threadIdx.x % lanes * 4;
  for (int base = 0; base < count;
       base += kThreads / lanes) {  // all threads take part in the shuffles
    const int s = base + threadIdx.x / lanes;
    T sums[3] = {};
    for (int c = first; c < features4 && s < count && tile.planes[s] >= 0; c += lanes * 4) {
      T gradient[4];
      load_four(gradients + s * stride + c, gradient);
#pragma unroll
      for (int plane = 0; plane < kPlanes; ++plane) {
        const Cell<T> cell = locate(reader, plane, tile, s);
        const P* const data = reader.data(tile.planes[s], plane);
        T dots[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          T values[4] = {};
          if (cell.exists(k, reader.planes)) {
            reader.load(data + (cell.y + k / 2) * reader.planes.row_stride +
                            (cell.x + k % 2) * reader.planes.column_stride,
                        c, values);
          }
          dots[k] = (gradient[0] * values[0] + gradient[1] * values[1]) +
                    (gradient[2] * values[2] + gradient[3] * values[3]);
        }
        sums[reader.axis_x(plane)] +=
            reader.factor_x * ((dots[1] - dots[0]) * (1 - cell.fy) + (dots[3] - dots[2]) * cell.fy);
        const T along_y =
            reader.factor_y * ((dots[2] - dots[0]) * (1 - cell.fx) + (dots[3] - dots[1]) * cell.fx);
        if (plane == 2 && reader.planes.has_released_axes) {
          sums[0] += along_y;  // the array's indices stay constants, which keeps it in registers
        } else {
          sums[plane == 1 ? 2 : 1] += along_y;
        }
      }
    }
    for (int offset = lanes / 2; offset > 0; offset /= 2)
#pragma unroll
      for (int a = 0; a < 3; ++a) sums[a] += __shfl_xor_sync(0xffffffffu, sums[a], offset);
    if (first == 0 && s < count) finish(s, sums);
  }
}

// ------------------------------------------------------------------------------------------
// Gradient of the planes
//
// Additions of floats by atomics come in another order each time and round differently. So sums are
// formed of integers: gradients times a power of two that is chosen so that no sum can overflow,
// from a bound of all that will be added. What is not finite, or beyond the bound, leaves a mark,
// and the sum becomes a NaN.

struct PlaneSums {
  unsigned long long* sums;  // (N, 3, H, W, C), zeros at first
  unsigned* marks;           // a bit for each
};

constexpr int kSumBits = 61;  // of 63, for a bound is rounded up to a power of two

// Exponent of the least power of two above x; for 0 that of the least float.
__device__ __forceinline__ int exponent_above(float x) {
  int exponent = -126;
  if (x > 0) frexpf(x, &exponent);
  return exponent;
}

// Adds up the gradients of a tile's features (count, C), four texels of a plane for each sample. A
// warp takes a run of samples, a channel a lane; samples that follow each other on a ray often
// share their texels, and are added up before they are added to the plane.
template <class P, class T>
__device__ __forceinline__ void scatter(const PlaneReader<P>& reader, const SampleTile<T>& tile,
                                        int count, const T* gradients, int stride, T scale,
                                        const PlaneSums& to) {
  constexpr int kRun = 16;
  const Planes& planes = reader.planes;
  const int lane = threadIdx.x % kLanes, runs = count / kRun,
            blocks = (planes.channels + kLanes - 1) / kLanes;
  for (int task = threadIdx.x / kLanes; task < runs * kPlanes * blocks; task += kWarps) {
    const int plane = task % kPlanes, run = task / kPlanes % runs,
              c = task / kPlanes / runs * kLanes + lane;
    const bool has_channel = c < planes.channels;
    int sample = -1;
    Cell<T> last = {};
    T sums[4] = {};
    const auto flush = [&] {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (sample >= 0 && has_channel && last.exists(k, planes)) {
          const int64_t texel =
              ((int64_t(sample) * kPlanes + plane) * planes.height + last.y + k / 2) *
                  planes.width +
              last.x + k % 2;
          const int64_t index = texel * planes.channels + c;
          const T value = sums[k] * scale;
          if (fabs(value) < T(0x1p61)) {
            const long long whole = llrint(value);
            if (whole != 0) atomicAdd(to.sums + index, static_cast<unsigned long long>(whole));
          } else {
            atomicOr(to.marks + index / 32, 1u << (index % 32));
          }
        }
        sums[k] = 0;
      }
    };
    for (int s = run * kRun; s < (run + 1) * kRun; ++s) {
      if (tile.planes[s] < 0) continue;
      const Cell<T> cell = locate(reader, plane, tile, s);
      if (cell.x != last.x || cell.y != last.y || tile.planes[s] != sample) {
        flush();
        sample = tile.planes[s], last = cell;
      }
      const T gradient = has_channel ? gradients[s * stride + c] : T(0);
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[k] += cell.weight(k) * gradient;
    }
    flush();
  }
}

}  // namespace open_eg3d::cuda
