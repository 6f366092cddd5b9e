// upfirdn2d on the CPU. A row of an NCHW plane and a row of channels-last pixels are the same to
// this kernel: `pixel` numbers (1, or all channels) for each of `width` places. Per output row, the
// input rows under the filter are first summed into one row, which stays in the L1 cache; then
// pixels of that row are summed along x. No zero that was inserted is ever multiplied.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "cpu/filters.h"
#include "cpu/fir_rows.h"
#include "fir.h"

namespace open_eg3d {
namespace {

constexpr int64_t kTileNumbers = 4096;  // of an output row: 16 KiB of float
constexpr int64_t kBlockRows = 32;      // of the output, a thread's share at a time
constexpr int64_t kWidePixel =
    8;  // numbers; from here on loops run over a pixel, below along the row

template <class Stored>
struct Problem {
  fir::Axis rows, columns;
  const Stored* x;
  Stored* y;
  int64_t samples, planes, pixel;  // planes = channels or 1, pixel = 1 or channels
  int64_t stride_sample, stride_plane,
      stride_row;  // of x; pixels and their numbers are consecutive
  bool separable;
  std::vector<fir::Phase<Sum<Stored>>> down;  // taps along y
  std::vector<std::vector<fir::Phase<Sum<Stored>>>>
      across;  // taps along x: one list, or one for each tap along y

  int64_t tile_width() const {
    const int64_t period = columns.period();
    return std::max<int64_t>(kTileNumbers / pixel / period, 1) * period;
  }
};

// Buffers of a thread for one tile: a stretch of columns, for some output rows one after another.
template <class Stored>
class Tile {
  using Number = Sum<Stored>;

 public:
  Tile(const Problem<Stored>& problem) : p_(problem) {}

  void run(int64_t image, fir::Range rows, fir::Range columns) {
    place(columns);
    const Stored* x =
        p_.x + (image / p_.planes) * p_.stride_sample + (image % p_.planes) * p_.stride_plane;
    Stored* y = p_.y + image * p_.rows.size_out * p_.columns.size_out * p_.pixel;
    for (int64_t row = rows.begin; row < rows.end; ++row)
      make_row(x, y + (row * p_.columns.size_out + columns.begin) * p_.pixel, row);
  }

 private:
  void place(fir::Range columns) {
    width_ = columns.end - columns.begin;
    inputs_ = fir::inputs_of(p_.columns, p_.across[0], columns);
    for (const auto& phases : p_.across) {
      const auto inputs = fir::inputs_of(p_.columns, phases, columns);
      inputs_ = {std::min(inputs_.begin, inputs.begin), std::max(inputs_.end, inputs.end)};
    }
    shift_ = columns.begin / p_.columns.period() * p_.columns.advance() - inputs_.begin;
    const int64_t size = std::max<int64_t>(inputs_.end - inputs_.begin, 0) * p_.pixel;
    mixed_.assign(size, Number(0));  // what lies outside the image stays zero
    parted_.resize(size + p_.columns.advance() * p_.pixel);
    phases_.resize((width_ + p_.columns.period()) * p_.pixel);
    sums_.resize(width_ * p_.pixel);
  }

  void make_row(const Stored* x, Stored* y, int64_t row) {
    Number* sums = target(y);
    const auto& phase = p_.down[row % p_.rows.period()];
    const int64_t first = phase.first_input + row / p_.rows.period() * p_.rows.advance();
    const int64_t begin = std::max<int64_t>(-first, 0);
    const int64_t end = std::min<int64_t>(phase.weights.size(), p_.rows.size_in - first);
    bool is_begun = false;
    if (p_.separable) {
      mix_rows(x, first + begin, phase.weights.data() + begin, end - begin);
      filter_columns(p_.across[0], sums, false);
      is_begun = true;
    } else {
      const Number one = 1;
      for (int64_t k = begin; k < end; ++k, is_begun = true) {
        mix_rows(x, first + k, &one, 1);
        filter_columns(p_.across[phase.first_tap + k * p_.rows.up], sums, is_begun);
      }
    }
    if (!is_begun) std::fill(sums, sums + width_ * p_.pixel, Number(0));
    if constexpr (!std::is_same_v<Stored, Number>) narrow_row(sums, y, width_ * p_.pixel);
  }

  Number* target(Stored* y) {
    if constexpr (std::is_same_v<Stored, Number>) return y;
    return sums_.data();
  }

  void mix_rows(const Stored* x, int64_t first, const Number* weights, int64_t count) {
    const int64_t begin = std::max<int64_t>(inputs_.begin, 0),
                  end = std::min<int64_t>(inputs_.end, p_.columns.size_in);
    if (begin >= end) return;
    rows_.clear();
    for (int64_t k = 0; k < count; ++k)
      rows_.push_back(x + (first + k) * p_.stride_row + begin * p_.pixel);
    Number* to = mixed_.data() + (begin - inputs_.begin) * p_.pixel;
    weigh_rows(std::max<int64_t>(count, 0), rows_.data(), weights, to, (end - begin) * p_.pixel,
               false);
  }

  void filter_columns(const std::vector<fir::Phase<Number>>& phases, Number* sums, bool add) {
    if (p_.pixel >= kWidePixel) {
      filter_wide_pixels(phases, sums, add);
    } else {
      filter_narrow_pixels(phases, sums, add);
    }
  }

  int64_t count_of(int64_t phase) const {
    return (width_ - phase + p_.columns.period() - 1) / p_.columns.period();
  }

  void filter_wide_pixels(const std::vector<fir::Phase<Number>>& phases, Number* sums, bool add) {
    const int64_t period = p_.columns.period(), step_in = p_.columns.advance() * p_.pixel;
    for (int64_t p = 0; p < std::min(period, width_); ++p) {
      const int64_t taps = phases[p].weights.size();
      const Number* from = mixed_.data() + (phases[p].first_input + shift_) * p_.pixel;
      Number* to = sums + p * p_.pixel;
      if (taps == 0 && !add) {
        for (int64_t j = 0; j < count_of(p); ++j)
          std::fill_n(to + j * period * p_.pixel, p_.pixel, Number(0));
      }
      for (int64_t k = 0; k < taps; k += kRowsAtOnce) {
        const int some = static_cast<int>(std::min<int64_t>(kRowsAtOnce, taps - k));
        filter_pixels(some, add || k > 0, from + k * p_.pixel, step_in,
                      phases[p].weights.data() + k, to, period * p_.pixel, count_of(p));
      }
    }
  }

  void filter_pixels(int taps, bool add, const Number* from, int64_t step_in, const Number* weights,
                     Number* to, int64_t step_out, int64_t count) {
    const Number* pixels[kRowsAtOnce];
    for (int64_t j = 0; j < count; ++j, from += step_in, to += step_out) {
      for (int k = 0; k < kRowsAtOnce; ++k) pixels[k] = from + k * p_.pixel;
      if (add) {
        add_some_rows<true>(taps, pixels, weights, to, p_.pixel);
      } else {
        add_some_rows<false>(taps, pixels, weights, to, p_.pixel);
      }
    }
  }

  void filter_narrow_pixels(const std::vector<fir::Phase<Number>>& phases, Number* sums, bool add) {
    const int64_t period = p_.columns.period(), advance = p_.columns.advance(), pixel = p_.pixel;
    const int64_t inputs = mixed_.size() / pixel, part = ((inputs + advance - 1) / advance) * pixel;
    if (advance > 1)
      for (int64_t s = 0; s < std::min(advance, inputs); ++s)
        take_every(mixed_.data() + s * pixel, advance, parted_.data() + s * part,
                   (inputs - s + advance - 1) / advance, pixel);
    const Number* from = advance > 1 ? parted_.data() : mixed_.data();
    const int64_t room = (width_ / period + 1) * pixel;
    for (int64_t p = 0; p < std::min(period, width_); ++p) {
      pixels_.clear();
      for (size_t k = 0; k < phases[p].weights.size(); ++k) {
        const int64_t input = phases[p].first_input + shift_ + k;
        pixels_.push_back(from + (input % advance) * part + (input / advance) * pixel);
      }
      Number* to = period > 1 ? phases_.data() + p * room : sums;
      weigh_rows<Number>(pixels_.size(), pixels_.data(), phases[p].weights.data(), to,
                         count_of(p) * pixel, add);
    }
    if (period > 1) join_phases(sums, room);
  }

  void join_phases(Number* sums, int64_t room) {
    const int64_t period = p_.columns.period();
    if (period == 2 && p_.pixel == 1) {
      zip(phases_.data(), phases_.data() + room, sums, width_ / 2);
      if (width_ % 2) sums[width_ - 1] = phases_[width_ / 2];
      return;
    }
    for (int64_t p = 0; p < std::min(period, width_); ++p)
      put_every(phases_.data() + p * room, sums + p * p_.pixel, period, count_of(p), p_.pixel);
  }

  const Problem<Stored>& p_;
  int64_t width_ = 0, shift_ = 0;
  fir::Range inputs_{0, 0};
  std::vector<Number> mixed_, parted_, phases_, sums_;
  std::vector<const Stored*> rows_;
  std::vector<const Number*> pixels_;
};

template <class Stored>
void run(const Problem<Stored>& problem) {
  const int64_t width = problem.columns.size_out, height = problem.rows.size_out,
                tile = problem.tile_width();
  const int64_t across = (width + tile - 1) / tile, blocks = (height + kBlockRows - 1) / kBlockRows;
  const int64_t tasks = problem.samples * problem.planes * blocks * across;
  const int64_t numbers = std::min(tile, width) * problem.pixel * std::min(kBlockRows, height);
  at::parallel_for(0, tasks, std::max<int64_t>(1, 16384 / std::max<int64_t>(numbers, 1)),
                   [&](int64_t begin, int64_t end) {
                     Tile<Stored> worker(problem);
                     for (int64_t task = begin; task < end; ++task) {
                       const int64_t column = task % across * tile,
                                     row = task / across % blocks * kBlockRows;
                       worker.run(task / across / blocks, {row, std::min(row + kBlockRows, height)},
                                  {column, std::min(column + tile, width)});
                     }
                   });
}

int64_t output_size(int64_t size, int64_t up, int64_t down, int64_t padding, int64_t taps) {
  const int64_t room = size * up + padding - taps;  // less than zero: the filter does not fit
  return room < 0 ? 0 : room / down + 1;
}

at::Tensor upfirdn2d(const at::Tensor& x, const at::Tensor& filter, at::IntArrayRef up,
                     at::IntArrayRef down, at::IntArrayRef padding, bool flip_filter, double gain) {
  TORCH_CHECK(x.dim() == 4, "x has ", x.dim(), " dimensions instead of 4");
  TORCH_CHECK(filter.dim() == 1 || filter.dim() == 2, "the filter has ", filter.dim(),
              " dimensions instead of 1 or 2");
  TORCH_CHECK(up[0] > 0 && up[1] > 0 && down[0] > 0 && down[1] > 0, "factors are positive numbers");
  const int64_t channels = x.size(1), taps_x = filter.size(-1), taps_y = filter.size(0);
  const fir::Axis rows{x.size(2),
                       output_size(x.size(2), up[1], down[1], padding[2] + padding[3], taps_y),
                       up[1], down[1], padding[2]};
  const fir::Axis columns{x.size(3),
                          output_size(x.size(3), up[0], down[0], padding[0] + padding[1], taps_x),
                          up[0], down[0], padding[0]};
  const bool channels_last = channels > 1 && x.stride(1) == 1 && !x.is_contiguous();
  const auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  at::Tensor y =
      at::empty({x.size(0), channels, rows.size_out, columns.size_out}, x.options(), format);
  if (y.numel() == 0) return y;
  const int64_t pixel = channels_last ? channels : 1;
  const at::Tensor source = x.stride(3) == pixel || x.size(3) == 1 ? x : x.contiguous(format);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "upfirdn2d", [&] {
    using Number = Sum<scalar_t>;
    const auto taps = make_filter<Number>(filter, flip_filter, gain);
    Problem<scalar_t> problem{rows,
                              columns,
                              source.const_data_ptr<scalar_t>(),
                              y.mutable_data_ptr<scalar_t>(),
                              x.size(0),
                              channels_last ? 1 : channels,
                              pixel,
                              source.stride(0),
                              source.stride(1),
                              source.stride(2),
                              taps.separable,
                              {},
                              {}};
    problem.down =
        fir::make_phases(rows, taps.separable ? taps.down : std::vector<Number>(taps.height, 1));
    if (taps.separable) {
      problem.across.push_back(fir::make_phases(columns, taps.across));
    } else {
      for (const auto& row : taps.full) problem.across.push_back(fir::make_phases(columns, row));
    }
    run(problem);
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(open_eg3d, CPU, m) { m.impl("upfirdn2d", upfirdn2d); }

}  // namespace open_eg3d
