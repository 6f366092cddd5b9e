// Density and colours of tri-planes at points with the standard decoder;
// torch_utils/ops/decode_points.py says what each argument is.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(open_eg3d, m) {
  m.def(
      "decode_points(Tensor planes, Tensor w0, Tensor b0, Tensor w1, Tensor b1, Tensor points, "
      "float box_warp, bool released_axes, "
      "float density_gain, bool with_colors) -> (Tensor, Tensor)");
  m.def(
      "decode_points_backward(Tensor? grad_densities, Tensor? grad_colors, Tensor planes, Tensor "
      "w0, Tensor b0, Tensor w1, Tensor b1, "
      "Tensor points, float box_warp, bool released_axes, float density_gain, bool needs_planes, "
      "bool needs_weights, bool needs_points) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
