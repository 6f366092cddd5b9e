// filtered_lrelu on the CPU. A worker takes sixteen planes (lanes.h) and goes down their fine rows.
// Of the upsampled image there is never more than a stretch of one row: it is filtered, activated,
// and summed into coarse columns at once. The sums of the last rows under the second filter wait in
// a ring, from which the rows of the result are made.
//
// Signs: a word for each pixel of the fine grid and sixteen planes; bit l = plane l was not
// positive, bit 16 + l = it was clamped.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/filters.h"
#include "cpu/lanes.h"
#include "fir.h"

namespace open_eg3d {
namespace {

constexpr int64_t kRowsAtOnce = 4;      // of the result
constexpr int64_t kFineRowsAtOnce = 8;  // at most
constexpr int64_t kStretch =
    64;  // columns of the result, for which fine pixels stay in the L1 cache
constexpr int64_t kChunk =
    16;  // columns, for which as many rows as a filter has taps stay in the L1 cache

enum class Signs { kNone, kWrite, kRead };

// A resampling with its filter along both axes.
template <class Number>
struct Stage {
  fir::Axis rows, columns;
  bool separable;
  std::vector<fir::Phase<Number>> down;
  std::vector<std::vector<fir::Phase<Number>>> across;  // one list, or one for each tap along y
  fir::Range inputs;  // columns that any output reads; some may lie outside the image

  Stage(const fir::Axis& rows, const fir::Axis& columns, const Filter<Number>& filter)
      : rows(rows), columns(columns), separable(filter.separable) {
    down = fir::make_phases(rows, separable ? filter.down : std::vector<Number>(filter.height, 1));
    if (separable) {
      across.push_back(fir::make_phases(columns, filter.across));
    } else {
      for (const auto& row : filter.full) across.push_back(fir::make_phases(columns, row));
    }
    inputs = {0, columns.size_in};
    for (const auto& phases : across) {
      const auto read = fir::inputs_of(columns, phases, {0, columns.size_out});
      inputs = {std::min(inputs.begin, read.begin), std::max(inputs.end, read.end)};
    }
  }

  int64_t pitch() const { return (inputs.end - inputs.begin) * kLanes; }

  // Input rows that output `row` reads, with the number of the first one's weight in its phase.
  struct InputRows {
    fir::Range range;
    int64_t first_weight;
  };
  InputRows rows_of(int64_t row) const {
    const auto& phase = down[row % rows.period()];
    const int64_t first = phase.first_input + row / rows.period() * rows.advance();
    const int64_t begin = std::max<int64_t>(first, 0);
    return {{begin, std::min<int64_t>(first + phase.weights.size(), rows.size_in)}, begin - first};
  }
  const Number* weights_of(int64_t row, int64_t first_weight) const {
    return down[row % rows.period()].weights.data() + first_weight;
  }
  int64_t tap_of(int64_t row, int64_t weight) const {
    return down[row % rows.period()].first_tap + weight * rows.up;
  }
};

// The filters of the alias-free layers, six taps per coarse sample, by loops of known length.
// Returns how many pixels are done.
template <class Number>
int64_t slide_where_known(const std::vector<Number>& weights, int64_t step, const Number* from,
                          Number* to, int64_t step_out, int64_t pixels) {
  if constexpr (Lanes<Number>::kParts == 1) {
    if (weights.size() == 6 && step == 1)
      return slide<Number, 6, 1>(from, weights.data(), to, step_out, pixels);
    if (weights.size() == 12 && step == 2)
      return slide<Number, 12, 2>(from, weights.data(), to, step_out, pixels);
    if (weights.size() == 24 && step == 4)
      return slide<Number, 24, 4>(from, weights.data(), to, step_out, pixels);
  }
  return 0;
}

// Sums along x: pixels [begin, end) of the result from a row whose first pixel is input `origin`.
template <class Number>
void sum_columns(const fir::Axis& columns, const std::vector<fir::Phase<Number>>& phases,
                 const Number* row, int64_t origin, fir::Range range, Number* to, bool add,
                 std::vector<const Number*>& taps) {
  const int64_t period = columns.period();
  for (int64_t i = 0; i < std::min(period, range.end - range.begin); ++i) {
    const int64_t output = range.begin + i;
    const auto& phase = phases[output % period];
    const Number* from =
        row + (phase.first_input + output / period * columns.advance() - origin) * kLanes;
    const int64_t pixels = (range.end - output + period - 1) / period;
    const int64_t done = add ? 0
                             : slide_where_known(phase.weights, columns.advance(), from,
                                                 to + i * kLanes, period * kLanes, pixels);
    from += done * columns.advance() * kLanes;
    taps.clear();
    for (size_t k = 0; k < phase.weights.size(); ++k)
      taps.push_back(from + static_cast<int64_t>(k) * kLanes);
    combine(taps.data(), columns.advance() * kLanes, phase.weights.data(), taps.size(),
            to + (i + done * period) * kLanes, period * kLanes, pixels - done, add);
  }
}

template <class Number>
struct LeakyRelu {
  Number gain, slope;
  std::optional<Number> clamp;
};

// Leaky ReLU, gain and clamp of one pixel after another, where they lie. NaN stays NaN, and counts
// as clamped if anything is.
template <class Number, Signs kSigns>
void apply_leaky_relu(Number* pixels, int64_t count, const LeakyRelu<Number>& leaky_relu,
                      uint32_t* words) {
  using L = Lanes<Number>;
  using Vector = typename L::Vector;
  using Mask = typename L::Mask;
  const Vector positive = L::fill(leaky_relu.gain),
               other = L::fill(leaky_relu.gain * leaky_relu.slope);
  const Vector top = L::fill(leaky_relu.clamp.value_or(std::numeric_limits<Number>::infinity()));
  for (int64_t i = 0; i < count; ++i) {
    uint32_t word = kSigns == Signs::kRead ? words[i] : 0;
    for (int part = 0; part < L::kParts; ++part) {
      Number* place = pixels + i * kLanes + part * L::kWidth;
      Vector value = L::load(place);
      if constexpr (kSigns == Signs::kRead) {
        const Mask negative = from_bits<Number>(word >> (part * L::kWidth));
        const Mask clamped = from_bits<Number>(word >> (kLanes + part * L::kWidth));
        value = clamped ? Vector{} : value * (negative ? other : positive);
      } else {
        const Mask negative = ~(value > 0);
        value *= negative ? other : positive;
        if (leaky_relu.clamp) {
          if constexpr (kSigns == Signs::kWrite) {
            const Mask clamped = ~((value <= top) & (value >= -top));
            word |= to_bits<Number>(clamped) << (kLanes + part * L::kWidth);
          }
          value = value > top ? top : value;
          value = value < -top ? -top : value;
        }
        if constexpr (kSigns == Signs::kWrite)
          word |= to_bits<Number>(negative) << (part * L::kWidth);
      }
      L::store(value, place);
    }
    if constexpr (kSigns == Signs::kWrite) words[i] = word;
  }
}

// How planes are dealt out to blocks of lanes: by sizes alone, so that signs fit to gradients of
// any memory format. Blocks of a sample of fewer planes than lanes would be mostly empty; there,
// samples share blocks.
struct Blocks {
  int64_t samples, channels;

  int64_t group() const { return channels >= kLanes ? channels : samples * channels; }
  int64_t per_group() const { return (group() + kLanes - 1) / kLanes; }
  int64_t count() const { return (channels >= kLanes ? samples : 1) * per_group(); }
  int64_t first_plane(int64_t block) const {
    return block / per_group() * group() + block % per_group() * kLanes;
  }
  int lanes(int64_t block) const {
    return static_cast<int>(std::min<int64_t>(kLanes, group() - block % per_group() * kLanes));
  }

  Planes planes(int64_t block, int64_t stride_sample, int64_t stride_plane) const {
    Planes result;
    result.count = lanes(block);
    for (int lane = 0; lane < result.count; ++lane) {
      const int64_t plane = first_plane(block) + lane;
      result.offsets[lane] = plane / channels * stride_sample + plane % channels * stride_plane;
      result.adjacent = result.adjacent && result.offsets[lane] == result.offsets[0] + lane;
    }
    return result;
  }
};

template <class Stored>
struct Images {
  Stored* data;
  std::array<int64_t, 4> strides;  // sample, plane, row, column
};

template <class Stored>
struct Problem {
  Images<const Stored> x;
  Images<Stored> y;
  Blocks blocks;
  Stage<Sum<Stored>> first, second;
  LeakyRelu<Sum<Stored>> leaky_relu;
  std::vector<Sum<Stored>> bias;  // one per channel, or empty
  uint32_t* signs;                // blocks x fine rows x fine columns
  Signs use;
};

template <class Stored>
class Worker {
  using Number = Sum<Stored>;

 public:
  explicit Worker(const Problem<Stored>& problem) : p_(problem) {
    const auto& [first, second] = std::tie(p_.first, p_.second);
    const int64_t fine = std::min(kFineRowsAtOnce, first.rows.size_out);
    input_rows_ = (fine + static_cast<int64_t>(first.down[0].weights.size() + 1) * first.rows.up) /
                      first.rows.up +
                  2;
    inputs_.resize(input_rows_ * first.pitch());
    mixed_.resize(fine * first.pitch());
    wait_rows_ = (kRowsAtOnce - 1) * second.rows.down + taps_down() + kFineRowsAtOnce;
    wait_pitch_ = second.separable ? second.columns.size_out * kLanes : second.pitch();
    waiting_.resize(wait_rows_ * wait_pitch_);
    if (second.separable)
      stretch_.resize(((kStretch + 1) * second.columns.down + fine_reach()) * kLanes);
    made_.resize(kRowsAtOnce * second.columns.size_out * kLanes);
  }

  // Rows [begin, end) of the result for a block of planes.
  void run(int64_t block, fir::Range rows) {
    const auto& second = p_.second;
    const int64_t fine_rows = second.rows.size_in;
    block_ = block;
    from_ = p_.blocks.planes(block, p_.x.strides[0], p_.x.strides[1]);
    to_ = p_.blocks.planes(block, p_.y.strides[0], p_.y.strides[1]);
    for (int lane = 0; lane < from_.count; ++lane)
      bias_[lane] =
          p_.bias.empty() ? 0 : p_.bias[(p_.blocks.first_plane(block) + lane) % p_.blocks.channels];
    const bool is_first = rows.begin == 0, is_last = rows.end == second.rows.size_out;
    own_ = {is_first ? 0 : second.rows_of(rows.begin).range.begin,
            is_last ? fine_rows : second.rows_of(rows.end).range.begin};
    fine_end_ = second.rows_of(rows.begin).range.begin;
    input_end_ = 0;
    for (int64_t row = rows.begin; row < rows.end; row += kRowsAtOnce) {
      const int64_t end = std::min(row + kRowsAtOnce, rows.end);
      make_fine_rows(second.rows_of(end - 1).range.end);
      finish_rows({row, end});
    }
    if (p_.use == Signs::kWrite)
      make_fine_rows(own_.end);  // a filter shorter than the factor leaves rows out
  }

 private:
  int64_t taps_down() const {
    return p_.second.separable ? p_.second.down[0].weights.size() : p_.second.across.size();
  }
  int64_t fine_reach() const { return p_.second.across[0][0].weights.size(); }
  Number* input_row(int64_t row) { return inputs_.data() + row % input_rows_ * p_.first.pitch(); }
  Number* waiting_row(int64_t row) { return waiting_.data() + row % wait_rows_ * wait_pitch_; }

  void make_fine_rows(int64_t end) {
    while (fine_end_ < end) {
      const fir::Range rows{fine_end_, std::min(fine_end_ + kFineRowsAtOnce, end)};
      load_inputs(rows);
      if (p_.first.separable) mix_inputs(rows);
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        if (p_.second.separable) {
          activate_and_sum(row, row - rows.begin);
        } else {
          Number* to = waiting_row(row) - p_.second.inputs.begin * kLanes;
          make_fine_pixels(row, row - rows.begin, {0, p_.second.columns.size_in}, to);
        }
      }
      fine_end_ = rows.end;
    }
  }

  void load_inputs(fir::Range fine_rows) {
    const auto& first = p_.first;
    int64_t begin = first.rows.size_in, end = 0;
    for (int64_t row = fine_rows.begin; row < fine_rows.end; ++row) {
      const auto rows = first.rows_of(row).range;
      begin = std::min(begin, rows.begin);
      end = std::max(end, rows.end);
    }
    for (int64_t row = std::max(begin, input_end_); row < end; ++row) {
      Number* to = input_row(row) - first.inputs.begin * kLanes;
      load_pixels(p_.x.data + row * p_.x.strides[2], from_, p_.x.strides[3], first.columns.size_in,
                  bias_.data(), to);
    }
    input_end_ = std::max(input_end_, end);
  }

  void mix_inputs(fir::Range fine_rows) {
    const auto& first = p_.first;
    for (int64_t begin = 0; begin < first.pitch(); begin += kChunk * kLanes) {
      const int64_t pixels = std::min(kChunk * kLanes, first.pitch() - begin) / kLanes;
      for (int64_t row = fine_rows.begin; row < fine_rows.end; ++row) {
        const auto [rows, weight] = first.rows_of(row);
        taps_.clear();
        for (int64_t input = rows.begin; input < rows.end; ++input)
          taps_.push_back(input_row(input) + begin);
        Number* to = mixed_.data() + (row - fine_rows.begin) * first.pitch() + begin;
        combine(taps_.data(), kLanes, first.weights_of(row, weight), taps_.size(), to, kLanes,
                pixels, false);
      }
    }
  }

  // Fine pixels of a range of columns after the leaky ReLU; `to` is where column 0 would lie.
  // `index` = the row's place among the mixed ones.
  void make_fine_pixels(int64_t row, int64_t index, fir::Range columns, Number* to) {
    const auto& first = p_.first;
    Number* pixels = to + columns.begin * kLanes;
    if (first.separable) {
      sum_columns(first.columns, first.across[0], mixed_.data() + index * first.pitch(),
                  first.inputs.begin, columns, pixels, false, taps_);
    } else {
      const auto [rows, weight] = first.rows_of(row);
      if (rows.begin >= rows.end)
        std::fill(pixels, pixels + (columns.end - columns.begin) * kLanes, Number(0));
      for (int64_t input = rows.begin; input < rows.end; ++input) {
        const auto& phases = first.across[first.tap_of(row, weight + input - rows.begin)];
        sum_columns(first.columns, phases, input_row(input), first.inputs.begin, columns, pixels,
                    input > rows.begin, taps_);
      }
    }
    const bool is_owned = own_.begin <= row && row < own_.end;
    uint32_t* words =
        p_.signs + ((block_ * first.rows.size_out + row) * first.columns.size_out + columns.begin);
    const int64_t count = columns.end - columns.begin;
    if (p_.use == Signs::kRead) {
      apply_leaky_relu<Number, Signs::kRead>(pixels, count, p_.leaky_relu, words);
    } else if (p_.use == Signs::kWrite && is_owned) {
      apply_leaky_relu<Number, Signs::kWrite>(pixels, count, p_.leaky_relu, words);
    } else {
      apply_leaky_relu<Number, Signs::kNone>(pixels, count, p_.leaky_relu, nullptr);
    }
  }

  // A fine row, stretch by stretch, summed into the columns of the result. Stretches overlap by
  // what the filter reaches; those pixels are kept, not made again.
  void activate_and_sum(int64_t row, int64_t index) {
    const auto& columns = p_.second.columns;
    const int64_t fine = columns.size_in;
    int64_t origin = 0,
            done = 0;  // the fine column at the start of the buffer, and the first one not made
    for (int64_t begin = 0; begin < columns.size_out; begin += kStretch) {
      const int64_t end = std::min(begin + kStretch, columns.size_out);
      auto needed = fir::inputs_of(columns, p_.second.across[0], {begin, end});
      if (begin > 0)
        needed.begin =
            std::min(needed.begin, done);  // a filter shorter than the factor leaves columns out
      const int64_t kept = begin == 0 ? 0 : std::max<int64_t>(done - needed.begin, 0);
      if (kept > 0)
        std::memmove(stretch_.data(), stretch_.data() + (needed.begin - origin) * kLanes,
                     kept * kLanes * sizeof(Number));
      origin = needed.begin;
      const fir::Range made{std::clamp<int64_t>(needed.begin + kept, 0, fine),
                            std::clamp<int64_t>(needed.end, 0, fine)};
      Number* to = stretch_.data() - origin * kLanes;
      std::fill(to + (origin + kept) * kLanes, to + std::max(made.begin, origin + kept) * kLanes,
                Number(0));
      if (made.begin < made.end) make_fine_pixels(row, index, made, to);
      std::fill(to + std::max(made.end, origin + kept) * kLanes, to + needed.end * kLanes,
                Number(0));
      done = needed.end;
      Number* sums = waiting_row(row) + begin * kLanes;
      sum_columns(columns, p_.second.across[0], stretch_.data(), origin, {begin, end}, sums, false,
                  taps_);
    }
  }

  void finish_rows(fir::Range rows) {
    const auto& second = p_.second;
    const int64_t width = second.columns.size_out, pitch = width * kLanes;
    if (second.separable) {
      for (int64_t begin = 0; begin < width; begin += kChunk)
        for (int64_t row = rows.begin; row < rows.end; ++row) {
          const auto [range, weight] = second.rows_of(row);
          taps_.clear();
          for (int64_t fine = range.begin; fine < range.end; ++fine)
            taps_.push_back(waiting_row(fine) + begin * kLanes);
          Number* to = made_.data() + (row - rows.begin) * pitch + begin * kLanes;
          combine(taps_.data(), kLanes, second.weights_of(row, weight), taps_.size(), to, kLanes,
                  std::min(kChunk, width - begin), false);
        }
    } else {
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const auto [range, weight] = second.rows_of(row);
        Number* to = made_.data() + (row - rows.begin) * pitch;
        std::fill(to, to + pitch, Number(0));
        for (int64_t fine = range.begin; fine < range.end; ++fine) {
          const auto& phases = second.across[second.tap_of(row, weight + fine - range.begin)];
          sum_columns(second.columns, phases, waiting_row(fine), second.inputs.begin, {0, width},
                      to, true, taps_);
        }
      }
    }
    for (int64_t row = rows.begin; row < rows.end; ++row)
      store_pixels(made_.data() + (row - rows.begin) * pitch, p_.y.data + row * p_.y.strides[2],
                   to_, p_.y.strides[3], width);
  }

  const Problem<Stored>& p_;
  int64_t block_ = 0, fine_end_ = 0, input_end_ = 0;
  int64_t input_rows_ = 0, wait_rows_ = 0, wait_pitch_ = 0;
  fir::Range own_{0, 0};  // fine rows whose signs this worker writes, and no other
  Planes from_, to_;
  std::array<Number, kLanes> bias_{};
  Buffer<Number> inputs_, mixed_, stretch_, waiting_, made_;
  std::vector<const Number*> taps_;
};

template <class Stored>
void run(const Problem<Stored>& problem) {
  const int64_t blocks = problem.blocks.count(), height = problem.second.rows.size_out;
  const int64_t wanted = (4 * at::get_num_threads() + blocks - 1) / blocks;
  const int64_t band = std::max<int64_t>((height + wanted - 1) / wanted, 32),
                bands = (height + band - 1) / band;
  at::parallel_for(0, blocks * bands, 1, [&](int64_t begin, int64_t end) {
    Worker<Stored> worker(problem);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task % bands * band;
      worker.run(task / bands, {row, std::min(row + band, height)});
    }
  });
}

bool is_channels_last(const at::Tensor& x) {
  return x.size(1) > 1 && x.stride(1) == 1 && !x.is_contiguous();
}

at::Tensor make_result(const at::Tensor& x, int64_t height, int64_t width) {
  const auto format =
      is_channels_last(x) ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  return at::empty(
      {x.size(0), x.size(1), std::max<int64_t>(height, 0), std::max<int64_t>(width, 0)},
      x.options(), format);
}

template <class Stored>
Problem<Stored> make_problem(const at::Tensor& x, const at::Tensor& y, const fir::Axis (&axes)[4],
                             const Filter<Sum<Stored>>& first, const Filter<Sum<Stored>>& second,
                             LeakyRelu<Sum<Stored>> leaky_relu, const at::Tensor& signs,
                             Signs use) {
  return {{x.const_data_ptr<Stored>(), {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}},
          {y.mutable_data_ptr<Stored>(), {y.stride(0), y.stride(1), y.stride(2), y.stride(3)}},
          {x.size(0), x.size(1)},
          {axes[0], axes[1], first},
          {axes[2], axes[3], second},
          leaky_relu,
          {},
          use == Signs::kNone ? nullptr : reinterpret_cast<uint32_t*>(signs.data_ptr<int32_t>()),
          use};
}

// Size that `taps` taps leave of `size` numbers.
int64_t filtered_size(int64_t size, int64_t taps, int64_t down) {
  return size < taps ? 0 : (size - taps) / down + 1;
}

std::tuple<at::Tensor, at::Tensor> filtered_lrelu(
    const at::Tensor& x, const at::Tensor& up_filter, const at::Tensor& down_filter,
    const std::optional<at::Tensor>& bias, int64_t up, int64_t down, at::IntArrayRef padding,
    double gain, double slope, std::optional<double> clamp, bool flip_filter, bool keep_signs) {
  TORCH_CHECK(x.dim() == 4, "x has ", x.dim(), " dimensions instead of 4");
  TORCH_CHECK(up > 0 && down > 0, "factors are positive numbers");
  TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == x.size(1)),
              "bias needs one number for each of ", x.size(1), " channels");
  const int64_t taps_y = down_filter.size(0), taps_x = down_filter.size(-1);
  const int64_t height = filtered_size(
      filtered_size(x.size(2) * up + padding[2] + padding[3], up_filter.size(0), 1), taps_y, down);
  const int64_t width = filtered_size(
      filtered_size(x.size(3) * up + padding[0] + padding[1], up_filter.size(-1), 1), taps_x, down);
  const int64_t fine_height = std::max<int64_t>((height - 1) * down + taps_y, 0),
                fine_width = std::max<int64_t>((width - 1) * down + taps_x, 0);
  at::Tensor y = make_result(x, height, width);
  const Blocks blocks{x.size(0), x.size(1)};
  const bool is_empty = y.numel() == 0;
  const int64_t kept = keep_signs && !is_empty ? blocks.count() : 0;
  at::Tensor signs =
      at::empty({kept, fine_height, fine_width},
                x.options().dtype(at::kInt).memory_format(at::MemoryFormat::Contiguous));
  if (is_empty) return {y, signs};
  const fir::Axis axes[4]{{x.size(2), fine_height, up, 1, padding[2]},
                          {x.size(3), fine_width, up, 1, padding[0]},
                          {fine_height, height, 1, down, 0},
                          {fine_width, width, 1, down, 0}};
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "filtered_lrelu", [&] {
    using Number = Sum<scalar_t>;
    LeakyRelu<Number> leaky_relu{
        static_cast<Number>(gain * up * up), static_cast<Number>(slope), {}};
    if (clamp) leaky_relu.clamp = static_cast<Number>(*clamp);
    auto problem =
        make_problem<scalar_t>(x, y, axes, make_filter<Number>(up_filter, flip_filter, 1),
                               make_filter<Number>(down_filter, flip_filter, 1), leaky_relu, signs,
                               keep_signs ? Signs::kWrite : Signs::kNone);
    if (bias) {
      const at::Tensor numbers = bias->to(c10::CppTypeToScalarType<Number>::value).contiguous();
      problem.bias.assign(numbers.const_data_ptr<Number>(),
                          numbers.const_data_ptr<Number>() + numbers.numel());
    }
    run(problem);
  });
  return {y, signs};
}

at::Tensor filtered_lrelu_by_signs(const at::Tensor& x, const at::Tensor& signs,
                                   const at::Tensor& first_filter, const at::Tensor& second_filter,
                                   int64_t up, int64_t down, at::IntArrayRef first_padding,
                                   at::IntArrayRef second_padding, at::IntArrayRef size,
                                   double gain, double slope, bool flip_filter) {
  at::Tensor y = make_result(x, size[1], size[0]);
  if (y.numel() == 0) return y;
  if (x.numel() == 0) return y.zero_();
  const Blocks blocks{x.size(0), x.size(1)};
  TORCH_CHECK(signs.dim() == 3 && signs.size(0) == blocks.count() &&
                  signs.scalar_type() == at::kInt && signs.is_contiguous(),
              "signs of other images, or none kept");
  const int64_t fine_height = signs.size(1), fine_width = signs.size(2);
  const fir::Axis axes[4]{{x.size(2), fine_height, up, 1, first_padding[1]},
                          {x.size(3), fine_width, up, 1, first_padding[0]},
                          {fine_height, size[1], 1, down, second_padding[1]},
                          {fine_width, size[0], 1, down, second_padding[0]}};
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "filtered_lrelu_by_signs", [&] {
        using Number = Sum<scalar_t>;
        const LeakyRelu<Number> leaky_relu{
            static_cast<Number>(gain), static_cast<Number>(slope), {}};
        run(make_problem<scalar_t>(x, y, axes, make_filter<Number>(first_filter, flip_filter, 1),
                                   make_filter<Number>(second_filter, flip_filter, 1), leaky_relu,
                                   signs, Signs::kRead));
      });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(open_eg3d, CPU, m) {
  m.impl("filtered_lrelu", filtered_lrelu);
  m.impl("filtered_lrelu_by_signs", filtered_lrelu_by_signs);
}

}  // namespace open_eg3d
