/// What a window held, and what became of it.
public struct WindowReport: Sendable, Equatable {
    public enum Outcome: Int32, CaseIterable, Sendable {
        case applied = 0
        /// A gradient held a NaN or an infinity, or their mean is beyond float32: nothing was changed. In isolated mode,
        /// all micro-batches were dropped for that.
        case skippedNonFinite = 1
        /// The total weight was 0: nothing was changed.
        case skippedZeroWeight = 2
        /// The loss or the norm was an outlier: nothing was changed.
        case skippedOutlier = 3
        /// The window goes on: see ``Accumulator/windowReport()`` and ``Accumulator/Tail/carry``.
        case pending = 4
        /// The data ended with this window, and it was dropped.
        case dropped = 5
        /// The data ended and there was nothing in the window.
        case empty = 6
        /// A micro-batch was not finite, in isolated mode: the window goes on without it. Only a skip handler sees this.
        case microBatchNonFinite = 7
        /// The same as `skippedNonFinite` for gradients under a loss scale, which a dynamic scaler then lowers.
        case skippedOverflow = 8
    }

    /// Where a NaN or an infinity was found first.
    public struct NonFinite: Sendable, Equatable {
        /// In the optimizer's order; nil if it was the loss, or a mean beyond float32 of sums that are not.
        public internal(set) var parameter: Int?
        /// Counted from 0 in its window, aborted ones included; nil where it was not looked for.
        public internal(set) var microBatch: Int?
    }

    /// What a window took.
    public struct Cost: Sendable, Equatable {
        /// Of the accumulators: sums of gradients, and in isolated mode those of one micro-batch.
        public internal(set) var accumulatorBytes = 0
        /// Of all tensors of the process, these among them.
        public internal(set) var tensorBytes = 0
        /// From the first recorded operation of each loss to the end of its backward pass, or of its micro-batch where that
        /// was begun and committed. No moment counts twice, and what lies between micro-batches does not count.
        public internal(set) var forwardBackwardSeconds = 0.0
        public internal(set) var stepSeconds = 0.0

        /// All costs are equal, so that reports are where their windows came to the same.
        public static func == (a: Cost, b: Cost) -> Bool { true }
    }

    public internal(set) var outcome = Outcome.pending
    /// In the window, without those that were aborted.
    public internal(set) var microBatches = 0
    /// Micro-batches that were aborted, or dropped in isolated mode.
    public internal(set) var abortedMicroBatches = 0
    /// Micro-batches after which a step was due.
    public internal(set) var accumulationSteps = 1
    /// Total of the window.
    public internal(set) var weight = 0.0
    /// Mean over the window, by weight.
    public internal(set) var loss = 0.0
    /// Global 2-norm of the gradient that the update is made of, before clipping.
    public internal(set) var gradientNorm = 0.0
    /// The norm after clipping over the norm before: 1 if nothing was clipped.
    public internal(set) var clipFactor = 1.0
    /// Of this update.
    public internal(set) var learningRate = 0.0
    /// What losses were multiplied by before their backward pass.
    public internal(set) var lossScale = 1.0
    /// How many standard deviations the loss was above its running mean; 0 where that is not looked at, or not yet.
    public internal(set) var lossZScore = 0.0
    /// The same of the norm.
    public internal(set) var gradientNormZScore = 0.0
    /// Applied updates so far.
    public internal(set) var updateCount = 0
    /// Windows skipped in a row, this one included, as not finite or an outlier.
    public internal(set) var consecutiveSkips = 0
    public internal(set) var firstNonFinite: NonFinite?
    /// How often the window was computed again, see ``Accumulator/retryHandler``.
    public internal(set) var retries = 0
    /// Of the gradients that backward rounds to a half format, the share of numbers other than 0 that it makes 0, where
    /// ``Accumulator/Options/countsUnderflow`` asks for it. A higher loss scale makes it smaller.
    ///
    /// They are those of the results of linear layers, of attention, and of the logits of a fused head.
    public internal(set) var underflow = 0.0
    public internal(set) var cost = Cost()

    /// Whether the window ended without an update.
    public var isSkipped: Bool {
        switch outcome {
        case .skippedNonFinite, .skippedZeroWeight, .skippedOutlier, .skippedOverflow: true
        case .applied, .pending, .dropped, .empty, .microBatchNonFinite: false
        }
    }
}
