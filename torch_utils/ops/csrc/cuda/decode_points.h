// Kernels of decode_points, and of the decoder's backward pass, which render_rays uses as well.
// torch_utils/ops/decode_points.py says what is computed.
#pragma once

#include "cuda/triplane/operands.h"

namespace open_eg3d::cuda {

// The decoder in the layout that kernels read, `layout.total` numbers of T at `packed`.
void pack_decoder(const DecoderWeights& weights, const DecoderLayout& layout, void* packed,
                  Dtype type, Stream stream);

struct DecodePoints {
  Planes planes;
  DecoderLayout layout;
  const void* packed;         // decoder
  const void* points;         // (N * M, 3), T
  int64_t count, per_sample;  // N * M and M
  double gain;
  void* densities;  // (N * M)
  void* colors;     // (N * M, K); null = not wanted
};

// `type` is that of the planes' numbers.
void decode_points(const DecodePoints& p, Dtype type, Stream stream);

// Where rows of the backward pass, points or the samples of rays, lie: points, or origin + depth *
// direction.
struct RowPositions {
  const void* points = nullptr;  // (rows, 3), or null
  const void *origins = nullptr, *directions = nullptr,
             *depths = nullptr;  // (rays, 3), (rays, 3), (rows)
  const bool* hit = nullptr;     // (rays), rays that see anything; null = all
  int64_t rows, per_sample;      // of all samples of the batch, and of each
  int per_ray;                   // 1 for points
};

// Upper bounds of what is added to the planes' gradients, as bits of floats: what `atomicMax`
// compares. Zeros at first.
struct Bounds {
  unsigned* outputs;  // of the absolute sum of the gradients of a row's outputs, before the
                      // colours' sigmoid
  unsigned* decoder;  // of a feature's gradient for outputs whose absolute sum is one
};

struct DecodeBackward {
  Planes planes;
  DecoderLayout layout;
  const void* packed;
  RowPositions at;
  const void* density_gradients;  // (rows); null = none
  double density_gain;            // times this
  const void* color_gradients;    // (rays, K); null = none
  double color_gain;              // times this
  const void* color_weights;      // (rows); null = ones
  Bounds bounds;
  unsigned long long* plane_sums;  // (N, 3, H, W, C), zeros; null = not wanted
  unsigned* plane_marks;           // a bit for each, zeros
  void* weight_sums;               // (kPartialSums, layout.total), zeros; null = not wanted
  void* point_gradients;           // (rows, 3); null = not wanted
};

// Bounds.outputs for points; for rays render_rays_backward finds it.
void bound_outputs(const DecodeBackward& p, Dtype type, Stream stream);

// Gradients of rows by the decoder and the look-ups.
void decode_backward(const DecodeBackward& p, Dtype type, Stream stream);

struct PlaneGradient {
  const unsigned long long* sums;
  const unsigned* marks;
  Bounds bounds;
  int64_t rows_per_sample;
  int64_t samples;
  int channels, height, width;
  void* result;  // of the planes' type
  int64_t sample_stride, plane_stride, channel_stride, row_stride, column_stride;
};

// The planes' gradient from integer sums.
void finish_plane_gradient(const PlaneGradient& p, Dtype type, Stream stream);

// Gradients of the weights, in packed layout, from the partial sums.
void sum_weight_gradients(const void* partial_sums, int64_t count, void* result, Dtype type,
                          Stream stream);

}  // namespace open_eg3d::cuda
