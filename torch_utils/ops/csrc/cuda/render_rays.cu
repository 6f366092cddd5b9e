// CUDA kernels of render_rays: blocks take a few rays at a time and follow them through both
// passes; what lies between is never stored.
#include "cuda/render_rays.h"

#include "cuda/decode_points.h"
#include "cuda/triplane/tracing.h"

namespace open_eg3d::cuda {
namespace {

constexpr int kBlocks =
    1024;  // that take rays until there are none left; more than any GPU runs at a time
constexpr size_t kCounterBytes = 16;  // in front of the workspace: number of the next ray

template <class T>
__device__ __forceinline__ Workspace<T> workspace_of_block(const RenderRays& p,
                                                           int64_t block_bytes) {
  return Workspace<T>(
      static_cast<unsigned char*>(p.workspace) + kCounterBytes + blockIdx.x * block_bytes,
      p.coarse + p.fine);
}

// finish(tracer) for all rays, a block's few after its few, once both passes are done.
template <class P, bool is_backward, class Finish>
__device__ __forceinline__ void trace_all(const RenderRays& p, int64_t block_bytes, int tile_size,
                                          bool has_packs, const compute_t<P>* color_gradients,
                                          const Finish& finish) {
  using T = compute_t<P>;
  OPEN_EG3D_DYNAMIC_SHARED(T, memory);
  SampleTile<T>& tile = take_head<SampleTile<T>>(memory);
  Progress<T>& progress = take_head<Progress<T>>(memory);
  const PlaneReader<P> reader(p.planes, p.layout.features4, has_packs);
  T* const hidden = memory + p.layout.total;
  T* const narrow_rows =
      hidden + tile_size * DecoderLayout::row(p.layout.hidden4);  // features, then colours
  const DecoderTile<T> decoder{p.layout, tile_size, memory, narrow_rows, hidden, narrow_rows};
  load_decoder(static_cast<const T*>(p.packed), p.layout.total, memory);
  const Tracer<P, is_backward> tracer{
      p, reader, decoder, tile, progress, workspace_of_block<T>(p, block_bytes), color_gradients};
  while (tracer.begin()) {
    tracer.trace();
    finish(tracer);
  }
}

// ------------------------------------------------------------------------------------------
// Forward

// What rays show: features (rays, K), depth and alpha (rays).
template <class T>
struct Picture {
  T *features, *depth, *alpha;
};

template <class P>
struct Compositor {
  using T = compute_t<P>;

  const Tracer<P, false>& tracer;
  const Picture<T>& to;

  // A warp finds depth and alpha of its ray.
  __device__ __forceinline__ void sum_up(int r) const {
    const RenderRays& p = tracer.p;
    const int64_t ray = tracer.progress.first + r;
    const int first = r * tracer.work.stride;
    const bool is_seen = tracer.progress.is_seen[r];
    if (ray >= p.rays) return;
    const MeanDepth<T> mean(is_seen ? tracer.work.sorted + first : tracer.work.depths + first,
                            tracer.work.weights + first, is_seen ? tracer.progress.used[r] : 0,
                            is_seen ? tracer.samples() : p.coarse);
    if (lane_index() == 0)
      tracer.progress.alpha[r] = to.alpha[ray] = mean.alpha, to.depth[ray] = mean.value();
  }

  // A warp counts, or lists, what of its ray is coloured: slots and, in `shown`, weights.
  __device__ __forceinline__ int list_visible(int r, int first, bool is_counting) const {
    const Workspace<T>& work = tracer.work;
    const T least = static_cast<T>(tracer.p.stop) / T(tracer.samples());
    const int used = tracer.progress.is_seen[r] ? tracer.progress.used[r] : 0;
    int count = 0;
    for (int base = 0; base < used; base += kLanes) {
      const int k = base + lane_index();
      const T weight = k < used ? sample_weight(work.weights + r * work.stride, k, used) : T(0);
      const bool is_visible = k < used && !(tracer.p.stop > 0 && weight < least);
      const unsigned all = __ballot_sync(kAllLanes, is_visible);
      if (is_visible && !is_counting) {
        const int place = first + count + __popc(all & ((1u << lane_index()) - 1));
        work.list[place] = r * work.stride + work.order[r * work.stride + k];
        work.shown[place] = weight;
      }
      count += __popc(all);
    }
    return count;
  }

  __device__ __forceinline__ void run() const {
    const RenderRays& p = tracer.p;
    Progress<T>& progress = tracer.progress;
    for (int r = warp_index(); r < kRays; r += kWarps) {
      sum_up(r);
      const int listed = list_visible(r, 0, true);
      if (lane_index() == 0) progress.listed[r] = listed;
    }
    __syncthreads();
    int total = 0;
    for (int r = 0; r < kRays; ++r) total += progress.listed[r];
    for (int r = warp_index(); r < kRays; r += kWarps) {
      int first = 0;
      for (int other = 0; other < r; ++other) first += progress.listed[other];
      list_visible(r, first, false);
    }
    const int colors = p.layout.colors,
              seen_rays = static_cast<int>(min(int64_t(kRays), p.rays - progress.first));
    T* const features = to.features + progress.first * colors;
    for (int i = threadIdx.x; i < seen_rays * colors; i += kThreads) features[i] = 0;
    __syncthreads();
    for (int start = 0; start < total; start += tracer.decoder.rows)
      add_tile(start, total, seen_rays, features);
    for (int i = threadIdx.x; i < seen_rays * colors; i += kThreads) {
      const int k = i % colors;
      const T fill = k < 3 ? static_cast<T>(p.background[k]) : T(1);
      const T color =
          p.has_background ? features[i] + (1 - progress.alpha[i / colors]) * fill : features[i];
      features[i] = color * 2 - 1;
    }
  }

  // Adds the colours of a tile of the list, each by its weight. A ray's are neighbours in the list;
  // each sum belongs to one thread.
  __device__ __forceinline__ void add_tile(int start, int total, int seen_rays, T* features) const {
    const DecoderTile<T>& decoder = tracer.decoder;
    const int row = decoder.colors_row(), colors = decoder.layout.colors;
    tracer.decode_tile(start, total);
    decoder.to_colors([&](int s, int k, T y) {
      decoder.colors[s * row + k] = y * T(kColorScale) + T(kColorShift);
    });
    __syncthreads();
    for (int i = threadIdx.x; i < seen_rays * colors; i += kThreads) {
      const int r = i / colors, k = i % colors;
      int first = 0;
      for (int other = 0; other < r; ++other) first += tracer.progress.listed[other];
      const int from = max(first, start),
                end = min(first + tracer.progress.listed[r], start + decoder.rows);
      if (from >= end) continue;
      T sum = features[i];
      for (int s = from; s < end; ++s)
        sum += tracer.work.shown[s] * decoder.colors[(s - start) * row + k];
      features[i] = sum;
    }
    __syncthreads();
  }
};

template <class P>
__global__ void __launch_bounds__(kThreads, kBlocksBeside)
    render_kernel(const RenderRays p, const Picture<compute_t<P>> to, const int64_t block_bytes,
                  const int tile_size, const bool has_packs) {
  trace_all<P, false>(p, block_bytes, tile_size, has_packs, nullptr,
                      [&](const Tracer<P, false>& tracer) { Compositor<P>{tracer, to}.run(); });
}

// ------------------------------------------------------------------------------------------
// Backward

template <class T>
struct PictureGradients {
  const T *features, *depth, *alpha;  // each may be null
};

template <class P>
struct BackTracer {
  using T = compute_t<P>;

  const Tracer<P, true>& tracer;
  const PictureGradients<T>& from;
  const TracedSamples& to;

  // A warp takes the gradients of its ray's outputs to its samples.
  __device__ __forceinline__ void run(int r) const {
    const int64_t ray = tracer.progress.first + r;
    if (ray >= tracer.p.rays) return;
    if (tracer.progress.is_seen[r]) {
      run_seen(r, ray);
    } else {
      run_missed(r, ray);
    }
  }

 private:
  __device__ __forceinline__ T depth_gradient_of(int64_t ray) const {
    return from.depth == nullptr ? T(0) : from.depth[ray];
  }

  __device__ __forceinline__ void run_seen(int r, int64_t ray) const {
    const Workspace<T>& work = tracer.work;
    const RenderRays& p = tracer.p;
    const int count = tracer.samples(), first = r * work.stride, colors = p.layout.colors;
    T of_alpha = 0,
      magnitude = 0;  // of the alpha by the background; all that a sample's colours might get
    for (int k = lane_index(); k < colors && from.features != nullptr; k += kLanes) {
      const T gradient = 2 * from.features[ray * colors + k];
      if (p.has_background) of_alpha -= gradient * (k < 3 ? static_cast<T>(p.background[k]) : T(1));
      magnitude += fabs(gradient);
    }
    of_alpha = warp_sum(of_alpha) + (from.alpha == nullptr ? T(0) : from.alpha[ray]);
    magnitude = warp_sum(magnitude) * T(kColorScale / 4);
    const Samples<T> samples = tracer.in_depth_order(r);
    const T* const weights = work.weights + first;
    T *const transmittances = work.transmittances + first, *const density_terms = work.cdf + first;
    const MeanDepth<T> mean(samples.depths, weights, count, count);
    const T of_depth = depth_gradient_of(ray), share = mean.tie_share(samples.depths, count);
    const auto of_weight = [&](int i, const Interval<T>& interval) {
      const T shown = from.features == nullptr ? T(0)
                                               : (work.shown[first + samples.number(i)] +
                                                  work.shown[first + samples.number(i + 1)]) /
                                                     2;
      return shown + of_alpha +
             (from.depth == nullptr ? T(0) : of_depth * mean.weight_gradient(interval.middle));
    };
    composite_backward(samples, count - 1, of_weight, transmittances, density_terms);
    float bound = 0;
    for (int k = lane_index(); k < count; k += kLanes) {
      const bool has_before = k > 0, has_after = k + 1 < count;
      const T of_density =
          (has_before ? density_terms[k - 1] : T(0)) + (has_after ? density_terms[k] : T(0));
      const T by_weights =
          (has_before ? transmittances[k - 1] : T(0)) - (has_after ? transmittances[k] : T(0));
      const T by_mean =
          from.depth == nullptr
              ? T(0)
              : of_depth * mean.depth_gradient(samples.depths, weights, k, count, share);
      const T weight = sample_weight(weights, k, count);
      write(ray * count + k, samples.depths[k], weight, of_density, by_weights + by_mean,
            samples.number(k));
      const float outputs = static_cast<float>(fabs(of_density * static_cast<T>(p.density_gain)) +
                                               fabs(weight) * magnitude);
      if (isfinite(outputs)) bound = max(bound, outputs);
    }
    bound = warp_max(bound);
    if (lane_index() == 0 && to.output_bound != nullptr)
      atomicMax(to.output_bound, __float_as_uint(bound));
  }

  // A ray that misses sees nothing; only its depth follows its farthest coarse sample.
  __device__ __forceinline__ void run_missed(int r, int64_t ray) const {
    const RenderRays& p = tracer.p;
    const T* const depths = tracer.work.depths + r * tracer.work.stride;
    const MeanDepth<T> mean(depths, nullptr, 0, p.coarse);
    const T share = mean.tie_share(depths, p.coarse) * depth_gradient_of(ray);
    for (int k = lane_index(); k < tracer.samples(); k += kLanes) {
      const bool is_coarse = k < p.coarse;
      write(ray * tracer.samples() + k, is_coarse ? depths[k] : T(0), 0, 0,
            is_coarse && depths[k] == mean.value() ? share : T(0), k);
    }
  }

  __device__ __forceinline__ void write(int64_t i, T depth, T weight, T of_density, T of_depth,
                                        int number) const {
    static_cast<T*>(to.depths)[i] = depth, static_cast<T*>(to.weights)[i] = weight;
    static_cast<T*>(to.density_gradients)[i] = of_density,
    static_cast<T*>(to.depth_gradients)[i] = of_depth;
    to.order[i] = number;
  }
};

template <class P>
__global__ void __launch_bounds__(kThreads, kBlocksBeside)
    trace_backward_kernel(const RenderRays p, const PictureGradients<compute_t<P>> from,
                          const TracedSamples to, const int64_t block_bytes, const int tile_size,
                          const bool has_packs) {
  trace_all<P, true>(p, block_bytes, tile_size, has_packs, from.features,
                     [&](const Tracer<P, true>& tracer) {
                       for (int r = warp_index(); r < kRays; r += kWarps)
                         BackTracer<P>{tracer, from, to}.run(r);
                     });
}

// A warp adds up the gradients of a ray's samples. Coarse depths follow the limits; fine depths
// carry no gradient.
template <class T>
__global__ void __launch_bounds__(kThreads)
    ray_gradients_kernel(const RenderRays p, const TracedSamples from, const RayGradients to) {
  const int count = p.coarse + p.fine;
  for (int64_t ray = int64_t(blockIdx.x) * kWarps + warp_index(); ray < p.rays;
       ray += int64_t(gridDim.x) * kWarps) {
    const T* const direction = static_cast<const T*>(p.directions) + ray * 3;
    const int64_t sample = ray / p.rays_per_sample;
    const T* const u = static_cast<const T*>(p.u_coarse.data) + sample * p.u_coarse.sample_stride +
                       (ray - sample * p.rays_per_sample) * p.u_coarse.ray_stride;
    T of_origin[3] = {}, of_direction[3] = {}, of_near = 0, of_far = 0;
    for (int k = lane_index(); k < count; k += kLanes) {
      const int64_t i = ray * count + k;
      const T depth = static_cast<const T*>(from.depths)[i];
      const int number = from.order[i];
      T of_depth = static_cast<const T*>(from.depth_gradients)[i];
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        const T of_point = static_cast<const T*>(to.points)[i * 3 + a];
        of_origin[a] += of_point;
        of_direction[a] += of_point * depth;
        of_depth += of_point * direction[a];
      }
      if (number < p.coarse) {
        const T share =
            even_position<T>(number, p.coarse) + u[number * p.u_coarse.stride] / T(p.coarse - 1);
        of_near += of_depth * (1 - share);
        of_far += of_depth * share;
      }
    }
    of_near = warp_sum(of_near), of_far = warp_sum(of_far);
#pragma unroll
    for (int a = 0; a < 3; ++a)
      of_origin[a] = warp_sum(of_origin[a]), of_direction[a] = warp_sum(of_direction[a]);
    if (lane_index() > 0) continue;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      static_cast<T*>(to.origins)[ray * 3 + a] = of_origin[a],
                                            static_cast<T*>(to.directions)[ray * 3 + a] =
                                                of_direction[a];
    }
    static_cast<T*>(to.near)[ray] = of_near, static_cast<T*>(to.far)[ray] = of_far;
  }
}

// How kernels that trace rays are launched.
template <class P>
struct Plan {
  using T = compute_t<P>;

  int64_t blocks, block_bytes;
  TilePlan tile;

  explicit Plan(const RenderRays& p)
      : blocks(std::min<int64_t>(blocks_for(p.rays, int64_t(kRays)), kBlocks)) {
    const DecoderLayout& l = p.layout;
    const int row = std::max(l.row(l.features4), l.row(l.colors4)) + l.row(l.hidden4);
    block_bytes = Workspace<T>::block_bytes(p.coarse + p.fine);
    tile = plan_tile(l, row, sizeof(T), sizeof(SampleTile<T>) + sizeof(Progress<T>));
  }
};

}  // namespace

size_t workspace_bytes(int samples, Dtype type) {
  const size_t block = type == Dtype::kDouble ? Workspace<double>::block_bytes(samples)
                                              : Workspace<float>::block_bytes(samples);
  return kCounterBytes + kBlocks * block;
}

void render_rays(const RenderRays& p, void* features, void* depth, void* alpha, Dtype type,
                 Stream stream) {
  with_type(type, [&](auto zero) {
    using P = decltype(zero);
    using T = compute_t<P>;
    const Plan<P> plan(p);
    const Picture<T> to{static_cast<T*>(features), static_cast<T*>(depth), static_cast<T*>(alpha)};
    launch(render_kernel<P>, {plan.blocks}, {kThreads}, plan.tile.bytes, stream, p, to,
           plan.block_bytes, plan.tile.rows, can_load_packs<P>(p.planes));
  });
}

void trace_backward(const RenderRays& p, const void* grad_features, const void* grad_depth,
                    const void* grad_alpha, const TracedSamples& to, Dtype type, Stream stream) {
  with_type(type, [&](auto zero) {
    using P = decltype(zero);
    using T = compute_t<P>;
    const Plan<P> plan(p);
    const PictureGradients<T> from{static_cast<const T*>(grad_features),
                                   static_cast<const T*>(grad_depth),
                                   static_cast<const T*>(grad_alpha)};
    launch(trace_backward_kernel<P>, {plan.blocks}, {kThreads}, plan.tile.bytes, stream, p, from,
           to, plan.block_bytes, plan.tile.rows, can_load_packs<P>(p.planes));
  });
}

void ray_gradients(const RenderRays& p, const TracedSamples& from, const RayGradients& to,
                   Dtype type, Stream stream) {
  const int64_t blocks = std::min<int64_t>(blocks_for(p.rays, int64_t(kWarps)), 16 * kBlocks);
  with_type(type, [&](auto zero) {
    launch(ray_gradients_kernel<compute_t<decltype(zero)>>, {blocks}, {kThreads}, 0, stream, p,
           from, to);
  });
}

}  // namespace open_eg3d::cuda
