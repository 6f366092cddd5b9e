// Keeps the freed buffers of CPU tensors for later ones of about the same size.
//
// The C library gives large buffers back to the system at once, and the next tensor pays a page
// fault for every 4 KB that it touches: several times the price of writing it. Training asks for
// the same sizes in every step.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <pthread.h>
#include <torch/library.h>

#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <unordered_map>

namespace open_eg3d {
namespace {

constexpr size_t kSmallest = 64 << 10;  // smaller buffers are the C library's business
constexpr size_t kSlack = 8;            // a buffer serves requests that waste up to an eighth of it

class BufferCache final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes < kSmallest ? c10::alloc_cpu(bytes) : take(bytes);
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* target, const void* source, size_t bytes) const override {
    default_copy_data(target, source, bytes);
  }

  // Keep at most `bytes` of freed memory from now on.
  void set_limit(size_t bytes) {
    const std::lock_guard lock(mutex_);
    limit_ = bytes;
    shrink();
  }

  std::mutex& mutex() { return mutex_; }

  static BufferCache& instance() {
    static auto* cache = new BufferCache;  // never destroyed: tensors may outlive everything else
    return *cache;
  }

 private:
  struct Kept {
    void* data;
    uint64_t since;
  };

  void* take(size_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      const auto fitting = kept_.lower_bound(bytes);
      if (fitting != kept_.end() && fitting->first - bytes <= fitting->first / kSlack) {
        const auto best = std::prev(kept_.upper_bound(
            fitting->first));  // freed last: the likeliest to be in the processor's cache
        void* data = best->second.data;
        used_[data] = best->first;
        kept_bytes_ -= best->first;
        kept_.erase(best);
        return data;
      }
    }
    void* data = c10::alloc_cpu(bytes);
    const std::lock_guard lock(mutex_);
    used_[data] = bytes;
    return data;
  }

  static void release(void* data) {
    if (data != nullptr && !instance().keep(data)) c10::free_cpu(data);
  }

  bool keep(void* data) {
    const std::lock_guard lock(mutex_);
    const auto entry = used_.find(data);
    if (entry == used_.end()) return false;
    const size_t bytes = entry->second;
    used_.erase(entry);
    kept_.emplace(bytes, Kept{data, ++clock_});
    kept_bytes_ += bytes;
    shrink();
    return true;
  }

  // Give the buffers that waited longest back until the rest is within the limit.
  void shrink() {
    while (kept_bytes_ > limit_) {
      auto oldest = kept_.begin();
      for (auto entry = kept_.begin(); entry != kept_.end(); ++entry) {
        if (entry->second.since < oldest->second.since) oldest = entry;
      }
      kept_bytes_ -= oldest->first;
      c10::free_cpu(oldest->second.data);
      kept_.erase(oldest);
    }
  }

  std::mutex mutex_;
  std::multimap<size_t, Kept> kept_;
  std::unordered_map<void*, size_t> used_;
  size_t kept_bytes_ = 0, limit_ = 0;
  uint64_t clock_ = 0;
};

// A process forked while another thread holds the lock would wait for it forever.
void lock_for_fork() { BufferCache::instance().mutex().lock(); }
void unlock_after_fork() { BufferCache::instance().mutex().unlock(); }

void keep_freed_buffers(int64_t limit) {
  static const bool is_installed = [] {
    pthread_atfork(lock_for_fork, unlock_after_fork, unlock_after_fork);
    c10::SetCPUAllocator(&BufferCache::instance(), 1);
    return true;
  }();
  (void)is_installed;
  BufferCache::instance().set_limit(static_cast<size_t>(limit));
}

}  // namespace
}  // namespace open_eg3d

TORCH_LIBRARY_FRAGMENT(open_eg3d, m) {
  m.def("keep_freed_buffers(int limit) -> ()", open_eg3d::keep_freed_buffers);
}
