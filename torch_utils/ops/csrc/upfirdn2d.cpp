// Zero-insertion upsampling, FIR filtering, decimation; torch_utils/ops/upfirdn2d.py says what the
// arguments mean.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(open_eg3d, m) {
  m.def(
      "upfirdn2d(Tensor x, Tensor filter, int[2] up, int[2] down, SymInt[4] padding, bool "
      "flip_filter, float gain) -> Tensor");
}
