// The emulator's own test: `check SOURCE` compiles kernel.cuh and check.cu and compares what the kernels give with what
// plain loops give; `check SOURCE CASE` does what must be noticed, and ends well only if it was not.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void**, int);
int cuCtxSetCurrent(void*);
int cuStreamCreate(void**, unsigned);
int cuStreamSynchronize(void*);
int cuStreamBeginCapture_v2(void*, int);
int cuStreamEndCapture(void*, void**);
int cuGraphGetNodes(void*, void**, size_t*);
int cuGraphInstantiateWithFlags(void**, void*, unsigned long long);
int cuGraphLaunch(void*, void*);
int cuMemAlloc_v2(void**, size_t);
int cuMemFree_v2(void*);
int cuMemHostAlloc(void**, size_t, unsigned);
int cuMemcpyHtoDAsync_v2(void*, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, const void*, size_t, void*);
int cuMemsetD8Async(void*, unsigned char, size_t, void*);
int cuModuleLoadData(void**, const void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
int nvrtcCreateProgram(void**, const char*, const char*, int, const char* const*, const char* const*);
int nvrtcCompileProgram(void*, int, const char* const*);
int nvrtcGetProgramLogSize(void*, size_t*);
int nvrtcGetProgramLog(void*, char*);
int nvrtcGetCUBINSize(void*, size_t*);
int nvrtcGetCUBIN(void*, char*);
int nvrtcDestroyProgram(void**);
}

namespace {

void* stream;
void* module;

[[noreturn]] void fail(const std::string& what) {
    fprintf(stderr, "check: %s\n", what.c_str());
    exit(1);
}

void must(int code, const char* what) {
    if (code) fail(std::string(what) + " gives " + std::to_string(code));
}

template <class T> struct Memory {
    explicit Memory(size_t count) : count(count) { must(cuMemAlloc_v2(&at, count * sizeof(T)), "cuMemAlloc"); }
    explicit Memory(const std::vector<T>& from) : Memory(from.size()) {
        must(cuMemcpyHtoDAsync_v2(at, from.data(), count * sizeof(T), stream), "a copy");
    }
    std::vector<T> get() const {
        std::vector<T> to(count);
        must(cuMemcpyDtoHAsync_v2(to.data(), at, count * sizeof(T), stream), "a copy");
        return to;
    }
    void* at;
    size_t count;
};

template <class... Arguments>
int launch(const char* name, unsigned blocks, unsigned threads, unsigned shared, Arguments... arguments) {
    void* function;
    must(cuModuleGetFunction(&function, module, name), name);
    void* addresses[] = {&arguments..., nullptr};
    return cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared, stream, addresses, nullptr);
}

std::string read(const std::string& path) {
    std::ifstream file(path);
    std::ostringstream text;
    text << file.rdbuf();
    if (!file) fail("cannot read " + path);
    return text.str();
}

std::string compile(const std::string& source) {
    void* program;
    must(nvrtcCreateProgram(&program, source.c_str(), "check.cu", 0, nullptr, nullptr), "nvrtcCreateProgram");
    const char* options[] = {"--gpu-architecture=sm_90", "--std=c++17", "-DLECTERN_BF16=1"};
    const int code = nvrtcCompileProgram(program, 3, options);
    size_t bytes;
    must(nvrtcGetProgramLogSize(program, &bytes), "nvrtcGetProgramLogSize");
    std::string log(bytes, 0);
    must(nvrtcGetProgramLog(program, log.data()), "nvrtcGetProgramLog");
    if (code) fail(log);
    must(nvrtcGetCUBINSize(program, &bytes), "nvrtcGetCUBINSize");
    std::string binary(bytes, 0);
    must(nvrtcGetCUBIN(program, binary.data()), "nvrtcGetCUBIN");
    must(nvrtcDestroyProgram(&program), "nvrtcDestroyProgram");
    return binary;
}

// splitmix64's upper bits as a number of -1 to 1.
float number() {
    static uint64_t state = 1;
    uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    return float(int32_t(z >> 32)) / 2147483648.0f;
}

float widened(uint16_t bits) {
    const uint32_t word = uint32_t(bits) << 16;
    float x;
    memcpy(&x, &word, 4);
    return x;
}

void reverse() {
    std::vector<uint32_t> from(5 * 96);
    for (uint32_t i = 0; i < from.size(); ++i) from[i] = i * i;
    Memory<uint32_t> in(from), out(from.size());
    must(launch("reverse", 5, 96, 96 * 4, in.at, out.at), "reverse");
    const auto to = out.get();
    for (uint32_t i = 0; i < to.size(); ++i) {
        if (to[i] != from[i / 96 * 96 + 95 - i % 96]) fail("reverse at " + std::to_string(i));
    }
    if (launch("reverse", 1, 512, 0, in.at, out.at) != 1) fail("more threads than __launch_bounds__ are refused");
    if (launch("reverse", 1, 96, 49 << 10, in.at, out.at) != 1) fail("more shared memory than asked for is refused");
}

void together() {
    std::vector<float> from(160);
    float sum = 0, most = -1;
    for (float& x : from) {
        x = floorf(number() * 1000);
        sum += x;
        most = fmaxf(most, x);
    }
    Memory<float> in(from), sums(2);
    Memory<uint32_t> words(165);
    must(launch("together", 1, 160, 0, in.at, sums.at, words.at), "together");
    if (sums.get() != std::vector<float>{sum, most}) fail("block_sum or block_max");
    const auto got = words.get();
    for (uint32_t i = 0; i < 160; ++i) {
        const uint32_t expected = i % 32 >= 16 ? i / 32 * 32 + 19 : i % 16 == 15 ? i : i + 1;
        if (got[i] != expected) fail("a shuffle of half a warp, thread " + std::to_string(i));
    }
    for (uint32_t warp = 0; warp < 5; ++warp) {
        uint32_t votes = 0;
        for (uint32_t lane = 0; lane < 32; ++lane) votes |= uint32_t((warp * 32 + lane) % 3 == 0) << lane;
        if (got[160 + warp] != votes) fail("a ballot of warp " + std::to_string(warp));
    }
}

void product() {
    std::vector<uint16_t> a(256), b(128);
    for (auto* numbers : {&a, &b}) {
        for (uint16_t& x : *numbers) {
            const float wanted = number();
            uint32_t bits;
            memcpy(&bits, &wanted, 4);
            x = uint16_t(bits >> 16);
        }
    }
    Memory<uint16_t> left(a), right(b);
    Memory<float> out(128);
    must(launch("product", 1, 32, 0, left.at, right.at, out.at), "product");
    const auto c = out.get();
    for (int row = 0; row < 16; ++row) {
        for (int column = 0; column < 8; ++column) {
            double sum = 0;
            for (int i = 0; i < 16; ++i) sum += double(widened(a[row * 16 + i])) * widened(b[i * 8 + column]);
            if (!(fabs(c[row * 8 + column] - sum) <= 1e-5)) fail("mma at " + std::to_string(row) + ", " + std::to_string(column));
        }
    }
}

void words() {
    std::vector<float> from = {1.0f, 1.00390625f, 1.01171875f, -0.0f, INFINITY, -3.4e38f, 1e-40f, NAN};
    Memory<float> in(from), rounded(8);
    Memory<uint32_t> out(32), packed(8);
    // Random123's answers are the runtime's own test; these are its stream's words for the same arguments.
    must(launch("words", 1, 8, 0, uint64_t(1337), uint64_t(7), uint64_t(1) << 40, out.at, in.at, rounded.at, packed.at), "words");
    for (uint32_t word : out.get()) printf("%u ", word);
    printf("\n");
    const auto to = rounded.get();
    const float expected[] = {1.0f, 1.0f, 1.015625f, -0.0f, INFINITY, -INFINITY, widened(1), NAN};
    for (int i = 0; i < 7; ++i) {
        const bool small = fabsf(from[i]) < 1e-37f;
        if (small ? fabsf(to[i] - from[i]) > 1e-40f : to[i] != expected[i]) fail("rounding to bf16, " + std::to_string(i));
    }
    if (to[7] == to[7]) fail("a NaN stays one");
    if (packed.get()[2] != (0x3f800000u | 0x3f82u)) fail("pack_bf16");
}

void packs() {
    std::vector<uint16_t> from(1000);
    for (size_t i = 0; i < from.size(); ++i) from[i] = uint16_t(i);
    Memory<uint16_t> in(from), out(from.size());
    must(launch("packs", 1, 64, 0, in.at, out.at, uint32_t(from.size())), "packs");
    if (out.get() != from) fail("packs");
}

// What is recorded runs when launched, as often as launched, and not before.
void graph() {
    std::vector<uint32_t> from(64);
    for (uint32_t i = 0; i < 64; ++i) from[i] = i;
    Memory<uint32_t> in(from), out(64);
    void *recorded, *ready, *host;
    must(cuMemHostAlloc(&host, 256, 0), "cuMemHostAlloc");
    must(cuStreamBeginCapture_v2(stream, 1), "cuStreamBeginCapture");
    must(launch("reverse", 1, 64, 256, in.at, out.at), "a recorded launch");
    must(launch("reverse", 1, 64, 256, out.at, in.at), "a recorded launch");
    must(cuStreamEndCapture(stream, &recorded), "cuStreamEndCapture");
    size_t nodes = 0;
    must(cuGraphGetNodes(recorded, nullptr, &nodes), "cuGraphGetNodes");
    must(cuGraphInstantiateWithFlags(&ready, recorded, 0), "cuGraphInstantiate");
    if (nodes != 2 || out.get()[0] != 0xffffffffu) fail("recording runs nothing");
    must(cuGraphLaunch(ready, stream), "cuGraphLaunch");
    must(cuMemcpyDtoHAsync_v2(host, out.at, 256, stream), "a copy");
    must(cuStreamSynchronize(stream), "cuStreamSynchronize");
    if (static_cast<uint32_t*>(host)[0] != 63 || in.get() != from) fail("a graph's launch");
    must(cuStreamBeginCapture_v2(stream, 1), "cuStreamBeginCapture");
    void* refused;
    if (cuMemAlloc_v2(&refused, 4) != 900) fail("memory is refused while a stream records");
    if (cuStreamEndCapture(stream, &recorded) != 901) fail("and the recording is spoiled");
}

void wrong(const std::string& name) {
    Memory<float> out(64);
    must(cuMemsetD8Async(out.at, 0, 256, stream), "cuMemsetD8");
    int code = 0;
    if (name == "beyond") {
        code = launch("beyond", 1, 32, 0, out.at, uint32_t(64));
    } else if (name == "beyond_dynamic") {
        code = launch("beyond_dynamic", 1, 32, 132, out.at, uint32_t(2));
    } else if (name == "freed") {
        must(cuMemFree_v2(out.at), "cuMemFree");
        code = launch("early_end", 1, 7, 0, out.at);
    } else if (name == "copy_beyond") {
        std::vector<float> host(65);
        code = cuMemcpyHtoDAsync_v2(out.at, host.data(), 65 * 4, stream);
    } else if (name == "missed_barrier") {
        code = launch("missed_barrier", 1, 64, 0, out.at);
        const auto got = out.get();
        for (uint32_t i = 0; i < 64; ++i) {
            uint32_t word;
            memcpy(&word, &got[i], 4);
            if (word != 63 - i) fail("a missed barrier shows");
        }
    } else if (name == "missed_wait") {
        Memory<float> in(std::vector<float>{1, 2, 3, 4});
        code = launch("missed_wait", 1, 1, 0, in.at, out.at);
        if (out.get()[0] != 1) fail("a missed wait shows");
    } else {
        code = launch(name.c_str(), 1, 32, 0, out.at);
    }
    must(code, name.c_str());
    must(cuStreamSynchronize(stream), "cuStreamSynchronize");
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 3) fail("usage: check KERNEL_CUH CHECK_CU [CASE]");
    void* context;
    must(cuInit(0), "cuInit");
    must(cuDevicePrimaryCtxRetain(&context, 0), "cuDevicePrimaryCtxRetain");
    must(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    must(cuStreamCreate(&stream, 1), "cuStreamCreate");
    const std::string binary = compile(read(arguments[1]) + "\n#line 1 \"check.cu\"\n" + read(arguments[2]));
    must(cuModuleLoadData(&module, binary.c_str()), "cuModuleLoadData");
    if (count > 3) {
        wrong(arguments[3]);
        printf("not noticed\n");
        return 0;
    }
    reverse();
    together();
    product();
    words();
    packs();
    graph();
    return 0;
}
