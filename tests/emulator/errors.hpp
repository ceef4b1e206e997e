// The driver's errors, with the numbers and names of CUDA's.
#pragma once

namespace emulator {

enum Result : int {
    Success = 0,
    InvalidValue = 1,
    OutOfMemory = 2,
    NotInitialized = 3,
    NoDevice = 100,
    InvalidDevice = 101,
    InvalidImage = 200,
    InvalidContext = 201,
    NoBinaryForGpu = 209,
    UnsupportedPtxVersion = 222,
    InvalidHandle = 400,
    NotFound = 500,
    NotReady = 600,
    LaunchOutOfResources = 701,
    StreamCaptureUnsupported = 900,
    StreamCaptureInvalidated = 901,
    StreamCaptureUnmatched = 903,
};

// Null for a number that is no error.
const char* name_of(int result);

// Whether the driver answers every later call with it too.
bool sticks(int result);

}  // namespace emulator
