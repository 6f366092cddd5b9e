// Constants and formulas of the volume renderer that the kernels of every device share.
#pragma once

#ifdef __CUDACC__
#define OPEN_EG3D_ANY_DEVICE __host__ __device__ __forceinline__
#else
#define OPEN_EG3D_ANY_DEVICE inline
#endif

namespace open_eg3d {

constexpr int kPlanes = 3;
constexpr double kColorScale = 1.002,
                 kColorShift = -0.001;  // beyond [0, 1] by a little (mip-NeRF, section 3.1)
constexpr double kDensityShift = 1, kTransmittanceFloor = 1e-10;
constexpr double kWeightFloor = 0.01, kCdfEpsilon = 1e-5;

// log(1 + z) for z in [0, 1]; V is float or a vector of floats.
template <class V>
OPEN_EG3D_ANY_DEVICE V log1p_polynomial(V z) {
  V p = V{} + 5.232690834e-03f;
  p = p * z + -2.950522862e-02f;
  p = p * z + 7.822594792e-02f;
  p = p * z + -1.366324574e-01f;
  p = p * z + 1.910600811e-01f;
  p = p * z + -2.484298199e-01f;
  p = p * z + 3.331909776e-01f;
  p = p * z + -4.999949336e-01f;
  p = p * z + 9.999999404e-01f;
  return p * z;
}

// Position i of `count` even ones from 0 to 1, counted from the nearer end so that the last is
// exactly 1.
template <class T>
OPEN_EG3D_ANY_DEVICE T even_position(int i, int count) {
  const T step = T(1) / T(count - 1);
  return i < count / 2 ? step * T(i) : 1 - step * T(count - 1 - i);
}

// Larger of two, NaN if either is.
template <class T>
OPEN_EG3D_ANY_DEVICE T larger(T a, T b) {
  return a > b || a != a ? a : b;
}

}  // namespace open_eg3d
