// Leaky ReLU between an upsampling and a downsampling filter; torch_utils/ops/filtered_lrelu.py
// says what the arguments mean.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(open_eg3d, m) {
  m.def(
      "filtered_lrelu(Tensor x, Tensor up_filter, Tensor down_filter, Tensor? bias, int up, int "
      "down, SymInt[4] padding, float gain, "
      "float slope, float? clamp, bool flip_filter, bool keep_signs) -> (Tensor, Tensor)");
  // The linear map that filtered_lrelu is around a point: signs in the place of the comparisons.
  // Paddings are those before the first sample, (x, y); size = (x, y) of the result.
  m.def(
      "filtered_lrelu_by_signs(Tensor x, Tensor signs, Tensor first_filter, Tensor second_filter, "
      "int up, int down, "
      "SymInt[2] first_padding, SymInt[2] second_padding, SymInt[2] size, float gain, float slope, "
      "bool flip_filter) -> Tensor");
}
