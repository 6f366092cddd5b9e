// The standard decoder on tiles of samples in shared memory: linear, softplus, linear to colours
// and a density (EG3D, supplement).
//
// Both layers, and the four products of their backward pass, are one routine: each thread holds a
// block of the product in registers and reads packs of four numbers, so that there are two to three
// multiplications for every number that is read.
#pragma once

#include "cuda/numbers.h"
#include "cuda/triplane/operands.h"
#include "triplane/formulas.h"

namespace open_eg3d::cuda {

constexpr int kThreads = 128, kLanes = 32, kWarps = kThreads / kLanes;
constexpr int kBlocksBeside = 4;  // blocks of a multiprocessor that registers have to suffice for;
                                  // shared memory allows no more

// ------------------------------------------------------------------------------------------
// Activations

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// log(1 + z) for z in [0, 1].
__device__ __forceinline__ float log1p_unit(float z) { return log1p_polynomial(z); }
__device__ __forceinline__ double log1p_unit(double z) { return log1p(z); }

// Torch's softplus is the identity above 20. In float that needs no help: exp(-20) is lost in the
// sum. A NaN stays.
template <class T>
__device__ __forceinline__ T softplus(T x) {
  const T value = (x < 0 ? T(0) : x) + log1p_unit(exponential(x < 0 ? x : -x));
  return sizeof(T) == 8 && x > 20 ? x : value;
}

// Derivative of softplus where its value is `value`.
__device__ __forceinline__ float softplus_slope(float value) { return -expm1f(-value); }
__device__ __forceinline__ double softplus_slope(double value) {
  return value > 20 ? 1.0 : -expm1(-value);
}

template <class T>
__device__ __forceinline__ T sigmoid(T x) {
  const T z = exponential(x < 0 ? x : -x);
  return (x < 0 ? z : T(1)) / (1 + z);
}

// ------------------------------------------------------------------------------------------
// Products

// Four neighbouring numbers, as many at once as an access to memory takes.
template <class T>
__device__ __forceinline__ void load_four(const T* from, T (&to)[4]) {
  constexpr int kCount = sizeof(T) == 8 ? 2 : 4;
#pragma unroll
  for (int i = 0; i < 4; i += kCount) {
    const auto pack = load_pack<kCount>(from + i);
#pragma unroll
    for (int j = 0; j < kCount; ++j) to[i + j] = pack.values[j];
  }
}

template <class T>
__device__ __forceinline__ void store_four(T* to, const T (&from)[4]) {
  constexpr int kCount = sizeof(T) == 8 ? 2 : 4;
#pragma unroll
  for (int i = 0; i < 4; i += kCount) {
    Pack<T, kCount> pack;
#pragma unroll
    for (int j = 0; j < kCount; ++j) pack.values[j] = from[i + j];
    store_pack(to + i, pack);
  }
}

// Which of an operand's numbers are neighbours in memory: those along the sum, or those along the
// result's side.
enum class Along { kSum, kSide };

// The i-th row (or column) of the `group`-th of `groups` groups. Those along the sum are far apart,
// so that threads next to each other read rows next to each other, which lie in different banks.
template <Along along, int count>
__device__ __forceinline__ int side_index(int group, int groups, int i) {
  return along == Along::kSum ? group + i * groups : group * count + i;
}

// block[i][k]: four terms of the sum for each of `count` rows.
template <Along along, int count, class T>
__device__ __forceinline__ void load_block(const T* from, int stride, int group, int groups, int k,
                                           T (&block)[count][4]) {
  if constexpr (along == Along::kSum) {
#pragma unroll
    for (int i = 0; i < count; ++i)
      load_four(from + side_index<along, count>(group, groups, i) * stride + k, block[i]);
  } else {
    static_assert(count == 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      T four[4];
      load_four(from + (k + j) * stride + group * 4, four);
#pragma unroll
      for (int i = 0; i < 4; ++i) block[i][j] = four[i];
    }
  }
}

template <class T>
struct Operand {
  const T* data;
  int stride;
};

// finish(row, column, start(column) + sum over k of a[row, k] * b[k, column]) for all rows and
// columns, by all threads of a block. `rows` is a multiple of kRows, `columns` and `depth` are
// multiples of four.
template <Along a_along, Along b_along, int kRows, class T, class Start, class Finish>
__device__ __forceinline__ void multiply(int rows, int columns, int depth, Operand<T> a,
                                         Operand<T> b, const Start& start, const Finish& finish) {
  const int row_groups = rows / kRows, column_groups = columns / 4;
#pragma unroll 1
  for (int group = threadIdx.x; group < row_groups * column_groups; group += kThreads) {
    const int m = group % row_groups, n = group / row_groups;
    T sums[kRows][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const T first = start(side_index<b_along, 4>(n, column_groups, j));
#pragma unroll
      for (int i = 0; i < kRows; ++i) sums[i][j] = first;
    }
#pragma unroll 1
    for (int k = 0; k < depth; k += 4) {
      T left[kRows][4], right[4][4];
      load_block<a_along, kRows>(a.data, a.stride, m, row_groups, k, left);
      load_block<b_along, 4>(b.data, b.stride, n, column_groups, k, right);
#pragma unroll
      for (int d = 0; d < 4; ++d)
#pragma unroll
        for (int i = 0; i < kRows; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[i][j] += left[i][d] * right[j][d];
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        finish(side_index<a_along, kRows>(m, row_groups, i),
               side_index<b_along, 4>(n, column_groups, j), sums[i][j]);
  }
}

// ------------------------------------------------------------------------------------------
// Layers

// A decoder in shared memory and the tile of samples that it is applied to.
template <class T>
struct DecoderTile {
  const DecoderLayout& layout;
  int rows;
  const T* weights;
  T *features, *hidden, *colors;  // (rows, C), (rows, H), (rows, K), rows padded as `layout` says

  __device__ __forceinline__ int features_row() const {
    return DecoderLayout::row(layout.features4);
  }
  __device__ __forceinline__ int hidden_row() const { return DecoderLayout::row(layout.hidden4); }
  __device__ __forceinline__ int colors_row() const { return DecoderLayout::row(layout.colors4); }

  // From features to softplus of the hidden layer.
  __device__ __forceinline__ void to_hidden() const {
    constexpr int kRows = sizeof(T) == 8 ? 4 : 8;  // what fits into registers
    multiply<Along::kSum, Along::kSum, kRows, T>(
        rows, layout.hidden4, layout.features4, {features, features_row()},
        {weights + layout.w0, features_row()}, [&](int h) { return weights[layout.b0 + h]; },
        [&](int s, int h, T x) { hidden[s * hidden_row() + h] = softplus(x); });
  }

  // Raw density of sample `s`; for one thread a sample.
  __device__ __forceinline__ T density(int s) const {
    T sums[4] = {weights[layout.density_bias], 0, 0, 0};
#pragma unroll 4
    for (int h = 0; h < layout.hidden4; h += 4) {
      T values[4], factors[4];
      load_four(hidden + s * hidden_row() + h, values);
      load_four(weights + layout.density + h, factors);
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[j] += values[j] * factors[j];
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  // finish(sample, colour, sigmoid) for all, padded colours as well.
  template <class Finish>
  __device__ __forceinline__ void to_colors(const Finish& finish) const {
    multiply<Along::kSum, Along::kSum, 4, T>(
        rows, layout.colors4, layout.hidden4, {hidden, hidden_row()},
        {weights + layout.w1, hidden_row()}, [&](int k) { return weights[layout.b1 + k]; },
        [&](int s, int k, T x) { finish(s, k, sigmoid(x)); });
  }
};

// Copies the packed decoder into shared memory.
template <class T>
__device__ __forceinline__ void load_decoder(const T* packed, int count, T* to) {
  for (int i = threadIdx.x * 4; i < count; i += kThreads * 4) {
    T four[4];
    load_four(packed + i, four);
    store_four(to + i, four);
  }
}

}  // namespace open_eg3d::cuda
