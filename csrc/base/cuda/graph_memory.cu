// Memory that graphs hold: pieces of the library's own, each a user object of the graphs that have
// it.
#include <cuda_runtime.h>

#include <algorithm>
#include <mutex>

#include "base/cuda/device.h"
#include "base/cuda/graph_memory.h"
#include "base/cuda/launch.h"

namespace tamis {
namespace {

constexpr const char* kName = "graph_workspace";

struct Capture {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  cudaGraph_t graph = nullptr;
};

Status find_capture(void* stream, Capture* c) {
  const auto of = static_cast<cudaStream_t>(stream);
#if CUDART_VERSION >= 13000
  const cudaError_t result = cudaStreamGetCaptureInfo(of, &c->status, &c->id, &c->graph);
#else
  const cudaError_t result = cudaStreamGetCaptureInfo_v2(of, &c->status, &c->id, &c->graph);
#endif
  TAMIS_RETURN_IF_ERROR(cuda_status(kName, result));
  if (c->status == cudaStreamCaptureStatusActive) return {};
  return error(Code::invalid_argument, "%s: stream: got one that captures nothing", kName);
}

// Calls that a capture forbids, as it cannot hold what they do, but needs not either.
class Uncaptured {
 public:
  Uncaptured() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~Uncaptured() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  Uncaptured(const Uncaptured&) = delete;
  Uncaptured& operator=(const Uncaptured&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

cudaError_t zero_tickets(void* data) {
  cudaStream_t aside = nullptr;
  cudaError_t result = cudaStreamCreateWithFlags(&aside, cudaStreamNonBlocking);
  if (result != cudaSuccess) return result;
  result = cudaMemsetAsync(data, 0, static_cast<size_t>(kWorkspaceTicketBytes), aside);
  if (result == cudaSuccess) result = cudaStreamSynchronize(aside);
  const cudaError_t destroyed = cudaStreamDestroy(aside);
  return result == cudaSuccess ? destroyed : result;
}

Status allocate(int64_t bytes, void** data) {
  const Uncaptured now;
  cudaError_t result = cudaMalloc(data, static_cast<size_t>(bytes));
  if (result == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();  // forget it
    return error(Code::no_kernel,
                 "%s: got no memory for %lld bytes beside what torch holds; call "
                 "torch.cuda.empty_cache() before the capture",
                 kName, static_cast<long long>(bytes));
  }
  if (result == cudaSuccess) {
    result = zero_tickets(*data);
    if (result != cudaSuccess) (void)cudaFree(*data);
  }
  return cuda_status(kName, result);
}

// The graph, and those made of it, hold the piece until they and their replays are over.
Status hold(cudaGraph_t graph, GraphPiece& piece) {
  constexpr auto let_go = [](void* p) { static_cast<GraphPiece*>(p)->held = false; };
  cudaUserObject_t object = nullptr;
  TAMIS_RETURN_IF_ERROR(cuda_status(
      kName, cudaUserObjectCreate(&object, &piece, let_go, 1, cudaUserObjectNoDestructorSync)));
  piece.held = true;
  const cudaError_t result = cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove);
  if (result != cudaSuccess) (void)cudaUserObjectRelease(object, 1);
  return cuda_status(kName, result);
}

}  // namespace

Status graph_workspace(int32_t device, void* stream, int64_t bytes, void** data, int64_t* got) {
  static std::mutex mutex;
  static auto& pieces = *new GraphPieces;  // graphs may outlive what a process ends with
  Capture capture;
  TAMIS_RETURN_IF_ERROR(find_capture(stream, &capture));
  const std::scoped_lock lock(mutex);
  GraphPiece* piece = pieces.of(device, stream, capture.id);
  if (piece == nullptr || piece->bytes < bytes) {
    if (piece != nullptr) bytes = std::max(bytes, 2 * piece->bytes);  // all before are less than it
    piece = pieces.idle(device, bytes);
    if (piece == nullptr) {
      void* made = nullptr;
      TAMIS_RETURN_IF_ERROR(allocate(bytes, &made));
      piece = &pieces.add(device, made, bytes);
    }
    piece->stream = stream;
    piece->capture = capture.id;
    TAMIS_RETURN_IF_ERROR(hold(capture.graph, *piece));
  }
  *data = piece->data;
  *got = piece->bytes;
  return {};
}

}  // namespace tamis
