// Schemas of bias_act and its derivatives. `dim` is not negative; bias, where given, has
// x.size(dim) elements of x's dtype.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(open_eg3d, m) {
  m.def(
      "bias_act(Tensor x, Tensor? bias, int dim, str act, float alpha, float gain, float? clamp) "
      "-> Tensor");
  // (grad + shift) * y'(x), and if `wants_sum` its sum along all dimensions but `dim`, else
  // nothing. `saved` is the output y if `is_output`, else the input x.
  m.def(
      "bias_act_backward(Tensor grad, Tensor? shift, Tensor saved, Tensor? bias, int dim, str act, "
      "float alpha, float gain, "
      "float? clamp, bool is_output, bool wants_sum) -> (Tensor, Tensor)");
  // (factor + shift) * grad * y''(x), and its sum likewise.
  m.def(
      "bias_act_double_backward(Tensor factor, Tensor? shift, Tensor grad, Tensor x, Tensor? bias, "
      "int dim, str act, float alpha, "
      "float gain, float? clamp, bool wants_sum) -> (Tensor, Tensor)");
}
