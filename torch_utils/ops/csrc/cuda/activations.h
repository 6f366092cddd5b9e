// The activations of bias_act in kernels: value, grad times first derivative, grad times second
// derivative. All pass NaN on as PyTorch's own do.
#pragma once

#include "cuda/bias_act.h"
#include "cuda/numbers.h"

namespace open_eg3d::cuda {

constexpr bool has_straight_pieces(Activation a) {
  return a == Activation::kLinear || a == Activation::kRelu || a == Activation::kLrelu;
}

// One kernel serves all activations of a kind: the choice costs a branch that all threads take
// alike, nothing compared with memory, and there are ten times fewer kernels to compile.
template <class W, bool kIsStraight>
struct Curve {
  Activation activation;
  bool has_clamp;
  W alpha, gain, bound;

  explicit Curve(const ActivationSettings& s, W rounded_bound)
      : activation(s.activation),
        has_clamp(s.has_clamp),
        alpha(static_cast<W>(s.alpha)),
        gain(static_cast<W>(s.gain)),
        bound(rounded_bound) {}

  __device__ __forceinline__ W value(W x) const {
    const W y = activate(x) * gain;
    if (!has_clamp) return y;
    const W raised = y < -bound ? -bound : y;  // by comparisons: NaN stays
    return raised > bound ? bound : raised;
  }

  // grad * slope at x; where the clamp acts, nothing.
  __device__ __forceinline__ W from_input(W grad, W x) const {
    return first(through_clamp(grad, x), x);
  }

  __device__ __forceinline__ W from_output(W grad, W y) const {
    const bool passes = !has_clamp || (y > -bound && y < bound);
    return first(passes ? grad * gain : W(0), y);
  }

  __device__ __forceinline__ W from_second(W grad, W x) const {
    return second(through_clamp(grad, x), x);
  }

 private:
  __device__ __forceinline__ W through_clamp(W grad, W x) const {
    if (!has_clamp) return grad * gain;
    const W y = activate(x) * gain;
    return y >= -bound && y <= bound ? grad * gain : W(0);
  }

  static __device__ __forceinline__ W sigmoid(W x) { return W(1) / (W(1) + exp(-x)); }

  static constexpr W kSeluAlpha = W(1.6732632423543772848170429916717),
                     kSeluScale = W(1.0507009873554804934193349852946);
  static constexpr W kSoftplusLinearFrom =
      W(20);  // beyond, PyTorch takes the function for the identity

  __device__ __forceinline__ W activate(W x) const {
    if constexpr (kIsStraight) {
      if (activation == Activation::kLrelu) return x > W(0) ? x : x * alpha;
      if (activation == Activation::kRelu) return x <= W(0) ? W(0) : x;
      return x;
    } else {
      switch (activation) {
        case Activation::kTanh:
          return tanh(x);
        case Activation::kSigmoid:
          return sigmoid(x);
        case Activation::kElu:
          return x > W(0) ? x : expm1(x);
        case Activation::kSelu:
          return kSeluScale * (x > W(0) ? x : kSeluAlpha * expm1(x));
        case Activation::kSoftplus:
          return x > kSoftplusLinearFrom ? x : log1p(exp(x));
        default:
          return x / (W(1) + exp(-x));
      }
    }
  }

  __device__ __forceinline__ W first(W grad, W x) const {
    if constexpr (kIsStraight) {
      if (activation == Activation::kLrelu) return x > W(0) ? grad : grad * alpha;
      if (activation == Activation::kRelu) return x <= W(0) ? W(0) : grad;
      return grad;
    } else {
      return first_of_curve(grad, x);
    }
  }

  __device__ __forceinline__ W first_of_curve(W grad, W x) const {
    switch (activation) {
      case Activation::kTanh: {
        const W y = tanh(x);
        return grad * (W(1) - y * y);
      }
      case Activation::kElu:
        return x > W(0) ? grad : grad * exp(x);
      case Activation::kSelu:
        return kSeluScale * (x > W(0) ? grad : grad * kSeluAlpha * exp(x));
      case Activation::kSoftplus:
        return x > kSoftplusLinearFrom ? grad : grad * sigmoid(x);
      default: {
        const W y = sigmoid(x);
        return activation == Activation::kSigmoid ? grad * (W(1) - y) * y
                                                  : grad * y * (W(1) + x * (W(1) - y));
      }
    }
  }

  __device__ __forceinline__ W second(W grad, W x) const {
    if constexpr (kIsStraight) {
      return W(0);
    } else {
      return second_of_curve(grad, x);
    }
  }

  __device__ __forceinline__ W second_of_curve(W grad, W x) const {
    switch (activation) {
      case Activation::kTanh: {
        const W y = tanh(x);
        return grad * W(-2) * y * (W(1) - y * y);
      }
      case Activation::kElu:
        return x > W(0) ? W(0) : grad * exp(x);
      case Activation::kSelu:
        return x > W(0) ? W(0) : grad * (kSeluScale * kSeluAlpha) * exp(x);
      default:
        break;
    }
    const W y = sigmoid(x), slope = grad * y * (W(1) - y);
    if (activation == Activation::kSoftplus) return x > kSoftplusLinearFrom ? W(0) : slope;
    if (activation == Activation::kSigmoid) return slope * (W(1) - W(2) * y);
    return slope * (W(2) + x * (W(1) - W(2) * y));
  }
};

}  // namespace open_eg3d::cuda
