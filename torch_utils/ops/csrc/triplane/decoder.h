// The standard decoder: linear, softplus, linear to colours and a density, sigmoid on the colours
// (EG3D, supplement).
//
// Weights are packed once per call: transposed, rows padded by zeros to whole vectors. A padded
// hidden unit is softplus(0), but the weights that read it are zero; its gradient is zero as well.
#pragma once

#include <algorithm>

#include "gemm.h"
#include "planes.h"

namespace open_eg3d::triplane {

template <class T>
class Decoder {
 public:
  const int features, hidden, colors;  // C, H, K
  const int features_padded, hidden_padded, colors_padded, outputs_padded;

  // w0 (H, C), b0 (H), w1 (1 + K, H), b1 (1 + K), all contiguous; output 0 is the density.
  Decoder(int features, int hidden, int colors, const T* w0, const T* b0, const T* w1, const T* b1)
      : features(features),
        hidden(hidden),
        colors(colors),
        features_padded(padded<T>(features)),
        hidden_padded(padded<T>(hidden)),
        colors_padded(padded<T>(colors)),
        outputs_padded(padded<T>(colors + 1)),
        forward0_(features * hidden_padded),
        forward1_(hidden * colors_padded),
        backward0_(hidden * features_padded),
        backward1_((colors + 1) * hidden_padded),
        bias0_(hidden_padded),
        bias1_(colors_padded),
        density_bias_(b1[0]) {
    for (int h = 0; h < hidden; ++h) {
      bias0_[h] = b0[h];
      for (int c = 0; c < features; ++c)
        forward0_[c * hidden_padded + h] = backward0_[h * features_padded + c] =
            w0[h * features + c] / kPlanes;
      for (int k = 0; k < colors; ++k)
        forward1_[h * colors_padded + k] = backward1_[k * hidden_padded + h] =
            w1[(k + 1) * hidden + h];
      backward1_[colors * hidden_padded + h] = w1[h];
    }
    std::copy(b1 + 1, b1 + 1 + colors, bias1_.begin());
  }

  // Hidden layer (count, hidden_padded) before and after its activation, and densities, from
  // features (count, features_padded). `slopes`, if wanted, are the activation's derivatives.
  void densities(const T* features_of_planes, int count, T* hidden_rows, T* slopes,
                 T* densities) const {
    multiply<T>(count, hidden_padded, features, {features_of_planes, features_padded, 1},
                forward0_.data(), hidden_padded,
                {hidden_rows, hidden_padded, Start::kRow, bias0_.data()});
    const T* const weights = backward1_.data() + colors * hidden_padded;
    int i = 0;
    for (; i + 4 <= count; i += 4) activate<4>(i, hidden_rows, slopes, densities);
    for (; i < count; ++i) activate<1>(i, hidden_rows, slopes, densities);
  }

  // Sigmoids (count, colors_padded) of the colours of chosen rows of the hidden layer (all in turn
  // if `rows` is null).
  void sigmoids(const T* hidden_rows, const int* rows, int count, T* result) const {
    multiply<T>(count, colors_padded, hidden, {hidden_rows, hidden_padded, 1, rows},
                forward1_.data(), colors_padded,
                {result, colors_padded, Start::kRow, bias1_.data()});
    for (int64_t i = 0; i < static_cast<int64_t>(count) * colors_padded; i += kLanes<T>)
      store(result + i, sigmoid<T>(load(result + i)));
  }

  // Gradients of the weights in packed form: one after the other, to be added up and unpacked at
  // the end.
  struct Gradients {
    Buffer<T> w0, b0, w1, b1;  // (H, Cp) w.r.t. the sum over planes, (Hp), (K + 1, Hp) with the
                               // density last, (outputs_padded)

    explicit Gradients(const Decoder& d)
        : w0(d.hidden * d.features_padded),
          b0(d.hidden_padded),
          w1((d.colors + 1) * d.hidden_padded),
          b1(d.outputs_padded) {}

    void clear() {
      for (auto* values : {&w0, &b0, &w1, &b1}) std::fill(values->begin(), values->end(), T(0));
    }

    void add(const Gradients& other) {
      add_to(w0, other.w0), add_to(b0, other.b0), add_to(w1, other.w1), add_to(b1, other.b1);
    }

   private:
    static void add_to(Buffer<T>& to, const Buffer<T>& from) {
      for (size_t i = 0; i < to.size(); ++i) to[i] += from[i];
    }
  };

  // From gradients of the outputs (count, outputs_padded), colours before their sigmoid and then
  // the density, to those of the features (count, features_padded) and, if wanted, of the weights.
  // `first_output` = colors where no colour has a gradient.
  void backward(const T* features_of_planes, const T* hidden_rows, const T* slopes,
                const T* output_gradients, int count, int first_output, T* feature_gradients,
                Gradients* gradients, T* hidden_gradients) const {
    const int outputs = colors + 1 - first_output;
    const T* const w1 = backward1_.data() + static_cast<int64_t>(first_output) * hidden_padded;
    const T* const output = output_gradients + first_output;
    multiply<T>(count, hidden_padded, outputs, {output, outputs_padded, 1}, w1, hidden_padded,
                {hidden_gradients, hidden_padded});
    for (int64_t i = 0; i < static_cast<int64_t>(count) * hidden_padded; i += kLanes<T>)
      store(hidden_gradients + i, load(hidden_gradients + i) * load(slopes + i));
    if (gradients != nullptr) {
      multiply<T>(outputs, hidden_padded, count, {output, 1, outputs_padded}, hidden_rows,
                  hidden_padded,
                  {gradients->w1.data() + static_cast<int64_t>(first_output) * hidden_padded,
                   hidden_padded, Start::kOutput});
      multiply<T>(hidden, features_padded, count, {hidden_gradients, 1, hidden_padded},
                  features_of_planes, features_padded,
                  {gradients->w0.data(), features_padded, Start::kOutput});
      add_columns(output_gradients, count, outputs_padded, gradients->b1.data());
      add_columns(hidden_gradients, count, hidden_padded, gradients->b0.data());
    }
    if (feature_gradients != nullptr)
      multiply<T>(count, features_padded, hidden, {hidden_gradients, hidden_padded, 1},
                  backward0_.data(), features_padded, {feature_gradients, features_padded});
  }

  // Into tensors of the shapes that the constructor takes.
  void unpack(const Gradients& gradients, T* w0, T* b0, T* w1, T* b1) const {
    for (int h = 0; h < hidden; ++h) {
      b0[h] = gradients.b0[h];
      for (int c = 0; c < features; ++c)
        w0[h * features + c] = gradients.w0[h * features_padded + c] / kPlanes;
      for (int k = 0; k < colors; ++k)
        w1[(k + 1) * hidden + h] = gradients.w1[k * hidden_padded + h];
      w1[h] = gradients.w1[colors * hidden_padded + h];
    }
    std::copy(gradients.b1.begin(), gradients.b1.begin() + colors, b1 + 1);
    b1[0] = gradients.b1[colors];
  }

 private:
  // Softplus of rows first.. of the hidden layer, in place, and their densities.
  template <int Rows>
  void activate(int first, T* hidden_rows, T* slopes, T* densities) const {
    const T* const weights = backward1_.data() + static_cast<int64_t>(colors) * hidden_padded;
    Vec<T> totals[4] = {};
    for (int h = 0; h < hidden_padded; h += kLanes<T>) {
      const Vec<T> weight = load(weights + h);
#pragma GCC unroll 4
      for (int i = 0; i < Rows; ++i) {
        const int64_t at = static_cast<int64_t>(first + i) * hidden_padded + h;
        Vec<T> value;
        if (slopes != nullptr) {
          const Softplus<T> both = softplus_with_slope<T>(load(hidden_rows + at));
          value = both.value;
          store(slopes + at, both.slope);
        } else {
          value = softplus<T>(load(hidden_rows + at));
        }
        store(hidden_rows + at, value);
        totals[i] += value * weight;
      }
    }
    T sums[4];
    sum_lanes<T>(totals, sums);
    for (int i = 0; i < Rows; ++i) densities[first + i] = sums[i] + density_bias_;
  }

  static void add_columns(const T* rows, int count, int width, T* to) {
    for (int n = 0; n < width; n += kLanes<T>) {
      Vec<T> acc = load(to + n);
      for (int i = 0; i < count; ++i) acc += load(rows + static_cast<int64_t>(i) * width + n);
      store(to + n, acc);
    }
  }

  Buffer<T> forward0_, forward1_, backward0_, backward1_, bias0_, bias1_;
  T density_bias_;
};

}  // namespace open_eg3d::triplane
