// The emulated compiler, libnvrtc.so.13: has g++ compile kernels for the host, with AddressSanitizer where the program
// runs under it. What it calls a binary is the path of a shared library.
//
// Libraries are kept in LECTERN_EMULATOR_CACHE, or else in a folder beside this library, under a hash of all that
// decides them.
#include <atomic>
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "faults.hpp"
#include "image.hpp"
#include "scan.hpp"

extern "C" void __asan_init() __attribute__((weak));
extern char** environ;

using namespace emulator;

namespace {

enum { Success = 0, InvalidInput = 3, InvalidProgram = 4, InvalidOption = 5, Compilation = 6, InternalError = 11 };

// What NVRTC 13.0 compiles for.
constexpr int architectures[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};

struct Program {
    std::string source, log, binary;
    bool compiled = false, text = false;
};

std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

void write(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

// Fowler, Noll and Vo: twice over, from two beginnings.
std::string hash(const std::string& text) {
    uint64_t sums[2] = {0xcbf29ce484222325u, 0x9ae16a3b2f90404fu};
    for (unsigned char byte : text) {
        for (uint64_t& sum : sums) sum = (sum ^ byte) * 0x100000001b3u;
    }
    char digits[33];
    snprintf(digits, sizeof digits, "%016llx%016llx", static_cast<unsigned long long>(sums[0]),
             static_cast<unsigned long long>(sums[1]));
    return digits;
}

// Runs g++ without what the program was started with: its sanitiser and its libraries. Both streams go to `log`.
bool compile(std::vector<std::string> words, const std::string& log) {
    words.insert(words.begin(), "g++");
    std::vector<char*> arguments, environment;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    for (char** entry = environ; *entry; ++entry) {
        if (strncmp(*entry, "LD_", 3) != 0 && strncmp(*entry, "ASAN_", 5) != 0) environment.push_back(*entry);
    }
    environment.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t child;
    int status = -1;
    const bool started = posix_spawnp(&child, "g++", &actions, nullptr, arguments.data(), environment.data()) == 0;
    posix_spawn_file_actions_destroy(&actions);
    return started && waitpid(child, &status, 0) == child && status == 0;
}

std::string folder() {
    std::string path;
    if (const char* text = getenv("LECTERN_EMULATOR_CACHE")) {
        path = text;
    } else {
        Dl_info self;
        dladdr(reinterpret_cast<void*>(&folder), &self);
        path = self.dli_fname;
        path = path.substr(0, path.rfind('/')) + "/kernels";
    }
    mkdir(path.c_str(), 0777);
    return path;
}

int build(Program& program, int count, const char* const* options) {
    long capability = 0;
    bool text = false;
    // Without weak symbols shared memory of templates lies in the same section as all other.
    std::vector<std::string> words = {"-std=c++17", "-fno-weak", "-O1",  "-g1", "-fPIC", "-w", "-ffp-contract=off", "-fno-strict-aliasing",
                                      "-DLECTERN_HOST", "-I", LECTERN_EMULATOR_HOME};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        words.push_back("-mavx2");
        words.push_back("-mfma");
    }
#endif
    if (__asan_init) {
        words.push_back("-fsanitize=address");
        words.push_back("-fsanitize-sections=emulator_shared");
    }
    for (int i = 0; i < count; ++i) {
        const std::string option = options[i];
        if (option.compare(0, 6, "--gpu-") == 0 || option.compare(0, 5, "-arch") == 0) {
            const size_t equals = option.find('=');
            text = option.find("=compute_") != std::string::npos;
            if (equals == std::string::npos || (!text && option.compare(equals + 1, 3, "sm_") != 0)) {
                program.log = "emulator: no architecture: " + option;
                return InvalidOption;
            }
            capability = strtol(option.c_str() + option.find('_', equals) + 1, nullptr, 10);
        } else if (option.compare(0, 2, "-D") == 0) {
            words.push_back(option);
        }
    }
    std::string all = program.source + read(LECTERN_EMULATOR_HOME "/host.hpp") + read(LECTERN_EMULATOR_HOME "/entry.hpp") +
                      read(LECTERN_EMULATOR_HOME "/contract.hpp");
    for (const std::string& word : words) all += '\n' + word;
    const std::string base = folder() + "/" + hash(all), library = base + ".so";
    if (access(library.c_str(), R_OK) != 0) {
        // Other processes, and other threads of this one, may be at the same.
        static std::atomic<int> number{0};
        const std::string own = base + "." + std::to_string(getpid()) + "-" + std::to_string(number++);
        write(own + ".cu", program.source);
        std::vector<std::string> first = words;
        first.insert(first.end(), {"-E", "-x", "c++", own + ".cu", "-o", own + ".ii"});
        bool done = compile(first, own + ".log");
        if (done) {
            const std::string preprocessed = read(own + ".ii");
            write(own + ".cpp", preprocessed + "\n" + list_of_kernels(preprocessed));
            std::vector<std::string> second = words;
            second.insert(second.end(), {"-shared", "-x", "c++", own + ".cpp", "-o", own + ".so"});
            done = compile(second, own + ".log");
        }
        program.log = read(own + ".log");
        for (const char* ending : {".cu", ".ii", ".log"}) unlink((own + ending).c_str());
        if (!done) return Compilation;
        // Debugging reads the source again; whoever finishes first provides both.
        rename((own + ".cpp").c_str(), (base + ".cpp").c_str());
        rename((own + ".so").c_str(), library.c_str());
    }
    program.binary = image(text, capability, library);
    program.text = text;
    program.compiled = true;
    return Success;
}

int give(const std::string& text, size_t* bytes) {
    *bytes = text.size() + 1;
    return Success;
}

int give(const std::string& text, char* to) {
    memcpy(to, text.c_str(), text.size() + 1);
    return Success;
}

}  // namespace

extern "C" {

int nvrtcVersion(int* major, int* minor) {
    if (const int code = asked(__func__)) return code;
    *major = 13;
    *minor = 0;
    return Success;
}

const char* nvrtcGetErrorString(int result) {
    switch (result) {
    case Success: return "NVRTC_SUCCESS";
    case 1: return "NVRTC_ERROR_OUT_OF_MEMORY";
    case InvalidInput: return "NVRTC_ERROR_INVALID_INPUT";
    case InvalidProgram: return "NVRTC_ERROR_INVALID_PROGRAM";
    case InvalidOption: return "NVRTC_ERROR_INVALID_OPTION";
    case Compilation: return "NVRTC_ERROR_COMPILATION";
    case InternalError: return "NVRTC_ERROR_INTERNAL_ERROR";
    default: return "NVRTC_ERROR";
    }
}

int nvrtcGetNumSupportedArchs(int* count) {
    if (const int code = asked(__func__)) return code;
    *count = sizeof architectures / sizeof *architectures;
    return Success;
}

int nvrtcGetSupportedArchs(int* to) {
    if (const int code = asked(__func__)) return code;
    memcpy(to, architectures, sizeof architectures);
    return Success;
}

int nvrtcCreateProgram(Program** program, const char* source, const char*, int headers, const char* const*, const char* const*) {
    if (const int code = asked(__func__)) return code;
    if (source == nullptr || headers != 0) return InvalidInput;
    *program = new Program{source, "", "", false, false};
    return Success;
}

int nvrtcDestroyProgram(Program** program) {
    if (const int code = asked(__func__)) return code;
    delete *program;
    *program = nullptr;
    return Success;
}

int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    if (const int code = asked(__func__)) return code;
    return build(*program, count, options);
}

int nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
    if (const int code = asked(__func__)) return code;
    return give(program->log, bytes);
}

int nvrtcGetProgramLog(Program* program, char* to) {
    if (const int code = asked(__func__)) return code;
    return give(program->log, to);
}

int nvrtcGetCUBINSize(Program* program, size_t* bytes) {
    if (const int code = asked(__func__)) return code;
    return program->compiled && !program->text ? give(program->binary, bytes) : InvalidProgram;
}

int nvrtcGetCUBIN(Program* program, char* to) {
    if (const int code = asked(__func__)) return code;
    return program->compiled ? give(program->binary, to) : InvalidProgram;
}

int nvrtcGetPTXSize(Program* program, size_t* bytes) {
    if (const int code = asked(__func__)) return code;
    return program->compiled ? give(program->binary, bytes) : InvalidProgram;
}

int nvrtcGetPTX(Program* program, char* to) {
    if (const int code = asked(__func__)) return code;
    return program->compiled ? give(program->binary, to) : InvalidProgram;
}

}  // extern "C"
