extension Optimizer {
    /// The clock that schedules follow: the updates that were applied, or their weight.
    public func reading(of clock: UpdateClock) -> Double { progress.reading(of: clock) }

    /// What the learning rate follows; nil if it stays as it is.
    public var schedule: Schedule? { progress.schedule }

    /// Lets the learning rate of each update be ``learningRate`` times the schedule's factor; nil ends that.
    ///
    /// A schedule reads the optimizer's clock, which goes on from where it is. A plateau begins anew. Errors:
    /// `invalidArgument` for a schedule with a value outside of its range, and the former one stays.
    public func setSchedule(_ schedule: Schedule?) throws(GAError) { try progress.follow(schedule) }

    /// Shows a metric, such as a loss of validation, to a plateau that waits for one.
    ///
    /// Errors: `state` if the schedule is no such plateau; `nonFinite`.
    public func report(metric: Double) throws(GAError) {
        guard case .plateau(let plateau) = schedule?.curve, plateau.signal == .metric else {
            throw GAError(
                .state,
                "report_metric: the optimizer's schedule is no plateau that waits for a metric: attach one first")
        }
        guard metric.isFinite else {
            throw GAError(
                .nonFinite, "report_metric: metric is \(metric.isNaN ? "NaN" : "\(metric)"): it must be finite")
        }
        progress.see(metric, as: .metric)
    }

    /// The learning rate of the next update: ``learningRate`` times the schedule's factor and, if the weight of its window
    /// is given, that of the scaling.
    ///
    /// Errors: `overflow` if that is too large for float32, in a group of parameters or for all, or the weight is too far
    /// from that of the scaling.
    public func nextLearningRate(weight: Double? = nil) throws(GAError) -> Double {
        let factor = try progress.scheduledFactor()
        var scale = 1.0
        if let scaling, let weight { scale = try scaling.factor(weight: weight) }
        var rule = rule
        rule.learningRate *= factor * scale
        do {
            try rule.validate()
            for group in groups.all { _ = try group.rule(rule) }
        } catch {
            throw GAError(
                .overflow,
                "step: the learning rate is \(rule.learningRate), \(learningRate) times the schedule's \(factor) and the "
                    + "scaling's \(scale): lower one of them (\(error.message))")
        }
        return rule.learningRate
    }
}
