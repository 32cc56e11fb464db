// Which piece of memory a captured call gets.
#include "base/cuda/graph_memory.h"

#include <gtest/gtest.h>

namespace tamis {
namespace {

char memory[4], streams[2];

GraphPiece& held(GraphPiece& piece, const void* stream, uint64_t capture) {
  piece.stream = stream;
  piece.capture = capture;
  piece.held = true;
  return piece;
}

TEST(GraphMemory, APieceIsOfOneDeviceStreamAndCapture) {
  GraphPieces pieces;
  EXPECT_EQ(pieces.of(0, &streams[0], 1), nullptr);
  GraphPiece& piece = held(pieces.add(0, &memory[0], 100), &streams[0], 1);
  EXPECT_EQ(pieces.of(0, &streams[0], 1), &piece);
  EXPECT_EQ(pieces.of(1, &streams[0], 1), nullptr);
  EXPECT_EQ(pieces.of(0, &streams[1], 1), nullptr);
  EXPECT_EQ(pieces.of(0, &streams[0], 2), nullptr);
  GraphPiece& larger = held(pieces.add(0, &memory[1], 300), &streams[0], 1);
  held(pieces.add(0, &memory[2], 200), &streams[0], 1);
  EXPECT_EQ(pieces.of(0, &streams[0], 1), &larger);
}

TEST(GraphMemory, APieceThatIsHeldIsNoOthers) {
  GraphPieces pieces;
  GraphPiece& small = held(pieces.add(0, &memory[0], 100), &streams[0], 1);
  GraphPiece& large = held(pieces.add(0, &memory[1], 300), &streams[0], 2);
  EXPECT_EQ(pieces.idle(0, 50), nullptr);
  large.held = false;
  EXPECT_EQ(pieces.idle(0, 50), &large);
  small.held = false;
  EXPECT_EQ(pieces.idle(0, 50), &small);  // what fits best
  EXPECT_EQ(pieces.idle(0, 101), &large);
  EXPECT_EQ(pieces.idle(0, 301), nullptr);
  EXPECT_EQ(pieces.idle(1, 50), nullptr);
  EXPECT_EQ(pieces.of(0, &streams[0], 1), nullptr);  // its graph is gone
}

}  // namespace
}  // namespace tamis
