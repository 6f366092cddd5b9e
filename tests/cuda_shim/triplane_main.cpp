// Runs render_rays or decode_points, forward and backward, on a case from a file and writes what
// comes out: triplane CASE RESULT ...
//
// tests/torch_utils/ops/test_cuda_triplane.py writes the cases and compares. A case is a list of
// 64-bit integers, a list of doubles, and arrays, each with its length in front; so is a result,
// arrays alone. Every array is a heap block of exactly its size. Where kernels refuse a case, its
// result's name and the reason are printed. With "--launch" in front, each kernel is launched, and
// gradients are not added up.
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "cuda/decode_points.h"
#include "cuda/numbers.h"
#include "cuda/render_rays.h"

namespace {

using namespace open_eg3d::cuda;

bool only_launches = false;

// A heap block; null where there is nothing in it.
struct Array {
  std::unique_ptr<unsigned char[]> memory;
  size_t bytes = 0;

  explicit Array(size_t bytes_, int filling = 0)
      : memory(bytes_ > 0 ? new unsigned char[bytes_] : nullptr), bytes(bytes_) {
    if (bytes > 0) std::memset(memory.get(), filling, bytes);
  }
  void* data() const { return memory.get(); }
};

class Case {
 public:
  explicit Case(const char* path) : file_(std::fopen(path, "rb")) {
    if (file_ == nullptr) std::exit(2);
    const int64_t integers = integer();
    for (int64_t i = 0; i < integers; ++i) integers_.push_back(integer());
    const int64_t doubles = integer();
    for (int64_t i = 0; i < doubles; ++i) read(&numbers_.emplace_back(), sizeof(double));
  }
  ~Case() { std::fclose(file_); }

  int64_t next_integer() { return integers_.at(next_integer_++); }
  double next_number() { return numbers_.at(next_number_++); }
  Array next_array() {
    Array array(static_cast<size_t>(integer()));
    read(array.data(), array.bytes);
    return array;
  }

 private:
  int64_t integer() {
    int64_t value;
    read(&value, sizeof value);
    return value;
  }
  void read(void* to, size_t bytes) {
    if (bytes > 0 && std::fread(to, bytes, 1, file_) != 1) std::exit(2);
  }

  std::FILE* file_;
  std::vector<int64_t> integers_;
  std::vector<double> numbers_;
  size_t next_integer_ = 0, next_number_ = 0;
};

class Result {
 public:
  explicit Result(const char* path) : file_(std::fopen(path, "wb")) {}
  ~Result() { std::fclose(file_); }

  void write(const void* data, size_t bytes) {
    const int64_t length = static_cast<int64_t>(bytes);
    std::fwrite(&length, sizeof length, 1, file_);
    if (bytes > 0) std::fwrite(data, bytes, 1, file_);
  }
  void write(const Array& array) { write(array.data(), array.bytes); }

 private:
  std::FILE* file_;
};

// What both operators have in common.
struct Scene {
  Dtype type;
  size_t number;           // bytes of one that is computed with
  int64_t samples, first;  // of planes, and where in their memory they begin
  Planes planes;
  DecoderLayout layout;
  Array texels, w0, b0, w1, b1, packed;

  explicit Scene(Case& from)
      : type(static_cast<Dtype>(from.next_integer())),
        number(type == Dtype::kDouble ? 8 : 4),
        samples(from.next_integer()),
        first(from.next_integer()),
        planes(read_planes(from)),
        layout{planes.channels, from.next_integer(), from.next_integer()},  // in this order
        texels(from.next_array()),
        w0(from.next_array()),
        b0(from.next_array()),
        w1(from.next_array()),
        b1(from.next_array()),
        packed(layout.total * number, 0xff) {
    const size_t size = type == Dtype::kDouble ? 8 : type == Dtype::kFloat ? 4 : 2;
    planes.data = texels.memory.get() + first * size;
    pack_decoder({w0.data(), b0.data(), w1.data(), b1.data()}, layout, packed.data(), type,
                 nullptr);
  }

  static Planes read_planes(Case& from) {
    Planes planes{};
    planes.channels = from.next_integer(), planes.height = from.next_integer(),
    planes.width = from.next_integer();
    planes.sample_stride = from.next_integer(), planes.plane_stride = from.next_integer();
    planes.row_stride = from.next_integer(), planes.column_stride = from.next_integer();
    planes.has_released_axes = from.next_integer() != 0;
    planes.scale = 2 / from.next_number();
    return planes;
  }
};

// Room for the gradients of planes and decoder.
struct Gradients {
  const Scene& scene;
  int64_t count;
  Array sums, marks, bounds, partial;

  explicit Gradients(const Scene& scene_)
      : scene(scene_),
        count(scene.samples * 3 * scene.planes.channels * scene.planes.height * scene.planes.width),
        sums(only_launches ? 0 : count * 8),
        marks(only_launches ? 0 : (count / 32 + 1) * 4),
        bounds(8),
        partial(only_launches ? 0 : kPartialSums * scene.layout.total * scene.number) {}

  void fill(DecodeBackward& p) const {
    p.plane_sums = static_cast<unsigned long long*>(sums.data()),
    p.plane_marks = static_cast<unsigned*>(marks.data());
    p.bounds = {static_cast<unsigned*>(bounds.data()), static_cast<unsigned*>(bounds.data()) + 1};
    p.weight_sums = partial.data();
  }

  // The planes' as (N, 3, H, W, C), then w0, b0, w1 and b1.
  void write(const DecodeBackward& p, Result& to) const {
    if (only_launches) return;
    const Planes& planes = scene.planes;
    const Array result(count * (scene.type == Dtype::kDouble  ? 8
                                : scene.type == Dtype::kFloat ? 4
                                                              : 2),
                       0xff);
    const int64_t column = planes.channels, row = column * planes.width,
                  plane = row * planes.height;
    finish_plane_gradient(
        {p.plane_sums, p.plane_marks, p.bounds, p.at.per_sample, scene.samples, planes.channels,
         planes.height, planes.width, result.data(), 3 * plane, plane, 1, row, column},
        scene.type, nullptr);
    to.write(result);
    const Array sum(scene.layout.total * scene.number, 0xff);
    sum_weight_gradients(partial.data(), scene.layout.total, sum.data(), scene.type, nullptr);
    to.write(sum);
  }
};

void run_points(Case& from, Result& to) {
  const Scene scene(from);
  const int64_t per_sample = from.next_integer(), count = per_sample * scene.samples;
  const double gain = from.next_number();
  const Array points = from.next_array(), grad_densities = from.next_array(),
              grad_colors = from.next_array();
  const Array densities(count * scene.number, 0xff),
      colors(count * scene.layout.colors * scene.number, 0xff);
  DecodePoints p{scene.planes, scene.layout, scene.packed.data(), points.data(), count,
                 per_sample,   gain,         densities.data(),    nullptr};
  decode_points(p, scene.type, nullptr);
  p.colors = colors.data();
  decode_points(p, scene.type, nullptr);
  to.write(densities), to.write(colors);

  const Gradients gradients(scene);
  const Array grad_points(points.bytes, 0xff);
  DecodeBackward back{
      .planes = scene.planes,
      .layout = scene.layout,
      .packed = scene.packed.data(),
      .at = {.points = points.data(), .rows = count, .per_sample = per_sample, .per_ray = 1},
      .density_gradients = grad_densities.data(),
      .density_gain = gain,
      .color_gradients = grad_colors.data(),
      .color_gain = 1,
      .color_weights = nullptr,
      .bounds = {},
      .plane_sums = nullptr,
      .plane_marks = nullptr,
      .weight_sums = nullptr,
      .point_gradients = grad_points.data()};
  gradients.fill(back);
  bound_outputs(back, scene.type, nullptr);
  decode_backward(back, scene.type, nullptr);
  gradients.write(back, to);
  to.write(grad_points);
}

Offsets read_offsets(Case& from) {
  Offsets offsets{};
  offsets.sample_stride = from.next_integer(), offsets.ray_stride = from.next_integer(),
  offsets.stride = from.next_integer();
  return offsets;
}

void run_rays(Case& from, Result& to) {
  const Scene scene(from);
  RenderRays p{scene.planes,
               scene.layout,
               scene.packed.data(),
               {},
               {},
               {},
               {},
               {},
               {},
               {},
               {},
               {},
               {},
               {},
               {},
               {},
               {},
               {},
               {},
               {}};
  p.rays_per_sample = from.next_integer(), p.rays = p.rays_per_sample * scene.samples;
  p.coarse = from.next_integer(), p.fine = from.next_integer();
  p.has_released_placement = from.next_integer() != 0, p.has_background = from.next_integer() != 0;
  p.u_coarse = read_offsets(from), p.u_fine = read_offsets(from);
  p.density_gain = from.next_number();
  for (double& color : p.background) color = from.next_number();
  const double stop = from.next_number();
  const Array origins = from.next_array(), directions = from.next_array(), near = from.next_array(),
              far = from.next_array();
  const Array hit = from.next_array(), u_coarse = from.next_array(), u_fine = from.next_array();
  const Array grad_features = from.next_array(), grad_depth = from.next_array(),
              grad_alpha = from.next_array();
  p.origins = origins.data(), p.directions = directions.data(), p.near = near.data(),
  p.far = far.data();
  p.hit = static_cast<const bool*>(hit.data()), p.u_coarse.data = u_coarse.data(),
  p.u_fine.data = u_fine.data();
  const int64_t count = p.coarse + p.fine, rows = p.rays * count;
  const Array workspace(workspace_bytes(static_cast<int>(count), scene.type), 0xff);
  const auto restart = [&](double stop_) {
    std::memset(workspace.data(), 0, 8);
    p.workspace = workspace.data(), p.stop = stop_;
  };
  const Array features(p.rays * scene.layout.colors * scene.number, 0xff),
      depth(p.rays * scene.number, 0xff), alpha(depth.bytes, 0xff);
  restart(stop);
  render_rays(p, features.data(), depth.data(), alpha.data(), scene.type, nullptr);
  to.write(features), to.write(depth), to.write(alpha);

  const Gradients gradients(scene);
  const Array depths(rows * scene.number, 0xff), weights(depths.bytes, 0xff),
      density_gradients(depths.bytes, 0xff);
  const Array depth_gradients(depths.bytes, 0xff), order(rows * 4, 0xff),
      of_points(3 * depths.bytes, 0xff);
  DecodeBackward back{.planes = scene.planes,
                      .layout = scene.layout,
                      .packed = scene.packed.data(),
                      .at = {.origins = p.origins,
                             .directions = p.directions,
                             .depths = depths.data(),
                             .hit = p.hit,
                             .rows = rows,
                             .per_sample = p.rays_per_sample * count,
                             .per_ray = static_cast<int>(count)},
                      .density_gradients = density_gradients.data(),
                      .density_gain = p.density_gain,
                      .color_gradients = grad_features.data(),
                      .color_gain = 2,
                      .color_weights = weights.data(),
                      .bounds = {},
                      .plane_sums = nullptr,
                      .plane_marks = nullptr,
                      .weight_sums = nullptr,
                      .point_gradients = of_points.data()};
  gradients.fill(back);
  const TracedSamples traced{depths.data(),
                             weights.data(),
                             density_gradients.data(),
                             depth_gradients.data(),
                             static_cast<int*>(order.data()),
                             back.bounds.outputs};
  restart(0);
  trace_backward(p, grad_features.data(), grad_depth.data(), grad_alpha.data(), traced, scene.type,
                 nullptr);
  decode_backward(back, scene.type, nullptr);
  gradients.write(back, to);
  const Array grad_origins(origins.bytes, 0xff), grad_directions(origins.bytes, 0xff),
      grad_near(near.bytes, 0xff), grad_far(near.bytes, 0xff);
  ray_gradients(p, traced,
                {of_points.data(), grad_origins.data(), grad_directions.data(), grad_near.data(),
                 grad_far.data()},
                scene.type, nullptr);
  for (const Array* array : {&grad_origins, &grad_directions, &grad_near, &grad_far})
    to.write(*array);
}

}  // namespace

int main(int count, char** arguments) {
  only_launches = count > 1 && std::string(arguments[1]) == "--launch";
  for (int i = only_launches ? 2 : 1; i + 1 < count; i += 2) {
    Case from(arguments[i]);
    Result to(arguments[i + 1]);
    try {
      from.next_integer() == 0 ? run_points(from, to) : run_rays(from, to);
    } catch (const std::runtime_error& error) {
      std::printf("%s: %s\n", arguments[i + 1], error.what());
    }
  }
  return 0;
}
