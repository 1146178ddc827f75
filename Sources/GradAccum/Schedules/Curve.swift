import Glibc

extension Schedule.Curve {
    /// The factor at a time that is not before the end of the warm-up; 1 of a plateau.
    func factor(at time: Double, warmup: Double) -> Double {
        let elapsed = time - warmup
        switch self {
        case .constant, .plateau: return 1
        case .linear(let duration, let endFactor):
            return Anneal.linear.value(from: 1, to: endFactor, at: elapsed / (duration - warmup))
        case .cosine(let duration, let endFactor):
            return Anneal.cosine.value(from: 1, to: endFactor, at: elapsed / (duration - warmup))
        case .inverseSquareRoot(let timescale):
            let timescale = timescale ?? warmup
            return (timescale / (timescale + elapsed)).squareRoot()
        case .step(let period, let gamma): return pow(gamma, (elapsed / period).rounded(.down))
        case .exponential(let period, let gamma): return pow(gamma, elapsed / period)
        case .oneCycle(let cycle): return cycle.factor(at: elapsed, of: cycle.duration - warmup)
        case .table(let table): return table.factor(at: time)
        }
    }
}

/// How a value goes from one to another.
public enum Anneal: Int32, CaseIterable, Sendable {
    case cosine = 0
    case linear = 1

    /// Exactly `start` up to 0 and `end` from 1 on.
    func value(from start: Double, to end: Double, at share: Double) -> Double {
        if share <= 0 { return start }
        if share >= 1 { return end }
        switch self {
        case .cosine: return end + (start - end) / 2 * (1 + cos(.pi * share))
        case .linear: return start + (end - start) * share
        }
    }
}

/// One cycle (Smith and Topin, arXiv 1708.07120): up to 1 and down to almost nothing, as torch's OneCycleLR in two phases.
///
/// Times are continuous: OneCycleLR with `total_steps` n and `pct_start` p is a duration of n - 1 with
/// `(p * n - 1) / (n - 1)`. It leaves the momentum alone.
public struct OneCycle: Sendable, Equatable {
    public var duration: Double
    /// The share of it in which the factor rises, in 0 ... 1.
    public var pctStart: Double
    /// The cycle starts at 1 / `divFactor`,
    public var divFactor: Double
    /// and ends at that / `finalDivFactor`.
    public var finalDivFactor: Double
    public var anneal: Anneal

    public init(
        duration: Double, pctStart: Double = 0.3, divFactor: Double = 25, finalDivFactor: Double = 1e4,
        anneal: Anneal = .cosine
    ) {
        self.duration = duration
        self.pctStart = pctStart
        self.divFactor = divFactor
        self.finalDivFactor = finalDivFactor
        self.anneal = anneal
    }

    func validate() throws(GAError) {
        try Schedule.require(pctStart, "pct_start", in: 0...1)
        try Schedule.require(divFactor, "div_factor", in: 1...)
        try Schedule.require(finalDivFactor, "final_div_factor", in: 1...)
    }

    func factor(at elapsed: Double, of duration: Double) -> Double {
        let (first, last) = (1 / divFactor, 1 / divFactor / finalDivFactor)
        let peak = pctStart * duration
        return elapsed < peak
            ? anneal.value(from: first, to: 1, at: elapsed / peak)
            : anneal.value(from: 1, to: last, at: elapsed >= duration ? 1 : (elapsed - peak) / (duration - peak))
    }
}

/// Factors at readings of the clock, given by the caller.
public struct FactorTable: Sendable, Equatable {
    /// Ascending, from the schedule's start. Before the first its factor holds, and after the last that one's.
    public var times: [Double]
    public var factors: [Double]
    /// Whether the factor goes along straight lines between them, or jumps at each time.
    public var isInterpolated: Bool

    public init(times: [Double], factors: [Double], isInterpolated: Bool = true) {
        self.times = times
        self.factors = factors
        self.isInterpolated = isInterpolated
    }

    func validate() throws(GAError) {
        guard !times.isEmpty && times.count == factors.count else {
            throw GAError(
                .invalidArgument,
                "schedule: the table has \(times.count) times and \(factors.count) factors: give as many of each, at least one"
            )
        }
        for (index, (time, factor)) in zip(times, factors).enumerated() {
            guard time.isFinite && time >= 0 && (index == 0 || time > times[index - 1]) else {
                throw GAError(
                    .invalidArgument,
                    "schedule: times[\(index)] is \(time): times must be finite, at least 0, and rise")
            }
            guard factor.isFinite && factor >= 0 else {
                throw GAError(
                    .invalidArgument, "schedule: factors[\(index)] is \(factor): it must be finite and at least 0")
            }
        }
    }

    func factor(at time: Double) -> Double {
        var (low, high) = (0, times.count)
        while low < high {
            let middle = (low + high) / 2
            if times[middle] <= time { low = middle + 1 } else { high = middle }
        }
        // `low` times are not after this one.
        guard low > 0 else { return factors[0] }
        guard isInterpolated && low < times.count else { return factors[low - 1] }
        let share = (time - times[low - 1]) / (times[low] - times[low - 1])
        return Anneal.linear.value(from: factors[low - 1], to: factors[low], at: share)
    }
}
