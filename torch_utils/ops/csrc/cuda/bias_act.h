// bias_act and its derivatives on tensors without gaps, for the binding and for tests.
#pragma once

#include "cuda/types.h"

namespace open_eg3d::cuda {

enum class Activation { kLinear, kRelu, kLrelu, kTanh, kSigmoid, kElu, kSelu, kSoftplus, kSwish };

// `count` numbers in the order of memory; number i is of channel i / inner % channels.
struct ChannelLayout {
  int64_t count, channels, inner;
};

struct ActivationSettings {
  Activation activation;
  double alpha, gain;
  bool has_clamp;
  double clamp;
};

// y = clamp(gain * act(x + bias)); no bias = null.
void bias_act(const ChannelLayout& layout, const ActivationSettings& settings, const void* x,
              const void* bias, void* y, Dtype type, Stream stream);

enum class Slope {
  kFromInput,   // first derivative; `at` is the input
  kFromOutput,  // first derivative; `at` is the output of an activation of straight pieces whose
                // output tells them apart
  kSecond,      // second derivative; `at` is the input
};

struct SlopeOperands {
  const void *grad, *shift;  // shift and bias: one number a channel, or null
  const void* times;         // another factor, or null
  const void *at, *bias;
};

// Rows of the partial sums that bias_act_slope writes.
int64_t partial_rows(const ChannelLayout& layout, Dtype type);

// result = (grad + shift) * times * slope(at + bias). Where `partial_sums` is not null, it takes
// partial_rows() x channels numbers of the type that is computed in, whose columns add up to the
// sums of `result` over each channel.
void bias_act_slope(const ChannelLayout& layout, const ActivationSettings& settings, Slope slope,
                    const SlopeOperands& operands, void* result, void* partial_sums, Dtype type,
                    Stream stream);

}  // namespace open_eg3d::cuda
