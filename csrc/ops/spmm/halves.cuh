// Where base/cuda/halves.h was.
#pragma once

#include "base/cuda/halves.h"
