/// How an update follows the weight of its window, where that is not the weight that hyperparameters were chosen for.
public struct BatchScaling: Sendable, Equatable {
    public enum Rule: Int32, CaseIterable, Sendable {
        /// The learning rate stays as it is.
        case none = 0
        /// It is multiplied by weight / baseWeight (Goyal et al., arXiv 1706.02677), as fits SGD.
        case linear = 1
        /// By the root of that (Malladi et al., arXiv 2205.10287), as fits Adam.
        case squareRoot = 2
    }

    public var rule: Rule
    /// The samples or tokens of the window that hyperparameters were chosen for.
    public var baseWeight: Double
    /// Whether beta2 becomes beta2^(weight / baseWeight) in an update, so that second moments have a half-life in samples
    /// or tokens rather than in updates (Marek et al., arXiv 2507.07101, who leave beta1 as it is).
    public var keepsBeta2HalfLife: Bool

    public init(_ rule: Rule, baseWeight: Double, keepsBeta2HalfLife: Bool = false) {
        self.rule = rule
        self.baseWeight = baseWeight
        self.keepsBeta2HalfLife = keepsBeta2HalfLife
    }

    /// Whether an update follows anything at all.
    private var isInUse: Bool { rule != .none || keepsBeta2HalfLife }

    func validate() throws(GAError) {
        guard isInUse else { return }
        guard baseWeight.isFinite && baseWeight > 0 else {
            throw GAError(.invalidArgument, "scaling: base_weight is \(baseWeight): it must be finite and above 0")
        }
    }

    /// What the learning rate of an update of a window of `weight` is multiplied by.
    ///
    /// Errors: `overflow` if the weight is so far from the base that it must be in another unit.
    func factor(weight: Double) throws(GAError) -> Double {
        guard isInUse else { return 1 }
        let ratio = weight / baseWeight
        guard BatchScaling.ratios.contains(ratio) else {
            throw GAError(
                .overflow,
                "step: the window's weight is \(weight), and the scaling's base_weight \(baseWeight): their ratio must be in "
                    + "1e-9 ... 1e9: give a base_weight in the unit of weights")
        }
        switch rule {
        case .none: return 1
        case .linear: return ratio
        case .squareRoot: return ratio.squareRoot()
        }
    }

    /// Where beta2 to the power of a ratio still has digits that differ from 1.
    private static let ratios = 1e-9...1e9
}

extension Optimizer {
    /// How updates follow the weight of their window; nil if they do not.
    public var scaling: BatchScaling? { progress.scaling }

    /// Lets updates follow the weight of their window from the next one on; nil ends that.
    ///
    /// Errors: `invalidArgument` for a base weight that is not above 0, or if the half-life of beta2 is to be kept by a
    /// rule that has no beta2 which may change from update to update.
    public func setScaling(_ scaling: BatchScaling?) throws(GAError) {
        try scaling?.validate()
        if scaling?.keepsBeta2HalfLife == true && !rule.followsMomentSteps {
            throw GAError(
                .invalidArgument,
                "scaling: beta2_half_life is 1, but \(type(of: rule).name) has no beta2 that may change from update to update: leave "
                    + "it at 0")
        }
        progress.scaling = scaling
    }
}
