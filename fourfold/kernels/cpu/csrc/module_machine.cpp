// The part of _native that measures the machine (machine.h).
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <utility>

#include "machine.h"
#include "module_machine.h"

namespace nb = nanobind;

namespace fourfold {
namespace {

std::vector<std::pair<std::string, std::string>> multiplier_names() {
    std::vector<std::pair<std::string, std::string>> names;
    for (const Multiplier& m : multipliers()) names.emplace_back(m.type, m.unit);
    return names;
}

double peak_of(const std::string& type, const std::string& unit, int threads, double seconds) {
    for (const Multiplier& m : multipliers())
        if (m.type == type && m.unit == unit) return peak(m, threads, seconds);
    throw nb::value_error(("this processor has no " + type + " multiplier named " + unit).c_str());
}

}  // namespace

void add_machine(nb::module_& m) {
    using release = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<ReadProbe>(m, "ReadProbe")
        .def(nb::init<std::size_t, int>(), nb::arg("bytes"), nb::arg("threads"), release())
        .def_prop_ro("bytes", &ReadProbe::bytes)
        .def("seconds", &ReadProbe::seconds, nb::arg("threads"), nb::arg("streams"), release());
    m.def("multipliers", &multiplier_names);
    m.def("peak", &peak_of, nb::arg("type"), nb::arg("unit"), nb::arg("threads"), nb::arg("seconds"), release());
}

}  // namespace fourfold
