import CShims

/// What an accumulator of moments (AdamA, Zhang et al., arXiv 2305.19982) does in place of adding gradients up.
///
/// A micro-batch that is committed goes into the moments of Adam at once, and its gradients are let go of: they take
/// memory while its backward pass runs, and no longer. A micro-batch that is not finite, or that is aborted, changes
/// nothing. What was committed cannot be taken back, nor can anything be found out about the window's gradient as a whole.
struct MomentAccumulation {
    /// Per parameter, the uses in the graph at hand for which there is no memory yet.
    var uses: [LeafUses?]

    init(_ optimizer: Optimizer, _ options: Accumulator.Options) throws(GAError) {
        uses = optimizer.parameters.map { _ in nil }
        try MomentAccumulation.check(options)
        try MomentAccumulation.check(optimizer)
    }

    /// Errors: `invalidArgument` for an option that needs the gradient of a whole window, or needs to drop it.
    private static func check(_ options: Accumulator.Options) throws(GAError) {
        guard options.normalization == .sum else {
            throw GAError(
                .invalidArgument,
                "accumulator: accumulate_into is moments, which cannot be divided by a weight that is known at the step "
                    + "alone: set normalization to sum, and scale each loss")
        }
        let excluded: [(String, Bool)] = [
            ("max_grad_norm", options.maxGradNorm != nil), ("max_grad_value", options.maxGradValue != nil),
            ("agc_clipping", options.agcClipping != nil), ("max_norm_z_score", options.maxNormZScore != nil),
            ("max_loss_z_score", options.maxLossZScore != nil),
        ]
        for (option, isSet) in excluded where isSet {
            throw GAError(
                .invalidArgument,
                "accumulator: \(option) is set, which needs the gradient of a whole window, and accumulate_into is moments: "
                    + "leave it 0, or accumulate into gradients")
        }
    }

    /// Errors: `state` for a rule, a group or a scaling that does not allow it.
    static func check(_ optimizer: Optimizer) throws(GAError) {
        guard optimizer.scaling?.keepsBeta2HalfLife != true else {
            throw GAError(
                .state,
                "accumulate_into is moments, and the scaling's beta2_half_life needs the weight of a whole window before its "
                    + "first micro-batch: set it to 0")
        }
        _ = try optimizer.momentRule(optimizer.rule)
        for (number, group) in optimizer.groups.all.enumerated() {
            guard group.maxGradNorm == nil else {
                throw GAError(
                    .state,
                    "accumulate_into is moments, and group \(number) has a max_grad_norm, which needs the gradient of a whole "
                        + "window: set it to 0")
            }
            _ = try optimizer.momentRule(try group.rule(optimizer.rule))
        }
    }
}

extension Accumulator {
    /// Errors: `state` if moments hold a part of a window, which they cannot give back.
    func requireDroppable(_ operation: StaticString) throws(GAError) {
        guard moments != nil && optimizer.holdsPartOfWindow else { return }
        throw GAError(
            .state,
            "\(operation): the moments hold micro-batches of this window and cannot give them back: take a step instead"
        )
    }

    /// Takes a micro-batch into the moments unless it is not finite, and lets go of its gradients.
    ///
    /// `given`: gradients of the caller in place of those in scratch. Returns where it is not finite, or too large to
    /// be squared.
    func takeIntoMoments(
        _ microBatch: MicroBatch, _ given: [UnsafePointer<Float>?]?
    ) throws(GAError) -> WindowReport.NonFinite? {
        try MomentAccumulation.check(optimizer)
        let gradients: [UnsafePointer<Float>?]
        let squares: [Double]
        if let given {
            gradients = zip(given, optimizer.parameters).map { $1.requiresGrad ? $0 : nil }
            squares = try sumsOfSquares(gradients)
        } else {
            let (totals, found) = try foldPlaces(scratch)
            (gradients, squares) = (totals.map { $0.map { UnsafePointer($0.floats) } }, found)
        }
        // The second moments take in squares.
        let scale = Double(microBatch.scale) / lossScale
        guard Float(scale).isNormal || scale == 0 else {
            throw GAError(
                .invalidArgument,
                "micro_batch_commit: the weight of micro-batch \(microBatch.number) is \(microBatch.weight) and the loss "
                    + "scale \(lossScale): what gradients are multiplied by is beyond float32; abort it, or drop it with zero"
            )
        }
        if let index = squares.firstIndex(where: { !Float($0 * scale * scale).isFinite }) {
            let found = WindowReport.NonFinite(parameter: index, microBatch: microBatch.number)
            if !squares[index].isFinite { window.overflow = window.overflow ?? found }
            return found
        }
        // A window of such alone changes nothing, and moments could not give it back.
        guard microBatch.weight > 0 || microBatch.isWeightToCome else { return nil }
        try optimizer.takeIntoMoments(gradients, scale: Float(scale))
        return nil
    }

    /// Per parameter, that of its gradient.
    private func sumsOfSquares(_ gradients: [UnsafePointer<Float>?]) throws(GAError) -> [Double] {
        let pieces = Pieces(zip(optimizer.parameters, gradients).map { $1 == nil ? 0 : $0.elementCount })
        let squares = try pieces.sums { index, range in
            SIMD2(Runtime.kernels.sum_of_squares(gradients[index]! + range.lowerBound, Int64(range.count)), 0)
        }
        return squares.map { $0.x }
    }

    /// Ends a window of moments: updates the parameters that it reached.
    ///
    /// One that weighs nothing updates none; what got its weight of 0 after it was taken in stays for the next window.
    /// Errors: those of the update, and the window goes on; those of ``skip(_:as:_:)`` where no micro-batch counted, and it
    /// is dropped.
    func endWindowOfMoments(_ report: inout WindowReport, _ operation: StaticString) throws(GAError) {
        if window.microBatches > 0 {
            try MomentAccumulation.check(optimizer)
            let isApplied = report.weight > 0
            report.outcome = isApplied ? .applied : .skippedZeroWeight
            if isApplied {
                try optimizer.applyMoments(
                    learningRate: report.learningRate, weight: report.weight, loss: report.loss)
                consecutiveSkips = 0
                report.consecutiveSkips = 0
            }
            noteEnd(window.overflow != nil ? .overflow : isApplied ? .finite : .nothing, under: report.lossScale)
        } else {
            // All that there was has been dropped.
            let hasOverflow = lossScaler != nil && window.overflow != nil
            if hasOverflow { report.firstNonFinite = window.overflow }
            defer {
                noteEnd(hasOverflow ? .overflow : .nothing, under: report.lossScale)
                drop()
            }
            _ = try skip(&report, as: hasOverflow ? .skippedOverflow : .skippedNonFinite, operation)
        }
        norms = optimizer.parameters.map { _ in 0 }
        drop()
    }

    /// Adds gradients of the caller without a copy of them, as a micro-batch of its own.
    func accumulateIntoMoments(
        _ gradients: [UnsafeRawPointer?], gradientScale: Double, loss: Double, weight: Double?
    ) throws(GAError) {
        isBusy = true
        defer { isBusy = false }
        startWindow()
        defer { finishStart() }
        var microBatch = MicroBatch(number: window.nextNumber, start: Monotonic.now())
        if loss.isFinite {
            microBatch.scale = try factor(ofGradientScale: gradientScale, weight: weight, "accumulate_gradients")
        } else {
            microBatch.nonFinite = WindowReport.NonFinite(parameter: nil, microBatch: microBatch.number)
        }
        microBatch.additions = 1
        microBatch.isWeightToCome = weight == nil
        microBatch.weight = weight ?? 0
        microBatch.loss = options.lossReduction == .mean ? loss * (weight ?? 1) : loss
        try commit(
            microBatch, "accumulate_gradients", given: gradients.map { $0?.assumingMemoryBound(to: Float.self) })
    }
}
