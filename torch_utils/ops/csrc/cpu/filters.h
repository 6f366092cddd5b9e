// Filters as the CPU kernels use them: correlation kernels, separated wherever they are outer
// products.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <limits>
#include <vector>

namespace open_eg3d {

// `down` and `across` are one pair of factors where `separable`; otherwise `full` holds one row of
// taps after another.
template <class Number>
struct Filter {
  int64_t height = 1, width = 1;
  bool separable = true;
  std::vector<Number> down, across;
  std::vector<std::vector<Number>> full;
};

// Factors of rows[i][j] = down[i] * across[j]: the row and column of the largest tap. They serve if
// they give every tap to within rounding.
template <class Number>
bool separate(const std::vector<std::vector<Number>>& rows, std::vector<Number>& down,
              std::vector<Number>& across) {
  size_t peak_row = 0, peak_column = 0;
  for (size_t i = 0; i < rows.size(); ++i)
    for (size_t j = 0; j < rows[0].size(); ++j)
      if (std::abs(rows[i][j]) > std::abs(rows[peak_row][peak_column]))
        peak_row = i, peak_column = j;
  const Number peak = rows[peak_row][peak_column];
  down.clear();
  across = rows[peak_row];
  for (const auto& row : rows) down.push_back(peak == 0 ? 0 : row[peak_column] / peak);
  const Number tolerance = 4 * std::numeric_limits<Number>::epsilon() * std::abs(peak);
  for (size_t i = 0; i < rows.size(); ++i)
    for (size_t j = 0; j < rows[0].size(); ++j)
      if (!(std::abs(rows[i][j] - down[i] * across[j]) <= tolerance)) return false;
  return true;
}

// `filter` (k,) or (h, w) of any floating dtype as a correlation kernel times `gain`.
template <class Number>
Filter<Number> make_filter(const at::Tensor& filter, bool flip, double gain) {
  const at::Tensor taps = filter.to(at::kDouble).contiguous();
  const double* data = taps.const_data_ptr<double>();
  Filter<Number> result;
  result.width = taps.size(-1);
  result.height = taps.dim() == 1 ? result.width : taps.size(0);
  const auto at_place = [&](int64_t i, int64_t size) { return flip ? i : size - 1 - i; };
  if (taps.dim() == 1) {
    for (int64_t j = 0; j < result.width; ++j)
      result.across.push_back(data[at_place(j, result.width)]);
    for (int64_t i = 0; i < result.height; ++i)
      result.down.push_back(data[at_place(i, result.height)] * gain);
    return result;
  }
  for (int64_t i = 0; i < result.height; ++i) {
    std::vector<Number> row;
    for (int64_t j = 0; j < result.width; ++j)
      row.push_back(data[at_place(i, result.height) * result.width + at_place(j, result.width)] *
                    gain);
    result.full.push_back(std::move(row));
  }
  result.separable = separate(result.full, result.down, result.across);
  return result;
}

}  // namespace open_eg3d
