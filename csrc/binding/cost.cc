// Figures in and out as dicts; one copy of them is in use by the process.
#include "binding/cost.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "base/machine.h"
#include "base/parallel.h"
#include "binding/array.h"
#include "binding/matrix.h"
#include "ops/spmm/cost.h"

namespace tamis::binding {
namespace {

struct Figures {
  Machine machine = reference_machine();
  std::vector<double> scale = std::vector<double>(spmm_kernels().size(), 1.0);
};

std::mutex guard;

// Made on first use, so that no exception is thrown while the library loads.
std::shared_ptr<const Figures>& in_use() {
  static std::shared_ptr<const Figures> figures = std::make_shared<const Figures>();
  return figures;
}

std::shared_ptr<const Figures> figures() {
  const std::scoped_lock lock(guard);
  return in_use();
}

const SpmmRow* row_named(const char* function, const std::string& name) {
  for (const SpmmRow& row : spmm_kernels()) {
    if (name == row.name) return &row;
  }
  throw py::value_error(std::string(function) + ": kernel: got " + name +
                        ", wanted a name that kernels() lists");
}

size_t position(const SpmmRow& row) {
  return static_cast<size_t>(&row - spmm_kernels().data());
}

using Table = std::vector<std::vector<std::vector<double>>>;

Table table_of(const DenseRate& rate) {
  Table out;
  for (const auto& threads : rate.ns) {
    auto& widths = out.emplace_back();
    for (const auto& width : threads) widths.emplace_back(std::begin(width), std::end(width));
  }
  return out;
}

void read_table(const py::handle& given, const char* name, DenseRate* rate) {
  const auto table = given.cast<Table>();
  bool fits = table.size() == 2;
  for (size_t t = 0; fits && t < 2; ++t) {
    fits = table[t].size() == 2;
    for (size_t w = 0; fits && w < 2; ++w) {
      fits = table[t][w].size() == kDensePoints;
      for (size_t i = 0; fits && i < kDensePoints; ++i) {
        rate->ns[t][w][i] = table[t][w][i];
        fits = table[t][w][i] > 0 && table[t][w][i] < 1e9;
      }
    }
  }
  if (!fits) {
    throw py::value_error(std::string("set_machine: ") + name +
                          ": got other numbers, wanted 2 x 2 x " + std::to_string(kDensePoints) +
                          " positive ones");
  }
}

py::dict get_machine() {
  const auto now = figures();
  const Machine& a = now->machine;
  py::dict out, kernels;
  out["threads"] = a.threads;
  out["read_one"] = a.read_one;
  out["read_all"] = a.read_all;
  out["weights_one"] = a.weights_one;
  out["weights_all"] = a.weights_all;
  out["share"] = a.share;
  out["fork"] = a.fork;
  out["call"] = a.call;
  out["unpack"] = a.unpack;
  out["dense_f32"] = table_of(a.dense_f32);
  out["dense_16"] = table_of(a.dense_16);
  for (const SpmmRow& row : spmm_kernels()) {
    if (spmm_cost(row) != nullptr) kernels[row.name] = now->scale[position(row)];
  }
  out["kernels"] = kernels;
  return out;
}

double positive(const py::dict& given, const char* name) {
  const auto value = given[name].cast<double>();
  if (value > 0 && value < 1e12) return value;
  throw py::value_error(std::string("set_machine: ") + name + ": got " + std::to_string(value) +
                        ", wanted a positive number");
}

// None goes back to the reference. Kernels that are not named keep a scale of 1, unknown names are
// passed over: the figures may come from a file.
void set_machine(const py::object& given) {
  auto next = std::make_shared<Figures>();
  if (!given.is_none()) {
    const auto dict = given.cast<py::dict>();
    next->machine.threads = static_cast<int>(positive(dict, "threads"));
    next->machine.read_one = positive(dict, "read_one");
    next->machine.read_all = positive(dict, "read_all");
    next->machine.weights_one = positive(dict, "weights_one");
    next->machine.weights_all = positive(dict, "weights_all");
    next->machine.share = positive(dict, "share");
    next->machine.fork = positive(dict, "fork");
    next->machine.call = positive(dict, "call");
    next->machine.unpack = positive(dict, "unpack");
    read_table(dict["dense_f32"], "dense_f32", &next->machine.dense_f32);
    read_table(dict["dense_16"], "dense_16", &next->machine.dense_16);
    const auto kernels = dict["kernels"].cast<py::dict>();
    for (const SpmmRow& row : spmm_kernels()) {
      if (kernels.contains(row.name)) next->scale[position(row)] = positive(kernels, row.name);
    }
  }
  const std::scoped_lock lock(guard);
  in_use() = next;
}

SpmmDesc desc_from(const char* function, const std::string& format, const std::string& w_dtype,
                   const std::string& x_dtype, std::array<int64_t, 4> sizes,
                   std::pair<int32_t, int32_t> block, int64_t group_size) {
  return {.format = format_from(function, format),
          .w_dtype = dtype_from(function, "w_dtype", w_dtype),
          .x_dtype = dtype_from(function, "x_dtype", x_dtype),
          .m = sizes[0],
          .n = sizes[1],
          .k = sizes[2],
          .nnz = sizes[3],
          .block_rows = block.first,
          .block_cols = block.second,
          .group_size = group_size};
}

void fill(void* x, DType dtype, int64_t count) {  // with ones
  if (dtype == DType::f32) {
    for (int64_t i = 0; i < count; ++i) static_cast<float*>(x)[i] = 1.0f;
    return;
  }
  const uint16_t one = dtype == DType::bf16 ? 0x3f80 : 0x3c00;
  for (int64_t i = 0; i < count; ++i) static_cast<uint16_t*>(x)[i] = one;
}

// ns of each of `calls` calls of one kernel, which take turns over the matrices.
std::vector<double> time_spmm(const std::string& kernel, const std::vector<const Matrix*>& matrices,
                              int64_t m, int64_t calls) {
  const SpmmRow& row = *row_named("time_spmm", kernel);
  if ((row.isa & active_isa()) != row.isa || matrices.empty() || m < 1 || calls < 1) {
    throw py::value_error(
        "time_spmm: got a kernel that this host lacks, or no matrix, token or "
        "call, wanted one of each");
  }
  int64_t n = 0, k = 0;
  for (const Matrix* a : matrices) {
    if (a->view().format != row.format || a->view().dtype != row.w_dtype) {
      throw py::value_error("time_spmm: matrices: got another format or dtype than " + kernel);
    }
    n = std::max(n, a->view().rows);
    k = std::max(k, a->view().cols);
  }
  const py::gil_scoped_release release;
  std::vector<float> x(static_cast<size_t>(m * k)), y(static_cast<size_t>(m * n));
  fill(x.data(), row.x_dtype, m * k);
  std::vector<double> ns;
  for (int64_t call = 0; call < calls; ++call) {
    const MatrixView& w = matrices[static_cast<size_t>(call) % matrices.size()]->view();
    const auto start = std::chrono::steady_clock::now();
    const Status status = spmm_with(row, {.w = w,
                                          .x_dtype = row.x_dtype,
                                          .m = m,
                                          .x = x.data(),
                                          .x_stride = w.cols,
                                          .y = y.data(),
                                          .y_stride = w.rows});
    const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - start;
    if (!status.ok()) {
      const py::gil_scoped_acquire hold;
      raise_if_error(status);
    }
    ns.push_back(spent.count());
  }
  return ns;
}

// ns to start and end a parallel region after some work on one thread, the median of many.
double fork_ns(int threads) {
  constexpr int kTimes = 101;
  constexpr std::chrono::microseconds kBetween{20};
  using Clock = std::chrono::steady_clock;
  std::vector<double> spent;
  for (int i = 0; i < kTimes; ++i) {
    for (const auto begin = Clock::now(); Clock::now() - begin < kBetween;) {
    }
    const auto start = Clock::now();
    parallel(threads, [](int, int) {});
    spent.push_back(std::chrono::duration<double, std::nano>(Clock::now() - start).count());
  }
  std::nth_element(spent.begin(), spent.begin() + kTimes / 2, spent.end());
  return spent[kTimes / 2];
}

}  // namespace

int64_t dense_above(const SpmmDesc& desc) {
  const auto now = figures();
  return spmm_dense_above(desc, active_isa(), now->machine, now->scale, num_threads());
}

double predict(const SpmmDesc& desc, int threads) {
  const SpmmRow* row = choose_spmm(desc, active_isa());
  if (row == nullptr) return -1;
  const auto now = figures();
  return predict_spmm(desc, *row, now->machine, now->scale[position(*row)], threads);
}

void bind_cost(py::module_& m) {
  using namespace py::literals;
  m.def("machine", &get_machine);
  m.def("set_machine", &set_machine, "figures"_a.none(true));
  m.def(
      "predict",
      [](const std::string& format, const std::string& w_dtype, const std::string& x_dtype,
         int64_t m, int64_t n, int64_t k, int64_t nnz, int threads, std::pair<int, int> block,
         const std::string& kernel, int64_t group_size) {
        const SpmmDesc desc =
            desc_from("predict", format, w_dtype, x_dtype, {m, n, k, nnz}, block, group_size);
        if (kernel.empty()) return predict(desc, threads);
        const SpmmRow& row = *row_named("predict", kernel);
        const auto now = figures();
        return predict_spmm(desc, row, now->machine, now->scale[position(row)], threads);
      },
      "format"_a, "w_dtype"_a, "x_dtype"_a, "m"_a, "n"_a, "k"_a, "nnz"_a, "threads"_a,
      "block"_a = std::pair{1, 1}, "kernel"_a = "", "group_size"_a = 16);
  m.def(
      "predict_dense",
      [](const std::string& x_dtype, int64_t m, int64_t n, int64_t k, int threads) {
        return dense_ns(figures()->machine, dtype_from("predict_dense", "x_dtype", x_dtype), m, n,
                        k, threads);
      },
      "x_dtype"_a, "m"_a, "n"_a, "k"_a, "threads"_a);
  m.def(
      "compute_ns",
      [](const std::string& kernel, int64_t m, int64_t n, int64_t k, int64_t nnz) {
        const SpmmRow& row = *row_named("compute_ns", kernel);
        const SpmmCost* cost = spmm_cost(row);
        const SpmmDesc desc{.format = row.format,
                            .w_dtype = row.w_dtype,
                            .x_dtype = row.x_dtype,
                            .m = m,
                            .n = n,
                            .k = k,
                            .nnz = nnz};
        return cost == nullptr ? -1.0 : compute_ns(desc, row, *cost);
      },
      "kernel"_a, "m"_a, "n"_a, "k"_a, "nnz"_a);
  m.def("time_spmm", &time_spmm, "kernel"_a, "matrices"_a, "m"_a, "calls"_a);
  m.def("fork_ns", &fork_ns, "threads"_a);
}

}  // namespace tamis::binding
