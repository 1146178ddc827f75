/*
 * Uses every _INIT macro and pins the layout of every struct. It is C and C++ at once, and strict C89: what
 * compiles here compiles in a user's program. A field that moves is a break of the ABI, so the numbers below
 * only ever grow at a struct's end.
 */
#include "gradaccum.h"
#include "gradaccum.h" /* a second time: the guard must hold */

#include <stdio.h>

static int failures = 0;

static void expect(int holds, const char *what) {
    if (!holds) {
        failures++;
        fprintf(stderr, "use_header: not so: %s\n", what);
    }
}
#define EXPECT(condition) expect((condition) != 0, #condition)

int main(void) {
    ga_memory memory = GA_MEMORY_INIT;
    ga_sgd_options sgd = GA_SGD_OPTIONS_INIT;
    ga_adam_options adam = GA_ADAM_OPTIONS_INIT;
    ga_adamw_options adamw = GA_ADAMW_OPTIONS_INIT;
    ga_radam_options radam = GA_RADAM_OPTIONS_INIT;
    ga_nadam_options nadam = GA_NADAM_OPTIONS_INIT;
    ga_lion_options lion = GA_LION_OPTIONS_INIT;
    ga_lamb_options lamb = GA_LAMB_OPTIONS_INIT;
    ga_lars_options lars = GA_LARS_OPTIONS_INIT;
    ga_adafactor_options adafactor = GA_ADAFACTOR_OPTIONS_INIT;
    ga_muon_options muon = GA_MUON_OPTIONS_INIT;
    ga_adamw8bit_options adamw8bit = GA_ADAMW8BIT_OPTIONS_INIT;
    ga_update update = GA_UPDATE_INIT;
    ga_custom_options custom = GA_CUSTOM_OPTIONS_INIT;
    ga_group_options group = GA_GROUP_OPTIONS_INIT;
    ga_schedule_options schedule = GA_SCHEDULE_OPTIONS_INIT;
    ga_scaling_options scaling = GA_SCALING_OPTIONS_INIT;
    ga_average_options average = GA_AVERAGE_OPTIONS_INIT;
    ga_accumulator_options window = GA_ACCUMULATOR_OPTIONS_INIT;
    ga_report report = GA_REPORT_INIT;

    EXPECT(memory.struct_size == sizeof memory && sizeof memory == 40);
    EXPECT(offsetof(ga_memory, live_bytes) == 8);
    EXPECT(offsetof(ga_memory, peak_bytes) == 16);
    EXPECT(offsetof(ga_memory, arena_bytes) == 24);
    EXPECT(offsetof(ga_memory, allocator_calls) == 32);

    EXPECT(sgd.struct_size == sizeof sgd && sizeof sgd == 32);
    EXPECT(sgd.nesterov == 0 && offsetof(ga_sgd_options, nesterov) == 4);
    EXPECT(sgd.learning_rate == 1e-3 && offsetof(ga_sgd_options, learning_rate) == 8);
    EXPECT(sgd.momentum == 0.0 && offsetof(ga_sgd_options, momentum) == 16);
    EXPECT(sgd.weight_decay == 0.0 && offsetof(ga_sgd_options, weight_decay) == 24);

    EXPECT(adam.struct_size == sizeof adam && sizeof adam == 48);
    EXPECT(adam.learning_rate == 1e-3 && offsetof(ga_adam_options, learning_rate) == 8);
    EXPECT(adam.beta1 == 0.9 && offsetof(ga_adam_options, beta1) == 16);
    EXPECT(adam.beta2 == 0.999 && offsetof(ga_adam_options, beta2) == 24);
    EXPECT(adam.eps == 1e-8 && offsetof(ga_adam_options, eps) == 32);
    EXPECT(adam.weight_decay == 0.0 && offsetof(ga_adam_options, weight_decay) == 40);

    EXPECT(adamw.struct_size == sizeof adamw && sizeof adamw == 48);
    EXPECT(adamw.learning_rate == 1e-3 && offsetof(ga_adamw_options, learning_rate) == 8);
    EXPECT(adamw.beta1 == 0.9 && offsetof(ga_adamw_options, beta1) == 16);
    EXPECT(adamw.beta2 == 0.999 && offsetof(ga_adamw_options, beta2) == 24);
    EXPECT(adamw.eps == 1e-8 && offsetof(ga_adamw_options, eps) == 32);
    EXPECT(adamw.weight_decay == 1e-2 && offsetof(ga_adamw_options, weight_decay) == 40);

    EXPECT(radam.struct_size == sizeof radam && sizeof radam == 48);
    EXPECT(radam.decoupled_weight_decay == 0 && offsetof(ga_radam_options, decoupled_weight_decay) == 4);
    EXPECT(radam.learning_rate == 1e-3 && offsetof(ga_radam_options, learning_rate) == 8);
    EXPECT(radam.beta1 == 0.9 && offsetof(ga_radam_options, beta1) == 16);
    EXPECT(radam.beta2 == 0.999 && offsetof(ga_radam_options, beta2) == 24);
    EXPECT(radam.eps == 1e-8 && offsetof(ga_radam_options, eps) == 32);
    EXPECT(radam.weight_decay == 0.0 && offsetof(ga_radam_options, weight_decay) == 40);

    EXPECT(nadam.struct_size == sizeof nadam && sizeof nadam == 56);
    EXPECT(nadam.decoupled_weight_decay == 0 && offsetof(ga_nadam_options, decoupled_weight_decay) == 4);
    EXPECT(nadam.learning_rate == 2e-3 && offsetof(ga_nadam_options, learning_rate) == 8);
    EXPECT(nadam.beta1 == 0.9 && offsetof(ga_nadam_options, beta1) == 16);
    EXPECT(nadam.beta2 == 0.999 && offsetof(ga_nadam_options, beta2) == 24);
    EXPECT(nadam.eps == 1e-8 && offsetof(ga_nadam_options, eps) == 32);
    EXPECT(nadam.weight_decay == 0.0 && offsetof(ga_nadam_options, weight_decay) == 40);
    EXPECT(nadam.momentum_decay == 4e-3 && offsetof(ga_nadam_options, momentum_decay) == 48);

    EXPECT(lion.struct_size == sizeof lion && sizeof lion == 40);
    EXPECT(lion.reserved == 0 && offsetof(ga_lion_options, reserved) == 4);
    EXPECT(lion.learning_rate == 1e-4 && offsetof(ga_lion_options, learning_rate) == 8);
    EXPECT(lion.beta1 == 0.9 && offsetof(ga_lion_options, beta1) == 16);
    EXPECT(lion.beta2 == 0.99 && offsetof(ga_lion_options, beta2) == 24);
    EXPECT(lion.weight_decay == 0.0 && offsetof(ga_lion_options, weight_decay) == 32);

    EXPECT(lamb.struct_size == sizeof lamb && sizeof lamb == 48);
    EXPECT(lamb.reserved == 0 && offsetof(ga_lamb_options, reserved) == 4);
    EXPECT(lamb.learning_rate == 1e-3 && offsetof(ga_lamb_options, learning_rate) == 8);
    EXPECT(lamb.beta1 == 0.9 && offsetof(ga_lamb_options, beta1) == 16);
    EXPECT(lamb.beta2 == 0.999 && offsetof(ga_lamb_options, beta2) == 24);
    EXPECT(lamb.eps == 1e-6 && offsetof(ga_lamb_options, eps) == 32);
    EXPECT(lamb.weight_decay == 1e-2 && offsetof(ga_lamb_options, weight_decay) == 40);

    EXPECT(lars.struct_size == sizeof lars && sizeof lars == 40);
    EXPECT(lars.reserved == 0 && offsetof(ga_lars_options, reserved) == 4);
    EXPECT(lars.learning_rate == 1.0 && offsetof(ga_lars_options, learning_rate) == 8);
    EXPECT(lars.momentum == 0.9 && offsetof(ga_lars_options, momentum) == 16);
    EXPECT(lars.weight_decay == 5e-4 && offsetof(ga_lars_options, weight_decay) == 24);
    EXPECT(lars.trust_coefficient == 1e-3 && offsetof(ga_lars_options, trust_coefficient) == 32);

    EXPECT(adafactor.struct_size == sizeof adafactor && sizeof adafactor == 56);
    EXPECT(adafactor.reserved == 0 && offsetof(ga_adafactor_options, reserved) == 4);
    EXPECT(adafactor.learning_rate == 1e-2 && offsetof(ga_adafactor_options, learning_rate) == 8);
    EXPECT(adafactor.beta2_decay == -0.8 && offsetof(ga_adafactor_options, beta2_decay) == 16);
    EXPECT(adafactor.eps1 == 1.1920928955078125e-07 && offsetof(ga_adafactor_options, eps1) == 24);
    EXPECT(adafactor.eps2 == 1e-3 && offsetof(ga_adafactor_options, eps2) == 32);
    EXPECT(adafactor.clipping_threshold == 1.0 && offsetof(ga_adafactor_options, clipping_threshold) == 40);
    EXPECT(adafactor.weight_decay == 0.0 && offsetof(ga_adafactor_options, weight_decay) == 48);

    EXPECT(muon.struct_size == sizeof muon && sizeof muon == 128);
    EXPECT(muon.nesterov == 1 && offsetof(ga_muon_options, nesterov) == 4);
    EXPECT(muon.learning_rate == 1e-3 && offsetof(ga_muon_options, learning_rate) == 8);
    EXPECT(muon.weight_decay == 0.1 && offsetof(ga_muon_options, weight_decay) == 16);
    EXPECT(muon.momentum == 0.95 && offsetof(ga_muon_options, momentum) == 24);
    EXPECT(muon.ns_coefficient_a == 3.4445 && offsetof(ga_muon_options, ns_coefficient_a) == 32);
    EXPECT(muon.ns_coefficient_b == -4.775 && offsetof(ga_muon_options, ns_coefficient_b) == 40);
    EXPECT(muon.ns_coefficient_c == 2.0315 && offsetof(ga_muon_options, ns_coefficient_c) == 48);
    EXPECT(muon.eps == 1e-7 && offsetof(ga_muon_options, eps) == 56);
    EXPECT(muon.ns_steps == 5 && offsetof(ga_muon_options, ns_steps) == 64);
    EXPECT(muon.adjust_lr == GA_MUON_ORIGINAL && offsetof(ga_muon_options, adjust_lr) == 68);
    EXPECT(muon.adamw_learning_rate_ratio == 1.0 && offsetof(ga_muon_options, adamw_learning_rate_ratio) == 72);
    EXPECT(muon.adamw_beta1 == 0.9 && offsetof(ga_muon_options, adamw_beta1) == 80);
    EXPECT(muon.adamw_beta2 == 0.999 && offsetof(ga_muon_options, adamw_beta2) == 88);
    EXPECT(muon.adamw_eps == 1e-8 && offsetof(ga_muon_options, adamw_eps) == 96);
    EXPECT(muon.adamw_weight_decay == 1e-2 && offsetof(ga_muon_options, adamw_weight_decay) == 104);
    EXPECT(muon.adamw_parameters == NULL && offsetof(ga_muon_options, adamw_parameters) == 112);
    EXPECT(muon.adamw_parameter_count == 0 && offsetof(ga_muon_options, adamw_parameter_count) == 120);

    EXPECT(adamw8bit.struct_size == sizeof adamw8bit && sizeof adamw8bit == 56);
    EXPECT(adamw8bit.reserved == 0 && offsetof(ga_adamw8bit_options, reserved) == 4);
    EXPECT(adamw8bit.learning_rate == 1e-3 && offsetof(ga_adamw8bit_options, learning_rate) == 8);
    EXPECT(adamw8bit.beta1 == 0.9 && offsetof(ga_adamw8bit_options, beta1) == 16);
    EXPECT(adamw8bit.beta2 == 0.999 && offsetof(ga_adamw8bit_options, beta2) == 24);
    EXPECT(adamw8bit.eps == 1e-8 && offsetof(ga_adamw8bit_options, eps) == 32);
    EXPECT(adamw8bit.weight_decay == 1e-2 && offsetof(ga_adamw8bit_options, weight_decay) == 40);
    EXPECT(adamw8bit.min_8bit_size == 4096 && offsetof(ga_adamw8bit_options, min_8bit_size) == 48);

    EXPECT(update.struct_size == sizeof update && sizeof update == 56);
    EXPECT(update.update == 0 && offsetof(ga_update, update) == 8);
    EXPECT(update.parameter == 0 && offsetof(ga_update, parameter) == 16);
    EXPECT(update.start == 0 && offsetof(ga_update, start) == 24);
    EXPECT(update.learning_rate == 0.0 && offsetof(ga_update, learning_rate) == 32);
    EXPECT(update.gradient_scale == 0.0 && offsetof(ga_update, gradient_scale) == 40);
    EXPECT(update.weight_decay == 0.0 && offsetof(ga_update, weight_decay) == 48);

    EXPECT(custom.struct_size == sizeof custom && sizeof custom == 32);
    EXPECT(custom.elementwise == 0 && offsetof(ga_custom_options, elementwise) == 4);
    EXPECT(custom.learning_rate == 1e-3 && offsetof(ga_custom_options, learning_rate) == 8);
    EXPECT(custom.slot_count == 0 && offsetof(ga_custom_options, slot_count) == 16);
    EXPECT(custom.weight_decay == 0.0 && offsetof(ga_custom_options, weight_decay) == 24);

    EXPECT(group.struct_size == sizeof group && sizeof group == 32);
    EXPECT(group.learning_rate_scale == 1.0 && offsetof(ga_group_options, learning_rate_scale) == 8);
    EXPECT(group.weight_decay == -1.0 && offsetof(ga_group_options, weight_decay) == 16);
    EXPECT(group.max_grad_norm == 0.0 && offsetof(ga_group_options, max_grad_norm) == 24);

    EXPECT(schedule.struct_size == sizeof schedule && sizeof schedule == 184);
    EXPECT(schedule.kind == GA_SCHEDULE_CONSTANT && offsetof(ga_schedule_options, kind) == 4);
    EXPECT(schedule.clock == GA_CLOCK_UPDATES && offsetof(ga_schedule_options, clock) == 8);
    EXPECT(schedule.reserved == 0 && offsetof(ga_schedule_options, reserved) == 12);
    EXPECT(schedule.start == 0.0 && offsetof(ga_schedule_options, start) == 16);
    EXPECT(schedule.warmup == 0.0 && offsetof(ga_schedule_options, warmup) == 24);
    EXPECT(schedule.warmup_start_factor == 0.0 && offsetof(ga_schedule_options, warmup_start_factor) == 32);
    EXPECT(schedule.duration == 0.0 && offsetof(ga_schedule_options, duration) == 40);
    EXPECT(schedule.end_factor == 0.0 && offsetof(ga_schedule_options, end_factor) == 48);
    EXPECT(schedule.period == 0.0 && offsetof(ga_schedule_options, period) == 56);
    EXPECT(schedule.gamma == 0.1 && offsetof(ga_schedule_options, gamma) == 64);
    EXPECT(schedule.timescale == 0.0 && offsetof(ga_schedule_options, timescale) == 72);
    EXPECT(schedule.pct_start == 0.3 && offsetof(ga_schedule_options, pct_start) == 80);
    EXPECT(schedule.div_factor == 25.0 && offsetof(ga_schedule_options, div_factor) == 88);
    EXPECT(schedule.final_div_factor == 1e4 && offsetof(ga_schedule_options, final_div_factor) == 96);
    EXPECT(schedule.anneal == GA_ANNEAL_COSINE && offsetof(ga_schedule_options, anneal) == 104);
    EXPECT(schedule.plateau_signal == GA_PLATEAU_WINDOW_LOSS && offsetof(ga_schedule_options, plateau_signal) == 108);
    EXPECT(schedule.plateau_mode == GA_PLATEAU_MIN && offsetof(ga_schedule_options, plateau_mode) == 112);
    EXPECT(schedule.threshold_mode == GA_THRESHOLD_RELATIVE && offsetof(ga_schedule_options, threshold_mode) == 116);
    EXPECT(schedule.threshold == 1e-4 && offsetof(ga_schedule_options, threshold) == 120);
    EXPECT(schedule.min_factor == 0.0 && offsetof(ga_schedule_options, min_factor) == 128);
    EXPECT(schedule.patience == 10 && offsetof(ga_schedule_options, patience) == 136);
    EXPECT(schedule.cooldown == 0 && offsetof(ga_schedule_options, cooldown) == 144);
    EXPECT(schedule.times == NULL && offsetof(ga_schedule_options, times) == 152);
    EXPECT(schedule.factors == NULL && offsetof(ga_schedule_options, factors) == 160);
    EXPECT(schedule.table_count == 0 && offsetof(ga_schedule_options, table_count) == 168);
    EXPECT(schedule.interpolated == 1 && offsetof(ga_schedule_options, interpolated) == 176);
    EXPECT(schedule.reserved2 == 0 && offsetof(ga_schedule_options, reserved2) == 180);

    EXPECT(scaling.struct_size == sizeof scaling && sizeof scaling == 24);
    EXPECT(scaling.rule == GA_SCALING_NONE && offsetof(ga_scaling_options, rule) == 4);
    EXPECT(scaling.base_weight == 0.0 && offsetof(ga_scaling_options, base_weight) == 8);
    EXPECT(scaling.beta2_half_life == 0 && offsetof(ga_scaling_options, beta2_half_life) == 16);
    EXPECT(scaling.reserved == 0 && offsetof(ga_scaling_options, reserved) == 20);

    EXPECT(average.struct_size == sizeof average && sizeof average == 32);
    EXPECT(average.clock == GA_CLOCK_UPDATES && offsetof(ga_average_options, clock) == 4);
    EXPECT(average.decay == 0.999 && offsetof(ga_average_options, decay) == 8);
    EXPECT(average.half_life == 0.0 && offsetof(ga_average_options, half_life) == 16);
    EXPECT(average.warmup == 0 && offsetof(ga_average_options, warmup) == 24);
    EXPECT(average.reserved == 0 && offsetof(ga_average_options, reserved) == 28);

    EXPECT(window.struct_size == sizeof window && sizeof window == 104);
    EXPECT(window.loss_reduction == GA_REDUCTION_SUM);
    EXPECT(offsetof(ga_accumulator_options, loss_reduction) == 4);
    EXPECT(window.accumulation_steps == 1 && offsetof(ga_accumulator_options, accumulation_steps) == 8);
    EXPECT(window.max_grad_norm == 0.0 && offsetof(ga_accumulator_options, max_grad_norm) == 16);
    EXPECT(window.max_grad_value == 0.0 && offsetof(ga_accumulator_options, max_grad_value) == 24);
    EXPECT(window.agc_clipping == 0.0 && offsetof(ga_accumulator_options, agc_clipping) == 32);
    EXPECT(window.agc_eps == 1e-3 && offsetof(ga_accumulator_options, agc_eps) == 40);
    EXPECT(window.isolated == 0 && offsetof(ga_accumulator_options, isolated) == 48);
    EXPECT(window.normalization == GA_NORMALIZATION_WEIGHT && offsetof(ga_accumulator_options, normalization) == 52);
    EXPECT(window.on_non_finite == GA_ON_NON_FINITE_SKIP && offsetof(ga_accumulator_options, on_non_finite) == 56);
    EXPECT(window.accumulate_into == GA_ACCUMULATE_INTO_GRADIENTS);
    EXPECT(offsetof(ga_accumulator_options, accumulate_into) == 60);
    EXPECT(offsetof(ga_accumulator_options, max_consecutive_skips) == 64);
    EXPECT(window.max_loss_z_score == 0.0 && offsetof(ga_accumulator_options, max_loss_z_score) == 72);
    EXPECT(window.max_norm_z_score == 0.0 && offsetof(ga_accumulator_options, max_norm_z_score) == 80);
    EXPECT(window.outlier_warmup == 32 && offsetof(ga_accumulator_options, outlier_warmup) == 88);

    EXPECT(report.struct_size == sizeof report && sizeof report == 176);
    EXPECT(report.outcome == GA_STEP_APPLIED && offsetof(ga_report, outcome) == 4);
    EXPECT(offsetof(ga_report, loss) == 8 && offsetof(ga_report, weight) == 16);
    EXPECT(offsetof(ga_report, micro_batches) == 24 && offsetof(ga_report, gradient_norm) == 32);
    EXPECT(offsetof(ga_report, clip_factor) == 40 && offsetof(ga_report, learning_rate) == 48);
    EXPECT(offsetof(ga_report, update_count) == 56);
    EXPECT(offsetof(ga_report, aborted_micro_batches) == 64 && offsetof(ga_report, accumulation_steps) == 72);
    EXPECT(offsetof(ga_report, loss_scale) == 80 && offsetof(ga_report, loss_z_score) == 88);
    EXPECT(offsetof(ga_report, gradient_norm_z_score) == 96 && offsetof(ga_report, consecutive_skips) == 104);
    EXPECT(offsetof(ga_report, non_finite_parameter) == 112 && offsetof(ga_report, non_finite_micro_batch) == 120);
    EXPECT(offsetof(ga_report, accumulator_bytes) == 128 && offsetof(ga_report, tensor_bytes) == 136);
    EXPECT(offsetof(ga_report, forward_backward_seconds) == 144 && offsetof(ga_report, step_seconds) == 152);

    EXPECT(GA_NO_IGNORE_INDEX < 0 && GA_NO_IGNORE_INDEX - 0 == -9223372036854775807 - 1);
    return failures == 0 ? 0 : 1;
}
