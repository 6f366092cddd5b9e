// Number types of kernels: what they are stored as, what they are computed in, and several of them
// in one access to memory.
#pragma once

#include "cuda/launch.h"

namespace open_eg3d::cuda {

// Calls body(T()) for the type that `type` names.
template <class Body>
void with_type(Dtype type, const Body& body) {
  switch (type) {
    case Dtype::kFloat:
      return body(float());
    case Dtype::kHalf:
      return body(half());
    case Dtype::kBfloat16:
      return body(bfloat16());
    case Dtype::kDouble:
      return body(double());
  }
}

// The type that arithmetic on T is done in.
template <class T>
using compute_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

__host__ __device__ __forceinline__ float widen(float x) { return x; }
__host__ __device__ __forceinline__ double widen(double x) { return x; }
__host__ __device__ __forceinline__ float widen(half x) { return __half2float(x); }
__host__ __device__ __forceinline__ float widen(bfloat16 x) { return __bfloat162float(x); }

// Rounded to the nearest T; beyond T's range an infinity.
template <class T>
__host__ __device__ __forceinline__ T narrow(compute_t<T> x) {
  if constexpr (std::is_same_v<T, half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// `count` neighbours in memory, read and written at once; count * sizeof(T) is a power of two up
// to 16.
template <class T, int count>
struct alignas(count * sizeof(T)) Pack {
  T values[count];
};

template <class T>
constexpr int kWidestPack = 16 / sizeof(T);

template <int count, class T>
__device__ __forceinline__ Pack<T, count> load_pack(const T* from) {
#ifdef __CUDACC__
  return *reinterpret_cast<const Pack<T, count>*>(from);
#else
  return cuda_on_cpu::load_aligned<Pack<T, count> >(from);
#endif
}

template <class T, int count>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, count>& pack) {
#ifdef __CUDACC__
  *reinterpret_cast<Pack<T, count>*>(to) = pack;
#else
  cuda_on_cpu::store_aligned(to, pack);
#endif
}

// True where packs of `count` numbers can start at `pointer` and at every multiple of `step`
// numbers from it.
template <class T>
bool is_aligned(const T* pointer, int64_t step, int count) {
  return pointer == nullptr ||
         (reinterpret_cast<uintptr_t>(pointer) % (count * sizeof(T)) == 0 && step % count == 0);
}

// Division of 32-bit numbers by one that is known on the host, by a product (Granlund and
// Montgomery 1994, figure 4.1).
struct Divider {
  uint32_t divisor = 1, factor = 1, shift = 0;

  explicit Divider(uint32_t by) : divisor(by) {
    while (shift < 32 && (uint64_t(1) << shift) < by) ++shift;
    factor = static_cast<uint32_t>(((uint64_t(1) << 32) * ((uint64_t(1) << shift) - by)) / by + 1);
  }

  __device__ __forceinline__ uint32_t divide(uint32_t x) const {
    const uint32_t high = __umulhi(x, factor);
    return static_cast<uint32_t>((uint64_t(high) + x) >> shift);
  }
  __device__ __forceinline__ uint32_t modulo(uint32_t x) const { return x - divide(x) * divisor; }
};

// Sum over a warp, in every lane.
template <class Number>
__device__ __forceinline__ Number warp_sum(Number value) {
  for (int offset = 16; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

}  // namespace open_eg3d::cuda
