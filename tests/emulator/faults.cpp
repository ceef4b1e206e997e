// Counts of calls and launches, and the failures that the environment asks for.
#include "faults.hpp"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <string>

namespace emulator {

namespace {

struct Counts {
    std::mutex lock;
    std::map<std::string, uint64_t> calls, kernels;

    // One write, so that lines of several processes stay whole.
    ~Counts() {
        const char* path = getenv("LECTERN_EMULATOR_TRACE");
        if (path == nullptr) return;
        std::string text;
        for (auto& [name, count] : calls) text += "call " + name + " " + std::to_string(count) + "\n";
        for (auto& [name, count] : kernels) text += "kernel " + name + " " + std::to_string(count) + "\n";
        const int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0666);
        if (file < 0 || write(file, text.data(), text.size()) != ssize_t(text.size())) perror("LECTERN_EMULATOR_TRACE");
        if (file >= 0) close(file);
    }
};

Counts counts;

}  // namespace

int asked(const char* name) {
    std::lock_guard<std::mutex> guard(counts.lock);
    const uint64_t count = ++counts.calls[name];
    const char* wish = getenv("LECTERN_EMULATOR_FAIL");
    const size_t length = strlen(name);
    if (wish == nullptr || strncmp(wish, name, length) != 0 || wish[length] != ':') return 0;
    unsigned long long which = 0;
    int code = 0;
    if (sscanf(wish + length, ":%llu:%d", &which, &code) != 2) return 0;
    return which == 0 || which == count ? code : 0;
}

void ran(const char* kernel, uint32_t x, uint32_t y, uint32_t z, uint32_t threads, uint32_t shared) {
    std::lock_guard<std::mutex> guard(counts.lock);
    char text[256];
    snprintf(text, sizeof text, "%s %u %u %u %u %u", kernel, x, y, z, threads, shared);
    ++counts.kernels[text];
}

}  // namespace emulator
