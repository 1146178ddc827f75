/// What a step did with its window.
public struct WindowReport: Sendable, Equatable {
    public enum Outcome: Int32, CaseIterable, Sendable {
        case applied = 0
        /// A gradient held a NaN or an infinity, or their mean is beyond float32: nothing was changed.
        case skippedNonFinite = 1
        /// The total weight was 0: nothing was changed.
        case skippedZeroWeight = 2
    }

    public internal(set) var outcome = Outcome.applied
    /// In the window.
    public let microBatches: Int
    /// Total of the window.
    public let weight: Double
    /// Mean over the window, by weight.
    public let loss: Double
    /// Global 2-norm of the mean gradient, before clipping.
    public internal(set) var gradientNorm = 0.0
    /// The norm after clipping over the norm before: 1 if nothing was clipped.
    public internal(set) var clipFactor = 1.0
    public let learningRate: Double
    /// Applied updates so far.
    public internal(set) var updateCount = 0

    init(microBatches: Int, weight: Double, loss: Double, learningRate: Double) {
        self.microBatches = microBatches
        self.weight = weight
        self.loss = loss
        self.learningRate = learningRate
    }
}
