// What the operators on tri-planes share: tensors as the structures of csrc/triplane, work in
// blocks, and sums in a fixed order.
//
// Results do not depend on the number of threads: blocks are cut by the sizes of the tensors alone,
// sums over blocks are formed in the order of the blocks, and each number of a plane's gradient is
// added to by one thread, in an order that the sizes decide.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <atomic>
#include <optional>
#include <tuple>
#include <vector>

#include "triplane/decoder.h"
#include "triplane/planes.h"
#include "triplane_tensors.h"

namespace open_eg3d::triplane {

constexpr int64_t kChunkBytes =
    8 << 20;  // of feature gradients held until they are added to the planes

// body(compute type, type of the planes' numbers), as values to deduce the types from.
template <class Body>
void dispatch_types(const at::Tensor& planes, const at::Tensor& positions, const Body& body) {
  if (positions.scalar_type() == at::kDouble) {
    TORCH_CHECK(planes.scalar_type() == at::kDouble, "planes are ", planes.scalar_type(),
                " where positions are double");
    return body(double{}, double{});
  }
  TORCH_CHECK(positions.scalar_type() == at::kFloat, "positions are ", positions.scalar_type(),
              "; expected float or double");
  switch (planes.scalar_type()) {
    case at::kFloat:
      return body(float{}, float{});
    case at::kHalf:
      return body(float{}, Half{});
    case at::kBFloat16:
      return body(float{}, BFloat16{});
    default:
      TORCH_CHECK(false, "planes are ", planes.scalar_type(), " where positions are float");
  }
}

// One sample of planes that lie channels-last.
template <class P>
Planes<P> planes_of(const at::Tensor& planes, P* data, int64_t sample) {
  return {data + sample * planes.stride(0),
          planes.stride(1),
          planes.stride(3),
          planes.stride(4),
          static_cast<int>(planes.size(2)),
          static_cast<int>(planes.size(3)),
          static_cast<int>(planes.size(4))};
}

inline Mapping make_mapping(double box_warp, bool released_axes) {
  TORCH_CHECK(box_warp > 0, "box_warp is ", box_warp);
  return {released_axes ? &kReleasedAxes : &kCorrectedAxes, 2 / box_warp};
}

template <class T>
Decoder<T> make_decoder(const at::Tensor& planes, const at::Tensor& w0, const at::Tensor& b0,
                        const at::Tensor& w1, const at::Tensor& b1) {
  check_decoder(planes, w0, b0, w1, b1);
  const auto as = [](const at::Tensor& x) {
    return x.to(c10::CppTypeToScalarType<T>::value).contiguous();
  };
  const at::Tensor a = as(w0), b = as(b0), c = as(w1), d = as(b1);
  return Decoder<T>(planes.size(2), w0.size(0), w1.size(0) - 1, a.const_data_ptr<T>(),
                    b.const_data_ptr<T>(), c.const_data_ptr<T>(), d.const_data_ptr<T>());
}

// Runs body(worker, block) for all blocks, each thread with a worker of its own from `make`; a
// thread that is free takes the next block.
template <class Make, class Body>
void for_each_block(int64_t blocks, const Make& make, const Body& body) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), blocks);
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    auto worker = make();
    for (int64_t block = next++; block < blocks; block = next++) body(worker, block);
  });
}

// Gradient of the planes: feature gradients at points are collected for a chunk of rays or points
// and then added, one thread for each cache line's worth of channels of each plane of each sample.
template <class T>
class PlaneGradient {
 public:
  PlaneGradient(const at::Tensor& planes, const Mapping& mapping, int64_t chunk_points,
                int features_padded)
      : result_(at::empty_like(planes)), mapping_(mapping), stride_(features_padded) {
    const bool in_place = result_.scalar_type() == c10::CppTypeToScalarType<T>::value &&
                          (result_.stride(2) == 1 || result_.size(2) == 1);
    const auto options = planes.options().dtype(c10::CppTypeToScalarType<T>::value);
    sum_ = in_place ? result_.zero_()
                    : at::zeros(
                          {planes.size(0), planes.size(3), planes.size(4), kPlanes, planes.size(2)},
                          options)
                          .permute({0, 3, 4, 1, 2});
    features_.resize(chunk_points * features_padded);
    for (auto& axis : points_) axis.resize(chunk_points + kTile + kLanes<T>);
  }

  // Where the feature gradients and the coordinates of the chunk's points from `first` on belong.
  T* features(int64_t first) { return features_.data() + first * stride_; }
  T* points(int axis, int64_t first) { return points_[axis].data() + first; }

  // Adds a chunk: points begin..end-1 of all samples' points in turn, of which each sample has
  // `per_sample`, and `run` follow each other on a ray; 0 = points without rays.
  void add(int64_t begin, int64_t end, int64_t per_sample, int64_t run) {
    if (begin == end) return;
    const int64_t first_sample = begin / per_sample,
                  samples = (end - 1) / per_sample + 1 - first_sample;
    const int blocks = scatter_blocks<T>(static_cast<int>(sum_.size(2)));
    T* const data = sum_.template data_ptr<T>();
    for_each_block(
        samples * kPlanes * blocks, [] { return 0; },
        [&](int, int64_t task) {
          const int64_t sample = first_sample + task / (kPlanes * blocks);
          const int64_t from = std::max(begin, sample * per_sample) - begin,
                        to = std::min(end, (sample + 1) * per_sample) - begin;
          const T* const at[3] = {points(0, from), points(1, from), points(2, from)};
          const int plane = static_cast<int>(task / blocks % kPlanes),
                    block = static_cast<int>(task % blocks);
          scatter<T>(planes_of(sum_, data, sample), plane, block, mapping_, at, to - from,
                     run == 0 ? to - from : run, features(from), stride_);
        });
  }

  at::Tensor finish() { return sum_.is_same(result_) ? result_ : result_.copy_(sum_); }

 private:
  at::Tensor result_, sum_;
  const Mapping mapping_;
  const int stride_;
  Buffer<T> features_, points_[3];
};

// Gradients of the decoder's weights: each block of a chunk adds to its own, and these are added up
// in turn.
template <class T>
class WeightGradient {
  using Gradients = typename Decoder<T>::Gradients;

 public:
  WeightGradient(const Decoder<T>& decoder, int64_t blocks, bool is_wanted)
      : decoder_(decoder), total_(decoder), parts_(is_wanted ? blocks : 0, Gradients(decoder)) {}

  // Null where no gradients of weights are wanted.
  Gradients* part(int64_t block) { return parts_.empty() ? nullptr : &parts_[block]; }

  void add(int64_t blocks) {
    for (int64_t block = 0; block < std::min<int64_t>(blocks, parts_.size()); ++block) {
      total_.add(parts_[block]);
      parts_[block].clear();
    }
  }

  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> finish(
      const at::TensorOptions& options) const {
    const auto empty = [&](at::IntArrayRef sizes) {
      return at::empty(sizes, options.dtype(c10::CppTypeToScalarType<T>::value));
    };
    if (parts_.empty()) return {empty({0}), empty({0}), empty({0}), empty({0})};
    const int64_t hidden = decoder_.hidden, outputs = decoder_.colors + 1;
    at::Tensor w0 = empty({hidden, decoder_.features}), b0 = empty({hidden}),
               w1 = empty({outputs, hidden}), b1 = empty({outputs});
    decoder_.unpack(total_, w0.data_ptr<T>(), b0.data_ptr<T>(), w1.data_ptr<T>(), b1.data_ptr<T>());
    return {w0, b0, w1, b1};
  }

 private:
  const Decoder<T>& decoder_;
  Gradients total_;
  std::vector<Gradients> parts_;
};

}  // namespace open_eg3d::triplane
