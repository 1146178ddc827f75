// errors.cpp - each status is an exception of its own, with the library's sentence, and leaves the objects as they were
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "expect.hpp"

namespace {

template <class Exception> bool is_thrown_for(ga_status status) {
    try {
        ga::throw_error(status);
    } catch (const Exception &error) {
        return error.status() == status && std::string(error.status_name()) == ga_status_name(status);
    } catch (...) {
    }
    return false;
}

bool is_thrown_plainly(ga_status status) {
    try {
        ga::throw_error(status);
    } catch (const ga::Error &error) {
        return typeid(error) == typeid(ga::Error);
    }
}

void a_type_for_each_status() {
    EXPECT(is_thrown_for<ga::InvalidArgumentError>(GA_ERROR_INVALID_ARGUMENT));
    EXPECT(is_thrown_for<ga::ShapeError>(GA_ERROR_SHAPE));
    EXPECT(is_thrown_for<ga::DTypeError>(GA_ERROR_DTYPE));
    EXPECT(is_thrown_for<ga::StateError>(GA_ERROR_STATE));
    EXPECT(is_thrown_for<ga::OutOfMemoryError>(GA_ERROR_OUT_OF_MEMORY));
    EXPECT(is_thrown_for<ga::OverflowError>(GA_ERROR_OVERFLOW));
    EXPECT(is_thrown_for<ga::IndexError>(GA_ERROR_INDEX));
    EXPECT(is_thrown_for<ga::NonFiniteError>(GA_ERROR_NON_FINITE));
    EXPECT(is_thrown_for<ga::UnsupportedError>(GA_ERROR_UNSUPPORTED));
    EXPECT(is_thrown_for<ga::InternalError>(GA_ERROR_INTERNAL));
    EXPECT(is_thrown_for<ga::OutlierError>(GA_ERROR_OUTLIER));
    EXPECT(is_thrown_for<ga::Error>(-1000));
    // A status that the library knows, and the binding does not, would be a plain Error.
    const std::string unknown = ga_status_name(-1000);
    for (ga_status status = -1; status > -100; status--)
        if (ga_status_name(status) != unknown)
            EXPECT(!is_thrown_plainly(status));
}

void what_goes_wrong() {
    const ga::Tensor x = ga::Tensor::zeros({2, 3}), y = ga::Tensor::zeros({4});
    EXPECT_THROWS(ga::ShapeError, "add", x + y);
    EXPECT_THROWS(ga::ShapeError, "", x.item());
    EXPECT_THROWS(ga::DTypeError, "relu", ga::relu(ga::Tensor::zeros({1}, ga::DType::int32)));
    EXPECT_THROWS(ga::IndexError, "", ga::embedding(x, ga::Tensor::from_data({1}, std::vector<std::int32_t>{2})));
    EXPECT_THROWS(ga::OutOfMemoryError, "", ga::Tensor::zeros({std::int64_t{1} << 55}));
    try {
        ga::matmul(x, x);
        EXPECT(false);
    } catch (const std::runtime_error &error) {
        EXPECT(std::string(error.what()) == ga_last_error());
    }

    // One that was moved from is neither a missing bias nor a missing parameter.
    ga::Tensor weight = ga::Tensor::zeros({4, 3}), bias = ga::Tensor::zeros({4});
    const ga::Tensor moved = std::move(bias);
    EXPECT_THROWS(ga::InvalidArgumentError, "moved from", ga::linear(x, weight, bias));
    EXPECT_THROWS(ga::InvalidArgumentError, "parameters[1]", ga::SGD({weight, bias}));

    ga::SGD optimizer({weight});
    ga::Accumulator accumulator(optimizer);
    const ga::Accumulator taken = std::move(accumulator);
    EXPECT_THROWS(ga::InvalidArgumentError, "NULL", accumulator.step());
    EXPECT_THROWS(ga::InvalidArgumentError, "NULL", accumulator.accumulate(x, 1));
    EXPECT_THROWS(ga::StateError, "accumulator", const ga::Accumulator second(optimizer));
    ga::SGD other = std::move(optimizer);
    EXPECT_THROWS(ga::InvalidArgumentError, "NULL", optimizer.learning_rate());
    EXPECT(other.learning_rate() == 1e-3);
    EXPECT_THROWS(ga::InvalidArgumentError, "learning_rate", ga::SGD({moved}, ga::SGDOptions().learning_rate(-1)));
    EXPECT_THROWS(ga::ShapeError, "one number", ga::gradients(x, {x}));
    EXPECT_THROWS(ga::InvalidArgumentError, "3 times", ga::Schedule::table({0, 1, 2}, {1, 1}));
}

} // namespace

void test_errors() {
    a_type_for_each_status();
    what_goes_wrong();
}
