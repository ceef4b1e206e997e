// Finds kernels in a preprocessed source: `extern "C" __global__ void NAME(`, with what host.hpp made of __global__ and
// of __launch_bounds__.
#include "scan.hpp"

#include <ctype.h>

namespace emulator {

static const std::string global = "__attribute__((used, noinline, visibility(\"default\")))";
static const std::string bounds = "__attribute__((emulator_bounds(";

// Where the bracket that opens at `open` is closed.
static size_t closing(const std::string& text, size_t open) {
    int depth = 0;
    for (size_t i = open; i < text.size(); ++i) {
        if (text[i] == '(') ++depth;
        if (text[i] == ')' && --depth == 0) return i;
    }
    return text.size();
}

std::string list_of_kernels(const std::string& text) {
    std::string list;
    for (size_t at = text.find(global); at != std::string::npos; at = text.find(global, at + 1)) {
        size_t i = at + global.size();
        std::string name, limit = "0";
        while (i < text.size() && text[i] != '(') {
            if (text.compare(i, bounds.size(), bounds) == 0) {
                const size_t open = i + bounds.size() - 1, close = closing(text, open);
                limit = "emulator::first_of" + text.substr(open, close + 1 - open);
                i = closing(text, i + std::string("__attribute__").size()) + 1;
            } else if (isalpha(static_cast<unsigned char>(text[i])) || text[i] == '_') {
                name.clear();
                while (isalnum(static_cast<unsigned char>(text[i])) || text[i] == '_') name += text[i++];
            } else {
                ++i;
            }
        }
        // A declaration is followed by its definition.
        const size_t end = closing(text, i);
        const size_t next = text.find_first_not_of(" \t\r\n", end + 1);
        if (next == std::string::npos || text[next] != '{') continue;
        list += "    emulator::Entry<&" + name + ">::named(\"" + name + "\", " + limit + "),\n";
    }
    return "extern \"C\" {\n"
           "__attribute__((visibility(\"default\"))) extern const emulator::Kernel emulator_kernels[] = {\n" +
           list + "    {},\n};\n}\n";
}

}  // namespace emulator
