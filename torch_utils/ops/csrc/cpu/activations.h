// The activations of bias_act: value, grad * first derivative, grad * second derivative, and passes
// of them over blocks of numbers. All pass NaN on as PyTorch's own do.
#pragma once

#include "common.h"

#include <optional>
#include <string_view>

namespace open_eg3d::pointwise {

// V is one number in piecewise linear activations, whose loops the compiler makes better vectors of
// than ATen's classes do, else a vector.

template <typename T>
T choose(bool condition, T yes, T no) {
  return condition ? yes : no;
}

template <typename T>
Vectorized<T> choose(const Vectorized<T>& condition, const Vectorized<T>& yes,
                     const Vectorized<T>& no) {
  return Vectorized<T>::blendv(no, yes, condition);
}

template <typename V>
V one() {
  return V(1);
}

template <typename V>
V sigmoid(V x) {
  return one<V>() / (one<V>() + x.neg().exp());
}

struct PiecewiseLinear {
  static constexpr bool kIsPiecewiseLinear = true;
  template <typename V>
  static V second(V, V) {
    return V(0);
  }
};

struct Linear : PiecewiseLinear {
  template <typename V>
  static V value(V x, V) {
    return x;
  }
  template <typename V>
  static V first(V grad, V, V) {
    return grad;
  }
};

struct Relu : PiecewiseLinear {
  template <typename V>
  static V value(V x, V) {
    return choose(x <= V(0), V(0), x);
  }
  template <typename V>
  static V first(V grad, V x, V) {
    return choose(x <= V(0), V(0), grad);
  }
};

struct LeakyRelu : PiecewiseLinear {
  template <typename V>
  static V value(V x, V alpha) {
    return choose(x > V(0), x, x * alpha);
  }
  template <typename V>
  static V first(V grad, V x, V alpha) {
    return choose(x > V(0), grad, grad * alpha);
  }
};

struct Tanh {
  static constexpr bool kIsPiecewiseLinear = false;
  template <typename V>
  static V value(V x, V) {
    return x.tanh();
  }
  template <typename V>
  static V first(V grad, V x, V) {
    const V y = x.tanh();
    return grad * (one<V>() - y * y);
  }
  template <typename V>
  static V second(V grad, V x) {
    const V y = x.tanh();
    return grad * V(-2) * y * (one<V>() - y * y);
  }
};

struct Sigmoid {
  static constexpr bool kIsPiecewiseLinear = false;
  template <typename V>
  static V value(V x, V) {
    return sigmoid(x);
  }
  template <typename V>
  static V first(V grad, V x, V) {
    const V y = sigmoid(x);
    return grad * (one<V>() - y) * y;
  }
  template <typename V>
  static V second(V grad, V x) {
    const V y = sigmoid(x);
    return grad * (one<V>() - y) * y * (one<V>() - V(2) * y);
  }
};

struct Elu {
  static constexpr bool kIsPiecewiseLinear = false;
  template <typename V>
  static V value(V x, V) {
    return choose(x > V(0), x, x.expm1());
  }
  template <typename V>
  static V first(V grad, V x, V) {
    return choose(x > V(0), grad, grad * x.exp());
  }
  template <typename V>
  static V second(V grad, V x) {
    return choose(x > V(0), V(0), grad * x.exp());
  }
};

struct Selu {
  static constexpr bool kIsPiecewiseLinear = false;
  static constexpr double kAlpha = 1.6732632423543772848170429916717;
  static constexpr double kScale = 1.0507009873554804934193349852946;
  template <typename V>
  static V value(V x, V) {
    return V(kScale) * choose(x > V(0), x, V(kAlpha) * x.expm1());
  }
  template <typename V>
  static V first(V grad, V x, V) {
    return V(kScale) * choose(x > V(0), grad, grad * V(kAlpha) * x.exp());
  }
  template <typename V>
  static V second(V grad, V x) {
    return choose(x > V(0), V(0), grad * V(kScale * kAlpha) * x.exp());
  }
};

struct Softplus {
  static constexpr bool kIsPiecewiseLinear = false;
  static constexpr double kLinearFrom = 20;  // beyond, PyTorch takes the function for the identity
  template <typename V>
  static V value(V x, V) {
    return choose(x > V(kLinearFrom), x, x.exp().log1p());
  }
  template <typename V>
  static V first(V grad, V x, V) {
    return choose(x > V(kLinearFrom), grad, grad * sigmoid(x));
  }
  template <typename V>
  static V second(V grad, V x) {
    const V y = sigmoid(x);
    return choose(x > V(kLinearFrom), V(0), grad * y * (one<V>() - y));
  }
};

struct Swish {
  static constexpr bool kIsPiecewiseLinear = false;
  template <typename V>
  static V value(V x, V) {
    return x / (one<V>() + x.neg().exp());
  }
  template <typename V>
  static V first(V grad, V x, V) {
    const V y = sigmoid(x);
    return grad * y * (one<V>() + x * (one<V>() - y));
  }
  template <typename V>
  static V second(V grad, V x) {
    const V y = sigmoid(x);
    return grad * y * (one<V>() - y) * (V(2) + x * (one<V>() - V(2) * y));
  }
};

// ---- Passes over a block, one instance per activation and compute type.

struct Settings {
  double alpha;
  double gain;
  std::optional<double> clamp;
};

template <typename acc_t>
struct Passes {
  using Value = void (*)(const acc_t* x, acc_t* y, int64_t n, const Settings& s);
  using Slope = void (*)(const acc_t* at, const acc_t* grad, acc_t* result, int64_t n,
                         const Settings& s);
  Value value;        // y = clamp(gain * act(x))
  Slope from_input;   // result = grad * slope at x
  Slope from_output;  // the same, given y; for piecewise linear activations of positive gain and
                      // slopes
  Slope second;       // result = grad * second derivative at x
};

// to[i] = step(first[i], second[i]) for i < n, in numbers or vectors as suits the activation. `to`
// may be either operand.
template <typename Act, typename acc_t, typename Step>
inline void map(const acc_t* first, const acc_t* second, acc_t* to, int64_t n, Step step) {
  if constexpr (Act::kIsPiecewiseLinear) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      to[i] = step(first[i], second[i]);
    }
  } else {
    using V = Vectorized<acc_t>;
    int64_t i = 0;
    for (; i + V::size() <= n; i += V::size()) {
      step(V::loadu(first + i), V::loadu(second + i)).store(to + i);
    }
    if (i < n) {
      step(V::loadu(first + i, n - i), V::loadu(second + i, n - i))
          .store(to + i, static_cast<int>(n - i));
    }
  }
}

template <typename Act, typename acc_t>
void value_pass(const acc_t* x, acc_t* y, int64_t n, const Settings& s) {
  const acc_t alpha = s.alpha, gain = s.gain, bound = s.clamp.value_or(0);
  if (!s.clamp) {
    map<Act>(x, x, y, n, [=]<typename V>(V at, V) { return Act::value(at, V(alpha)) * V(gain); });
    return;
  }
  map<Act>(x, x, y, n, [=]<typename V>(V at, V) {
    const V value = Act::value(at, V(alpha)) * V(gain);
    const V raised = choose(value < V(-bound), V(-bound), value);  // by comparisons: NaN stays
    return choose(raised > V(bound), V(bound), raised);
  });
}

// result = derivative(grad * gain, at), where `is_kept(at, bound)` unless nothing is clamped; else
// that of a zero.
template <typename Act, typename acc_t, typename IsKept, typename Derivative>
void derivative_pass(const acc_t* at, const acc_t* grad, acc_t* result, int64_t n,
                     const Settings& s, IsKept is_kept, Derivative derivative) {
  const acc_t gain = s.gain, bound = s.clamp.value_or(0);
  if (!s.clamp) {
    map<Act>(at, grad, result, n, [=]<typename V>(V x, V g) { return derivative(g * V(gain), x); });
    return;
  }
  map<Act>(at, grad, result, n, [=]<typename V>(V x, V g) {
    return derivative(choose(is_kept(x, V(bound)), g, V(0)) * V(gain), x);
  });
}

// Whether the clamp lets the value at an input pass.
template <typename Act, typename acc_t>
auto keeps_value(const Settings& s) {
  const acc_t alpha = s.alpha, gain = s.gain;
  return [=]<typename V>(V x, V bound) {
    const V value = Act::value(x, V(alpha)) * V(gain);
    return (value >= V(0) - bound) & (value <= bound);
  };
}

template <typename Act, typename acc_t>
auto first_derivative(const Settings& s) {
  const acc_t alpha = s.alpha;
  return [=]<typename V>(V grad, V at) { return Act::first(grad, at, V(alpha)); };
}

template <typename Act, typename acc_t>
void from_input_pass(const acc_t* x, const acc_t* grad, acc_t* result, int64_t n,
                     const Settings& s) {
  derivative_pass<Act>(x, grad, result, n, s, keeps_value<Act, acc_t>(s),
                       first_derivative<Act, acc_t>(s));
}

template <typename Act, typename acc_t>
void from_output_pass(const acc_t* y, const acc_t* grad, acc_t* result, int64_t n,
                      const Settings& s) {
  derivative_pass<Act>(
      y, grad, result, n, s,
      []<typename V>(V at, V bound) { return (at > V(0) - bound) & (at < bound); },
      first_derivative<Act, acc_t>(s));
}

template <typename Act, typename acc_t>
void second_pass(const acc_t* x, const acc_t* grad, acc_t* result, int64_t n, const Settings& s) {
  derivative_pass<Act>(x, grad, result, n, s, keeps_value<Act, acc_t>(s),
                       []<typename V>(V g, V at) { return Act::second(g, at); });
}

template <typename acc_t>
Passes<acc_t> find_passes(std::string_view name) {
  const auto of = [](auto act) {
    using Act = decltype(act);
    return Passes<acc_t>{value_pass<Act, acc_t>, from_input_pass<Act, acc_t>,
                         from_output_pass<Act, acc_t>, second_pass<Act, acc_t>};
  };
  if (name == "linear") return of(Linear());
  if (name == "relu") return of(Relu());
  if (name == "lrelu") return of(LeakyRelu());
  if (name == "tanh") return of(Tanh());
  if (name == "sigmoid") return of(Sigmoid());
  if (name == "elu") return of(Elu());
  if (name == "selu") return of(Selu());
  if (name == "softplus") return of(Softplus());
  if (name == "swish") return of(Swish());
  TORCH_CHECK(false, "bias_act: unknown activation ", name);
}

}  // namespace open_eg3d::pointwise
