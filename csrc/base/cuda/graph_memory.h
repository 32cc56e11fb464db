// Workspaces of CUDA graphs: one for each stream of each capture, as graphs may be replayed beside
// each other and beside what their streams do. Host side only.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>

#include "base/status.h"

namespace tamis {

// A workspace as base/cuda/device.h says, for calls that are captured.
struct GraphPiece {
  void* data = nullptr;
  int64_t bytes = 0;
  int32_t device = 0;
  const void* stream = nullptr;
  uint64_t capture = 0;  // whose calls on `stream` take turns with it
  std::atomic<bool> held{
      false};  // by graphs: cleared, by any thread, when the last of them is gone
};

// Every piece there is. Graphs that are gone leave theirs to later ones, tickets at zero. Not for
// several threads at once.
class GraphPieces {
 public:
  // The largest piece of a capture; null if it has none.
  GraphPiece* of(int32_t device, const void* stream, uint64_t capture) {
    GraphPiece* found = nullptr;
    for (GraphPiece& p : pieces_) {
      const bool its = p.capture == capture && p.stream == stream && p.device == device;
      if (its && p.held && (found == nullptr || p.bytes > found->bytes)) found = &p;
    }
    return found;
  }
  // The smallest that no graph holds and is large enough; null if there is none.
  GraphPiece* idle(int32_t device, int64_t bytes) {
    GraphPiece* found = nullptr;
    for (GraphPiece& p : pieces_) {
      const bool fits = p.device == device && p.bytes >= bytes && !p.held;
      if (fits && (found == nullptr || p.bytes < found->bytes)) found = &p;
    }
    return found;
  }
  GraphPiece& add(int32_t device, void* data, int64_t bytes) {
    GraphPiece& piece = pieces_.emplace_back();
    piece.device = device;
    piece.data = data;
    piece.bytes = bytes;
    return piece;
  }

 private:
  std::list<GraphPiece> pieces_;  // graphs keep addresses of them
};

// The workspace of the capture that a stream is part of, of at least so many bytes: the same memory
// until it is too small, never that of another capture or stream. It is the graphs' that come of
// the capture, as long as there are any. Makes no node, but allocates and waits where no piece is
// idle. Fails if nothing is captured.
Status graph_workspace(int32_t device, void* stream, int64_t bytes, void** data, int64_t* got);

}  // namespace tamis
