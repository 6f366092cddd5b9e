// Element-wise parts of modulated convolutions on channels-last images, for the binding and for
// tests.
#pragma once

#include "cuda/types.h"

namespace open_eg3d::cuda {

// samples x pixels x channels in the order of memory.
struct PixelLayout {
  int64_t samples, pixels, channels;
};

// Small operands are of the type that is computed in.
struct Modulation {
  PixelLayout layout;
  const void* scale;  // (samples, channels), or null = 1
  const void* noise;  // (samples or 1, pixels), or null = 0
  bool is_noise_shared;
  const void* bias;  // (channels,), or null = 0
  double slope, gain;
  bool has_clamp;
  double clamp;
};

// y = clamp(gain * lrelu(x * scale + noise + bias)).
void modulated_lrelu(const Modulation& modulation, const void* x, void* y, Dtype type,
                     Stream stream);

// y = x * scale with the scale rounded to the type of x.
void scale_channels(const PixelLayout& layout, const void* x, const void* scale, void* y,
                    Dtype type, Stream stream);

struct ModulationGradients {
  const void *grad, *x;
  void* grad_x;
  void* scale_sums;  // of the type that is computed in: (samples, chunks, channels), to be summed
                     // over the chunks
  void* bias_sums;   // likewise, also over the samples; or null
  void* grad_noise;  // (samples, pixels), or null
};

// Blocks of pixels of a sample.
int64_t modulation_chunks(const PixelLayout& layout);

void modulated_lrelu_backward(const Modulation& modulation, const ModulationGradients& gradients,
                              Dtype type, Stream stream);

// grad_x = grad * scale, and the sums of grad * x.
void scale_channels_backward(const PixelLayout& layout, const void* scale,
                             const ModulationGradients& gradients, Dtype type, Stream stream);

}  // namespace open_eg3d::cuda
