// IEEE half precision and bfloat16 on the CPU, with the names that CUDA gives to their conversions.
// Rounds to nearest, ties to even.
#pragma once

#include <bit>
#include <cstdint>

namespace cuda_on_cpu {

struct Half {
  uint16_t bits;
};

struct Bfloat16 {
  uint16_t bits;
};

// `bits` without their last `count`, rounded.
inline uint32_t round_off(uint32_t bits, int count) {
  const uint32_t half = 1u << (count - 1), rest = bits & ((1u << count) - 1), kept = bits >> count;
  return kept + (rest > half || (rest == half && (kept & 1)) ? 1 : 0);
}

}  // namespace cuda_on_cpu

inline float __bfloat162float(cuda_on_cpu::Bfloat16 x) {
  return std::bit_cast<float>(uint32_t(x.bits) << 16);
}

inline cuda_on_cpu::Bfloat16 __float2bfloat16_rn(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>(cuda_on_cpu::round_off(bits, 16))};
}

inline float __half2float(cuda_on_cpu::Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = (x.bits >> 10) & 31,
                 mantissa = x.bits & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) {
    const float magnitude = float(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

inline cuda_on_cpu::Half __float2half_rn(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000,
                 magnitude = bits & 0x7fffffff;
  if (x != x) return {0x7fff};
  uint32_t result;
  if (magnitude < 0x38800000) {  // below the smallest normal number: a multiple of 2^-24
    const int exponent = int(magnitude >> 23), shift = 126 - exponent;
    const uint32_t digits = (magnitude & 0x7fffff) | (exponent > 0 ? 0x800000 : 0);
    result = shift > 24 ? 0 : cuda_on_cpu::round_off(digits, shift);
  } else {
    result =
        magnitude >= 0x47800000 ? 0x7c00 : cuda_on_cpu::round_off(magnitude - (112u << 23), 13);
  }
  return {static_cast<uint16_t>(sign | result)};
}
