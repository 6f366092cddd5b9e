// Numbers as they are stored and as sums are taken: halves are summed in float. Written so that
// loops over them vectorise.
#pragma once

#include <ATen/core/Tensor.h>

#include <bit>
#include <cstdint>
#include <type_traits>

namespace open_eg3d {

template <class Stored>
using Sum = std::conditional_t<std::is_same_v<Stored, double>, double, float>;

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(c10::BFloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.x) << 16);
}

template <class Stored>
inline Stored narrow(Sum<Stored> value) {
  return value;
}

template <>
inline c10::BFloat16 narrow<c10::BFloat16>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>(value != value ? 0x7fc0 : rounded), c10::BFloat16::from_bits()};
}

#ifdef __FLT16_MAX__  // the compiler converts whole vectors of its own type
inline float widen(c10::Half value) { return static_cast<float>(std::bit_cast<_Float16>(value.x)); }

template <>
inline c10::Half narrow<c10::Half>(float value) {
  return {std::bit_cast<uint16_t>(static_cast<_Float16>(value)), c10::Half::from_bits()};
}
#else
inline float widen(c10::Half value) { return static_cast<float>(value); }

template <>
inline c10::Half narrow<c10::Half>(float value) {
  return static_cast<c10::Half>(value);
}
#endif

template <class Stored>
inline void narrow_row(const Sum<Stored>* __restrict__ from, Stored* __restrict__ to,
                       int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = narrow<Stored>(from[i]);
}

}  // namespace open_eg3d
