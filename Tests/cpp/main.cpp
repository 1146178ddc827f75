// main.cpp - runs the tests, and looks whether they leave memory of the library in use
#include "expect.hpp"

int main() {
    const auto live = ga::memory_usage().live_bytes;
    test_tensors();
    test_operations();
    test_errors();
    test_callbacks();
    test_optimizers();
    test_window();
    EXPECT(ga::memory_usage().live_bytes == live);
    if (failures > 0) std::fprintf(stderr, "%d not so\n", failures);
    return failures > 0;
}
