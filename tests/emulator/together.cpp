// Shuffles, ballots, and the matrix instructions by the fragment layouts that the PTX manual draws ("Matrix fragments for
// mma.m16n8k16" and "ldmatrix").
#include "together.hpp"

#include <string.h>

namespace emulator {

const char* name_of(Together what) {
    switch (what) {
    case Together::Wait: return "__syncwarp";
    case Together::Shuffle: return "a shuffle";
    case Together::Ballot: return "a ballot";
    case Together::Multiply: return "mma.sync";
    case Together::LoadMatrix: return "ldmatrix";
    }
    return "nothing known";
}

static void shuffle(void* const (&parts)[32]) {
    for (void* part : parts) {
        if (part == nullptr) continue;
        Exchange& lane = *static_cast<Exchange*>(part);
        const void* from = lane.from < 32 ? parts[lane.from] : nullptr;
        // What a lane that takes no part gives is undefined: here it is what nobody wants.
        lane.got = from ? static_cast<const Exchange*>(from)->given : ~uint64_t(0);
    }
}

static void ballot(void* const (&parts)[32]) {
    uint64_t all = 0;
    for (uint32_t lane = 0; lane < 32; ++lane) {
        if (parts[lane]) all |= (static_cast<Exchange*>(parts[lane])->given & 1) << lane;
    }
    for (void* part : parts) {
        if (part) static_cast<Exchange*>(part)->got = all;
    }
}

static float half_of(uint32_t both, uint32_t upper) {
    const uint32_t bits = upper ? both & 0xffff0000u : both << 16;
    float number;
    memcpy(&number, &bits, 4);
    return number;
}

static void multiply(void* const (&parts)[32]) {
    float a[16][16], b[16][8], c[16][8] = {};
    for (uint32_t lane = 0; lane < 32; ++lane) {
        const Product& part = *static_cast<const Product*>(parts[lane]);
        const uint32_t group = lane / 4, within = lane % 4;
        for (uint32_t upper = 0; upper < 2; ++upper) {
            for (uint32_t i = 0; i < 4; ++i) {
                a[group + 8 * (i % 2)][2 * within + upper + 8 * (i / 2)] = half_of(part.a[i], upper);
            }
            for (uint32_t i = 0; i < 2; ++i) b[2 * within + upper + 8 * i][group] = half_of(part.b[i], upper);
        }
    }
    for (uint32_t row = 0; row < 16; ++row) {
        for (uint32_t inner = 0; inner < 16; ++inner) {
            for (uint32_t column = 0; column < 8; ++column) c[row][column] += a[row][inner] * b[inner][column];
        }
    }
    for (uint32_t lane = 0; lane < 32; ++lane) {
        float* d = static_cast<const Product*>(parts[lane])->d;
        for (uint32_t i = 0; i < 4; ++i) d[i] += c[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
    }
}

static void load_matrix(void* const (&parts)[32]) {
    for (uint32_t lane = 0; lane < 32; ++lane) {
        Matrices& part = *static_cast<Matrices*>(parts[lane]);
        for (uint32_t i = 0; i < 4; ++i) {
            uint32_t values[2];
            for (uint32_t upper = 0; upper < 2; ++upper) {
                const uint32_t row = part.transposed ? 2 * (lane % 4) + upper : lane / 4;
                const uint32_t column = part.transposed ? lane / 4 : 2 * (lane % 4) + upper;
                values[upper] = static_cast<const Matrices*>(parts[8 * i + row])->row[column];
            }
            part.got[i] = values[1] << 16 | values[0];
        }
    }
}

void perform(Together what, uint32_t, void* const (&parts)[32]) {
    switch (what) {
    case Together::Wait: return;
    case Together::Shuffle: return shuffle(parts);
    case Together::Ballot: return ballot(parts);
    case Together::Multiply: return multiply(parts);
    case Together::LoadMatrix: return load_matrix(parts);
    }
}

}  // namespace emulator
