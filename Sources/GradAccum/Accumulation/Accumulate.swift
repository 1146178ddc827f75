import CShims

extension Accumulator {
    /// Runs backward from a scalar loss and adds the gradients to the window, as a micro-batch of its own unless one is open.
    ///
    /// - Parameter weight: the samples or tokens that the loss stands for; nil to give it later, see
    ///   ``setWeight(_:ofMicroBatch:)``.
    /// - Throws: `state` if the graph is used up or the loss is a mean where a sum is expected; `nonFinite` for such a
    ///   loss, unless isolated mode drops it; `invalidArgument` for a bad weight or a loss of foreign parameters. The window
    ///   is then as it was, except where this fails in the middle: in exact mode that breaks it until ``zero()``, in
    ///   isolated mode the micro-batch until it is aborted.
    public func accumulate(_ loss: Tensor, weight: Double?) throws(GAError) {
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
        try add(loss: value, weight: weight, since: loss.producer?.start, "accumulate") { () throws(GAError) in
            let graph = try Graph(of: loss, into: self)
            guard graph.hasLeaves else { throw dependsOnNothing("accumulate") }
            return (graph, try factor(weight: weight, "accumulate"))
        } run: { (graph, seed) throws(GAError) in
            try graph.backward(seed: seed, into: self)
        }
    }

    /// Adds gradients that the caller computed, one contiguous array per parameter or nil for nothing.
    ///
    /// Gradients and `loss` are sums over the weight, or means where the options say so.
    /// - Parameter gradientScale: the loss scale that the gradients carry: 1 for none.
    public func accumulate(
        gradients: [UnsafeRawPointer?], _ dtype: DType = .float32, gradientScale: Double = 1, loss: Double,
        weight: Double?
    ) throws(GAError) {
        try requireIntact("accumulate_gradients")
        try LossScaler.requireScale(gradientScale, "accumulate_gradients")
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
        if moments != nil && window.microBatch == nil && dtype == .float32 {
            return try accumulateIntoMoments(gradients, gradientScale: gradientScale, loss: loss, weight: weight)
        }
        try add(loss: loss, weight: weight, since: nil, "accumulate_gradients") { () throws(GAError) in
            let factor = try factor(ofGradientScale: gradientScale, weight: weight, "accumulate_gradients")
            // Nothing in the loops over parameters counts references: with many small ones that takes longer than to add up.
            let (destination, parameters, update) = (destination, optimizer.parameters, optimizer.updateCount)
            for index in gradients.indices where gradients[index] != nil && destination[index].firstDense == nil {
                try destination[index].prepareDense(parameters[index], update: update)
            }
            return factor
        } run: { (factor: Float) throws(GAError) in
            let (destination, parameters, addition) = (destination, optimizer.parameters, addition(dtype, factor))
            guard options.isIsolated || options.sumFormat == .float32 else {
                for index in gradients.indices where gradients[index] != nil {
                    try destination[index].rounded[0].add(gradients[index]!, dtype, scale: factor)
                    try noteNonFinite(gradients[index]!, ofParameter: index, dtype, times: factor)
                }
                return
            }
            let pieces = Pieces(gradients.indices.lazy.map { gradients[$0] == nil ? 0 : parameters[$0].elementCount })
            try addGiven(pieces, dtype, times: factor) { index, start, count in
                let gradient = gradients[index]! + start * dtype.byteCount
                destination[index].add(gradient, addition, from: start, count: count)
                return gradient
            }
            for index in gradients.indices where gradients[index] != nil {
                destination[index].didAdd(addition)
            }
        }
    }

    /// Adds the gradient of one parameter, times `scale` and the loss scale, to the open micro-batch, for a loop whose
    /// gradients appear one after another.
    ///
    /// ``accumulate(gradients:_:loss:weight:)`` without gradients gives the loss and the weight, which a commit needs.
    /// `scale` is the weight where the gradient is a mean. Errors: `state` if no micro-batch is open, `index`, `dtype`,
    /// `invalidArgument` for a scale that is not finite; `outOfMemory`, and nothing was added.
    public func accumulate(
        gradient: UnsafeRawPointer, ofParameter index: Int, _ dtype: DType = .float32, scale: Double = 1
    ) throws(GAError) {
        let operation: StaticString = "accumulate_gradient"
        let open = try openMicroBatch(operation)
        guard !open.isBroken else { throw brokenMicroBatch(open, operation) }
        guard optimizer.parameters.indices.contains(index) else {
            throw GAError(
                .index, "\(operation): index is \(index), outside of 0 ... \(optimizer.parameters.count - 1)")
        }
        guard dtype.isFloatingPoint else {
            throw GAError(.dtype, "\(operation): dtype is \(dtype), and a floating type is needed")
        }
        let factor = Float(scale * lossScale)
        guard factor.isNormal || scale == 0 else {
            throw GAError(
                .invalidArgument,
                "\(operation): scale is \(scale): it must be finite and no denormal in float32, times the loss scale "
                    + "\(lossScale)")
        }
        let parameter = optimizer.parameters[index]
        try destination[index].prepareDense(parameter, update: optimizer.updateCount)
        if let sum = destination[index].rounded.first {
            try sum.add(gradient, dtype, scale: factor)
            window.microBatch?.hasGradients = true
            return try noteNonFinite(gradient, ofParameter: index, dtype, times: factor)
        }
        window.microBatch?.hasGradients = true
        let sum = destination[index]
        let addition = addition(dtype, factor)
        let pieces = Pieces([parameter.elementCount])
        try addGiven(pieces, dtype, times: factor, firstParameter: index) { _, start, count in
            let gradient = gradient + start * dtype.byteCount
            sum.add(gradient, addition, from: start, count: count)
            return gradient
        }
        sum.didAdd(addition)
    }

    /// How whole gradients are added to the open micro-batch.
    func addition(_ dtype: DType, _ factor: Float) -> Addition {
        // The last one is read at the step, and that of isolated mode when it is committed.
        let isLast = window.microBatches + 1 >= window.accumulationSteps ?? 1
        return Addition(
            dtype: dtype, factor: factor, pastCaches: sumsExceedCaches, canWait: !isLast && !options.isIsolated)
    }

    func brokenMicroBatch(_ open: MicroBatch, _ operation: StaticString) -> GAError {
        GAError(.state, "\(operation): micro-batch \(open.number) has failed half-way: abort it and begin another")
    }

    /// Adds to the open micro-batch, or makes one of its own: `prepare` changes no sum, and `run` adds to them.
    private func add<Preparation>(
        loss: Double, weight: Double?, since start: UInt64?, _ operation: StaticString,
        prepare: () throws(GAError) -> Preparation, run: (Preparation) throws(GAError) -> Void
    ) throws(GAError) {
        isBusy = true
        defer { isBusy = false }
        let isAlone = window.microBatch == nil
        startWindow()
        defer { finishStart() }
        var microBatch = window.microBatch ?? MicroBatch(number: window.nextNumber, start: start ?? Monotonic.now())
        if loss.isFinite {
            let preparation = try prepare()
            do throws(GAError) {
                try run(preparation)
            } catch {
                breakOff(isAlone: isAlone)
                throw error
            }
        } else {
            microBatch.nonFinite = WindowReport.NonFinite(parameter: nil, microBatch: microBatch.number)
        }
        microBatch.additions += 1
        microBatch.isWeightToCome = weight == nil
        microBatch.weight += weight ?? 0
        microBatch.loss += options.lossReduction == .mean ? loss * (weight ?? 1) : loss
        if isAlone { try commit(microBatch, operation) } else { window.microBatch = microBatch }
    }

    /// After an addition that failed half-way.
    private func breakOff(isAlone: Bool) {
        if !options.isIsolated {
            window.isBroken = true
        } else if isAlone {
            emptyScratch()
            underflow?.rollBack()
        } else {
            window.microBatch?.isBroken = true
        }
    }

    // MARK: Weights

    /// Gives the weight of a micro-batch that was accumulated without one, before the step.
    ///
    /// The weight of a mean is part of its gradient, so in isolated mode it is given before the micro-batch is committed,
    /// and in exact mode with the loss.
    /// - Parameter number: that of the micro-batch, counted from 0 in its window, aborted ones included.
    /// - Throws: `invalidArgument` for a bad weight, `index` if there is no such micro-batch, `state` if it has a weight.
    public func setWeight(_ weight: Double, ofMicroBatch number: Int) throws(GAError) {
        let operation: StaticString = "micro_batch_set_weight"
        try requireIntact(operation)
        let end = window.nextNumber + (window.microBatch == nil ? 0 : 1)
        guard (0..<end).contains(number) else {
            throw GAError(
                .index, "\(operation): micro_batch is \(number), and this window has begun \(end) of them, from 0 on")
        }
        try require(weight: weight, operation)
        if var open = window.microBatch, open.number == number, open.isWeightToCome {
            open.isWeightToCome = false
            open.isWeightGivenLater = true
            open.weight = weight
            if options.lossReduction == .mean {
                open.loss *= weight
                open.scale = Float(weight)
            }
            window.microBatch = open
        } else if let position = window.withoutWeight.firstIndex(of: number) {
            window.withoutWeight.remove(at: position)
            window.weight += weight
        } else {
            throw GAError(
                .state,
                "\(operation): micro_batch \(number) was given its weight, has no loss yet, or was aborted: accumulate "
                    + "without a weight what is to get it later")
        }
    }

    /// Errors: `state` if micro-batches of the window have no weight yet.
    func requireWeights(_ operation: StaticString) throws(GAError) {
        guard let missing = window.withoutWeight.first else { return }
        throw GAError(
            .state,
            "\(operation): the weight of micro-batch \(missing) is missing: give it with micro_batch_set_weight first")
    }

    private func require(loss: Double, weight: Double?, _ operation: StaticString) throws(GAError) {
        try requireOpenSums(operation)
        if let weight {
            try require(weight: weight, operation)
        } else if options.lossReduction == .mean && (!options.isIsolated || window.microBatch == nil) {
            throw GAError(
                .state,
                "\(operation): weight is missing, and that of a mean is part of its gradient: give it now"
                    + (options.isIsolated
                        ? ", or begin a micro-batch and give it before the commit"
                        : ", or create the accumulator in isolated mode"))
        }
        if let open = window.microBatch {
            guard !open.isBroken else { throw brokenMicroBatch(open, operation) }
            guard options.lossReduction == .sum || !open.isWeightGivenLater else {
                throw GAError(
                    .state,
                    "\(operation): micro-batch \(open.number) was given its weight, \(open.weight), which multiplies "
                        + "all of its means: commit it, and begin another for this loss")
            }
            guard open.additions == 0 || open.isWeightToCome == (weight == nil) else {
                throw GAError(
                    .state,
                    "\(operation): weight is \(weight.map { "\($0)" } ?? "to come"), but micro-batch \(open.number) "
                        + (open.isWeightToCome ? "gets its weight later" : "has its weight")
                        + ": give it in one way for all of its losses")
            }
        }
        guard options.isIsolated || loss.isFinite else {
            throw GAError(
                .nonFinite,
                "\(operation): loss is \(loss.isNaN ? "NaN" : "\(loss)"): nothing was added; skip this micro-batch, or "
                    + "lower the learning rate if it recurs")
        }
    }

    private func require(weight: Double, _ operation: StaticString) throws(GAError) {
        guard weight.isFinite && weight >= 0 else {
            throw GAError(.invalidArgument, "\(operation): weight is \(weight): it must be finite and at least 0")
        }
        let before = window.weight + (window.microBatch?.weight ?? 0)
        let (smallest, largest) = (Accumulator.weights.lowerBound, Accumulator.weights.upperBound)
        // That of a mean which is given at once is a part of its gradient, and refused as such.
        let isForTheStep = options.lossReduction == .sum || window.microBatch?.isWeightToCome == true
        let isDivisor = options.normalization == .weight && isForTheStep
        let (least, most) = (isDivisor ? max(smallest, 1e-37 / lossScale) : smallest, min(largest, 1e37 / lossScale))
        guard weight == 0 || weight >= least, before + weight <= most else {
            throw GAError(
                .overflow,
                "\(operation): weight is \(weight), in a window of \(before): gradients of float32 can be divided by "
                    + "\(least) ... \(most)"
                    + (least > smallest || most < largest ? ", at a loss scale of \(lossScale)" : ""))
        }
    }

    /// Weights whose inverse float32 holds with room for a gradient.
    private static let weights = 1e-30...1e30
}
