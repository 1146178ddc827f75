// callbacks.cpp - what a callback throws comes out of the C++ call that ran it, the same object, with nothing leaked,
// and the library is as usable as before
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "expect.hpp"

namespace {

/// No type of the binding or of the standard library, and it cannot be copied.
struct Interrupted {
    explicit Interrupted(int value) : number(std::make_unique<int>(value)) {}
    Interrupted(Interrupted &&) = default;
    std::unique_ptr<int> number;
};

/// The number of the Interrupted that the body ends with; -1 if it does not.
template <class Body> int interrupted(Body body) {
    try {
        body();
    } catch (const Interrupted &error) {
        return *error.number;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "another exception: %s\n", error.what());
    }
    return -1;
}

void block_in_forward() {
    const ga::Tensor x = ga::Tensor::zeros({2, 2}).set_requires_grad(true);
    std::weak_ptr<int> alive;
    const auto run = [&](auto failure) {
        const auto counted = std::make_shared<int>(0);
        alive = counted;
        return ga::checkpoint(
            [counted, failure](const ga::Tensor &input) {
                const ga::Tensor made = input * 2;
                failure(made);
                return made + 1;
            },
            x);
    };
    EXPECT(interrupted([&] { run([](const ga::Tensor &) { throw Interrupted(7); }); }) == 7);
    EXPECT(alive.expired()); // a block that failed is not kept
    EXPECT_THROWS(std::out_of_range, "mine", run([](const ga::Tensor &) { throw std::out_of_range("mine"); }));
    EXPECT_THROWS(ga::ShapeError, "add", run([](const ga::Tensor &made) { ga::add(made, ga::Tensor::zeros({3})); }));
    EXPECT_THROWS(ga::NonFiniteError, "own", run([](const ga::Tensor &) { throw ga::NonFiniteError("own words"); }));
    EXPECT_THROWS(ga::Error, "no error", run([](const ga::Tensor &) { throw ga::Error(GA_OK, "no error"); }));
    {
        const ga::Tensor y = run([](const ga::Tensor &) {});
        EXPECT(!alive.expired() && y.data<float>()[0] == 1);
    }
    EXPECT(alive.expired());
    EXPECT(throws<ga::InvalidArgumentError>(
        "out of block", [&] { ga::checkpoint([](const ga::Tensor &) { return ga::Tensor(); }, x); }));
}

void block_in_backward() {
    const ga::Tensor x = ga::Tensor::zeros({2, 2}).fill(1), w = ga::Tensor::zeros({2, 2}).fill(1);
    ga::SGD optimizer({w}, ga::SGDOptions().learning_rate(1));
    ga::Accumulator accumulator(optimizer);
    bool fails = false;
    const auto block = [&](const ga::Tensor &input) {
        if (fails) throw Interrupted(8);
        return ga::linear(input, w);
    };
    ga::Tensor loss = ga::sum(ga::checkpoint(block, x));
    fails = true;
    EXPECT(interrupted([&] { accumulator.accumulate(loss, 2); }) == 8);
    loss = ga::Tensor();
    EXPECT_THROWS(ga::StateError, "", accumulator.step()); // the header's exception: broken until zero
    accumulator.zero();
    fails = false;
    loss = ga::sum(ga::checkpoint(block, x));
    fails = true;
    EXPECT(interrupted([&] { ga::gradients(loss, {w}); }) == 8);

    // Nothing of these is remembered by a later failure.
    fails = false;
    EXPECT_THROWS(ga::ShapeError, "", accumulator.accumulate(ga::linear(x, w), 2));
    accumulator.accumulate(ga::sum(ga::checkpoint(block, x)), 2);
    EXPECT(accumulator.step().applied() && w.data<float>()[0] == 0);
}

void calls_inside_of_calls() {
    const ga::Tensor x = ga::Tensor::zeros({2}).fill(1).set_requires_grad(true);
    const auto outer = [](const ga::Tensor &input) {
        EXPECT(interrupted([&] {
                   ga::checkpoint([](const ga::Tensor &) -> ga::Tensor { throw Interrupted(1); }, input);
               }) == 1);
        EXPECT_THROWS(ga::ShapeError, "", ga::add(input, ga::Tensor::zeros({3})));
        return ga::checkpoint([](const ga::Tensor &inner) { return inner * 3; }, input);
    };
    const ga::Tensor y = ga::checkpoint(outer, x);
    EXPECT(ga::gradients(ga::sum(y), {x})[0].to_vector<float>() == std::vector<float>(2, 3));
    const auto passing = [](const ga::Tensor &input) {
        return ga::checkpoint([](const ga::Tensor &) -> ga::Tensor { throw Interrupted(2); }, input);
    };
    EXPECT(interrupted([&] { ga::checkpoint(passing, x); }) == 2);
}

void rules(bool elementwise) {
    const std::int64_t size = elementwise ? 1 << 18 : 100;
    const ga::Tensor first = ga::Tensor::zeros({size}), second = ga::Tensor::zeros({3});
    const std::vector<float> ones(static_cast<std::size_t>(size), 1), threes(3, 3);
    std::weak_ptr<int> alive;
    bool fails = false;
    {
        const auto counted = std::make_shared<int>(0);
        alive = counted;
        ga::CustomOptimizer optimizer(
            {first, second},
            [counted, &fails](ga::Span<float> parameter, ga::Span<const float> gradient, ga::Slots slots,
                              const ga::Update &update) {
                if (fails) throw Interrupted(9);
                if (slots.size() != 2 || slots[0].size() != parameter.size()) throw std::logic_error("slots");
                const auto scale = static_cast<float>(update.gradient_scale);
                for (std::size_t i = 0; i < parameter.size(); i++) {
                    slots[1][i] += gradient[i] * scale;
                    parameter[i] -= static_cast<float>(update.learning_rate) * slots[1][i];
                }
            },
            ga::CustomOptions().elementwise(elementwise).learning_rate(0.5).slot_count(2));
        ga::Optimizer moved = std::move(optimizer); // the rule goes with it
        ga::Accumulator accumulator(moved);
        accumulator.accumulate_gradients({ones, threes}, 0, 2);
        EXPECT(accumulator.step().applied());
        EXPECT(first.data<float>()[static_cast<std::size_t>(size) - 1] == -0.25F && second.data<float>()[2] == -0.75F);
        fails = true;
        accumulator.accumulate_gradients({ones, threes}, 0, 2);
        EXPECT(interrupted([&] { accumulator.step(); }) == 9);
        EXPECT(accumulator.window().micro_batches == 0 && accumulator.window().update_count == 1);
        fails = false;
        EXPECT_THROWS(ga::StateError, "", accumulator.step());
        accumulator.accumulate_gradients({ones, threes}, 0, 2);
        EXPECT(accumulator.step().update_count == 2);
    }
    EXPECT(alive.expired());
    EXPECT_THROWS(ga::InvalidArgumentError, "slot",
                  ga::CustomOptimizer(
                      {second}, [](ga::Span<float>, ga::Span<const float>, ga::Slots, const ga::Update &) {},
                      ga::CustomOptions().slot_count(-1)));
}

void skip_handlers() {
    const ga::Tensor w = ga::Tensor::zeros({2});
    ga::SGD optimizer({w}, ga::SGDOptions().learning_rate(1));
    ga::Accumulator accumulator(optimizer);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> good{1, 1}, bad{1, nan};
    int asked = 0;
    accumulator.set_skip_handler([&](const ga::Report &report) {
        asked++;
        EXPECT(report.result() == ga::Outcome::skipped_non_finite && report.struct_size == sizeof(ga_report));
        EXPECT(report.micro_batches == 1 && report.consecutive_skips == asked);
        if (asked == 2) throw Interrupted(10);
        return asked == 1 ? ga::Decision::skip : ga::Decision::raise;
    });
    const auto window = [&](const std::vector<float> &gradient) {
        accumulator.accumulate_gradients({gradient}, 0, 1);
        return accumulator.step();
    };
    EXPECT(window(bad).result() == ga::Outcome::skipped_non_finite);
    EXPECT(interrupted([&] { window(bad); }) == 10);
    EXPECT(accumulator.window().micro_batches == 0 && w.data<float>()[0] == 0);
    EXPECT_THROWS(ga::NonFiniteError, "step", window(bad));
    EXPECT(asked == 3);

    ga::Accumulator moved = std::move(accumulator); // the handler goes with it
    moved.accumulate_gradients({bad}, 0, 1);
    EXPECT_THROWS(ga::NonFiniteError, "step", moved.step());
    EXPECT(asked == 4);

    // A handler may replace itself, and then lives until it has returned.
    const auto counted = std::make_shared<int>(0);
    moved.set_skip_handler([&moved, counted](const ga::Report &) {
        moved.set_skip_handler([](const ga::Report &) { return ga::Decision::raise; });
        ++*counted;
        return ga::Decision::skip;
    });
    moved.accumulate_gradients({bad}, 0, 1);
    moved.step();
    EXPECT(*counted == 1 && counted.use_count() == 1);
    moved.accumulate_gradients({bad}, 0, 1);
    EXPECT_THROWS(ga::NonFiniteError, "step", moved.step());
    moved.set_skip_handler(nullptr);
    moved.accumulate_gradients({bad}, 0, 1);
    EXPECT(!moved.step().applied());
    moved.accumulate_gradients({good}, 0, 1);
    EXPECT(moved.step().applied() && w.data<float>()[0] == -1);
}

void threads() {
    std::vector<int> found(4);
    std::vector<std::thread> workers;
    for (int number = 0; number < 4; number++)
        workers.emplace_back([number, &found] {
            const ga::Tensor x = ga::Tensor::zeros({8}).set_requires_grad(true);
            int total = 0;
            for (int round = 0; round < 200; round++)
                total += interrupted([&] {
                    ga::checkpoint([=](const ga::Tensor &) -> ga::Tensor { throw Interrupted(number); }, x);
                });
            found[static_cast<std::size_t>(number)] = total;
        });
    for (std::thread &worker : workers) worker.join();
    EXPECT(found == std::vector<int>({0, 200, 400, 600}));
}

} // namespace

void test_callbacks() {
    block_in_forward();
    block_in_backward();
    calls_inside_of_calls();
    rules(false);
    rules(true);
    skip_handlers();
    threads();
}
