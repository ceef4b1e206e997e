// Which kernels a preprocessed source defines.
#pragma once

#include <string>

namespace emulator {

// The C++ that lists them behind the source, for the driver to find.
std::string list_of_kernels(const std::string& preprocessed);

}  // namespace emulator
