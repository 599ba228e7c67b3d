#pragma once

#include <nanobind/nanobind.h>

namespace fourfold {

// ReadProbe, multipliers and peak, added to the module.
void add_machine(nanobind::module_& m);

}  // namespace fourfold
