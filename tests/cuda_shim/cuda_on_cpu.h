// Runs CUDA kernels on the CPU, for tests: what torch_utils/ops/csrc/cuda/launch.h includes where
// the compiler is not nvcc.
//
// Blocks run one after another. The threads of a block are fibers that change places at barriers,
// which is fast; or, with -DCUDA_ON_CPU_THREADS, real threads, two blocks at a time, so that
// ThreadSanitizer sees races inside a block and between blocks. Each shared array is a heap block
// of its own, filled with NaN, so that AddressSanitizer sees its ends and tests see what was never
// written. A barrier or shuffle that not all threads reach ends the program, also where a GPU would
// let it pass; so does more shared memory, static and dynamic together, than a GPU gives a block:
// 48 KB, or where a launch has asked for more, $CUDA_ON_CPU_SHARED_KB (64, the least of any GPU).
#pragma once

#include <math.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "scalars.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define OPEN_EG3D_SHARED(name, ...) \
  auto& name = *::cuda_on_cpu::shared_array<std::type_identity_t<__VA_ARGS__>>(__LINE__)
#define OPEN_EG3D_DYNAMIC_SHARED(type, name) \
  type* name = reinterpret_cast<type*>(::cuda_on_cpu::self().block->dynamic_shared())

#define threadIdx (::cuda_on_cpu::self().thread_index)
#define blockIdx (::cuda_on_cpu::self().block->index)
#define blockDim (::cuda_on_cpu::self().block->threads)
#define gridDim (::cuda_on_cpu::self().block->grid)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3() = default;
  constexpr dim3(int64_t x_, int64_t y_, int64_t z_)
      : x(static_cast<unsigned>(x_)), y(static_cast<unsigned>(y_)), z(static_cast<unsigned>(z_)) {}
  constexpr int64_t count() const { return int64_t(x) * y * z; }
};

namespace cuda_on_cpu {

constexpr int kWarp = 32, kMostThreads = 1024;
constexpr size_t kUsualSharedBytes = 48 << 10, kLeastSharedBytes = 64 << 10;

[[noreturn]] inline void fail(const char* why) {
  std::fprintf(stderr, "cuda_on_cpu: %s\n", why);
  std::abort();
}

// What a launch says of dynamic shared memory, and whether it has asked for more than is usual.
struct DynamicShared {
  size_t bytes;
  bool is_allowed_more;

  // The most that a block may have, static arrays included.
  size_t limit() const {
    if (!is_allowed_more) return kUsualSharedBytes;
    static const char* const kilobytes = std::getenv("CUDA_ON_CPU_SHARED_KB");
    return kilobytes == nullptr ? kLeastSharedBytes : size_t(std::atoi(kilobytes)) << 10;
  }
};

// Memory of one block's shared arrays, by the line that declares them.
class SharedMemory {
 public:
  explicit SharedMemory(DynamicShared dynamic)
      : dynamic_(allocate(dynamic.bytes)), asked_(dynamic) {
    check();
  }

  unsigned char* dynamic() { return dynamic_.get(); }

  void* find(int line, size_t bytes) {
    const Lock lock(*this);
    auto& place = arrays_[line];
    if (!place) {
      place = allocate(bytes);
      static_bytes_ += bytes;
      check();
    }
    return place.get();
  }

 private:
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };
  using Memory = std::unique_ptr<unsigned char, Free>;

  // Spins: for real threads, and for a moment only.
  struct Lock {
    explicit Lock(SharedMemory& owner) : flag(owner.flag_) {
      while (flag.test_and_set(std::memory_order_acquire)) {
      }
    }
    ~Lock() { flag.clear(std::memory_order_release); }
    std::atomic_flag& flag;
  };

  static Memory allocate(size_t bytes) {
    void* memory = nullptr;
    if (bytes > 0 && posix_memalign(&memory, 16, bytes) != 0) fail("out of memory");
    if (memory != nullptr) std::memset(memory, 0xff, bytes);
    return Memory(static_cast<unsigned char*>(memory));
  }

  void check() const {
    if (static_bytes_ > kUsualSharedBytes || static_bytes_ + asked_.bytes > asked_.limit())
      fail("too much shared memory");
  }

  std::map<int, Memory> arrays_;
  Memory dynamic_;
  DynamicShared asked_;
  size_t static_bytes_ = 0;
  std::atomic_flag flag_;
};

// One block at work. Fibers and threads bring their own barriers.
struct Block {
  virtual ~Block() = default;
  virtual void wait_for_block() = 0;
  virtual void wait_for_warp(int warp) = 0;

  void begin(dim3 index_, dim3 threads_, dim3 grid_, DynamicShared dynamic) {
    index = index_, threads = threads_, grid = grid_;
    shared = std::make_unique<SharedMemory>(dynamic);
  }

  unsigned char* dynamic_shared() { return shared->dynamic(); }

  dim3 index, threads, grid;
  std::unique_ptr<SharedMemory> shared;
  uint64_t exchange[2][kMostThreads] = {};  // what a shuffle's lanes show each other: in turn, so
                                            // that the next one need not wait for readers
};

struct Thread {
  Block* block = nullptr;
  dim3 thread_index;
  int number = 0;  // in the block
  int shuffles = 0;

  void place(Block* block_, int number_) {
    block = block_, number = number_, shuffles = 0;
    const int64_t x = block->threads.x, y = block->threads.y;
    thread_index = dim3(number % x, number / x % y, number / (x * y));
  }
};

inline thread_local Thread* current = nullptr;

inline Thread& self() { return *current; }

template <class Array>
Array* shared_array(int line) {
  static_assert(std::is_trivially_copyable_v<Array>);
  return static_cast<Array*>(self().block->shared->find(line, sizeof(Array)));
}

template <class Pack, class T>
Pack load_aligned(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(Pack) != 0)
    fail("a load of several numbers is not aligned");
  Pack pack;
  std::memcpy(&pack, from, sizeof pack);
  return pack;
}

template <class T, class Pack>
void store_aligned(T* to, const Pack& pack) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(Pack) != 0)
    fail("a store of several numbers is not aligned");
  std::memcpy(to, &pack, sizeof pack);
}

// Every lane of the warp shows `value`; what they showed.
template <class T>
const uint64_t* show(unsigned mask, T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  Thread& me = self();
  if (mask != 0xffffffffu || me.block->threads.count() % kWarp != 0)
    fail("a shuffle of part of a warp");
  uint64_t* const shown = me.block->exchange[me.shuffles++ % 2];
  std::memcpy(&shown[me.number], &value, sizeof value);
  const int warp = me.number / kWarp;
  me.block->wait_for_warp(warp);
  return shown + warp * kWarp;
}

template <class T>
T exchange(unsigned mask, T value, int lane) {
  const uint64_t* shown = show(mask, value) + lane;
  std::memcpy(&value, shown, sizeof value);
  return value;
}

inline int lane() { return self().number % kWarp; }

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::self().block->wait_for_block(); }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  if (mask != 0xffffffffu) cuda_on_cpu::fail("a barrier of part of a warp");
  cuda_on_cpu::self().block->wait_for_warp(cuda_on_cpu::self().number / cuda_on_cpu::kWarp);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = cuda_on_cpu::lane();
  return cuda_on_cpu::exchange(mask, value, lane / width * width + source % width);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = cuda_on_cpu::lane(), other = lane ^ bits;
  return cuda_on_cpu::exchange(mask, value, other / width > lane / width ? lane : other);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, int distance, int width = 32) {
  const int lane = cuda_on_cpu::lane();
  return cuda_on_cpu::exchange(mask, value, lane % width >= distance ? lane - distance : lane);
}

inline unsigned __ballot_sync(unsigned mask, bool condition) {
  const uint64_t* shown = cuda_on_cpu::show(mask, uint64_t(condition));
  unsigned votes = 0;
  for (int lane = 0; lane < cuda_on_cpu::kWarp; ++lane) votes |= unsigned(shown[lane]) << lane;
  return votes;
}

inline bool __any_sync(unsigned mask, bool condition) {
  return __ballot_sync(mask, condition) != 0;
}
inline bool __all_sync(unsigned mask, bool condition) {
  return __ballot_sync(mask, condition) == 0xffffffffu;
}

template <class T>
T atomicAdd(T* to, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*to).fetch_add(value, std::memory_order_relaxed);
}

inline unsigned atomicOr(unsigned* to, unsigned bits) {
  return std::atomic_ref(*to).fetch_or(bits, std::memory_order_relaxed);
}

inline unsigned atomicMax(unsigned* to, unsigned value) {
  const std::atomic_ref target(*to);
  unsigned before = target.load(std::memory_order_relaxed);
  while (before < value &&
         !target.compare_exchange_weak(before, value, std::memory_order_relaxed)) {
  }
  return before;
}

inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline int __popc(unsigned bits) { return std::popcount(bits); }
using std::max;
using std::min;

namespace open_eg3d::cuda {

using half = ::cuda_on_cpu::Half;
using bfloat16 = ::cuda_on_cpu::Bfloat16;

}  // namespace open_eg3d::cuda

#ifdef CUDA_ON_CPU_THREADS
#include "threads.h"
#else
#include "fibers.h"
#endif
