import CGradAccum
import GradAccum

@_cdecl("ga_optimizer_clock") @implementation
public func ga_optimizer_clock(_ handle: OpaquePointer!, _ clock: Int32, _ out: UnsafeMutablePointer<Double>!)
    -> ga_status
{
    guarded { () throws(GAError) in
        let optimizer = try optimizer(handle)
        let clock: UpdateClock = try constant(clock, "clock")
        try required(out, "out").pointee = optimizer.reading(of: clock)
    }
}

@_cdecl("ga_optimizer_set_schedule") @implementation
public func ga_optimizer_set_schedule(
    _ handle: OpaquePointer!, _ options: UnsafePointer<ga_schedule_options>!
) -> ga_status {
    guarded { () throws(GAError) in
        let optimizer = try optimizer(handle)
        try optimizer.setSchedule(options == nil ? nil : try schedule(options))
    }
}

@_cdecl("ga_optimizer_report_metric") @implementation
public func ga_optimizer_report_metric(_ handle: OpaquePointer!, _ metric: Double) -> ga_status {
    guarded { () throws(GAError) in try optimizer(handle).report(metric: metric) }
}

@_cdecl("ga_optimizer_next_learning_rate") @implementation
public func ga_optimizer_next_learning_rate(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Double>!) -> ga_status
{
    guarded { () throws(GAError) in
        let optimizer = try optimizer(handle)
        try required(out, "out").pointee = try optimizer.nextLearningRate()
    }
}

@_cdecl("ga_schedule_factor") @implementation
public func ga_schedule_factor(
    _ options: UnsafePointer<ga_schedule_options>!, _ clock: Double, _ out: UnsafeMutablePointer<Double>!
) -> ga_status {
    guarded { () throws(GAError) in
        let out = try required(out, "out")
        out.pointee = try schedule(try required(options, "options")).factor(at: clock)
    }
}

@_cdecl("ga_optimizer_set_scaling") @implementation
public func ga_optimizer_set_scaling(
    _ handle: OpaquePointer!, _ given: UnsafePointer<ga_scaling_options>!
) -> ga_status {
    guarded { () throws(GAError) in
        let optimizer = try optimizer(handle)
        guard given != nil else { return try optimizer.setScaling(nil) }
        let chosen = try options(
            given,
            or: ga_scaling_options(
                struct_size: 0, rule: GA_SCALING_NONE, base_weight: 0, beta2_half_life: 0, reserved: 0))
        try optimizer.setScaling(
            BatchScaling(
                try constant(chosen.rule, "rule"), baseWeight: chosen.base_weight,
                keepsBeta2HalfLife: try flag(chosen.beta2_half_life, "beta2_half_life")))
    }
}

/// The fields that belong to some kinds only, by name, with what tells whether they were set.
private let kindFields: [(name: String, isSet: @Sendable (ga_schedule_options, ga_schedule_options) -> Bool)] = [
    ("duration", { $0.duration != $1.duration }),
    ("end_factor", { $0.end_factor != $1.end_factor }),
    ("period", { $0.period != $1.period }),
    ("gamma", { $0.gamma != $1.gamma }),
    ("timescale", { $0.timescale != $1.timescale }),
    ("pct_start", { $0.pct_start != $1.pct_start }),
    ("div_factor", { $0.div_factor != $1.div_factor }),
    ("final_div_factor", { $0.final_div_factor != $1.final_div_factor }),
    ("anneal", { $0.anneal != $1.anneal }),
    ("plateau_signal", { $0.plateau_signal != $1.plateau_signal }),
    ("plateau_mode", { $0.plateau_mode != $1.plateau_mode }),
    ("threshold_mode", { $0.threshold_mode != $1.threshold_mode }),
    ("threshold", { $0.threshold != $1.threshold }),
    ("min_factor", { $0.min_factor != $1.min_factor }),
    ("patience", { $0.patience != $1.patience }),
    ("cooldown", { $0.cooldown != $1.cooldown }),
    ("times", { $0.times != $1.times }),
    ("factors", { $0.factors != $1.factors }),
    ("table_count", { $0.table_count != $1.table_count }),
    ("interpolated", { $0.interpolated != $1.interpolated }),
]

/// The schedule of an options struct. Errors: `invalidArgument` for what is no constant of the header, and for a field
/// that the kind does not have.
private func schedule(_ given: UnsafePointer<ga_schedule_options>) throws(GAError) -> Schedule {
    let defaults = scheduleDefaults()
    let chosen = try options(given, or: defaults)
    let (curve, name, fields) = try curve(chosen)
    for field in kindFields where field.isSet(chosen, defaults) && !fields.contains(field.name) {
        throw GAError(
            .invalidArgument,
            "schedule: \(field.name) is set, and a \(name) schedule has no such thing: leave it as "
                + "GA_SCHEDULE_OPTIONS_INIT has it")
    }
    return Schedule(
        curve, warmup: chosen.warmup, warmupStartFactor: chosen.warmup_start_factor,
        clock: try constant(chosen.clock, "clock"), start: chosen.start)
}

private func scheduleDefaults() -> ga_schedule_options {
    let (cycle, plateau) = (OneCycle(duration: 0), Plateau())
    return ga_schedule_options(
        struct_size: 0, kind: GA_SCHEDULE_CONSTANT, clock: GA_CLOCK_UPDATES, reserved: 0, start: 0, warmup: 0,
        warmup_start_factor: 0, duration: 0, end_factor: 0, period: 0, gamma: plateau.gamma, timescale: 0,
        pct_start: cycle.pctStart, div_factor: cycle.divFactor, final_div_factor: cycle.finalDivFactor,
        anneal: cycle.anneal.rawValue, plateau_signal: plateau.signal.rawValue, plateau_mode: plateau.mode.rawValue,
        threshold_mode: plateau.thresholdMode.rawValue, threshold: plateau.threshold, min_factor: plateau.minFactor,
        patience: Int64(plateau.patience), cooldown: Int64(plateau.cooldown), times: nil, factors: nil, table_count: 0,
        interpolated: 1, reserved2: 0)
}

/// The curve of an options struct, what its kind is called, and the fields that it has.
private func curve(_ chosen: ga_schedule_options) throws(GAError) -> (Schedule.Curve, String, [String]) {
    switch chosen.kind {
    case GA_SCHEDULE_CONSTANT: return (.constant, "constant", [])
    case GA_SCHEDULE_LINEAR:
        let curve = Schedule.Curve.linear(duration: chosen.duration, endFactor: chosen.end_factor)
        return (curve, "linear", ["duration", "end_factor"])
    case GA_SCHEDULE_COSINE:
        let curve = Schedule.Curve.cosine(duration: chosen.duration, endFactor: chosen.end_factor)
        return (curve, "cosine", ["duration", "end_factor"])
    case GA_SCHEDULE_INVERSE_SQRT:
        let timescale = chosen.timescale == 0 ? nil : chosen.timescale
        return (.inverseSquareRoot(timescale: timescale), "inverse square root", ["timescale"])
    case GA_SCHEDULE_STEP:
        return (.step(period: chosen.period, gamma: chosen.gamma), "step", ["period", "gamma"])
    case GA_SCHEDULE_EXPONENTIAL:
        return (.exponential(period: chosen.period, gamma: chosen.gamma), "exponential", ["period", "gamma"])
    case GA_SCHEDULE_ONE_CYCLE:
        let cycle = OneCycle(
            duration: chosen.duration, pctStart: chosen.pct_start, divFactor: chosen.div_factor,
            finalDivFactor: chosen.final_div_factor, anneal: try constant(chosen.anneal, "anneal"))
        return (
            .oneCycle(cycle), "one-cycle", ["duration", "pct_start", "div_factor", "final_div_factor", "anneal"]
        )
    case GA_SCHEDULE_PLATEAU:
        let plateau = Plateau(
            signal: try constant(chosen.plateau_signal, "plateau_signal"),
            mode: try constant(chosen.plateau_mode, "plateau_mode"), gamma: chosen.gamma,
            patience: Int(chosen.patience), threshold: chosen.threshold,
            thresholdMode: try constant(chosen.threshold_mode, "threshold_mode"), cooldown: Int(chosen.cooldown),
            minFactor: chosen.min_factor)
        return (
            .plateau(plateau), "plateau",
            [
                "plateau_signal", "plateau_mode", "gamma", "patience", "threshold", "threshold_mode", "cooldown",
                "min_factor",
            ]
        )
    case GA_SCHEDULE_TABLE:
        let table = FactorTable(
            times: Array(try array(chosen.times, chosen.table_count, "times", countedBy: "table_count")),
            factors: Array(try array(chosen.factors, chosen.table_count, "factors", countedBy: "table_count")),
            isInterpolated: try flag(chosen.interpolated, "interpolated"))
        return (.table(table), "table", ["times", "factors", "table_count", "interpolated"])
    default:
        throw GAError(
            .invalidArgument, "kind is \(chosen.kind), which is none of the header's constants for it: GA_SCHEDULE_...")
    }
}
