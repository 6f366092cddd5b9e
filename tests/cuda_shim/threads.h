// Threads of a block as threads of the system, for ThreadSanitizer. Included by cuda_on_cpu.h.
//
// Two teams of threads take blocks in turn; nothing but the kernel itself synchronises one team
// with the other.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

namespace cuda_on_cpu {

class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}

  void wait() {
    std::unique_lock lock(mutex_);
    if (finished_ > 0) fail("a barrier after a thread of the block has ended");
    arrive(lock);
  }

  // As the last thing that a thread does in a block: waits for all others.
  void finish() {
    std::unique_lock lock(mutex_);
    if (waiting_ > finished_) fail("a thread ends while others of its block wait at a barrier");
    ++finished_;
    arrive(lock);
  }

  // For the threads of a block that has ended, before the next one.
  void reset() { finished_ = 0; }

 private:
  void arrive(std::unique_lock<std::mutex>& lock) {
    const int64_t round = round_;
    if (++waiting_ == count_) {
      waiting_ = 0;
      ++round_;
      changed_.notify_all();
    } else {
      changed_.wait(lock, [&] { return round_ != round; });
    }
  }

  const int count_;
  int waiting_ = 0, finished_ = 0;
  int64_t round_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
};

class ThreadBlock final : public Block {
 public:
  explicit ThreadBlock(int count) : barrier_(count), between_blocks_(count) {
    for (int warp = 0; warp < count / kWarp; ++warp)
      warps_.push_back(std::make_unique<Barrier>(kWarp));
  }

  void wait_for_block() override { barrier_.wait(); }
  void wait_for_warp(int warp) override { warps_[warp]->wait(); }

  // What thread `number` does for one block of the grid.
  void run(int number, dim3 index, dim3 threads, dim3 grid, DynamicShared dynamic,
           const std::function<void()>& body) {
    if (number == 0) {
      begin(index, threads, grid, dynamic);
      barrier_.reset();
    }
    between_blocks_.wait();
    Thread thread;
    thread.place(this, number);
    current = &thread;
    body();
    barrier_.finish();
  }

 private:
  Barrier barrier_, between_blocks_;
  std::vector<std::unique_ptr<Barrier>> warps_;
};

inline void run(dim3 grid, dim3 threads, DynamicShared dynamic, const std::function<void()>& body) {
  constexpr int kTeams = 2;
  const int count = static_cast<int>(threads.count());
  if (count > kMostThreads || count == 0) fail("a block of no or more than 1024 threads");
  std::vector<std::unique_ptr<ThreadBlock>> teams;
  std::vector<std::thread> all;
  for (int team = 0; team < kTeams; ++team) {
    teams.push_back(std::make_unique<ThreadBlock>(count));
    for (int number = 0; number < count; ++number) {
      all.emplace_back([&, block = teams.back().get(), team, number] {
        for (int64_t i = team; i < grid.count(); i += kTeams) {
          const dim3 index(i % grid.x, i / grid.x % grid.y, i / (int64_t(grid.x) * grid.y));
          block->run(number, index, threads, grid, dynamic, body);
        }
      });
    }
  }
  for (auto& thread : all) thread.join();
}

}  // namespace cuda_on_cpu
