// Products of small matrices that stay in the cache: C = A B, with register tiles of several rows
// by several vectors.
#pragma once

#include "simd.h"

namespace open_eg3d::triplane {

// Left factor: element (m, k) is data[row(m) * row_stride + k * column_stride], row(m) = rows ?
// rows[m] : m.
template <class T>
struct Left {
  const T* data;
  int row_stride, column_stride;
  const int* rows = nullptr;

  const T* row(int m) const { return data + static_cast<int64_t>(rows ? rows[m] : m) * row_stride; }
};

// What the product is added to.
enum class Start { kZero, kRow, kOutput };

template <class T>
struct Output {
  T* data;
  int row_stride;
  Start start = Start::kZero;
  const T* row = nullptr;  // with kRow: the same vector in every row
};

template <class T, int Rows, int Vectors>
inline void multiply_tile(int m0, int n0, int K, const Left<T>& a, const T* b, int ldb,
                          const Output<T>& c) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[Rows][Vectors];
  const T* left[Rows];
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
    left[m] = a.row(m0 + m);
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      acc[m][j] = Vec<T>{};
      if (c.start == Start::kRow) acc[m][j] = load(c.row + n0 + j * L);
      if (c.start == Start::kOutput)
        acc[m][j] = load(c.data + (m0 + m) * c.row_stride + n0 + j * L);
    }
  }
  for (int k = 0; k < K; ++k) {
    Vec<T> right[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j)
      right[j] = load(b + static_cast<int64_t>(k) * ldb + n0 + j * L);
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      const Vec<T> x = splat(left[m][k * a.column_stride]);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) acc[m][j] += x * right[j];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j)
      store(c.data + (m0 + m) * c.row_stride + n0 + j * L, acc[m][j]);
}

template <class T, int Rows, int Vectors>
inline int multiply_rows(int m0, int M, int n0, int K, const Left<T>& a, const T* b, int ldb,
                         const Output<T>& c) {
  for (; m0 + Rows <= M; m0 += Rows) multiply_tile<T, Rows, Vectors>(m0, n0, K, a, b, ldb, c);
  return m0;
}

template <class T, int Vectors>
inline void multiply_columns(int M, int n0, int K, const Left<T>& a, const T* b, int ldb,
                             const Output<T>& c) {
  // As many accumulators as fit into the registers next to a row of B; 16 of them without AVX-512,
  // 32 with it.
  constexpr int kAccumulators = kVectorBytes == 64 ? 24 : 12;
  constexpr int kRows = kAccumulators / Vectors < 12 ? kAccumulators / Vectors : 12;
  int m = multiply_rows<T, kRows, Vectors>(0, M, n0, K, a, b, ldb, c);
  if constexpr (kRows > 4) m = multiply_rows<T, 4, Vectors>(m, M, n0, K, a, b, ldb, c);
  if constexpr (kRows > 2) m = multiply_rows<T, 2, Vectors>(m, M, n0, K, a, b, ldb, c);
  multiply_rows<T, 1, Vectors>(m, M, n0, K, a, b, ldb, c);
}

// C (M, N) from A (M, K) and B (K, N); N a multiple of the lanes.
template <class T>
inline void multiply(int M, int N, int K, const Left<T>& a, const T* b, int ldb,
                     const Output<T>& c) {
  constexpr int L = kLanes<T>;
  constexpr int kWidest = kVectorBytes == 64 ? 4 : 2;
  int n = 0;
  for (; n + kWidest * L <= N; n += kWidest * L)
    multiply_columns<T, kWidest>(M, n, K, a, b, ldb, c);
  if constexpr (kWidest > 2)
    for (; n + 2 * L <= N; n += 2 * L) multiply_columns<T, 2>(M, n, K, a, b, ldb, c);
  for (; n < N; n += L) multiply_columns<T, 1>(M, n, K, a, b, ldb, c);
}

}  // namespace open_eg3d::triplane
