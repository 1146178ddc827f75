/// A factor that is multiplied by `gamma` when a value has not improved for long, as torch's ReduceLROnPlateau.
///
/// It looks at one value per applied update, the mean loss of its window, or at each metric that the caller reports,
/// and at none while the schedule warms up.
public struct Plateau: Sendable, Equatable {
    public enum Signal: Int32, CaseIterable, Sendable {
        case windowLoss = 0
        /// See ``Optimizer/report(metric:)``.
        case metric = 1
    }
    public enum Mode: Int32, CaseIterable, Sendable {
        case min = 0
        case max = 1
    }
    public enum ThresholdMode: Int32, CaseIterable, Sendable {
        /// An improvement is by the share `threshold` of the best value.
        case relative = 0
        /// It is by `threshold`.
        case absolute = 1
    }

    public var signal: Signal
    public var mode: Mode
    /// In 0 ... 1, without these.
    public var gamma: Double
    /// How many values without an improvement are borne.
    public var patience: Int
    public var threshold: Double
    public var thresholdMode: ThresholdMode
    /// How many values are not counted after a drop.
    public var cooldown: Int
    /// The factor falls no lower.
    public var minFactor: Double

    public init(
        signal: Signal = .windowLoss, mode: Mode = .min, gamma: Double = 0.1, patience: Int = 10,
        threshold: Double = 1e-4, thresholdMode: ThresholdMode = .relative, cooldown: Int = 0, minFactor: Double = 0
    ) {
        self.signal = signal
        self.mode = mode
        self.gamma = gamma
        self.patience = patience
        self.threshold = threshold
        self.thresholdMode = thresholdMode
        self.cooldown = cooldown
        self.minFactor = minFactor
    }

    func validate() throws(GAError) {
        guard gamma > 0 && gamma < 1 else {
            throw GAError(.invalidArgument, "schedule: gamma is \(gamma): that of a plateau is above 0 and below 1")
        }
        try Schedule.require(threshold, "threshold", in: 0...)
        try Schedule.require(minFactor, "min_factor", in: 0...1)
        guard patience >= 0 else {
            throw GAError(.invalidArgument, "schedule: patience is \(patience): it must be at least 0")
        }
        guard cooldown >= 0 else {
            throw GAError(.invalidArgument, "schedule: cooldown is \(cooldown): it must be at least 0")
        }
    }

    /// Whether a value improves on the best so far.
    private func improves(_ value: Double, on best: Double) -> Bool {
        let bound =
            switch (mode, thresholdMode) {
            case (.min, .relative): best * (1 - threshold)
            case (.min, .absolute): best - threshold
            case (.max, .relative): best * (1 + threshold)
            case (.max, .absolute): best + threshold
            }
        return mode == .min ? value < bound : value > bound
    }

    /// What a plateau has seen.
    struct State: Sendable, Equatable {
        var factor = 1.0
        var best: Double?
        var badCount = 0
        var cooldownCount = 0

        init() {}

        /// The next value.
        mutating func see(_ value: Double, _ plateau: Plateau) {
            if best.map({ plateau.improves(value, on: $0) }) ?? true {
                best = value
                badCount = 0
            } else {
                badCount += 1
            }
            if cooldownCount > 0 {
                cooldownCount -= 1
                badCount = 0
            }
            if badCount > plateau.patience {
                factor = max(factor * plateau.gamma, min(plateau.minFactor, factor))
                cooldownCount = plateau.cooldown
                badCount = 0
            }
        }
    }
}
