// Threads of a block as fibers of one thread. Included by cuda_on_cpu.h.
//
// A fiber runs thread after thread until one of them waits; then that thread keeps the fiber, and
// another one goes on. So kernels without barriers never change fibers.
#pragma once

#include <ucontext.h>

#include <numeric>
#include <random>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {

// In which order blocks, or threads of a block, begin: in that of their numbers, or with
// $CUDA_ON_CPU_ORDER in a random one that this number chooses.
inline std::vector<int64_t> order_of(int64_t count) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  static const char* const seed = std::getenv("CUDA_ON_CPU_ORDER");
  if (seed != nullptr)
    std::shuffle(order.begin(), order.end(), std::mt19937(static_cast<unsigned>(std::atoi(seed))));
  return order;
}

class FiberBlock final : public Block {
 public:
  using Body = std::function<void()>;

  explicit FiberBlock(const Body& body) : body_(body) {}

  void run() {
    count_ = static_cast<int>(threads.count());
    order_ = order_of(count_);
    next_ = waiting_ = finished_ = 0;
    warp_waiting_.assign((count_ + kWarp - 1) / kWarp, {});
    while (finished_ < count_) {
      if (!ready_.empty()) {
        Fiber* fiber = ready_.front();
        ready_.pop_front();
        resume(fiber);
      } else if (next_ < count_) {
        resume(idle_fiber());
      } else {
        fail("a barrier or shuffle that not all threads of a block reach");
      }
    }
  }

  void wait_for_block() override {
    if (finished_ > 0) fail("a barrier after a thread of the block has ended");
    at_barrier_.push_back(active_);
    if (++waiting_ == count_) {
      waiting_ = 0;
      release(at_barrier_);
    }
    suspend();
  }

  void wait_for_warp(int warp) override {
    auto& lanes = warp_waiting_[warp];
    lanes.push_back(active_);
    if (lanes.size() == kWarp) release(lanes);
    suspend();
  }

 private:
  static constexpr size_t kStack = 256 << 10;

  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    Thread thread;
    void* fake_stack = nullptr;
    FiberBlock* owner = nullptr;
  };

  // In turn forwards and backwards, for results must not depend on it.
  void release(std::vector<Fiber*>& fibers) {
    if (is_backwards_) std::reverse(fibers.begin(), fibers.end());
    is_backwards_ = !is_backwards_;
    ready_.insert(ready_.end(), fibers.begin(), fibers.end());
    fibers.clear();
  }

  Fiber* idle_fiber() {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>());
      prepare(fibers_.back().get());
      return fibers_.back().get();
    }
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    return fiber;
  }

  void prepare(Fiber* fiber) {
    fiber->owner = this;
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStack;
    fiber->context.uc_link = nullptr;
    const auto address = reinterpret_cast<uintptr_t>(fiber);
    makecontext(&fiber->context, reinterpret_cast<void (*)()>(enter), 2, unsigned(address >> 32),
                unsigned(address));
  }

  static void enter(unsigned high, unsigned low) {
    Fiber* fiber = reinterpret_cast<Fiber*>(uintptr_t(high) << 32 | low);
    arrive(nullptr, &fiber->owner->main_bottom_, &fiber->owner->main_size_);
    for (;;) fiber->owner->serve(fiber);
  }

  void serve(Fiber* fiber) {
    while (next_ < count_) {
      fiber->thread.place(this, static_cast<int>(order_[next_++]));
      current = &fiber->thread;
      body_();
      if (waiting_ > 0) fail("a thread ends while others of its block wait at a barrier");
      ++finished_;
    }
    idle_.push_back(fiber);
    suspend();
  }

  void resume(Fiber* fiber) {
    active_ = fiber;
    current = &fiber->thread;
    depart(&main_fake_stack_, fiber->stack.get(), kStack);
    swapcontext(&main_, &fiber->context);
    arrive(main_fake_stack_, nullptr, nullptr);
  }

  void suspend() {
    Fiber* fiber = active_;
    depart(&fiber->fake_stack, main_bottom_, main_size_);
    swapcontext(&fiber->context, &main_);
    arrive(fiber->fake_stack, &main_bottom_, &main_size_);
  }

#if defined(__SANITIZE_ADDRESS__)
  static void depart(void** fake_stack, const void* bottom, size_t size) {
    __sanitizer_start_switch_fiber(fake_stack, bottom, size);
  }
  static void arrive(void* fake_stack, const void** bottom, size_t* size) {
    __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
  }
#else
  static void depart(void**, const void*, size_t) {}
  static void arrive(void*, const void**, size_t*) {}
#endif

  const Body& body_;
  std::vector<int64_t> order_;
  int count_ = 0, next_ = 0, waiting_ = 0, finished_ = 0;
  bool is_backwards_ = false;
  Fiber* active_ = nullptr;
  ucontext_t main_;
  const void* main_bottom_ = nullptr;
  size_t main_size_ = 0;
  void* main_fake_stack_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_, at_barrier_;
  std::vector<std::vector<Fiber*>> warp_waiting_;
  std::deque<Fiber*> ready_;
};

inline void run(dim3 grid, dim3 threads, DynamicShared dynamic, const std::function<void()>& body) {
  if (threads.count() > kMostThreads || threads.count() == 0)
    fail("a block of no or more than 1024 threads");
  FiberBlock block(body);
  for (const int64_t i : order_of(grid.count())) {
    const dim3 index(i % grid.x, i / grid.x % grid.y, i / (int64_t(grid.x) * grid.y));
    block.begin(index, threads, grid, dynamic);
    block.run();
  }
}

}  // namespace cuda_on_cpu
