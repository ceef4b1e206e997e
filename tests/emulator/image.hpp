// What the emulated compiler calls a binary: a line that says for which device it is and where its file lies.
#pragma once

#include <string>

namespace emulator {

constexpr const char* image_of_another = "another";

// The bytes of a binary for a compute capability, such as 90, in the file at `path`. A `text` is for later ones too.
std::string image(bool text, long capability, const std::string& path);

// The path in a binary; empty when it is none or its file is gone, `image_of_another` when the device cannot run it.
std::string image_path(const char* image, long capability);

}  // namespace emulator
