// Vectors of the widest kind that the compiler is allowed to use, and the transcendental functions
// of the renderer on them.
//
// float: polynomials with a relative error of about 2e-7 at any argument, infinities and NaN as in
// the C library. double: the C library, element by element; it serves the gradient checks.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "formulas.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace open_eg3d::triplane {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Simd;

template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
  using Integer = int32_t;
};

template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Integers __attribute__((vector_size(kVectorBytes)));
  using Integer = int64_t;
};

template <class T>
using Vec = typename Simd<T>::Vector;
template <class T>
using IntVec = typename Simd<T>::Integers;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

// The next multiple of the number of lanes.
template <class T>
constexpr int padded(int count) {
  return (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// Allocates at cache lines, which no vector then straddles; a straddling access costs twice.
template <class T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, kLine); }
  friend bool operator==(LineAllocator, LineAllocator) { return true; }
};

template <class T>
using Buffer = std::vector<T, LineAllocator<T>>;

template <class T>
inline Vec<T> load(const T* from) {
  Vec<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
inline void store(T* to, const Vec<T>& v) {
  std::memcpy(to, &v, sizeof v);
}

template <class T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};  // x - 0 is x, the sign of a zero included, so nothing is left of the
                        // subtraction
}

template <class T>
inline T sum_lanes(const Vec<T>& v) {
  if constexpr (kLanes<T> > 2 && kVectorBytes > 16) {
    typedef T Part __attribute__((
        vector_size(16)));  // the sums of four parts or two, which are added lane by lane
    Part parts[kVectorBytes / 16];
    std::memcpy(parts, &v, sizeof v);
    Part sum = parts[0] + parts[1];
    if constexpr (kVectorBytes == 64) sum += parts[2] + parts[3];
    if constexpr (sizeof(T) == 8) return sum[0] + sum[1];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  } else {
    T total = 0;
    for (int i = 0; i < kLanes<T>; ++i) total += v[i];
    return total;
  }
}

// Sums of the lanes of four vectors.
template <class T>
inline void sum_lanes(const Vec<T> (&v)[4], T* sums) {
  if constexpr (kLanes<T> == 16) {
    // Neighbouring lanes are added while two vectors become one, twice; what remains are parts of
    // four sums, four of them side by side.
    const IntVec<T> low = {0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29},
                    high = low + 2;
    const IntVec<T> low_pair = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29},
                    high_pair = low_pair + 2;
    const Vec<T> first = __builtin_shuffle(v[0], v[1], low) + __builtin_shuffle(v[0], v[1], high);
    const Vec<T> second = __builtin_shuffle(v[2], v[3], low) + __builtin_shuffle(v[2], v[3], high);
    const Vec<T> all =
        __builtin_shuffle(first, second, low_pair) + __builtin_shuffle(first, second, high_pair);
    typedef T Part __attribute__((vector_size(16)));
    Part parts[4];
    std::memcpy(parts, &all, sizeof all);
    const Part sum = (parts[0] + parts[1]) + (parts[2] + parts[3]);
    std::memcpy(sums, &sum, sizeof sum);
  } else {
    for (int i = 0; i < 4; ++i) sums[i] = sum_lanes<T>(v[i]);
  }
}

// The smaller of x and a limit, and the larger; a NaN stays.
template <class V>
inline V at_most(V x, V limit) {
  return x > limit ? limit : x;
}
template <class V>
inline V at_least(V x, V limit) {
  return x < limit ? limit : x;
}
#if defined(__AVX512F__)
// One instruction, which compilers do not find: it returns its second operand where either is NaN.
inline Vec<float> at_most(Vec<float> x, Vec<float> limit) {
  return (Vec<float>)_mm512_min_ps((__m512)limit, (__m512)x);
}
inline Vec<float> at_least(Vec<float> x, Vec<float> limit) {
  return (Vec<float>)_mm512_max_ps((__m512)limit, (__m512)x);
}
#endif

// exp for x from -104, where it vanishes, to 88.8, where it is infinite.
inline Vec<float> exp_in_range(Vec<float> x) {
  const Vec<float> rounder = splat(12582912.f);
  const Vec<float> n = (x * 1.44269504088896341f + rounder) - rounder;
  Vec<float> r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Vec<float> p = splat(1.384355943e-03f);
  p = p * r + 8.374235593e-03f;
  p = p * r + 4.166800901e-02f;
  p = p * r + 1.666643023e-01f;
  p = p * r + 4.999999404e-01f;
  p = p * r + 1.000000000e+00f;
  p = p * r + 1.f;
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  // Two steps: 2^n alone may be beyond the range where the result is not.
  const IntVec<float> k = __builtin_convertvector(n, IntVec<float>), half = k >> 1;
  return p * (Vec<float>)((half + 127) << 23) * (Vec<float>)((k - half + 127) << 23);
#endif
}

inline Vec<float> exp(Vec<float> x) {
  return exp_in_range(at_least(at_most(x, splat(88.8f)), splat(-104.f)));
}

// exp(-|x|)
inline Vec<float> exp_of_negative(Vec<float> x) {
  const Vec<float> negative = (Vec<float>)((IntVec<float>)x | INT32_MIN);
  return exp_in_range(at_least(negative, splat(-104.f)));
}
inline Vec<double> exp_of_negative(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(-std::abs(x[i]));
  return x;
}

inline Vec<double> exp(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// log(1 + z) for z in [0, 1].
inline Vec<float> log1p_unit(Vec<float> z) { return log1p_polynomial(z); }

inline Vec<double> log1p_unit(Vec<double> z) {
  for (int i = 0; i < kLanes<double>; ++i) z[i] = std::log1p(z[i]);
  return z;
}

// 1 / x for x from 1 to 2.
inline Vec<double> reciprocal(Vec<double> x) { return 1 / x; }
inline Vec<float> reciprocal(Vec<float> x) {
#if defined(__AVX512F__)
  const Vec<float> guess = (Vec<float>)_mm512_rcp14_ps((__m512)x);
  return guess + guess * (1 - x * guess);  // one step of Newton's method: faster than a division,
                                           // and right to the last bit or two
#else
  return 1 / x;
#endif
}

template <class T>
struct Softplus {
  Vec<T> value, slope;
};

// Torch's softplus is the identity above 20. In float that needs no help: exp(-20) is lost in the
// sum.
template <class T>
inline Softplus<T> softplus_with_slope(Vec<T> x) {
  const Vec<T> z = exp_of_negative(x);
  const Vec<T> value = at_least(x, Vec<T>{}) + log1p_unit(z),
               slope = (x < 0 ? z : splat(T(1))) * reciprocal(1 + z);
  if constexpr (sizeof(T) == 4) return {value, slope};
  return {x > 20 ? x : value, x > 20 ? splat(T(1)) : slope};
}

template <class T>
inline Vec<T> softplus(Vec<T> x) {
  const Vec<T> value = at_least(x, Vec<T>{}) + log1p_unit(exp_of_negative(x));
  if constexpr (sizeof(T) == 4) return value;
  return x > 20 ? x : value;
}

template <class T>
inline Vec<T> sigmoid(Vec<T> x) {
  const Vec<T> z = exp_of_negative(x);
  return (x < 0 ? z : splat(T(1))) * reciprocal(1 + z);
}

// Numbers as planes may store them, read as T.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
inline float widen(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  uint32_t bits = magnitude << 13;
  float result;
  if (magnitude >= 0x7c00) {
    bits |= 0x7f800000;
    std::memcpy(&result, &bits, sizeof result);
  } else {
    std::memcpy(&result, &bits, sizeof result);
    result *= 0x1p112f;  // moves the exponent's bias, subnormals included
  }
  std::memcpy(&bits, &result, sizeof bits);
  bits |= sign;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

template <class T>
inline Vec<T> load_wide(const T* from) {
  return load(from);
}

template <class T>
inline Vec<T> load_wide(const BFloat16* from) {
  typedef uint16_t Bits __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint32_t WideBits __attribute__((vector_size(kVectorBytes)));
  Bits bits;
  std::memcpy(&bits, from, sizeof bits);
  return (Vec<T>)(__builtin_convertvector(bits, WideBits) << 16);
}

template <class T>
inline Vec<T> load_wide(const Half* from) {
#if defined(__AVX512F__)
  return (Vec<T>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#else
  Vec<T> v;
  for (int i = 0; i < kLanes<T>; ++i) v[i] = widen(from[i]);
  return v;
#endif
}

// The first `count` lanes from memory, zeros behind them.
template <class T, class P>
inline Vec<T> load_wide_part(const P* from, int count) {
  Vec<T> v{};
  for (int i = 0; i < count; ++i) v[i] = widen(from[i]);
  return v;
}

}  // namespace open_eg3d::triplane
