// Volume rendering of tri-planes with the standard decoder; torch_utils/ops/render_rays.py says
// what each argument is.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(open_eg3d, m) {
  m.def(
      "render_rays(Tensor planes, Tensor w0, Tensor b0, Tensor w1, Tensor b1, Tensor ray_origins, "
      "Tensor ray_directions, Tensor near, "
      "Tensor far, Tensor? hit, Tensor u_coarse, Tensor? u_fine, float box_warp, bool "
      "released_axes, bool released_placement, "
      "float density_gain, float[]? background, float stop) -> (Tensor, Tensor, Tensor)");
  m.def(
      "render_rays_backward(Tensor? grad_features, Tensor? grad_depth, Tensor? grad_weights_sum, "
      "Tensor planes, Tensor w0, Tensor b0, "
      "Tensor w1, Tensor b1, Tensor ray_origins, Tensor ray_directions, Tensor near, Tensor far, "
      "Tensor? hit, Tensor u_coarse, "
      "Tensor? u_fine, float box_warp, bool released_axes, bool released_placement, float "
      "density_gain, float[]? background, "
      "bool needs_planes, bool needs_weights, bool needs_rays) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
