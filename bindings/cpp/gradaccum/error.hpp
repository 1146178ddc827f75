// error.hpp - errors: a type for each status
#ifndef GRADACCUM_ERROR_HPP
#define GRADACCUM_ERROR_HPP

#include <stdexcept>
#include <string>

#include "gradaccum.h"

namespace gradaccum {

/// A status of the library that is not GA_OK, with its sentence as what().
class Error : public std::runtime_error {
public:
    Error(ga_status status, const std::string &sentence) : std::runtime_error(sentence), status_(status) {}

    ga_status status() const noexcept { return status_; }
    const char *status_name() const noexcept { return ga_status_name(status_); }

private:
    ga_status status_;
};

/// An Error of one status, to be caught by it. A callback may throw one, too.
template <ga_status value> class StatusError : public Error {
public:
    explicit StatusError(const std::string &sentence) : Error(value, sentence) {}
};

using InvalidArgumentError = StatusError<GA_ERROR_INVALID_ARGUMENT>;
using ShapeError = StatusError<GA_ERROR_SHAPE>;
using DTypeError = StatusError<GA_ERROR_DTYPE>;
using StateError = StatusError<GA_ERROR_STATE>;
using OutOfMemoryError = StatusError<GA_ERROR_OUT_OF_MEMORY>;
using OverflowError = StatusError<GA_ERROR_OVERFLOW>;
using IndexError = StatusError<GA_ERROR_INDEX>;
using NonFiniteError = StatusError<GA_ERROR_NON_FINITE>;
using UnsupportedError = StatusError<GA_ERROR_UNSUPPORTED>;
using InternalError = StatusError<GA_ERROR_INTERNAL>;
using OutlierError = StatusError<GA_ERROR_OUTLIER>;

/// Throws the error of a status, with the sentence of this thread's last error.
[[noreturn]] inline void throw_error(ga_status status) {
    const std::string sentence = ga_last_error();
    switch (status) {
    case GA_ERROR_INVALID_ARGUMENT: throw InvalidArgumentError(sentence);
    case GA_ERROR_SHAPE: throw ShapeError(sentence);
    case GA_ERROR_DTYPE: throw DTypeError(sentence);
    case GA_ERROR_STATE: throw StateError(sentence);
    case GA_ERROR_OUT_OF_MEMORY: throw OutOfMemoryError(sentence);
    case GA_ERROR_OVERFLOW: throw OverflowError(sentence);
    case GA_ERROR_INDEX: throw IndexError(sentence);
    case GA_ERROR_NON_FINITE: throw NonFiniteError(sentence);
    case GA_ERROR_UNSUPPORTED: throw UnsupportedError(sentence);
    case GA_ERROR_INTERNAL: throw InternalError(sentence);
    case GA_ERROR_OUTLIER: throw OutlierError(sentence);
    default: throw Error(status, sentence);
    }
}

/// Throws what a C call returned, unless that is GA_OK.
inline void check(ga_status status) {
    if (status != GA_OK) throw_error(status);
}

} // namespace gradaccum

#endif // GRADACCUM_ERROR_HPP
