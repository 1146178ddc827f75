// expect.hpp - what the tests of gradaccum.hpp share: a failure is counted and said, and the rest goes on
#ifndef EXPECT_HPP
#define EXPECT_HPP

#include <cstdio>
#include <exception>
#include <string>
#include <typeinfo>

#include "gradaccum.hpp"

namespace ga = gradaccum;

inline int failures = 0;

inline void expect(bool holds, const char *what, const char *file, int line) {
    if (holds) return;
    failures++;
    std::fprintf(stderr, "%s:%d: not so: %s\n", file, line, what);
}
#define EXPECT(...) expect(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)

/// Whether the body ends with an exception of exactly this type, and a sentence with these words.
template <class Exception, class Body> bool throws(const char *words, Body body) {
    try {
        body();
    } catch (const Exception &exception) {
        if (typeid(exception) == typeid(Exception) && std::string(exception.what()).find(words) != std::string::npos)
            return true;
        std::fprintf(stderr, "thrown: %s: %s\n", typeid(exception).name(), exception.what());
    } catch (const std::exception &exception) {
        std::fprintf(stderr, "thrown: %s: %s\n", typeid(exception).name(), exception.what());
    }
    return false;
}
#define EXPECT_THROWS(Exception, words, ...) \
    expect(throws<Exception>(words, [&] { __VA_ARGS__; }), #Exception " with '" words "': " #__VA_ARGS__, __FILE__, \
           __LINE__)

/// What the parts of the program are.
void test_tensors();
void test_operations();
void test_errors();
void test_callbacks();
void test_optimizers();
void test_window();

#endif // EXPECT_HPP
