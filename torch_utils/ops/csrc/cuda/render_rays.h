// Kernels of render_rays; torch_utils/ops/render_rays.py says what is computed.
#pragma once

#include "cuda/triplane/operands.h"

namespace open_eg3d::cuda {

// Random numbers of rays; strides, in elements, of samples of the batch, of rays and of their
// numbers. Fixed ones may be expanded.
struct Offsets {
  const void* data;
  int64_t sample_stride, ray_stride, stride;
};

struct RenderRays {
  Planes planes;
  DecoderLayout layout;
  const void* packed;                             // decoder
  const void *origins, *directions, *near, *far;  // (rays, 3), (rays, 3), (rays), (rays); T
  const bool* hit;                                // (rays); null = all
  Offsets u_coarse, u_fine;
  int64_t rays, rays_per_sample;  // of all samples of the batch, and of each
  int coarse, fine;               // samples of the two passes
  bool has_released_placement;
  double density_gain;
  bool has_background;
  double background[3];
  double stop;  // a ray ends where its transmittance falls below this, and samples that together
                // show less are not coloured; 0 = never
  void* workspace;  // of workspace_bytes; the first eight bytes are zeros
};

// Memory that concurrent blocks need besides shared memory: a few numbers for each sample of their
// current rays.
size_t workspace_bytes(int samples, Dtype type);

// Features (rays, K), mean depth (rays) and alpha (rays).
void render_rays(const RenderRays& p, void* features, void* depth, void* alpha, Dtype type,
                 Stream stream);

// What the backward pass finds for each ray and each of its samples in depth order, (rays,
// samples).
struct TracedSamples {
  void *depths, *weights, *density_gradients, *depth_gradients;
  int* order;              // number of the sample: coarse ones, then fine ones
  unsigned* output_bound;  // Bounds.outputs; null = not wanted
};

// Follows rays once more and takes the gradients of what they show (each may be null) to their
// samples' densities and depths. decode_backward takes them on to planes, decoder and points.
void trace_backward(const RenderRays& p, const void* grad_features, const void* grad_depth,
                    const void* grad_alpha, const TracedSamples& to, Dtype type, Stream stream);

// Gradients of rays and their limits, (rays, 3) twice and (rays) twice, from those of samples and
// their points (rays, samples, 3).
struct RayGradients {
  const void* points;
  void *origins, *directions, *near, *far;
};
void ray_gradients(const RenderRays& p, const TracedSamples& from, const RayGradients& to,
                   Dtype type, Stream stream);

}  // namespace open_eg3d::cuda
