// Element-wise parts of modulated convolutions (torch_utils/ops/modulation.py).
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(open_eg3d, m) {
  m.def(
      "modulated_lrelu(Tensor x, Tensor? scale, Tensor? noise, Tensor? bias, float slope, float "
      "gain, float? clamp) -> Tensor");
  m.def(
      "modulated_lrelu_backward(Tensor grad, Tensor x, Tensor? scale, Tensor? noise, Tensor? bias, "
      "float slope, float gain, "
      "float? clamp) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("scale_channels(Tensor x, Tensor scale) -> Tensor");
  m.def("scale_channels_backward(Tensor grad, Tensor x, Tensor scale) -> (Tensor, Tensor)");
}
