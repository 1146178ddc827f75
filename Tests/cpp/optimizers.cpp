// optimizers.cpp - each optimizer is the C library's, with the header's options; groups, schedules and averages
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "expect.hpp"

namespace {

using Values = std::vector<float>;

/// The weights after three updates by an optimizer that make() creates for them.
template <class Make> Values trained(Make make) {
    const ga::Tensor weights = ga::Tensor::zeros({3, 4}).fill_normal(0, 1, 5);
    const ga::Tensor gradient = ga::Tensor::zeros({3, 4}).fill_normal(0, 1, 6);
    ga::Optimizer optimizer = make(weights);
    ga::Accumulator accumulator(optimizer);
    for (int update = 0; update < 3; update++) {
        accumulator.accumulate_gradients({gradient.data<float>()}, 1, 2);
        EXPECT(accumulator.step().update_count == update + 1);
    }
    return weights.to_vector<float>();
}

/// An optimizer of the C call, with options of the struct.
template <class Create, class Options> auto in_c(Create create, const Options &options) {
    return [=](const ga::Tensor &weights) {
        ga_tensor *parameter = weights.handle();
        ga_optimizer *made = nullptr;
        ga::check(create(&made, &parameter, 1, &options));
        return ga::Optimizer(made);
    };
}

template <class Class, class... Options> auto in_cpp(const Options &...options) {
    return [=](const ga::Tensor &weights) { return Class({weights}, options...); };
}

template <class Class, class Create, class Struct, class Options>
void same(Create create, const Struct &defaults, const Struct &changed, const Options &options) {
    EXPECT(trained(in_c(create, defaults)) == trained(in_cpp<Class>()));
    EXPECT(trained(in_c(create, changed)) == trained(in_cpp<Class>(options)));
    EXPECT(trained(in_c(create, changed)) != trained(in_c(create, defaults)));
}

void each_is_that_of_c() {
    ga_sgd_options sgd = GA_SGD_OPTIONS_INIT;
    const ga_sgd_options plain_sgd = sgd;
    sgd.nesterov = 1;
    sgd.momentum = 0.9;
    sgd.weight_decay = 0.1;
    sgd.learning_rate = 0.1;
    same<ga::SGD>(ga_sgd_create, plain_sgd, sgd,
                  ga::SGDOptions().nesterov(true).momentum(0.9).weight_decay(0.1).learning_rate(0.1));

    ga_adam_options adam = GA_ADAM_OPTIONS_INIT;
    const ga_adam_options plain_adam = adam;
    adam.learning_rate = 0.1, adam.beta1 = 0.8, adam.beta2 = 0.9, adam.eps = 1e-3, adam.weight_decay = 0.2;
    same<ga::Adam>(ga_adam_create, plain_adam, adam,
                   ga::AdamOptions().learning_rate(0.1).beta1(0.8).beta2(0.9).eps(1e-3).weight_decay(0.2));

    ga_adamw_options adamw = GA_ADAMW_OPTIONS_INIT;
    const ga_adamw_options plain_adamw = adamw;
    adamw.learning_rate = 0.1, adamw.beta1 = 0.8, adamw.beta2 = 0.9, adamw.eps = 1e-3, adamw.weight_decay = 0.2;
    same<ga::AdamW>(ga_adamw_create, plain_adamw, adamw,
                    ga::AdamWOptions().learning_rate(0.1).beta1(0.8).beta2(0.9).eps(1e-3).weight_decay(0.2));

    ga_radam_options radam = GA_RADAM_OPTIONS_INIT;
    const ga_radam_options plain_radam = radam;
    radam.learning_rate = 0.1, radam.decoupled_weight_decay = 1, radam.weight_decay = 0.2, radam.beta1 = 0.8;
    same<ga::RAdam>(ga_radam_create, plain_radam, radam,
                    ga::RAdamOptions().learning_rate(0.1).decoupled_weight_decay(true).weight_decay(0.2).beta1(0.8));

    ga_nadam_options nadam = GA_NADAM_OPTIONS_INIT;
    const ga_nadam_options plain_nadam = nadam;
    nadam.learning_rate = 0.1, nadam.momentum_decay = 0.1, nadam.beta1 = 0.8, nadam.eps = 1e-3;
    same<ga::NAdam>(ga_nadam_create, plain_nadam, nadam,
                    ga::NAdamOptions().learning_rate(0.1).momentum_decay(0.1).beta1(0.8).eps(1e-3));

    ga_lion_options lion = GA_LION_OPTIONS_INIT;
    const ga_lion_options plain_lion = lion;
    lion.learning_rate = 0.1, lion.beta1 = 0.7, lion.beta2 = 0.8, lion.weight_decay = 0.2;
    same<ga::Lion>(ga_lion_create, plain_lion, lion,
                   ga::LionOptions().learning_rate(0.1).beta1(0.7).beta2(0.8).weight_decay(0.2));

    ga_lamb_options lamb = GA_LAMB_OPTIONS_INIT;
    const ga_lamb_options plain_lamb = lamb;
    lamb.learning_rate = 0.1, lamb.beta1 = 0.7, lamb.beta2 = 0.8, lamb.eps = 1e-3, lamb.weight_decay = 0.2;
    same<ga::LAMB>(ga_lamb_create, plain_lamb, lamb,
                   ga::LAMBOptions().learning_rate(0.1).beta1(0.7).beta2(0.8).eps(1e-3).weight_decay(0.2));

    ga_lars_options lars = GA_LARS_OPTIONS_INIT;
    const ga_lars_options plain_lars = lars;
    lars.learning_rate = 0.1, lars.momentum = 0.7, lars.weight_decay = 0.2, lars.trust_coefficient = 0.1;
    same<ga::LARS>(ga_lars_create, plain_lars, lars,
                   ga::LARSOptions().learning_rate(0.1).momentum(0.7).weight_decay(0.2).trust_coefficient(0.1));

    ga_adafactor_options adafactor = GA_ADAFACTOR_OPTIONS_INIT;
    const ga_adafactor_options plain_adafactor = adafactor;
    adafactor.learning_rate = 0.1, adafactor.beta2_decay = -0.5, adafactor.eps1 = 1e-3, adafactor.eps2 = 1e-2;
    adafactor.clipping_threshold = 2, adafactor.weight_decay = 0.2;
    same<ga::Adafactor>(ga_adafactor_create, plain_adafactor, adafactor,
                        ga::AdafactorOptions()
                            .learning_rate(0.1)
                            .beta2_decay(-0.5)
                            .eps1(1e-3)
                            .eps2(1e-2)
                            .clipping_threshold(2)
                            .weight_decay(0.2));

    ga_muon_options muon = GA_MUON_OPTIONS_INIT;
    const ga_muon_options plain_muon = muon;
    muon.learning_rate = 0.1, muon.momentum = 0.5, muon.nesterov = 0, muon.ns_steps = 3;
    muon.adjust_lr = GA_MUON_MATCH_RMS_ADAMW, muon.weight_decay = 0.2;
    same<ga::Muon>(ga_muon_create, plain_muon, muon,
                   ga::MuonOptions()
                       .learning_rate(0.1)
                       .momentum(0.5)
                       .nesterov(false)
                       .ns_steps(3)
                       .adjust_lr(ga::MuonAdjust::match_rms_adamw)
                       .weight_decay(0.2));
    const std::int64_t place = 0;
    muon = plain_muon;
    muon.adamw_parameters = &place, muon.adamw_parameter_count = 1;
    ga::MuonOptions by_adamw = ga::MuonOptions().adamw_parameters({0});
    const ga::MuonOptions copied = by_adamw; // the list is the copy's own
    by_adamw.adamw_parameters({});
    same<ga::Muon>(ga_muon_create, plain_muon, muon, copied);

    ga_adamw8bit_options adamw8bit = GA_ADAMW8BIT_OPTIONS_INIT;
    const ga_adamw8bit_options plain_adamw8bit = adamw8bit;
    adamw8bit.learning_rate = 0.1, adamw8bit.min_8bit_size = 0, adamw8bit.weight_decay = 0.2;
    same<ga::AdamW8bit>(ga_adamw8bit_create, plain_adamw8bit, adamw8bit,
                        ga::AdamW8bitOptions().learning_rate(0.1).min_8bit_size(0).weight_decay(0.2));
}

void groups_and_rates() {
    const ga::Tensor a = ga::Tensor::zeros({1}), b = ga::Tensor::zeros({1});
    ga::SGD optimizer({a, b}, ga::SGDOptions().learning_rate(1));
    EXPECT(optimizer.learning_rate() == 1 && optimizer.group_count() == 0);
    const std::int64_t group = optimizer.add_group({b}, ga::GroupOptions().learning_rate_scale(0.5));
    EXPECT(group == 0 && optimizer.group_count() == 1 && optimizer.group(group).learning_rate_scale() == 0.5);
    EXPECT_THROWS(ga::StateError, "", optimizer.add_group({b}));
    EXPECT_THROWS(ga::IndexError, "", optimizer.group(1));
    ga::Accumulator accumulator(optimizer);
    const Values one{1};
    accumulator.accumulate_gradients({one, one}, 0, 1);
    accumulator.step();
    EXPECT(a.item() == -1 && b.item() == -0.5);
    optimizer.set_group(group, optimizer.group(group).learning_rate_scale(2).weight_decay(0));
    optimizer.set_learning_rate(0.25);
    accumulator.accumulate_gradients({one, one}, 0, 1);
    EXPECT(accumulator.step().learning_rate == 0.25 && a.item() == -1.25 && b.item() == -1);
    EXPECT(optimizer.clock() == 2 && optimizer.clock(ga::Clock::weight) == 2);
}

void schedules() {
    const ga::Schedule cosine = ga::Schedule::cosine(10).warmup(2).end_factor(0.1);
    EXPECT(cosine.kind() == ga::ScheduleKind::cosine && cosine.duration() == 10);
    EXPECT(cosine.clock() == ga::Clock::updates);
    EXPECT(ga::Schedule::constant().clock(ga::Clock::weight).clock() == ga::Clock::weight);
    EXPECT(cosine.factor(2) == 1 && std::fabs(cosine.factor(10) - 0.1) < 1e-12);
    EXPECT(ga::Schedule::constant().factor(1e6) == 1);
    EXPECT(ga::Schedule::linear(4).end_factor(0.5).factor(2) == 0.75);
    EXPECT(ga::Schedule::inverse_sqrt().timescale(3).factor(9) == 0.5);
    EXPECT(ga::Schedule::step(3).gamma(0.5).factor(6) == 0.25);
    EXPECT(ga::Schedule::exponential(2).gamma(0.25).factor(1) == 0.5);
    EXPECT(ga::Schedule::one_cycle(10).anneal(ga::Anneal::linear).factor(3) == 1);
    ga::Schedule table = ga::Schedule::table({0, 4}, {1, 3});
    const ga::Schedule copied = table;
    table = ga::Schedule::table({0, 1}, {5, 5});
    EXPECT(copied.factor(2) == 2 && table.factor(2) == 5 && copied.times()[1] == 4 && copied.factors()[1] == 3);

    const ga::Tensor w = ga::Tensor::zeros({1});
    ga::SGD optimizer({w}, ga::SGDOptions().learning_rate(1));
    ga::Accumulator accumulator(optimizer);
    const Values one{1};
    optimizer.set_schedule(copied);
    EXPECT(optimizer.next_learning_rate() == 1);
    accumulator.accumulate_gradients({one}, 0, 1);
    accumulator.step();
    EXPECT(optimizer.next_learning_rate() == 1.5 && optimizer.learning_rate() == 1);
    optimizer.remove_schedule();
    optimizer.set_scaling(ga::ScalingOptions().rule(ga::ScalingRule::linear).base_weight(2));
    accumulator.accumulate_gradients({one}, 0, 4);
    EXPECT(accumulator.step().learning_rate == 2);
    optimizer.remove_scaling();
    const ga::ScalingOptions half_life = ga::ScalingOptions().base_weight(2).beta2_half_life(true);
    EXPECT_THROWS(ga::InvalidArgumentError, "beta2", optimizer.set_scaling(half_life));
    EXPECT(optimizer.next_learning_rate() == 1);
    EXPECT_THROWS(ga::StateError, "", optimizer.report_metric(1));
    optimizer.set_schedule(ga::Schedule::plateau()
                               .plateau_signal(ga::PlateauSignal::metric)
                               .plateau_mode(ga::PlateauMode::max)
                               .threshold_mode(ga::ThresholdMode::absolute)
                               .threshold(0)
                               .patience(0)
                               .gamma(0.5));
    optimizer.report_metric(2);
    EXPECT(optimizer.next_learning_rate() == 1);
    optimizer.report_metric(1);
    EXPECT(optimizer.next_learning_rate() == 0.5);
}

void states() {
    const Values gradient{1, -2};
    const auto update = [&](ga::Accumulator &accumulator) {
        accumulator.accumulate_gradients({gradient}, 0, 1);
        accumulator.step();
    };
    ga::Tensor one = ga::Tensor::zeros({2}), other = ga::Tensor::zeros({2});
    ga::AdamW first({one}), second({other});
    ga::Accumulator first_window(first), second_window(second);
    update(first_window);
    const std::vector<std::byte> state = first.save_state();
    second.load_state(state);
    EXPECT(second.clock() == 1 && second.save_state() == state);
    other.copy_in(one.to_vector<float>()); // a state has no weights
    update(first_window), update(second_window);
    EXPECT(one.to_vector<float>() == other.to_vector<float>() && first.save_state() == second.save_state());
    EXPECT_THROWS(ga::InvalidArgumentError, "state", second.load_state(ga::Span<const std::byte>(state.data(), 20)));
    const ga::Tensor third = ga::Tensor::zeros({2});
    EXPECT_THROWS(ga::InvalidArgumentError, "rule", ga::SGD({third}).load_state(state));
}

void averages() {
    const ga::Tensor w = ga::Tensor::zeros({2});
    ga::SGD optimizer({w}, ga::SGDOptions().learning_rate(1));
    ga::Accumulator accumulator(optimizer);
    ga::Average average(optimizer, ga::AverageOptions().decay(0.5));
    const Values gradient{-4, -8};
    accumulator.accumulate_gradients({gradient}, 0, 1);
    accumulator.step();
    EXPECT(average.weights(0).to_vector<float>() == Values({2, 4}) && w.to_vector<float>() == Values({4, 8}));
    {
        const ga::AverageGuard in(average);
        EXPECT(w.to_vector<float>() == Values({2, 4}));
        EXPECT_THROWS(ga::StateError, "average", accumulator.accumulate_gradients({gradient}, 0, 1));
    }
    EXPECT(w.to_vector<float>() == Values({4, 8}));
    average.swap_in();
    average.swap_out();
    EXPECT_THROWS(ga::StateError, "", average.swap_out());
    EXPECT(average.updates() == 1);
    std::vector<ga::Tensor> saved;
    saved.push_back(average.weights(0));
    average.load(saved, 5);
    EXPECT(average.updates() == 5);
    EXPECT_THROWS(ga::InvalidArgumentError, "count", average.load({}, 5));
    average.reset();
    ga::Average moved = std::move(average);
    EXPECT(moved.weights(0).to_vector<float>() == Values({4, 8}));
    EXPECT_THROWS(ga::InvalidArgumentError, "NULL", average.reset());
    EXPECT_THROWS(ga::IndexError, "", moved.weights(1));
}

} // namespace

void test_optimizers() {
    each_is_that_of_c();
    groups_and_rates();
    schedules();
    states();
    averages();
}
