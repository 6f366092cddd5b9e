// Schemas of all operators; torch_utils/ops/<operator>.py says what the arguments mean.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(open_eg3d, m) {
  // `dim` is not negative; bias, where given, has x.size(dim) elements of x's dtype.
  m.def(
      "bias_act(Tensor x, Tensor? bias, int dim, str act, float alpha, float gain, float? clamp) "
      "-> Tensor");
  // (grad + shift) * y'(x), and if `wants_sum` its sum along all dimensions but `dim`, else
  // nothing. `saved` is the output y if `is_output`, else the input x.
  m.def(
      "bias_act_backward(Tensor grad, Tensor? shift, Tensor saved, Tensor? bias, int dim, str act, "
      "float alpha, float gain, float? clamp, bool is_output, bool wants_sum) -> (Tensor, Tensor)");
  // (factor + shift) * grad * y''(x), and its sum likewise.
  m.def(
      "bias_act_double_backward(Tensor factor, Tensor? shift, Tensor grad, Tensor x, Tensor? bias, "
      "int dim, str act, float alpha, float gain, float? clamp, bool wants_sum) -> (Tensor, "
      "Tensor)");

  m.def(
      "upfirdn2d(Tensor x, Tensor filter, int[2] up, int[2] down, SymInt[4] padding, bool "
      "flip_filter, float gain) -> Tensor");

  m.def(
      "filtered_lrelu(Tensor x, Tensor up_filter, Tensor down_filter, Tensor? bias, int up, int "
      "down, SymInt[4] padding, float gain, float slope, float? clamp, bool flip_filter, bool "
      "keep_signs) -> (Tensor, Tensor)");
  // The linear map that filtered_lrelu is around a point: signs in the place of the comparisons.
  // Paddings are those before the first sample, (x, y); size = (x, y) of the result.
  m.def(
      "filtered_lrelu_by_signs(Tensor x, Tensor signs, Tensor first_filter, Tensor second_filter, "
      "int up, int down, SymInt[2] first_padding, SymInt[2] second_padding, SymInt[2] size, float "
      "gain, float slope, bool flip_filter) -> Tensor");

  m.def(
      "modulated_lrelu(Tensor x, Tensor? scale, Tensor? noise, Tensor? bias, float slope, float "
      "gain, float? clamp) -> Tensor");
  m.def(
      "modulated_lrelu_backward(Tensor grad, Tensor x, Tensor? scale, Tensor? noise, Tensor? bias, "
      "float slope, float gain, float? clamp) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("scale_channels(Tensor x, Tensor scale) -> Tensor");
  m.def("scale_channels_backward(Tensor grad, Tensor x, Tensor scale) -> (Tensor, Tensor)");

  m.def(
      "render_rays(Tensor planes, Tensor w0, Tensor b0, Tensor w1, Tensor b1, Tensor ray_origins, "
      "Tensor ray_directions, Tensor near, Tensor far, Tensor? hit, Tensor u_coarse, Tensor? "
      "u_fine, float box_warp, bool released_axes, bool released_placement, float density_gain, "
      "float[]? background, float stop) -> (Tensor, Tensor, Tensor)");
  m.def(
      "render_rays_backward(Tensor? grad_features, Tensor? grad_depth, Tensor? grad_alpha, Tensor "
      "planes, Tensor w0, Tensor b0, Tensor w1, Tensor b1, Tensor ray_origins, Tensor "
      "ray_directions, Tensor near, Tensor far, Tensor? hit, Tensor u_coarse, Tensor? u_fine, "
      "float box_warp, bool released_axes, bool released_placement, float density_gain, float[]? "
      "background, bool needs_planes, bool needs_weights, bool needs_rays) -> (Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

  m.def(
      "decode_points(Tensor planes, Tensor w0, Tensor b0, Tensor w1, Tensor b1, Tensor points, "
      "float box_warp, bool released_axes, float density_gain, bool with_colors) -> (Tensor, "
      "Tensor)");
  m.def(
      "decode_points_backward(Tensor? grad_densities, Tensor? grad_colors, Tensor planes, Tensor "
      "w0, Tensor b0, Tensor w1, Tensor b1, Tensor points, float box_warp, bool released_axes, "
      "float density_gain, bool needs_planes, bool needs_weights, bool needs_points) -> (Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor)");

  m.def(
      "rasterize_gaussians(Tensor means, Tensor conics, Tensor opacities, Tensor colors, int "
      "height, int width) -> (Tensor, Tensor)");
  m.def(
      "rasterize_gaussians_backward(Tensor grad_image, Tensor grad_alpha, Tensor image, Tensor "
      "alpha, Tensor means, Tensor conics, Tensor opacities, Tensor colors) -> (Tensor, Tensor, "
      "Tensor, Tensor)");
}
