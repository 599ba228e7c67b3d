// Which instruction sets this machine runs, and which one is in use.
#pragma once

#include <string>
#include <vector>

#include "matrix.h"

namespace fourfold {

// Names that work here, slowest first.
std::vector<std::string> supported_isas();

// The one in use.
std::string isa();

// The fastest one, until use_isa names another; false if that one is not supported here.
const Kernels& kernels();
bool use_isa(const std::string& name);

}  // namespace fourfold
