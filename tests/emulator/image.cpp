// Binaries of the emulated compiler.
#include "image.hpp"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

namespace emulator {

static const char opening[] = "EMULATED KERNELS ";

std::string image(bool text, long capability, const std::string& path) {
    return opening + std::string(text ? "compute_" : "sm_") + std::to_string(capability) + " " + std::to_string(path.size()) + " " + path + "\n";
}

std::string image_path(const char* image, long capability) {
    if (strncmp(image, opening, sizeof opening - 1) != 0) return "";
    long made_for = 0;
    size_t length = 0;
    int start = 0;
    char kind[8];
    if (sscanf(image + sizeof opening - 1, "%7[a-z]_%ld %zu %n", kind, &made_for, &length, &start) != 3) return "";
    const char* from = image + sizeof opening - 1 + start;
    if (strnlen(from, length + 1) != length + 1 || from[length] != '\n') return "";
    const std::string path(from, length);
    if (access(path.c_str(), R_OK) != 0) return "";
    const bool runs = made_for <= capability && (strcmp(kind, "compute") == 0 || made_for / 10 == capability / 10);
    return runs ? path : image_of_another;
}

}  // namespace emulator
