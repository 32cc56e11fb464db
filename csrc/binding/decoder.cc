// decoder over raw addresses: layers as handles made once, caches as (keys, values, room).
#include "binding/decoder.h"

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "binding/address.h"
#include "binding/matrix.h"
#include "ops/decoder/decoder.h"

namespace tamis::binding {
namespace {

using Norm = std::pair<uintptr_t, float>;
using Weight = std::pair<py::object, uintptr_t>;  // Matrix, bias

// Keeps its matrices alive, not what biases and norms are.
class Layer {
 public:
  Layer(const std::array<Weight, 7>& weights, const std::array<Norm, 2>& norms, float scale) {
    const std::array<DecoderLinear*, 7> places{&layer_.q,    &layer_.k,  &layer_.v,   &layer_.o,
                                               &layer_.gate, &layer_.up, &layer_.down};
    for (size_t i = 0; i < places.size(); ++i) {
      matrices_[i] = weights[i].first;
      *places[i] = {.w = matrices_[i].cast<const Matrix&>().view(),
                    .bias = address<const void>(weights[i].second)};
    }
    layer_.before = norm(norms[0]);
    layer_.after = norm(norms[1]);
    layer_.scale = scale;
  }

  static DecoderNorm norm(const Norm& n) {
    return {.weight = address<const void>(n.first), .eps = n.second};
  }
  const DecoderLayer& get() const { return layer_; }

 private:
  DecoderLayer layer_;
  std::array<py::object, 7> matrices_;
};

using Cache = std::tuple<uintptr_t, uintptr_t, int64_t>;

void step(const std::vector<const Layer*>& layers, const std::vector<Cache>& caches, int dtype,
          int64_t m, int64_t head_dim, int64_t tokens, uintptr_t x,
          std::tuple<uintptr_t, uintptr_t, int64_t> turns, const Norm& last, uintptr_t y,
          uintptr_t workspace) {
  std::vector<DecoderLayer> stack;
  stack.reserve(layers.size());
  for (const Layer* layer : layers) stack.push_back(layer->get());
  std::vector<DecoderCache> past;
  past.reserve(caches.size());
  for (const auto& [keys, values, room] : caches) {
    past.push_back({.keys = address<void>(keys), .values = address<void>(values), .room = room});
  }
  const DecoderArgs args{.dtype = float_dtype("decoder", dtype),
                         .m = m,
                         .head_dim = head_dim,
                         .tokens = tokens,
                         .x = address<const void>(x),
                         .cos = address<const void>(std::get<0>(turns)),
                         .sin = address<const void>(std::get<1>(turns)),
                         .positions = std::get<2>(turns),
                         .layers = stack,
                         .caches = past,
                         .last = Layer::norm(last),
                         .y = address<void>(y),
                         .workspace = address<void>(workspace)};
  run(&decoder, args);
}

int64_t workspace(const std::vector<const Layer*>& layers, int64_t m) {
  if (layers.empty()) return 0;
  return decoder_workspace({.m = m, .layers = {&layers[0]->get(), 1}});
}

}  // namespace

void bind_decoder(py::module_& m) {
  using namespace py::literals;
  py::class_<Layer>(m, "DecoderLayer")
      .def(py::init<const std::array<Weight, 7>&, const std::array<Norm, 2>&, float>(), "weights"_a,
           "norms"_a, "scale"_a);
  m.def("decoder", &step, "layers"_a, "caches"_a, "dtype"_a, "m"_a, "head_dim"_a, "tokens"_a,
        "x_ptr"_a, "turns"_a, "last"_a, "y_ptr"_a, "workspace_ptr"_a);
  m.def("decoder_workspace", &workspace, "layers"_a, "m"_a);
}

}  // namespace tamis::binding
