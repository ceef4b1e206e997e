// Binaries of the emulated compiler.
#include "image.hpp"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

namespace emulator {

static const char opening[] = "EMULATED KERNELS sm_";

std::string image(long capability, const std::string& path) {
    return opening + std::to_string(capability) + " " + std::to_string(path.size()) + " " + path + "\n";
}

std::string image_path(const char* image, long capability) {
    if (strncmp(image, opening, sizeof opening - 1) != 0) return "";
    long made_for = 0;
    size_t length = 0;
    int start = 0;
    if (sscanf(image + sizeof opening - 1, "%ld %zu %n", &made_for, &length, &start) != 2) return "";
    const char* from = image + sizeof opening - 1 + start;
    if (strnlen(from, length + 1) != length + 1 || from[length] != '\n') return "";
    const std::string path(from, length);
    if (access(path.c_str(), R_OK) != 0) return "";
    return made_for / 10 == capability / 10 && made_for <= capability ? path : image_of_another;
}

}  // namespace emulator
