// Kernels with a mistake each, and the same without: does the shim, or the sanitizer it runs under,
// find it? The argument chooses.
#include <cstring>

#include "testing.h"

namespace {

using namespace open_eg3d::cuda;

constexpr int kThreads = 64;

// Reverses each block's numbers. With `skip_barrier`, threads read what others may not have written
// yet.
__global__ void reverse_kernel(const float* x, float* y, bool skip_barrier) {
  OPEN_EG3D_SHARED(tile, float[kThreads]);
  const int i = threadIdx.x;
  const int64_t first = int64_t(blockIdx.x) * kThreads;
  tile[i] = x[first + i];
  if (!skip_barrier) __syncthreads();
  y[first + i] = tile[kThreads - 1 - i];
}

// Doubles numbers; with a wrong `count` beyond the end of what there is.
__global__ void twice_kernel(const float* x, float* y, int count) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i < count) y[i] = 2 * x[i];
}

// Sum of all numbers; without atomics two blocks add at the same time.
__global__ void sum_kernel(const float* x, float* sum, bool is_atomic) {
  const float total = warp_sum(x[blockIdx.x * kThreads + threadIdx.x]);
  if (threadIdx.x % 32 != 0) return;
  if (is_atomic) {
    atomicAdd(sum, total);
  } else {
    *sum += total;
  }
}

__global__ void divergent_kernel(float* y, bool is_divergent) {
  if (is_divergent && threadIdx.x == 3) return;
  __syncthreads();
  y[threadIdx.x] = 1;
}

__global__ void shared_end_kernel(float* y, int beyond) {
  OPEN_EG3D_SHARED(tile, float[kThreads]);
  tile[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x + beyond];
}

__global__ void uninitialized_kernel(float* y, bool is_written) {
  OPEN_EG3D_SHARED(tile, float[kThreads]);
  if (is_written) tile[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}

__global__ void aligned_kernel(const float* x, float* y) { store_pack(y, load_pack<4>(x)); }

void run(const std::string& mistake) {
  constexpr int kBlocks = 4, kCount = kBlocks * kThreads;
  const auto x = testing::random_numbers<float>(kCount, 1);
  std::vector<float> y(kCount), few(kThreads);
  std::vector<double> reversed(kCount), doubled(kCount), ones(kThreads, 1), sum(1);
  for (int i = 0; i < kCount; ++i) {
    reversed[i] = x[i / kThreads * kThreads + kThreads - 1 - i % kThreads];
    doubled[i] = 2 * x[i];
    sum[0] += x[i];
  }
  const Extent grid{kBlocks}, block{kThreads};
  launch(reverse_kernel, grid, block, 0, Stream(), x.data(), y.data(), mistake == "race");
  testing::compare("reverse", y, reversed, 0);
  launch(twice_kernel, {kBlocks + 1}, block, 0, Stream(), x.data(), y.data(),
         mistake == "bounds" ? kCount + 1 : kCount);
  testing::compare("twice", y, doubled, 0);
  std::vector<float> total(1);
  launch(sum_kernel, grid, block, 0, Stream(), x.data(), total.data(), mistake != "blocks");
  testing::compare("sum", total, sum, 1e-5);
  launch(divergent_kernel, {1}, block, 0, Stream(), few.data(), mistake == "divergence");
  testing::compare("divergent", few, ones, 0);
  launch(shared_end_kernel, {1}, block, 0, Stream(), few.data(), mistake == "shared" ? 1 : 0);
  testing::compare("end of shared memory", few, ones, 0);
  launch(uninitialized_kernel, {1}, block, 0, Stream(), few.data(), mistake != "uninitialized");
  testing::compare("uninitialized", few, ones, 0);
  launch(aligned_kernel, {1}, {1}, 0, Stream(), x.data() + (mistake == "alignment" ? 1 : 0),
         y.data());
}

}  // namespace

int main(int count, char** arguments) {
  run(count > 1 ? arguments[1] : "");
  return testing::finish(7);
}
