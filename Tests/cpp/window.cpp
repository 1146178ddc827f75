// window.cpp - the accumulation window: splits, micro-batches that commit and abort, tails, and nothing that C lacks
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "expect.hpp"

namespace {

using Values = std::vector<float>;

/// A small classifier on data that is made from a seed; the weights after some updates.
struct Classifier {
    ga::Tensor weight1 = ga::Tensor::zeros({16, 8}).fill_normal(0, 0.3, 1);
    ga::Tensor bias1 = ga::Tensor::zeros({16});
    ga::Tensor weight2 = ga::Tensor::zeros({3, 16}).fill_normal(0, 0.3, 2);
    ga::Tensor x = ga::Tensor::zeros({13, 8}).fill_normal(0, 1, 3);
    ga::Tensor y = ga::Tensor::from_data({13}, std::vector<std::int32_t>{0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0});

    ga::Tensor loss(const ga::SampleRange &range) const {
        const ga::Tensor hidden = ga::gelu(ga::linear(ga::slice(x, 0, range.begin, range.end), weight1, bias1));
        return ga::cross_entropy(ga::linear(hidden, weight2), ga::slice(y, 0, range.begin, range.end));
    }
};

Values trained(const std::vector<ga::SampleRange> &split, std::int32_t threads) {
    ga::set_num_threads(threads);
    const Classifier model;
    ga::AdamW optimizer({model.weight1, model.bias1, model.weight2}, ga::AdamWOptions().learning_rate(0.01));
    const auto steps = static_cast<std::int64_t>(split.size());
    ga::Accumulator accumulator(optimizer, ga::AccumulatorOptions().max_grad_norm(0.5).accumulation_steps(steps));
    double first = 0, last = 0;
    for (int update = 0; update < 5; update++) {
        accumulator.begin_data();
        for (const ga::SampleRange &range : split) {
            EXPECT(!accumulator.step_due());
            accumulator.accumulate(model.loss(range), static_cast<double>(range.size()));
        }
        EXPECT(accumulator.step_due() && accumulator.window().result() == ga::Outcome::pending);
        const ga::Report report = accumulator.step();
        EXPECT(report.applied() && report.weight == 13 && report.clip_factor < 1);
        (update == 0 ? first : last) = report.loss;
        EXPECT(accumulator.gradient_norms().size() == 3 && accumulator.gradient_norms()[0] > 0);
        EXPECT(accumulator.end_data().result() == ga::Outcome::empty);
    }
    EXPECT(last < first);
    Values weights = model.weight1.to_vector<float>();
    for (const float value : model.weight2.data<float>()) weights.push_back(value);
    return weights;
}

void split_invariance() {
    const std::int32_t threads = ga::num_threads();
    const Values whole = trained(ga::split_by_count(13, 1), 1);
    EXPECT(trained(ga::split_by_count(13, 4), 2) == whole);
    EXPECT(trained(ga::split_by_size(13, 5), 3) == whole);
    EXPECT(trained(ga::split_by_tokens(std::vector<std::int64_t>(13, 7), 21, true), 1) == whole);
    ga::set_num_threads(threads);
    EXPECT(ga::split_by_size(13, 5).size() == 3 && ga::split_by_size(13, 5)[2].size() == 3);
    EXPECT(ga::split_by_tokens({3, 3, 5}, 6, false).size() == 2);
    EXPECT_THROWS(ga::InvalidArgumentError, "size", ga::split_by_size(13, 0));
    EXPECT_THROWS(ga::InvalidArgumentError, "7", ga::split_by_tokens({7}, 6, false));
}

void own_gradients() {
    ga::Tensor a = ga::Tensor::zeros({3}), b = ga::Tensor::zeros({2});
    ga::SGD optimizer({a, b}, ga::SGDOptions().learning_rate(1));
    ga::SGD &same = optimizer;
    optimizer = std::move(same); // which leaves it as it is
    ga::Accumulator accumulator(optimizer);
    const std::vector<Values> both{{1, 2, 3}, {4, 5}};
    accumulator.accumulate_gradients(both, 1, 1);
    accumulator.accumulate_gradients({both[0], {}}, 1, 1); // nothing for b
    const std::vector<std::vector<std::uint16_t>> halves{{0x3f80, 0x3f80, 0x3f80}, {}}; // 1 in bfloat16
    accumulator.accumulate_gradients(halves, 0, 1, ga::DType::bfloat16);
    EXPECT(accumulator.accumulated_gradient(0).to_vector<float>() == Values({3, 5, 7}));
    const void *const addresses[2] = {nullptr, both[1].data()};
    accumulator.accumulate_gradients(addresses, 2, ga::DType::float32, 0, 1);
    EXPECT(accumulator.accumulated_gradient(1).to_vector<float>() == Values({8, 10}));
    EXPECT_THROWS(ga::IndexError, "", accumulator.accumulated_gradient(2));
    EXPECT(accumulator.step().weight == 4 && a.to_vector<float>() == Values({-0.75F, -1.25F, -1.75F}));

    // Lengths that the C library could not see are looked at.
    EXPECT_THROWS(ga::ShapeError, "gradients[1] has 3", accumulator.accumulate_gradients({both[0], both[0]}, 1, 1));
    EXPECT_THROWS(ga::InvalidArgumentError, "1", accumulator.accumulate_gradients({both[0]}, 1, 1));
    EXPECT_THROWS(ga::DTypeError, "dtype", accumulator.accumulate_gradients(both, 1, 1, ga::DType::float16));
    EXPECT(accumulator.window().micro_batches == 0);
    ga::Accumulator &self = accumulator;
    accumulator = std::move(self);
    EXPECT_THROWS(ga::ShapeError, "gradients[1] has 3", accumulator.accumulate_gradients({both[0], both[0]}, 1, 1));

    // One by one, in a micro-batch.
    a.fill(0), b.fill(0);
    accumulator.micro_batch([&] {
        accumulator.accumulate_gradient(1, both[1], 2);
        accumulator.accumulate_gradient(0, halves[0], 1, ga::DType::bfloat16);
        EXPECT_THROWS(ga::ShapeError, "gradient has 2", accumulator.accumulate_gradient(0, both[1]));
        EXPECT_THROWS(ga::IndexError, "2", accumulator.accumulate_gradient(2, both[1]));
        EXPECT_THROWS(ga::IndexError, "-1", accumulator.accumulate_gradient(-1, both[1]));
        EXPECT_THROWS(ga::DTypeError, "dtype", accumulator.accumulate_gradient(0, halves[0], 1, ga::DType::float32));
        accumulator.accumulate_gradients(std::vector<ga::Span<const float>>(2), 3, 2);
    });
    EXPECT_THROWS(ga::StateError, "", accumulator.accumulate_gradient(0, both[0]));
    EXPECT(accumulator.step().loss == 1.5);
    EXPECT(a.to_vector<float>() == Values(3, -0.5F) && b.to_vector<float>() == Values({-4, -5}));

    a.fill(1), b.fill(1);
    const ga::Tensor loss = ga::sum(a * a) + ga::sum(b * 3);
    accumulator.accumulate_gradients(ga::gradients(loss, {a, b}), loss.item(), 1);
    EXPECT(accumulator.step().loss == 9 && a.data<float>()[1] == -1 && b.data<float>()[1] == -2);
}

void micro_batches() {
    const ga::Tensor w = ga::Tensor::zeros({1});
    ga::SGD optimizer({w}, ga::SGDOptions().learning_rate(1));
    ga::Accumulator accumulator(optimizer, ga::AccumulatorOptions().isolated(true));
    const Values one{1}, bad{std::numeric_limits<float>::infinity()};
    accumulator.micro_batch([&](ga::MicroBatch &batch) {
        EXPECT(batch.number() == 0 && batch.is_open());
        accumulator.accumulate_gradients({one}, 1, 1);
        accumulator.accumulate_gradients({one}, 1, 1);
    });
    EXPECT(accumulator.window().micro_batches == 1);
    try {
        accumulator.micro_batch([&] {
            accumulator.accumulate_gradients({one}, 1, 1);
            throw std::runtime_error("mine");
        });
        EXPECT(false);
    } catch (const std::runtime_error &error) {
        EXPECT(std::string(error.what()) == "mine");
    }
    EXPECT(accumulator.window().micro_batches == 1 && accumulator.window().aborted_micro_batches == 1);
    {
        ga::MicroBatch forgotten(accumulator);
        accumulator.accumulate_gradients({one}, 1, 1);
        EXPECT_THROWS(ga::StateError, "open", ga::MicroBatch(accumulator).commit());
        EXPECT_THROWS(ga::StateError, "open", accumulator.step());
    }
    EXPECT(accumulator.window().aborted_micro_batches == 2);
    {
        ga::MicroBatch empty(accumulator);
        EXPECT_THROWS(ga::StateError, "", empty.commit());
        EXPECT(empty.is_open());
        empty.abort();
        EXPECT(!empty.is_open());
        EXPECT_THROWS(ga::StateError, "", empty.abort());
    }
    {
        ga::MicroBatch dropped(accumulator);
        accumulator.accumulate_gradients({bad}, 1, 1);
        dropped.commit();
        EXPECT(!dropped.is_open());
    }
    ga::MicroBatch weighted(accumulator);
    accumulator.accumulate_gradients({one}, 1, ga::weight_later);
    weighted.commit();
    EXPECT_THROWS(ga::StateError, "weight", accumulator.step());
    weighted.set_weight(2);
    const ga::Report report = accumulator.step();
    EXPECT(report.weight == 4 && report.micro_batches == 2 && report.aborted_micro_batches == 4);
    EXPECT(w.item() == -0.75);

    // A commit that raises has dropped the micro-batch: the guard leaves the next one alone.
    accumulator.set_skip_handler([](const ga::Report &found) {
        EXPECT(found.result() == ga::Outcome::micro_batch_non_finite);
        throw ga::StateError("from the handler");
        return ga::Decision::skip;
    });
    ga::MicroBatch next = [&] {
        ga::MicroBatch raising(accumulator);
        accumulator.accumulate_gradients({bad}, 1, 1);
        EXPECT_THROWS(ga::StateError, "from the handler", raising.commit());
        EXPECT(!raising.is_open());
        return ga::MicroBatch(accumulator);
    }();
    accumulator.accumulate_gradients({one}, 1, 1);
    next.commit();
    EXPECT(accumulator.step().applied());

    // In exact mode what was added stays, and no step takes it in silence.
    const ga::Tensor v = ga::Tensor::zeros({1});
    ga::SGD exact_optimizer({v});
    ga::Accumulator exact(exact_optimizer);
    try {
        exact.micro_batch([&] {
            exact.accumulate_gradients({one}, 1, 1);
            throw 5;
        });
    } catch (int number) {
        EXPECT(number == 5);
    }
    EXPECT_THROWS(ga::StateError, "open", exact.step());
    exact.zero();
    exact.accumulate_gradients({one}, 1, 1);
    EXPECT(exact.step().applied());
}

void options_and_ends() {
    const ga::Tensor w = ga::Tensor::zeros({2});
    ga::SGD optimizer({w}, ga::SGDOptions().learning_rate(1));
    const auto options = ga::AccumulatorOptions()
                             .loss_reduction(ga::Reduction::mean)
                             .normalization(ga::Normalization::sum)
                             .on_non_finite(ga::OnNonFinite::raise)
                             .max_grad_value(1.5)
                             .accumulation_steps(2);
    EXPECT(options.loss_reduction() == ga::Reduction::mean && options.max_grad_value() == 1.5 && !options.isolated());
    ga::Accumulator accumulator(optimizer, options);
    const Values gradient{1, 4}, bad{std::numeric_limits<float>::quiet_NaN(), 0};
    accumulator.accumulate_gradients({gradient}, 1, 1);
    accumulator.step();
    EXPECT(w.to_vector<float>() == Values({-1, -1.5F}));
    accumulator.accumulate_gradients({bad}, 1, 1);
    EXPECT_THROWS(ga::NonFiniteError, "", accumulator.step());
    accumulator.set_accumulation_steps(5);
    EXPECT(accumulator.accumulation_steps() == 5);
    accumulator.set_ramp({1, 2}, {1, 3});
    EXPECT(accumulator.accumulation_steps() == 1);
    EXPECT_THROWS(ga::InvalidArgumentError, "2 times", accumulator.set_ramp({1, 2}, {1}));
    accumulator.begin_data();
    accumulator.accumulate_gradients({gradient}, 1, 1);
    EXPECT(accumulator.end_data(ga::Tail::carry).result() == ga::Outcome::pending);
    EXPECT(accumulator.end_data(ga::Tail::drop).result() == ga::Outcome::dropped);
    std::vector<double> norms(1);
    accumulator.gradient_norms(norms);
    EXPECT_THROWS(ga::InvalidArgumentError, "2", accumulator.gradient_norms(std::vector<double>(2)));

    const ga::Tensor u = ga::Tensor::zeros({2});
    ga::AdamW adamw({u});
    ga::Accumulator into_moments(adamw, ga::AccumulatorOptions()
                                            .accumulate_into(ga::AccumulateInto::moments)
                                            .normalization(ga::Normalization::sum));
    into_moments.accumulate_gradients({gradient}, 1, 1);
    EXPECT_THROWS(ga::StateError, "moments", into_moments.zero());
    EXPECT(into_moments.step().applied() && u.data<float>()[0] < 0);

    const ga::Tensor narrow = ga::Tensor::zeros({2});
    ga::SGD plain({narrow});
    ga::Accumulator in_bfloat16(
        plain, ga::AccumulatorOptions().sum_format(ga::SumFormat::bfloat16).count_underflow(true));
    EXPECT_THROWS(ga::StateError, "step", in_bfloat16.stagnation());
    for (const float number : {1.0F, 0.001F}) in_bfloat16.accumulate_gradients({Values{number, number}}, 1, 1);
    EXPECT(in_bfloat16.step().underflow == 0);
    EXPECT(in_bfloat16.stagnation().additions[0] == 4 && in_bfloat16.stagnation().unchanged[0] == 2);

    // A C program's handle, taken over.
    const ga::Tensor v = ga::Tensor::zeros({1});
    ga_tensor *const parameter = v.handle();
    ga_optimizer *sgd = nullptr;
    ga_accumulator *made = nullptr;
    ga::check(ga_sgd_create(&sgd, &parameter, 1, nullptr));
    const ga::Optimizer owner(sgd);
    ga::check(ga_accumulator_create(&made, owner.handle(), nullptr));
    ga::Accumulator taken(made);
    const Values one{1};
    taken.accumulate_gradients({one}, 1, 1);
    EXPECT(taken.step().applied());
}

void loss_scaling() {
    const ga::Tensor w = ga::Tensor::zeros({2});
    ga::SGD optimizer({w}, ga::SGDOptions().learning_rate(1));
    ga::Accumulator accumulator(optimizer);
    const auto options = ga::LossScalerOptions().init_scale(1024).growth_interval(2).consecutive_hysteresis(true);
    ga::LossScaler scaler(options);
    EXPECT(scaler.scale() == 1024 && options.growth_interval() == 2);
    accumulator.set_loss_scaler(scaler);
    const Values scaled{2048, 4096}, plain{2, 4}, bad{std::numeric_limits<float>::infinity(), 0};
    accumulator.accumulate_scaled_gradients({scaled}, 1024, 1, 2);
    accumulator.accumulate_scaled_gradients(std::vector<Values>{plain}, 1, 1, 2);
    EXPECT(accumulator.accumulated_gradient(0).to_vector<float>() == Values({4, 8}));
    EXPECT(std::abs(accumulator.unscale() - std::sqrt(5.0)) < 1e-6);
    EXPECT_THROWS(ga::StateError, "unscaled", accumulator.unscale());
    EXPECT(accumulator.step().loss_scale == 1024 && w.to_vector<float>() == Values({-1, -2}));
    EXPECT(scaler.save().growth_tracker == 1);

    int retries = 0;
    const auto overflow = [&] {
        accumulator.accumulate_scaled_gradients({bad}, 1024, 0, 1);
        return accumulator.step();
    };
    accumulator.set_retry_handler([&](const ga::Report &report) {
        EXPECT(report.result() == ga::Outcome::skipped_overflow && report.struct_size == sizeof(ga_report));
        retries++;
        if (retries == 3) throw std::runtime_error("from the handler");
        if (retries == 2) return false;
        accumulator.accumulate_scaled_gradients({scaled}, 1024, 1, 2);
        return true;
    });
    const ga::Report report = overflow();
    EXPECT(report.applied() && report.retries == 1 && report.loss_scale == 512 && retries == 1);
    EXPECT(overflow().result() == ga::Outcome::skipped_overflow && retries == 2 && scaler.scale() == 256);
    EXPECT_THROWS(std::runtime_error, "from the handler", overflow());
    EXPECT(accumulator.window().micro_batches == 0 && scaler.scale() == 128);
    accumulator.set_retry_handler(nullptr);
    EXPECT(!overflow().applied() && retries == 3);
    accumulator.remove_loss_scaler();
    accumulator.accumulate_gradients({plain}, 1, 1);
    EXPECT(accumulator.step().loss_scale == 1);
    ga::LossScaler moved = std::move(scaler);
    EXPECT_THROWS(ga::InvalidArgumentError, "moved from", accumulator.set_loss_scaler(scaler));

    // Gradients of one's own.
    Values own{256, 512};
    EXPECT(moved.scale() == 64 && std::abs(moved.unscale({own}, 256) - std::sqrt(5.0)) < 1e-6);
    EXPECT(own == Values({1, 2}));
    EXPECT_THROWS(ga::StateError, "unscaled", moved.unscale({own}, 256));
    std::vector<std::vector<std::uint16_t>> halves{{0x4000}}; // 2 in bfloat16
    EXPECT(moved.unscale(halves, 2, 1, ga::DType::bfloat16) == 1 && halves[0][0] == 0x3f80);
    EXPECT_THROWS(ga::DTypeError, "dtype", moved.unscale(halves, 2, 2, ga::DType::float32));
    std::vector<ga::Tensor> tensors;
    tensors.push_back(ga::Tensor::from_data({1}, {std::numeric_limits<float>::infinity()}));
    EXPECT(!std::isfinite(moved.unscale(tensors, 64, 2)));
    EXPECT_THROWS(ga::StateError, "loss_scaler_update", moved.save());
    moved.update();
    EXPECT(moved.scale() == 32);
    EXPECT_THROWS(ga::StateError, "", moved.update());

    ga::LossScaler again(options);
    again.load(moved.save());
    EXPECT(again.scale() == 32 && again.save().growth_tracker == moved.save().growth_tracker);
    ga::LossScalerState bad_state;
    bad_state.scale = 3;
    EXPECT_THROWS(ga::InvalidArgumentError, "3", again.load(bad_state));
}

/// Law 4: micro-batches in steady state need no memory of the allocator, and the binding's arrays are kept.
void steady_state() {
    const Classifier model;
    ga::AdamW optimizer({model.weight1, model.bias1, model.weight2});
    ga::Accumulator accumulator(optimizer);
    const auto window = [&] {
        for (const ga::SampleRange &range : ga::split_by_size(13, 4))
            accumulator.accumulate(model.loss(range), static_cast<double>(range.size()));
        accumulator.step();
    };
    for (int warmup = 0; warmup < 3; warmup++) window();
    const std::int64_t calls = ga::memory_usage().allocator_calls;
    for (int update = 0; update < 10; update++) window();
    EXPECT(ga::memory_usage().allocator_calls == calls);
}

} // namespace

void test_window() {
    split_invariance();
    own_gradients();
    micro_batches();
    options_and_ends();
    loss_scaling();
    steady_state();
}
