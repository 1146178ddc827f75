// schedule.hpp - what the learning rate is multiplied by as training goes on
#ifndef GRADACCUM_SCHEDULE_HPP
#define GRADACCUM_SCHEDULE_HPP

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "detail.hpp"

namespace gradaccum {

/// A schedule for Optimizer::set_schedule. Begin with a kind, and set what else it is to have:
/// Schedule::cosine(3000).warmup(100).end_factor(0.1)
struct Schedule : ga_schedule_options {
    using Base = ga_schedule_options;

    static Schedule constant() { return Schedule(ScheduleKind::constant); }
    static Schedule linear(double duration) { return Schedule(ScheduleKind::linear).duration(duration); }
    static Schedule cosine(double duration) { return Schedule(ScheduleKind::cosine).duration(duration); }
    static Schedule inverse_sqrt() { return Schedule(ScheduleKind::inverse_sqrt); }
    static Schedule step(double period) { return Schedule(ScheduleKind::step).period(period); }
    static Schedule exponential(double period) { return Schedule(ScheduleKind::exponential).period(period); }
    static Schedule one_cycle(double duration) { return Schedule(ScheduleKind::one_cycle).duration(duration); }
    static Schedule plateau() { return Schedule(ScheduleKind::plateau); }
    /// factors[i] at times[i], and between them.
    static Schedule table(std::vector<double> times, std::vector<double> factors) {
        if (times.size() != factors.size())
            throw InvalidArgumentError("Schedule::table: there are " + std::to_string(times.size()) + " times and " +
                                       std::to_string(factors.size()) + " factors");
        Schedule schedule(ScheduleKind::table);
        schedule.times_ = std::move(times);
        schedule.factors_ = std::move(factors);
        return schedule;
    }

    ScheduleKind kind() const noexcept { return static_cast<ScheduleKind>(Base::kind); }
    const std::vector<double> &times() const noexcept { return times_; }
    const std::vector<double> &factors() const noexcept { return factors_; }

    GRADACCUM_OPTION(Schedule, Clock, clock)
    GRADACCUM_OPTION(Schedule, double, start)
    GRADACCUM_OPTION(Schedule, double, warmup)
    GRADACCUM_OPTION(Schedule, double, warmup_start_factor)
    GRADACCUM_OPTION(Schedule, double, duration)
    GRADACCUM_OPTION(Schedule, double, end_factor)
    GRADACCUM_OPTION(Schedule, double, period)
    GRADACCUM_OPTION(Schedule, double, gamma)
    GRADACCUM_OPTION(Schedule, double, timescale)
    GRADACCUM_OPTION(Schedule, double, pct_start)
    GRADACCUM_OPTION(Schedule, double, div_factor)
    GRADACCUM_OPTION(Schedule, double, final_div_factor)
    GRADACCUM_OPTION(Schedule, Anneal, anneal)
    GRADACCUM_OPTION(Schedule, PlateauSignal, plateau_signal)
    GRADACCUM_OPTION(Schedule, PlateauMode, plateau_mode)
    GRADACCUM_OPTION(Schedule, ThresholdMode, threshold_mode)
    GRADACCUM_OPTION(Schedule, double, threshold)
    GRADACCUM_OPTION(Schedule, double, min_factor)
    GRADACCUM_OPTION(Schedule, std::int64_t, patience)
    GRADACCUM_OPTION(Schedule, std::int64_t, cooldown)
    GRADACCUM_OPTION(Schedule, bool, interpolated)

    /// The factor at a reading of the clock; a plateau has that of its warm-up.
    double factor(double reading) const {
        const ga_schedule_options options = with_lists();
        double value = 0.0;
        check(ga_schedule_factor(&options, reading, &value));
        return value;
    }

    /// As the C calls read them; the lists are this object's.
    ga_schedule_options with_lists() const noexcept {
        ga_schedule_options options = *this;
        options.times = times_.empty() ? nullptr : times_.data();
        options.factors = factors_.empty() ? nullptr : factors_.data();
        options.table_count = static_cast<std::int64_t>(times_.size());
        return options;
    }

private:
    explicit Schedule(ScheduleKind kind) noexcept : Base GA_SCHEDULE_OPTIONS_INIT {
        Base::kind = detail::constant(kind);
    }

    std::vector<double> times_;
    std::vector<double> factors_;
};

} // namespace gradaccum

#endif // GRADACCUM_SCHEDULE_HPP
