import CShims

/// The window: gradients of micro-batches added up, and one update that divides by the weight that went in.
///
/// Gradients are added in place, in sample order, so any split of the same samples into micro-batches gives the same
/// bits. Nothing is ever divided before ``step()``, and nothing but a step changes a parameter.
public final class Accumulator {
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

        public init(
            lossReduction: Reduction = .sum, accumulationSteps: Int = 1, maxGradNorm: Double? = nil,
            maxGradValue: Double? = nil, agcClipping: Double? = nil, agcEps: Double = 1e-3
        ) {
            self.lossReduction = lossReduction
            self.accumulationSteps = accumulationSteps
            self.maxGradNorm = maxGradNorm
            self.maxGradValue = maxGradValue
            self.agcClipping = agcClipping
            self.agcEps = agcEps
        }
    }

    /// What has gone into the window so far.
    private struct Window {
        var microBatches = 0
        var weight = 0.0
        var loss = 0.0
        /// A micro-batch failed half-way, so the sums are no longer those of whole micro-batches.
        var isBroken = false
        /// A micro-batch is being added: a callback of the caller must not come in between.
        var isOpen = false
    }

    public let optimizer: Optimizer
    public let options: Options
    private let clipping: Clipping
    private var window = Window()
    /// Per parameter, that of the mean gradient in the window of the last step, before clipping.
    private var norms: [Double]?
    /// Per parameter, with a place for each of its uses in the graph.
    private let sums: [LeafGradient]

    /// Errors: `state` if the optimizer has an accumulator; `invalidArgument` for an option outside of its range.
    public init(_ optimizer: Optimizer, _ options: Options = Options()) throws(GAError) {
        guard optimizer.accumulator == nil else {
            throw GAError(.state, "accumulator: the optimizer has an accumulator: free that one first")
        }
        guard options.accumulationSteps >= 1 else {
            throw GAError(
                .invalidArgument,
                "accumulator: accumulation_steps is \(options.accumulationSteps): it must be at least 1")
        }
        clipping = try Clipping(options)
        self.optimizer = optimizer
        self.options = options
        sums = optimizer.parameters.map { _ in LeafGradient() }
        optimizer.accumulator = self
    }

    // MARK: Accumulate

    /// Runs backward from a scalar loss and adds the gradients to the window.
    ///
    /// - Parameter weight: the samples or tokens that the loss stands for.
    /// - Throws: `state` if the graph is used up or the loss is a mean where a sum is expected; `nonFinite` for such a
    ///   loss; `invalidArgument` for a bad weight or a loss of foreign parameters. The window is then as it was, except
    ///   after `outOfMemory` in the middle, which breaks it until ``zero()``.
    public func accumulate(_ loss: Tensor, weight: Double) throws(GAError) {
        try requireIntact("accumulate")
        try requireLoss(loss, "accumulate")
        let value = loss.unroundedLoss ?? Double(loss.floats[0])
        try require(loss: value, weight: weight, "accumulate")
        if options.lossReduction == .sum && loss.isMean {
            throw GAError(
                .state,
                "accumulate: loss is a mean, but the window adds up sums: use the sum reduction, or create the "
                    + "accumulator with loss_reduction mean")
        }
        window.isOpen = true
        defer { window.isOpen = false }
        let graph = try Graph(of: loss, into: self)
        guard graph.hasLeaves else { throw dependsOnNothing("accumulate") }
        window.isBroken = true
        try graph.backward(seed: options.lossReduction == .mean ? Float(weight) : 1, into: self)
        window.isBroken = false
        count(loss: value, weight: weight)
    }

    /// Adds gradients that the caller computed, one contiguous array per parameter or nil for nothing.
    ///
    /// Gradients and `loss` are sums over the weight, or means where the options say so.
    public func accumulate(
        gradients: [UnsafeRawPointer?], _ dtype: DType = .float32, loss: Double, weight: Double
    ) throws(GAError) {
        try requireIntact("accumulate_gradients")
        guard gradients.count == optimizer.parameters.count else {
            throw GAError(
                .invalidArgument,
                "accumulate_gradients: count is \(gradients.count), but the optimizer has "
                    + "\(optimizer.parameters.count) parameters")
        }
        guard dtype.isFloatingPoint else {
            throw GAError(.dtype, "accumulate_gradients: dtype is \(dtype), and a floating type is needed")
        }
        try require(loss: loss, weight: weight, "accumulate_gradients")
        for (parameter, gradient) in zip(optimizer.parameters, gradients) where gradient != nil {
            try prepare(parameter, LeafUses(count: 1))
        }
        let scale = options.lossReduction == .mean ? Float(weight) : 1
        let pieces = Pieces(zip(optimizer.parameters, gradients).map { $1 == nil ? 0 : $0.elementCount })
        try Runtime.parallel(tiles: pieces.count) { [sums] tile in
            let (index, start, count) = pieces[tile]
            let buffer = sums[index].dense[0]
            Runtime.kernels.add_scaled(
                buffer.tensor.floats + start, gradients[index]! + start * dtype.byteCount, dtype.format, scale,
                Int64(count), buffer.isEmpty ? 0 : 1)
        }
        for (index, gradient) in gradients.enumerated() where gradient != nil { sums[index].dense[0].isEmpty = false }
        count(loss: loss, weight: weight)
    }

    private func count(loss: Double, weight: Double) {
        window.microBatches += 1
        window.weight += weight
        window.loss += options.lossReduction == .mean ? loss * weight : loss
    }

    private func require(loss: Double, weight: Double, _ operation: StaticString) throws(GAError) {
        guard weight.isFinite && weight >= 0 else {
            throw GAError(.invalidArgument, "\(operation): weight is \(weight): it must be finite and at least 0")
        }
        guard weight == 0 || Accumulator.weights.contains(weight),
            window.weight + weight <= Accumulator.weights.upperBound
        else {
            throw GAError(
                .overflow,
                "\(operation): weight is \(weight), in a window of \(window.weight): gradients of float32 can be divided by "
                    + "\(Accumulator.weights.lowerBound) ... \(Accumulator.weights.upperBound)")
        }
        guard loss.isFinite else {
            throw GAError(
                .nonFinite,
                "\(operation): loss is \(loss.isNaN ? "NaN" : "\(loss)"): nothing was added; skip this micro-batch, or "
                    + "lower the learning rate if it recurs")
        }
    }

    /// Weights whose inverse float32 holds with room for a gradient.
    private static let weights = 1e-30...1e30

    private func requireIntact(_ operation: StaticString) throws(GAError) {
        try requireClosed(operation)
        guard !window.isBroken else {
            throw GAError(
                .state, "\(operation): an earlier accumulate failed half-way, out of memory: drop the window with zero")
        }
    }

    private func requireClosed(_ operation: StaticString) throws(GAError) {
        guard !window.isOpen else {
            throw GAError(
                .state, "\(operation): this accumulator is in the middle of an accumulate: call it afterwards")
        }
    }

    /// Whether the window has as many micro-batches as the options ask for.
    public var isStepDue: Bool { window.microBatches >= options.accumulationSteps }

    // MARK: Step

    /// Ends the window: divides by its weight, clips, updates the parameters and empties the accumulators.
    ///
    /// A window that is not finite or weighs nothing is dropped without a trace. Errors: `state` if it is empty.
    public func step() throws(GAError) -> WindowReport {
        try requireIntact("step")
        guard window.microBatches > 0 else {
            throw GAError(.state, "step: the window is empty: accumulate a micro-batch first")
        }
        var report = WindowReport(
            microBatches: window.microBatches, weight: window.weight,
            loss: window.weight > 0 ? window.loss / window.weight : 0, learningRate: optimizer.learningRate)
        defer { drop() }
        if window.weight > 0 {
            let (gradients, squares) = try fold()
            norms = squares.map { $0.squareRoot() / window.weight }
            report.gradientNorm = squares.reduce(0, +).squareRoot() / window.weight
            if let clipped = try clipping.clip(
                gradients, of: optimizer.parameters, norm: report.gradientNorm, weight: window.weight)
            {
                report.clipFactor = clipped.factor
                try optimizer.apply(gradients, scale: clipped.scale)
            } else {
                report.outcome = .skippedNonFinite
            }
        } else {
            norms = optimizer.parameters.map { _ in 0 }
            report.outcome = .skippedZeroWeight
        }
        report.updateCount = optimizer.updateCount
        return report
    }

    /// Drops what was accumulated; parameters, optimizer state and counters stay as they are.
    /// Errors: `state` from within an accumulate, which only a callback of the caller can be.
    public func zero() throws(GAError) {
        try requireClosed("zero")
        drop()
    }

    /// Empties the window, and frees accumulators of places that it did not use.
    private func drop() {
        for sum in sums {
            if window.microBatches > 0 { sum.freeUnused() }
            sum.empty()
        }
        window = Window()
    }

    /// Adds the places of each parameter in their order, and takes the squares of the sums in the same pass.
    ///
    /// Returns the sums, nil for a parameter that nothing was added to, and per parameter the sum of their squares.
    private func fold() throws(GAError) -> ([Tensor?], squares: [Double]) {
        let totals = sums.map { $0.total?.tensor }
        let pieces = Pieces(totals.map { $0?.elementCount ?? 0 })
        var squares = [Double](repeating: 0, count: pieces.count)
        try squares.withUnsafeMutableBufferPointer { (squares) throws(GAError) in
            let squares = UnsafeMutableBufferPointer(rebasing: squares[...])
            try Runtime.parallel(tiles: pieces.count) { [sums] tile in
                let (index, start, count) = pieces[tile]
                squares[tile] = sums[index].fold(from: start, count: count)
            }
        }
        var perParameter = totals.map { _ in 0.0 }
        for (piece, square) in squares.enumerated() { perParameter[pieces[piece].index] += square }
        return (totals, perParameter)
    }

    /// Per parameter, the 2-norm of its mean gradient in the window of the last step, before clipping.
    ///
    /// It is 0 where nothing was added or nothing weighed, and not finite where the gradient is not. Errors: `state` before
    /// the first step.
    public func gradientNorms() throws(GAError) -> [Double] {
        guard let norms else {
            throw GAError(.state, "gradient_norms: no window has ended yet: take a step first")
        }
        return norms
    }

    /// A copy of the accumulated sum of parameter `index`.
    public func accumulatedGradient(_ index: Int) throws(GAError) -> Tensor {
        guard optimizer.parameters.indices.contains(index) else {
            throw GAError(
                .index, "accumulated_gradient: index is \(index), outside of 0 ... \(optimizer.parameters.count - 1)")
        }
        return try sums[index].sum(shape: optimizer.parameters[index].shape)
    }
}

extension Accumulator: GradientSink {
    func prepare(_ leaf: Tensor, _ uses: LeafUses) throws(GAError) {
        guard leaf.owner === optimizer else {
            let whose = leaf.owner == nil ? "to no optimizer" : "to another optimizer"
            throw GAError(
                .invalidArgument,
                "accumulate: loss depends on \(leaf.label), which belongs \(whose): detach it, or create this "
                    + "accumulator's optimizer with it")
        }
        try sums[leaf.indexInOwner].prepare(leaf, uses)
    }

    func place(of leaf: Tensor, use: Int) -> GradientPlace { sums[leaf.indexInOwner].place(ofUse: use) }
}
