// Sixteen planes side by side: a pixel is one number of each. FIR filters along either axis are
// then sums of whole pixels, whatever the memory format of the images was.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <new>

#include "cpu/numbers.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace open_eg3d {

constexpr int kLanes = 16;

#ifdef __AVX512F__
constexpr int kRegisterBytes = 64;
#else
constexpr int kRegisterBytes = 32;
#endif

// Registers of `Number`, and of the integers that answer comparisons of them.
template <class Number>
struct Lanes {
  typedef Number Vector __attribute__((vector_size(kRegisterBytes)));
  typedef std::conditional_t<sizeof(Number) == 8, int64_t, int32_t> Integer;
  typedef Integer Mask __attribute__((vector_size(kRegisterBytes)));
  typedef Number Place
      __attribute__((vector_size(kRegisterBytes), aligned(sizeof(Number)), may_alias));
  static constexpr int kWidth = kRegisterBytes / sizeof(Number);
  static constexpr int kParts = kLanes / kWidth;  // registers per pixel

  static Vector load(const Number* from) { return *reinterpret_cast<const Place*>(from); }
  static void store(Vector vector, Number* to) { *reinterpret_cast<Place*>(to) = vector; }
  static Vector fill(Number value) { return value - Vector{}; }
};

// Zeros at the start of a cache line.
template <class Number>
class Buffer {
 public:
  void resize(int64_t size) {
    size_ = size;
    data_.reset(static_cast<Number*>(
        ::operator new(std::max<int64_t>(size, 1) * sizeof(Number), kAlignment)));
    std::fill_n(data_.get(), size, Number(0));
  }
  Number* data() { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(Number* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<Number, Free> data_;
  int64_t size_ = 0;
};

template <class Number, int kPixels, bool kAdd>
inline void combine_some(const Number* const* rows, int64_t offset, int64_t step_in,
                         const Number* weights, int64_t count, Number* to, int64_t step_out) {
  using L = Lanes<Number>;
  typename L::Vector sums[kPixels][L::kParts];
  for (int i = 0; i < kPixels; ++i)
    for (int part = 0; part < L::kParts; ++part)
      sums[i][part] = kAdd ? L::load(to + i * step_out + part * L::kWidth) : L::fill(0);
  for (int64_t k = 0; k < count; ++k) {
    const Number* row = rows[k] + offset;
    const typename L::Vector weight = L::fill(weights[k]);
    for (int i = 0; i < kPixels; ++i)
      for (int part = 0; part < L::kParts; ++part)
        sums[i][part] += weight * L::load(row + i * step_in + part * L::kWidth);
  }
  for (int i = 0; i < kPixels; ++i)
    for (int part = 0; part < L::kParts; ++part)
      L::store(sums[i][part], to + i * step_out + part * L::kWidth);
}

template <bool kAdd, class Number>
inline void combine_all(const Number* const* rows, int64_t step_in, const Number* weights,
                        int64_t count, Number* to, int64_t step_out, int64_t pixels) {
  constexpr int kAtOnce = 8 / Lanes<Number>::kParts;
  int64_t i = 0;
  for (; i + kAtOnce <= pixels; i += kAtOnce)
    combine_some<Number, kAtOnce, kAdd>(rows, i * step_in, step_in, weights, count,
                                        to + i * step_out, step_out);
  for (; i < pixels; ++i)
    combine_some<Number, 1, kAdd>(rows, i * step_in, step_in, weights, count, to + i * step_out,
                                  step_out);
}

// Pixels at to, to + step_out, ... (+)= sum over k of weights[k] times the pixels at rows[k],
// rows[k] + step_in, ...
template <class Number>
inline void combine(const Number* const* rows, int64_t step_in, const Number* weights,
                    int64_t count, Number* to, int64_t step_out, int64_t pixels, bool add) {
  if (add) {
    combine_all<true>(rows, step_in, weights, count, to, step_out, pixels);
  } else {
    combine_all<false>(rows, step_in, weights, count, to, step_out, pixels);
  }
}

// Eight sums over windows of kTaps adjacent pixels, kStep apart, with weights in registers: every
// pixel is loaded once.
template <class Number, int kTaps, int kStep>
inline void slide_some(const Number* from, const Number* weights, Number* to, int64_t step_out) {
  using L = Lanes<Number>;
  constexpr int kPixels = kTaps > 16 ? 4 : 8;
  typename L::Vector sums[kPixels], weight[kTaps];
#pragma GCC unroll 8
  for (int i = 0; i < kPixels; ++i) sums[i] = L::fill(0);
#pragma GCC unroll 32
  for (int k = 0; k < kTaps; ++k) weight[k] = L::fill(weights[k]);
#pragma GCC unroll 64
  for (int place = 0; place < (kPixels - 1) * kStep + kTaps; ++place) {
    const typename L::Vector pixel = L::load(from + place * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kPixels; ++i)
      if (const int k = place - i * kStep; k >= 0 && k < kTaps) sums[i] += weight[k] * pixel;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kPixels; ++i) L::store(sums[i], to + i * step_out);
}

template <class Number, int kTaps, int kStep>
inline int64_t slide(const Number* from, const Number* weights, Number* to, int64_t step_out,
                     int64_t pixels) {
  constexpr int kPixels = kTaps > 16 ? 4 : 8;
  int64_t i = 0;
  for (; i + kPixels <= pixels; i += kPixels)
    slide_some<Number, kTaps, kStep>(from + i * kStep * kLanes, weights, to + i * step_out,
                                     step_out);
  return i;
}

// Bit l of the answer for lane l of a register, and back.
template <class Number>
inline uint32_t to_bits(typename Lanes<Number>::Mask mask) {
#ifdef __AVX512DQ__
  if constexpr (sizeof(Number) == 4) return _mm512_movepi32_mask(std::bit_cast<__m512i>(mask));
  if constexpr (sizeof(Number) == 8) return _mm512_movepi64_mask(std::bit_cast<__m512i>(mask));
#endif
  uint32_t bits = 0;
  for (int lane = 0; lane < Lanes<Number>::kWidth; ++lane) bits |= (mask[lane] & 1u) << lane;
  return bits;
}

template <class Number>
inline typename Lanes<Number>::Mask from_bits(uint32_t bits) {
#ifdef __AVX512DQ__
  if constexpr (sizeof(Number) == 4)
    return std::bit_cast<typename Lanes<Number>::Mask>(
        _mm512_movm_epi32(static_cast<__mmask16>(bits)));
  if constexpr (sizeof(Number) == 8)
    return std::bit_cast<typename Lanes<Number>::Mask>(
        _mm512_movm_epi64(static_cast<__mmask8>(bits)));
#endif
  typename Lanes<Number>::Mask mask;
  for (int lane = 0; lane < Lanes<Number>::kWidth; ++lane)
    mask[lane] = -static_cast<typename Lanes<Number>::Integer>((bits >> lane) & 1);
  return mask;
}

// Where the lanes of a block lie in a tensor; lanes from `count` on are absent.
struct Planes {
  std::array<int64_t, kLanes> offsets{};
  int count = 0;
  bool adjacent = true;  // lane l at offsets[0] + l
};

// Exchanges rows and columns of a square of numbers.
template <int kSize, class Number>
inline void transpose(const Number (&from)[kSize][kSize], Number (&to)[kSize][kSize]) {
  for (int i = 0; i < kSize; ++i)
    for (int j = 0; j < kSize; ++j) to[j][i] = from[i][j];
}

#ifdef __AVX512F__
// Interleaving the upper with the lower half of the rows, four times.
template <>
inline void transpose<16, float>(const float (&from)[16][16], float (&to)[16][16]) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high =
      _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  __m512 rows[16], mixed[16];
  for (int i = 0; i < 16; ++i) rows[i] = _mm512_loadu_ps(from[i]);
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 8; ++i) {
      mixed[2 * i] = _mm512_permutex2var_ps(rows[i], low, rows[i + 8]);
      mixed[2 * i + 1] = _mm512_permutex2var_ps(rows[i], high, rows[i + 8]);
    }
    for (int i = 0; i < 16; ++i) rows[i] = mixed[i];
  }
  for (int i = 0; i < 16; ++i) _mm512_storeu_ps(to[i], rows[i]);
}
#endif

constexpr int64_t kPrefetchPixels =
    16;  // channels-last pixels lie too far apart for the hardware to foresee them

// `pixels` pixels from `base` on, `step` apart, to lanes; `bias` is added. Absent lanes are zero.
template <class Stored>
inline void load_pixels(const Stored* base, const Planes& planes, int64_t step, int64_t pixels,
                        const Sum<Stored>* bias, Sum<Stored>* __restrict__ to) {
  using Number = Sum<Stored>;
  if (planes.adjacent && planes.count == kLanes) {
    for (int64_t x = 0; x < pixels; ++x) {
      const Stored* from = base + planes.offsets[0] + x * step;
      __builtin_prefetch(from + kPrefetchPixels * step);
      for (int lane = 0; lane < kLanes; ++lane)
        to[x * kLanes + lane] = widen(from[lane]) + bias[lane];
    }
    return;
  }
  int64_t done = 0;
  if (step == 1) {
    alignas(64) Number lanes[kLanes][kLanes] = {}, square[kLanes][kLanes];
    for (; done + kLanes <= pixels; done += kLanes) {
      for (int lane = 0; lane < planes.count; ++lane)
        for (int i = 0; i < kLanes; ++i)
          lanes[lane][i] = widen(base[planes.offsets[lane] + done + i]) + bias[lane];
      transpose(lanes, square);
      std::memcpy(to + done * kLanes, square, sizeof(square));
    }
  }
  for (; done < pixels; ++done) {
    for (int lane = 0; lane < planes.count; ++lane)
      to[done * kLanes + lane] = widen(base[planes.offsets[lane] + done * step]) + bias[lane];
    std::fill(to + done * kLanes + planes.count, to + (done + 1) * kLanes, Number(0));
  }
}

// The way back, without a bias.
template <class Stored>
inline void store_pixels(const Sum<Stored>* __restrict__ from, Stored* base, const Planes& planes,
                         int64_t step, int64_t pixels) {
  using Number = Sum<Stored>;
  if (planes.adjacent && planes.count == kLanes) {
    for (int64_t x = 0; x < pixels; ++x)
      for (int lane = 0; lane < kLanes; ++lane)
        base[planes.offsets[0] + x * step + lane] = narrow<Stored>(from[x * kLanes + lane]);
    return;
  }
  int64_t done = 0;
  if (step == 1) {
    alignas(64) Number square[kLanes][kLanes], lanes[kLanes][kLanes];
    for (; done + kLanes <= pixels; done += kLanes) {
      std::memcpy(square, from + done * kLanes, sizeof(square));
      transpose(square, lanes);
      for (int lane = 0; lane < planes.count; ++lane)
        for (int i = 0; i < kLanes; ++i)
          base[planes.offsets[lane] + done + i] = narrow<Stored>(lanes[lane][i]);
    }
  }
  for (; done < pixels; ++done)
    for (int lane = 0; lane < planes.count; ++lane)
      base[planes.offsets[lane] + done * step] = narrow<Stored>(from[done * kLanes + lane]);
}

}  // namespace open_eg3d
