/// The window: gradients of micro-batches added up, and one update that divides by the weight that went in.
///
/// Gradients are added in place, in sample order, so any split of the same samples into micro-batches gives the same
/// bits. Nothing is ever divided before ``step()``, and nothing but a step changes a parameter. In isolated mode, see
/// ``Options/isIsolated``, a micro-batch is added when it is committed and can be aborted until then.
///
/// A window that is let go of together with its accumulator is lost: ``endData(_:)`` settles it, ``beginData()`` refuses
/// to begin with what another data set has left, and ``unsettledMicroBatches`` tells.
public final class Accumulator {
    public let optimizer: Optimizer
    public let options: Options
    /// Asked, in place of ``Options/onNonFinite``, what to do about a window, or in isolated mode a micro-batch, that would
    /// be skipped. What it throws is thrown by the call, after the drop; it cannot accumulate, step or drop.
    public var skipHandler: ((WindowReport) throws(GAError) -> SkipDecision)?

    /// Asked to compute a window again whose gradients have overflowed, where the loss scaler can go lower: the window is
    /// empty, losses are scaled by less, and the same micro-batches are to be accumulated. Where it returns false the window
    /// is skipped; what it throws is thrown by the step, after the drop. It may accumulate, but not step.
    public var retryHandler: ((WindowReport) throws(GAError) -> Bool)?
    /// What losses are multiplied by, see ``setLossScaler(_:)``.
    public internal(set) var lossScaler: LossScaler?

    let clipping: Clipping
    /// Where gradients go into moments.
    var moments: MomentAccumulation?
    var window = Window()
    /// A call is under way: a callback of the caller must not come in between.
    var isBusy = false
    /// The retry handler is at work.
    var isRetrying = false
    /// The last round of the loss scaler in which a window ended.
    var lastRound = 0
    /// Per parameter, with a place for each of its uses in the graph.
    let sums: [LeafGradient]
    /// Those of one micro-batch, in isolated mode.
    let scratch: [LeafGradient]
    /// The gradient of all parameters is larger than the caches that one expects.
    let sumsExceedCaches: Bool
    /// Per parameter, that of the mean gradient in the window of the last step, before clipping.
    var norms: [Double]?
    /// The same of additions in bfloat16.
    var stagnations: [Stagnation]?
    /// Of the window.
    let underflow: Underflow?
    var stepsSetting: StepsSetting
    /// Windows skipped in a row, and micro-batches dropped in a row, as not finite or an outlier.
    var consecutiveSkips = 0
    var consecutiveDrops = 0
    var outliers = OutlierStatistics()
    /// When the last micro-batch or step ended.
    var lastEnd: UInt64 = 0

    /// Errors: `state` if the optimizer has an accumulator; `invalidArgument` for an option outside of its range.
    public init(_ optimizer: Optimizer, _ options: Options = Options()) throws(GAError) {
        guard optimizer.accumulator == nil else {
            throw GAError(.state, "accumulator: the optimizer has an accumulator: free that one first")
        }
        try options.validate()
        clipping = try Clipping(options)
        var options = options
        if options.accumulateInto == .moments {
            options.isIsolated = true
            moments = try MomentAccumulation(optimizer, options)
        } else if optimizer.holdsPartOfWindow {
            throw GAError(
                .state,
                "accumulator: the optimizer's moments hold micro-batches of a window that was never stepped: accumulate "
                    + "into moments, and take a step first")
        }
        self.optimizer = optimizer
        self.options = options
        sums = optimizer.parameters.map { [options] _ in LeafGradient(options.sumFormat) }
        // What goes into moments at once is gone before the update: its memory is that of activations.
        let lifetime: Arena.Lifetime = options.accumulateInto == .moments ? .update : .training
        scratch = options.isIsolated ? optimizer.parameters.map { _ in LeafGradient(lifetime: lifetime) } : []
        sumsExceedCaches = optimizer.parameters.reduce(0) { $0 + $1.elementCount } > 16 << 20
        underflow = options.countsUnderflow ? Underflow() : nil
        stepsSetting = .constant(options.accumulationSteps)
        optimizer.accumulator = self
    }

    deinit { lossScaler?.detach(lastRound: lastRound) }

    /// Drops what was accumulated, an open micro-batch included; parameters, optimizer state and counters stay as they are.
    /// The loss scaler learns what was found by ``unscale()``, or of a micro-batch that isolated mode has dropped.
    /// Errors: `state` from within another call, which only a callback of the caller can be.
    public func zero() throws(GAError) {
        try requireIdle("zero")
        try requireDroppable("zero")
        abandon()
    }

    /// Empties the window, and frees accumulators of places that it did not use.
    func drop() {
        for sum in sums {
            if window.microBatches > 0 { sum.freeUnused() }
            sum.empty()
        }
        emptyScratch()
        underflow?.empty()
        window = Window()
    }

    /// A copy of the accumulated sum of parameter `index`, without the loss scale; in isolated mode, of the micro-batches that were committed.
    public func accumulatedGradient(_ index: Int) throws(GAError) -> Tensor {
        guard optimizer.parameters.indices.contains(index) else {
            throw GAError(
                .index, "accumulated_gradient: index is \(index), outside of 0 ... \(optimizer.parameters.count - 1)")
        }
        guard moments == nil else {
            throw GAError(
                .state, "accumulated_gradient: accumulate_into is moments: there is no sum of gradients to copy")
        }
        let sum = try sums[index].sum(shape: optimizer.parameters[index].shape)
        try unscale(sum)
        return sum
    }

    /// What the window holds so far, as a step would report it.
    public func windowReport() -> WindowReport {
        var report = WindowReport()
        report.microBatches = window.microBatches
        report.abortedMicroBatches = window.aborted
        report.accumulationSteps = accumulationSteps
        report.weight = window.weight
        report.loss = window.weight > 0 ? window.loss / window.weight : 0
        let weight = window.weight > 0 ? window.weight : nil
        report.learningRate = (try? optimizer.nextLearningRate(weight: weight)) ?? .infinity
        report.updateCount = optimizer.updateCount
        report.consecutiveSkips = consecutiveSkips
        report.firstNonFinite = firstNonFinite
        report.lossScale = lossScale
        report.underflow = underflow?.share ?? 0
        report.retries = window.retries
        if let folded = window.folded { report.gradientNorm = norm(of: folded) }
        report.cost.accumulatorBytes = (sums + scratch).reduce(0) { $0 + $1.byteCount }
        report.cost.tensorBytes = Runtime.memoryUsage.liveBytes
        report.cost.forwardBackwardSeconds = window.forwardBackwardSeconds
        return report
    }

    /// Micro-batches that would be lost with the accumulator.
    public var unsettledMicroBatches: Int {
        window.microBatches + (window.microBatch.map { $0.additions > 0 ? 1 : 0 } ?? 0)
    }

    // MARK: The order of calls

    func requireIdle(_ operation: StaticString) throws(GAError) {
        guard !isBusy else {
            throw GAError(
                .state, "\(operation): this accumulator is in the middle of another call: call it afterwards")
        }
    }

    /// Errors: `state` where only ``zero()`` helps.
    func requireIntact(_ operation: StaticString) throws(GAError) {
        try requireIdle(operation)
        try optimizer.requireOwnWeights(operation)
        guard !window.isBroken else {
            throw GAError(
                .state, "\(operation): an earlier accumulate failed half-way: drop the window with zero")
        }
    }

    /// Errors: `state` also within a micro-batch.
    func requireBetweenMicroBatches(_ operation: StaticString) throws(GAError) {
        try requireIntact(operation)
        if let open = window.microBatch {
            throw GAError(
                .state,
                "\(operation): micro-batch \(open.number) is open: commit or abort it first, or drop the window with zero"
            )
        }
    }
}

extension Accumulator: GradientSink {
    /// Where micro-batches are added to.
    var destination: [LeafGradient] { options.isIsolated ? scratch : sums }

    func prepare(_ leaf: Tensor, _ uses: LeafUses) throws(GAError) {
        guard leaf.owner === optimizer else {
            let whose = leaf.owner == nil ? "to no optimizer" : "to another optimizer"
            throw GAError(
                .invalidArgument,
                "accumulate: loss depends on \(leaf.label), which belongs \(whose): detach it, or create this "
                    + "accumulator's optimizer with it")
        }
        guard moments == nil else {
            moments!.uses[leaf.indexInOwner] = uses
            return
        }
        try destination[leaf.indexInOwner].prepare(leaf, uses, update: optimizer.updateCount)
    }

    func place(of leaf: Tensor, use: Int) throws(GAError) -> GradientPlace {
        // No sooner than it is written to: activations have made room until then.
        if let uses = moments?.uses[leaf.indexInOwner] {
            try destination[leaf.indexInOwner].prepare(leaf, uses)
            moments!.uses[leaf.indexInOwner] = nil
        }
        return destination[leaf.indexInOwner].place(ofUse: use)
    }
}
