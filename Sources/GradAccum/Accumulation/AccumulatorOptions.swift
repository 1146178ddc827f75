extension Accumulator {
    /// What the sum of the gradients is divided by at the step.
    public enum Normalization: Int32, CaseIterable, Sendable {
        /// The total weight of the window.
        case weight = 0
        /// Nothing: the update is made of the plain sum.
        case sum = 1
    }

    /// What the gradients of a micro-batch are added to.
    public enum Destination: Int32, CaseIterable, Sendable {
        /// Sums of their own, one for each parameter.
        case gradients = 0
        /// The moments of Adam or AdamW (AdamA, Zhang et al., arXiv 2305.19982): no sums are kept across the window.
        ///
        /// The second moment has the sum of the squares of the micro-batches' gradients in place of the square of their
        /// sum, so law 1 is given up: the result depends on where the batch is cut, and still not on the number of threads.
        /// A micro-batch that is not finite is dropped alone, as in isolated mode, and one that weighs nothing is not taken
        /// in. What was committed cannot be dropped, clipped or divided by a weight any more.
        case moments = 1
    }

    /// What becomes of a window, or of a micro-batch in isolated mode, that is not finite.
    public enum NonFinitePolicy: Int32, CaseIterable, Sendable {
        /// It is dropped, and the report says so.
        case skip = 0
        /// It is dropped, and the call is an error.
        case raise = 1
    }

    public struct Options: Sendable {
        /// What a loss is: the sum over its weight, or the mean.
        public var lossReduction: Reduction
        /// Micro-batches after which a step is due.
        public var accumulationSteps: Int
        /// The largest global norm of the mean gradient; nil does not clip by it.
        public var maxGradNorm: Double?
        /// The largest magnitude of an element of the mean gradient; nil does not clip by it.
        public var maxGradValue: Double?
        /// Adaptive gradient clipping (Brock et al., arXiv 2102.06171): the largest norm of a unit's mean gradient over
        /// that of the unit itself, 0.01 in the paper; nil does not clip by it. A unit is what one index of the leading
        /// axis has, such as the weights of one output of a linear layer; with less than two axes it is the whole.
        public var agcClipping: Double?
        /// The least norm that a unit is taken to have, so that zeros can be trained.
        public var agcEps: Double
        /// Whether each micro-batch goes to memory of its own first and is added when it is committed.
        ///
        /// It can then be aborted, and one that is not finite is dropped alone; that takes one more gradient in memory. The
        /// gradients of a micro-batch are summed before they are added, so law 1 holds for equal splits only: the bits
        /// depend on where the batch is cut, and still not on the number of threads.
        public var isIsolated: Bool
        public var normalization: Normalization
        public var onNonFinite: NonFinitePolicy
        /// How many windows in a row may be skipped, and how many micro-batches in a row may be dropped in isolated mode.
        /// One more is an error; nil for no limit.
        public var maxConsecutiveSkips: Int?
        /// How many standard deviations the loss may be above its running mean; nil for no limit.
        public var maxLossZScore: Double?
        /// The same of the norm of the gradient, before clipping.
        public var maxNormZScore: Double?
        /// The number of applied windows before an outlier can be told, at least 2. The running mean and variance are
        /// those of that many windows, and go on with a share of one in that many for each that follows.
        public var outlierWarmup: Int
        /// Moments need ``Normalization/sum``, allow no clipping and no limit on outliers, and make it isolated.
        public var accumulateInto: Destination
        /// What sums of gradients are kept in. Sums in bfloat16 allow clipping by norm alone, and are no moments.
        public var sumFormat: SumFormat
        /// Whether ``WindowReport/underflow`` is found out, at the price of one more look at gradients that are rounded.
        public var countsUnderflow: Bool

        public init(
            lossReduction: Reduction = .sum, accumulationSteps: Int = 1, maxGradNorm: Double? = nil,
            maxGradValue: Double? = nil, agcClipping: Double? = nil, agcEps: Double = 1e-3, isIsolated: Bool = false,
            normalization: Normalization = .weight, onNonFinite: NonFinitePolicy = .skip,
            maxConsecutiveSkips: Int? = nil, maxLossZScore: Double? = nil, maxNormZScore: Double? = nil,
            outlierWarmup: Int = 32, accumulateInto: Destination = .gradients,
            sumFormat: SumFormat = .float32, countsUnderflow: Bool = false
        ) {
            self.lossReduction = lossReduction
            self.accumulationSteps = accumulationSteps
            self.maxGradNorm = maxGradNorm
            self.maxGradValue = maxGradValue
            self.agcClipping = agcClipping
            self.agcEps = agcEps
            self.isIsolated = isIsolated
            self.normalization = normalization
            self.onNonFinite = onNonFinite
            self.maxConsecutiveSkips = maxConsecutiveSkips
            self.maxLossZScore = maxLossZScore
            self.maxNormZScore = maxNormZScore
            self.outlierWarmup = outlierWarmup
            self.accumulateInto = accumulateInto
            self.sumFormat = sumFormat
            self.countsUnderflow = countsUnderflow
        }

        /// Errors: `invalidArgument` for an option outside of its range; those of clipping are checked there.
        func validate() throws(GAError) {
            try Accumulator.requireSteps(accumulationSteps, "accumulator")
            if let limit = maxConsecutiveSkips, limit < 1 {
                throw GAError(
                    .invalidArgument,
                    "accumulator: max_consecutive_skips is \(limit): it must be at least 1, or 0 for no limit")
            }
            for (limit, name) in [(maxLossZScore, "max_loss_z_score"), (maxNormZScore, "max_norm_z_score")] {
                guard let limit, !limit.isFinite || limit <= 0 else { continue }
                throw GAError(
                    .invalidArgument, "accumulator: \(name) is \(limit): it must be finite and above 0, or 0 for none")
            }
            guard outlierWarmup >= 2 else {
                throw GAError(
                    .invalidArgument,
                    "accumulator: outlier_warmup is \(outlierWarmup): it must be at least 2, for a variance")
            }
            guard sumFormat != .float32 else { return }
            let excluded: [(StaticString, Bool)] = [
                ("accumulate_into", accumulateInto == .moments), ("max_grad_value", maxGradValue != nil),
                ("agc_clipping", agcClipping != nil),
            ]
            for (option, isSet) in excluded where isSet {
                throw GAError(
                    .invalidArgument,
                    "accumulator: \(option) is set, which needs sums in float32, and sum_format is bfloat16: leave it 0, or "
                        + "keep the sums in float32")
            }
        }
    }

    static func requireSteps(_ steps: Int, _ operation: StaticString) throws(GAError) {
        guard steps >= 1 else {
            throw GAError(
                .invalidArgument, "\(operation): accumulation_steps is \(steps): it must be at least 1")
        }
    }
}
