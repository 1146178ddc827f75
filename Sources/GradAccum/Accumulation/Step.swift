extension Accumulator {
    /// Ends the window: divides by its weight, clips, updates the parameters and empties the accumulators.
    ///
    /// A window that is not finite, is an outlier or weighs nothing is dropped without a trace. Errors: `state` if it is
    /// empty, a micro-batch is open or a weight is missing, `overflow` if a schedule makes the learning rate too large and,
    /// with sums in bfloat16, `outOfMemory`, and it stays as it is; `nonFinite` and `outlier` where the policy or the limit on
    /// consecutive skips says so, and it is dropped.
    public func step() throws(GAError) -> WindowReport {
        try requireBetweenMicroBatches("step")
        try requireNoRetry("step")
        guard !window.isEmpty else {
            throw GAError(.state, "step: the window is empty: accumulate a micro-batch first")
        }
        return try endWindow("step")
    }

    /// Errors: those of ``step()`` on a window that is not empty.
    func endWindow(_ operation: StaticString) throws(GAError) -> WindowReport {
        try requireWeights(operation)
        let learningRate = try optimizer.nextLearningRate(weight: window.weight > 0 ? window.weight : nil)
        let start = Monotonic.now()
        // What can fail comes before anything is changed.
        let workspace =
            options.sumFormat == .float32
            ? nil : try Tensor(uninitialized: [RoundedGradients.room(for: optimizer)], for: operation)
        isBusy = true
        defer { isBusy = false }
        var report = windowReport()
        report.learningRate = learningRate
        if moments == nil {
            try endWindowOfSums(&report, workspace, operation)
        } else {
            try endWindowOfMoments(&report, operation)
        }
        report.updateCount = optimizer.updateCount
        lastEnd = Monotonic.now()
        report.cost.stepSeconds = Monotonic.seconds(from: start, to: lastEnd)
        return report
    }

    /// `workspace`: that of ``RoundedGradients``, where sums are in bfloat16.
    private func endWindowOfSums(
        _ report: inout WindowReport, _ workspace: Tensor?, _ operation: StaticString
    ) throws(GAError) {
        defer { drop() }
        var isApplied = false
        var hasOverflow = try isOverflown()
        defer { noteEnd(hasOverflow ? .overflow : isApplied ? .finite : .nothing, under: report.lossScale) }
        while hasOverflow, let retryHandler, lossScaler?.lowerForRetry(below: report.lossScale) == true {
            guard try recompute(&report, retryHandler, operation) else {
                _ = try skip(&report, as: .skippedOverflow, operation)
                return
            }
            report.learningRate = try optimizer.nextLearningRate(weight: window.weight > 0 ? window.weight : nil)
            hasOverflow = try isOverflown()
        }
        norms = optimizer.parameters.map { _ in 0 }
        stagnations = sums.map(\.stagnation)
        if window.weight > 0 {
            report.outcome = try update(&report, workspace, operation)
        } else if window.microBatches == 0 && window.firstNonFinite != nil {
            // All that there was has been dropped; it is not the loss of one micro-batch that makes another an overflow.
            if hasOverflow, let overflow = window.overflow { report.firstNonFinite = overflow }
            _ = try skip(&report, as: hasOverflow ? .skippedOverflow : .skippedNonFinite, operation)
        } else {
            report.outcome = .skippedZeroWeight
        }
        isApplied = report.outcome == .applied
    }

    /// Updates the parameters, unless the window is not fit for it; what else there is to report goes into `report`.
    private func update(
        _ report: inout WindowReport, _ workspace: Tensor?, _ operation: StaticString
    ) throws(GAError) -> WindowReport.Outcome {
        let folded = try foldWindow()
        norms = norms(of: folded)
        report.gradientNorm = norm(of: folded)
        guard report.gradientNorm.isFinite else { return try skipNonFinite(&report, operation) }
        if outliers.isAbove(options, &report), try skip(&report, as: .skippedOutlier, operation) {
            return .skippedOutlier
        }
        guard
            let clipped = try GroupClipping(clipping: clipping, optimizer: optimizer)
                .clip(folded.totals, squares: folded.squares, weight: divisor)
        else { return try skipNonFinite(&report, operation) }
        report.clipFactor = clipped.factor
        let rounded = workspace.map { workspace in
            RoundedGradients(
                sums: zip(sums, folded.isIncluded).map { $1 ? $0 : nil }, factors: clipped.factors, workspace: workspace
            )
        }
        try optimizer.apply(
            folded.totals, rounded, scales: clipped.scales, learningRate: report.learningRate, weight: report.weight,
            loss: report.loss)
        outliers.add(report, options)
        consecutiveSkips = 0
        report.consecutiveSkips = 0
        return .applied
    }

    private func skipNonFinite(_ report: inout WindowReport, _ operation: StaticString) throws(GAError)
        -> WindowReport.Outcome
    {
        report.firstNonFinite = try whereNonFinite()
        let isFinite = try foldWindow().isFinite
        let isOverflow = lossScaler != nil && !isFinite
        _ = try skip(&report, as: isOverflow ? .skippedOverflow : .skippedNonFinite, operation)
        return report.outcome
    }

    /// Adds the places of each parameter in their order, and takes the squares of the sums in the same pass.
    ///
    /// Returns the sums, nil for a parameter that is frozen or that nothing was added to, or whose sum is in bfloat16, and per
    /// parameter the sum of their squares.
    func foldPlaces(_ gradients: [LeafGradient]) throws(GAError) -> ([Tensor?], squares: [Double]) {
        let included = zip(gradients, optimizer.parameters).map { $1.requiresGrad && $0.isUsed ? $0 : nil }
        for case let gradient? in included { try gradient.settle() }
        let totals = included.map { $0?.total?.tensor }
        let pieces = Pieces(zip(included, optimizer.parameters).map { $0 == nil ? 0 : $1.elementCount })
        let squares = try pieces.sums { index, range in
            SIMD2(gradients[index].fold(from: range.lowerBound, count: range.count), 0)
        }
        return (totals, squares.map { $0.x })
    }

    /// Per parameter, what has become of additions to its sum in bfloat16, in the window of the last step.
    ///
    /// Errors: `state` before the first step, or for sums in float32.
    public func stagnation() throws(GAError) -> [Stagnation] {
        guard options.sumFormat != .float32 else {
            throw GAError(
                .state,
                "stagnation: sum_format is float32, and additions are counted to sums in bfloat16: create the accumulator "
                    + "with such a sum_format")
        }
        guard let stagnations else {
            throw GAError(.state, "stagnation: no window has ended yet: take a step first")
        }
        return stagnations
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
}
