/// What the learning rate of an optimizer is multiplied by: a function of its clock.
///
/// A curve, with a linear warm-up before it. The curve begins where the warm-up ends.
public struct Schedule: Sendable, Equatable {
    public enum Curve: Sendable, Equatable {
        /// 1.
        case constant
        /// From 1 along a straight line to `endFactor`, which it has from `duration` on. Like all durations, that is a
        /// reading of the clock, so it includes the warm-up.
        case linear(duration: Double, endFactor: Double = 0)
        /// The same along half a wave (Loshchilov and Hutter, arXiv 1608.03983), as torch's CosineAnnealingLR.
        case cosine(duration: Double, endFactor: Double = 0)
        /// `sqrt(timescale / (timescale + t))`, with t from the end of the warm-up, which is also the timescale where
        /// none is given (Vaswani et al., arXiv 1706.03762).
        case inverseSquareRoot(timescale: Double? = nil)
        /// Times `gamma` at each end of a period, as torch's StepLR.
        case step(period: Double, gamma: Double = 0.1)
        /// Times `gamma` over each period, evenly; with a period of 1, torch's ExponentialLR.
        case exponential(period: Double, gamma: Double)
        case oneCycle(OneCycle)
        case plateau(Plateau)
        case table(FactorTable)
    }

    public var curve: Curve
    /// How long the factor rises, along a straight line from `warmupStartFactor` times what the curve begins with.
    public var warmup: Double
    /// In 0 ... 1. With 0, the first update changes nothing.
    public var warmupStartFactor: Double
    public var clock: UpdateClock
    /// The reading of the optimizer's clock that is 0 to the schedule.
    public var start: Double

    public init(
        _ curve: Curve, warmup: Double = 0, warmupStartFactor: Double = 0, clock: UpdateClock = .updates,
        start: Double = 0
    ) {
        self.curve = curve
        self.warmup = warmup
        self.warmupStartFactor = warmupStartFactor
        self.clock = clock
        self.start = start
    }

    /// The factor of the update that is made at a reading of the clock; of a plateau, what the warm-up has.
    ///
    /// Errors: `invalidArgument` for a schedule or a reading outside of its range; `overflow` if the factor is too large.
    public func factor(at reading: Double) throws(GAError) -> Double {
        try validate()
        guard reading.isFinite && reading >= 0 else {
            throw GAError(.invalidArgument, "schedule: clock reads \(reading): it must be finite and at least 0")
        }
        return try value(at: reading)
    }

    /// The same of a schedule that was validated.
    func value(at reading: Double) throws(GAError) -> Double {
        let time = max(0, reading - start)
        let value = curve.factor(at: max(time, warmup), warmup: warmup) * warmupFactor(at: time)
        guard value.isFinite else {
            throw GAError(
                .overflow,
                "schedule: the factor is beyond the largest number when the clock reads \(reading): "
                    + "lower gamma, or lengthen the period")
        }
        return value
    }

    /// Whether the clock has passed the warm-up.
    func isWarm(at reading: Double) -> Bool { reading - start >= warmup }

    private func warmupFactor(at time: Double) -> Double {
        time < warmup ? warmupStartFactor + (1 - warmupStartFactor) * (time / warmup) : 1
    }
}

extension Schedule {
    /// Errors: `invalidArgument` for a value outside of its range.
    func validate() throws(GAError) {
        try Schedule.require(warmup, "warmup", in: 0...)
        try Schedule.require(warmupStartFactor, "warmup_start_factor", in: 0...1)
        try Schedule.require(start, "start", in: 0...)
        switch curve {
        case .constant: break
        case .linear(let duration, let endFactor), .cosine(let duration, let endFactor):
            try requireDuration(duration)
            try Schedule.require(endFactor, "end_factor", in: 0...)
        case .inverseSquareRoot(let timescale):
            guard let timescale else {
                guard warmup > 0 else {
                    throw GAError(
                        .invalidArgument, "schedule: timescale is 0, and so is the warmup that it would be: give one")
                }
                return
            }
            try Schedule.requirePositive(timescale, "timescale")
        case .step(let period, let gamma), .exponential(let period, let gamma):
            try Schedule.requirePositive(period, "period")
            try Schedule.requirePositive(gamma, "gamma")
        case .oneCycle(let cycle):
            try requireDuration(cycle.duration)
            try cycle.validate()
        case .plateau(let plateau): try plateau.validate()
        case .table(let table): try table.validate()
        }
    }

    private func requireDuration(_ duration: Double) throws(GAError) {
        guard duration.isFinite && duration > warmup else {
            throw GAError(
                .invalidArgument,
                "schedule: duration is \(duration): it must be finite and above the warmup of \(warmup), which it includes"
            )
        }
    }

    static func requirePositive(_ value: Double, _ option: StaticString) throws(GAError) {
        guard value.isFinite && value > 0 else {
            throw GAError(.invalidArgument, "schedule: \(option) is \(value): it must be finite and above 0")
        }
    }

    static func require(_ value: Double, _ option: StaticString, in range: PartialRangeFrom<Double>) throws(GAError) {
        guard value.isFinite && range.contains(value) else {
            throw GAError(
                .invalidArgument,
                "schedule: \(option) is \(value): it must be finite and at least \(range.lowerBound)")
        }
    }

    static func require(_ value: Double, _ option: StaticString, in range: ClosedRange<Double>) throws(GAError) {
        guard range.contains(value) else {
            throw GAError(
                .invalidArgument,
                "schedule: \(option) is \(value): it must be in \(range.lowerBound) ... \(range.upperBound)")
        }
    }
}
