// A few rays by a block of threads: sample, decode, compute weights, resample, decode, merge. Each
// warp handles the depths and weights of its own rays; samples of all rays together are decoded in
// tiles by the whole block.
#pragma once

#include "cuda/render_rays.h"
#include "cuda/triplane/compositing.h"
#include "cuda/triplane/planes.h"

namespace open_eg3d::cuda {

constexpr int kRays = 8;  // of a block at a time

// Memory of a block for its rays' samples. It is small enough to stay in the caches, and lets the
// number of samples be any.
template <class T>
struct Workspace {
  static constexpr int kNumbers = 7, kIntegers = 2;

  T *depths, *densities, *sorted, *weights, *cdf, *shown, *transmittances;  // (kRays, stride)
  int *order, *list;
  int stride;

  static size_t block_bytes(int samples) {
    const size_t rows = size_t(kRays) * (samples + 1);
    return (rows * (kNumbers * sizeof(T) + kIntegers * sizeof(int)) + 15) / 16 * 16;
  }

  __device__ __forceinline__ Workspace(unsigned char* memory, int samples) : stride(samples + 1) {
    const int64_t rows = int64_t(kRays) * stride;
    T* const numbers = reinterpret_cast<T*>(memory);
    depths = numbers, densities = numbers + rows, sorted = numbers + 2 * rows,
    weights = numbers + 3 * rows, cdf = numbers + 4 * rows;
    shown = numbers + 5 * rows, transmittances = numbers + 6 * rows;
    order = reinterpret_cast<int*>(numbers + kNumbers * rows), list = order + rows;
  }
};

// How far a block's rays are, in shared memory.
template <class T>
struct Progress {
  int64_t first;           // number of the first ray
  bool is_seen[kRays];     // the ray exists and meets something
  int used[kRays];         // samples, in depth order, that are weighed
  int coarse[kRays];       // coarse samples that are decoded
  int next[kRays];         // `used` after this step
  int listed[kRays];       // samples to be decoded in this step
  T transmittance[kRays];  // that is left
  T alpha[kRays];
};

// With `is_backward` it is found as well what each sample would show of the gradients of its ray's
// colours, and the transmittance in front of it.
template <class P, bool is_backward>
struct Tracer {
  using T = compute_t<P>;

  const RenderRays& p;
  const PlaneReader<P>& reader;
  const DecoderTile<T>& decoder;
  SampleTile<T>& tile;
  Progress<T>& progress;
  const Workspace<T> work;
  const T* color_gradients;  // (rays, K) of all rays, or null

  __device__ __forceinline__ int samples() const { return p.coarse + p.fine; }
  __device__ __forceinline__ Samples<T> in_depth_order(int r) const {
    return {work.sorted + r * work.stride, work.densities + r * work.stride,
            work.order + r * work.stride};
  }

  // Takes the next rays; false where there are none.
  __device__ __forceinline__ bool begin() const {
    __syncthreads();
    if (threadIdx.x == 0) {
      progress.first = static_cast<int64_t>(atomicAdd(static_cast<unsigned long long*>(p.workspace),
                                                      static_cast<unsigned long long>(kRays)));
    }
    __syncthreads();
    if (progress.first >= p.rays) return false;
    for (int r = threadIdx.x; r < kRays; r += kThreads) {
      const int64_t ray = progress.first + r;
      progress.is_seen[r] = ray < p.rays && (p.hit == nullptr || p.hit[ray]);
      progress.used[r] = 0, progress.transmittance[r] = 1;
    }
    for (int i = threadIdx.x; i < kRays * p.coarse; i += kThreads) {
      const int r = i / p.coarse, k = i % p.coarse;
      const int64_t ray = progress.first + r;
      if (ray >= p.rays) break;
      const T near = static_cast<const T*>(p.near)[ray],
              range = static_cast<const T*>(p.far)[ray] - near;
      work.depths[r * work.stride + k] = near + range * even_position<T>(k, p.coarse) +
                                         offset(p.u_coarse, ray, k) * (range / T(p.coarse - 1));
    }
    __syncthreads();
    return true;
  }

  __device__ __forceinline__ T offset(const Offsets& u, int64_t ray, int k) const {
    const int64_t sample = ray / p.rays_per_sample;
    return static_cast<const T*>(
        u.data)[sample * u.sample_stride + (ray - sample * p.rays_per_sample) * u.ray_stride +
                k * u.stride];
  }

  // Both passes.
  __device__ __forceinline__ void trace() const {
#pragma unroll 1
    for (int pass = 0; pass < (p.fine > 0 ? 2 : 1); ++pass) {
      const bool is_sorted = pass == 1;
      while (advance(is_sorted, is_sorted ? samples() : p.coarse)) {
      }
      for (int r = warp_index(); r < kRays && !is_sorted; r += kWarps) resample(r);
      __syncthreads();
    }
  }

  // A warp finds its ray's fine samples and the order of all.
  __device__ __forceinline__ void resample(int r) const {
    const int lane = lane_index(), used = progress.used[r];
    T *const depths = work.depths + r * work.stride, *const weights =
                                                         work.weights + r * work.stride;
    T *const cdf = work.cdf + r * work.stride, *const sorted = work.sorted + r * work.stride;
    int* const order = work.order + r * work.stride;
    if (!progress.is_seen[r]) return;
    if (p.fine == 0) {
      for (int k = lane; k < p.coarse; k += kLanes) order[k] = k, sorted[k] = depths[k];
      return;
    }
    for (int i = used - 1 + lane; i < p.coarse - 1; i += kLanes) weights[i] = 0;
    __syncwarp();
    const int bins = build_cdf(weights, p.coarse - 1, p.has_released_placement, cdf);
    for (int j = lane; j < p.fine; j += kLanes) {
      depths[p.coarse + j] = invert_cdf(cdf, bins, depths, p.has_released_placement,
                                        offset(p.u_fine, progress.first + r, j));
    }
    __syncwarp();
    sort_depths(depths, p.coarse, p.fine, order, sorted);
    if (lane == 0) progress.coarse[r] = used, progress.used[r] = 0, progress.transmittance[r] = 1;
  }

  // Decodes the next samples, of `limit`, of rays whose transmittance is not spent, and computes
  // their weights: a warp's width of each, or all where rays never stop. False where there is
  // nothing to do.
  __device__ __forceinline__ bool advance(bool is_sorted, int limit) const {
    for (int r = warp_index(); r < kRays; r += kWarps) {
      const int used = progress.used[r];
      const bool goes_on = progress.is_seen[r] && used < limit &&
                           (used == 0 || progress.transmittance[r] >= static_cast<T>(p.stop));
      const int next = !goes_on ? used : p.stop > 0 ? min(used + kLanes, limit) : limit;
      const int listed = for_each_new(is_sorted, r, used, next, [](int, int) {});
      __syncwarp();
      if (lane_index() == 0) progress.next[r] = next, progress.listed[r] = listed;
    }
    __syncthreads();
    int total = 0, steps = 0;
    for (int r = 0; r < kRays; ++r)
      total += progress.listed[r], steps += progress.next[r] - progress.used[r];
    for (int r = warp_index(); r < kRays; r += kWarps) {
      int first = 0;
      for (int other = 0; other < r; ++other) first += progress.listed[other];
      for_each_new(is_sorted, r, progress.used[r], progress.next[r], [&](int place, int number) {
        work.list[first + place] = r * work.stride + number;
      });
    }
    __syncthreads();
    if (steps == 0) return false;
    decode(total);
    for (int r = warp_index(); r < kRays; r += kWarps) {
      const int used = progress.used[r], next = progress.next[r], first = r * work.stride;
      if (next > used) {
        const Samples<T> samples{is_sorted ? work.sorted + first : work.depths + first,
                                 work.densities + first, is_sorted ? work.order + first : nullptr};
        const T transmittance = compute_weights(
            samples, max(used - 1, 0), next - 1, progress.transmittance[r], work.weights + first,
            is_backward ? work.transmittances + first : nullptr);
        if (lane_index() == 0) progress.transmittance[r] = transmittance, progress.used[r] = next;
      }
    }
    __syncthreads();
    return true;
  }

  // body(place, number of the sample) for samples from..to-1 in depth order that are not decoded
  // yet; returns how many there are.
  template <class Body>
  __device__ __forceinline__ int for_each_new(bool is_sorted, int r, int from, int to,
                                              const Body& body) const {
    int count = 0;
    for (int base = from; base < to; base += kLanes) {
      const int k = base + lane_index(), number = k >= to     ? 0
                                                  : is_sorted ? work.order[r * work.stride + k]
                                                              : k;
      const bool is_new = k < to && (!is_sorted || number >= progress.coarse[r]);
      const unsigned all = __ballot_sync(kAllLanes, is_new);
      if (is_new) body(count + __popc(all & ((1u << lane_index()) - 1)), number);
      count += __popc(all);
    }
    return count;
  }

  // Features and hidden layer of a tile of the list.
  __device__ __forceinline__ void decode_tile(int start, int total) const {
    for (int s = threadIdx.x; s < decoder.rows; s += kThreads) {
      const bool exists = start + s < total;
      const int slot = exists ? work.list[start + s] : 0, r = slot / work.stride;
      const int64_t ray = progress.first + r;
      tile.planes[s] = exists ? static_cast<int>(ray / p.rays_per_sample) : -1;
      for (int a = 0; a < 3; ++a) {
        tile.at[a][s] =
            exists ? static_cast<const T*>(p.origins)[ray * 3 + a] +
                         work.depths[slot] * static_cast<const T*>(p.directions)[ray * 3 + a]
                   : T(0);
      }
    }
    __syncthreads();
    gather(reader, tile, decoder.rows, decoder.features, decoder.layout.features4,
           decoder.features_row());
    __syncthreads();
    decoder.to_hidden();
    __syncthreads();
  }

  // Densities of the samples in the list and, where asked for, the product of what they would show
  // with its gradient.
  __device__ __forceinline__ void decode(int total) const {
    const int colors = decoder.layout.colors, row = decoder.colors_row();
    for (int start = 0; start < total; start += decoder.rows) {
      decode_tile(start, total);
      for (int s = threadIdx.x; s < decoder.rows && start + s < total; s += kThreads) {
        work.densities[work.list[start + s]] = decoder.density(s) * static_cast<T>(p.density_gain);
      }
      if (is_backward && color_gradients != nullptr) {
        decoder.to_colors([&](int s, int k, T y) {
          decoder.colors[s * row + k] = y * T(kColorScale) + T(kColorShift);
        });
        __syncthreads();
        for (int s = threadIdx.x; s < decoder.rows && start + s < total; s += kThreads) {
          const int slot = work.list[start + s];
          const T* const gradients =
              color_gradients + (progress.first + slot / work.stride) * colors;
          T sum = 0;
          for (int k = 0; k < colors; ++k) sum += gradients[k] * decoder.colors[s * row + k];
          work.shown[slot] = 2 * sum;
        }
      }
      __syncthreads();
    }
  }
};

}  // namespace open_eg3d::cuda
