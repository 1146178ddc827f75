import CShims

extension Accumulator {
    /// Multiplies losses by the scale of a scaler, from the next window on; nil multiplies by nothing.
    ///
    /// The sums then hold scaled gradients. They are never written to for it: what divides them by the weight divides them
    /// by the scale as well. Errors: `state` if the window holds micro-batches.
    public func setLossScaler(_ scaler: LossScaler?) throws(GAError) {
        let operation: StaticString = "set_loss_scaler"
        try requireBetweenMicroBatches(operation)
        try requireNoRetry(operation)
        guard window.isEmpty else {
            throw GAError(
                .state,
                "\(operation): the window holds micro-batches, which keep their loss scale: step, or drop them with zero"
            )
        }
        lossScaler?.detach(lastRound: lastRound)
        lastRound = 0
        lossScaler = scaler
        scaler?.attach()
    }

    /// That of the window in progress, or of the next one if nothing has begun.
    var lossScale: Double { window.lossScale ?? lossScaler?.scaleOfWindow(lastRound: lastRound) ?? 1 }

    /// What gradients that carry `gradientScale` are multiplied by on their way into the window: the loss scale in place
    /// of theirs, times the weight of a mean. That of a loss, whose gradients are to be made, carries none.
    ///
    /// Errors: `invalidArgument` if that is beyond float32, where zeros would become NaNs or gradients would vanish.
    func factor(
        ofGradientScale gradientScale: Double = 1, weight: Double?, _ operation: StaticString
    ) throws(GAError) -> Float {
        let quotient = Float(lossScale / gradientScale)
        let weight = options.lossReduction == .mean ? weight ?? 1 : 1
        let factor = Float(weight) * quotient
        // Moments have no loss scale.
        let isNormal = factor.isNormal && (moments == nil || Float(Double(factor) / lossScale).isNormal)
        guard quotient.isNormal && (isNormal || weight == 0) else {
            throw GAError(
                .invalidArgument,
                "\(operation): " + (gradientScale == 1 ? "" : "gradient_scale is \(gradientScale), ")
                    + "the loss scale is \(lossScale)"
                    + (weight == 1 ? "" : " and the weight of the mean \(weight)")
                    + ": what gradients are multiplied by is beyond float32; choose them closer to each other")
        }
        return factor
    }

    /// Ends the additions to the window and returns the global 2-norm of its mean gradient, without loss scale and before
    /// clipping; it is not finite where a gradient is not.
    ///
    /// It is read from memory once: the step goes on with what was found, and so do reports. Errors: `state` if this was
    /// called for the window, if that is empty, if a micro-batch is open or a weight is missing.
    public func unscale() throws(GAError) -> Double {
        let operation: StaticString = "unscale"
        try requireBetweenMicroBatches(operation)
        try requireNoRetry(operation)
        guard moments == nil else {
            throw GAError(
                .state,
                "\(operation): accumulate_into is moments, where nothing is known of the gradient of a window")
        }
        guard window.folded == nil else {
            throw GAError(
                .state,
                "\(operation): this window was unscaled before: its norm is the gradient_norm of window_report until the step"
            )
        }
        guard window.microBatches > 0 else {
            throw GAError(.state, "\(operation): the window is empty: accumulate a micro-batch first")
        }
        try requireWeights(operation)
        return norm(of: try foldWindow())
    }

    /// What sums are divided by: the weight of the window, where that is asked for, times the loss scale.
    var divisor: Double { (options.normalization == .weight ? window.weight : 1) * lossScale }

    /// Of the mean gradient; 0 for a window without weight.
    func norm(of sums: FoldedSums) -> Double {
        divisor == 0 ? 0 : sums.squares.reduce(0, +).squareRoot() / divisor
    }

    /// Per parameter, of the mean gradient; 0 for a window without weight.
    func norms(of sums: FoldedSums) -> [Double] {
        let divisor = divisor
        return sums.squares.map { divisor == 0 ? 0 : $0.squareRoot() / divisor }
    }

    /// Reads the sums of the window, unless that was done before and the same parameters are trained.
    func foldWindow() throws(GAError) -> FoldedSums {
        let isIncluded = zip(sums, optimizer.parameters).map { $1.requiresGrad && $0.isUsed }
        if let folded = window.folded, folded.isIncluded == isIncluded { return folded }
        let (totals, squares) = try foldPlaces(sums)
        for (sum, total) in zip(sums, totals) where total != nil { sum.keepTotal() }
        let folded = FoldedSums(isIncluded: isIncluded, totals: totals, squares: squares)
        window.folded = folded
        return folded
    }

    /// Divides a copy of sums by the loss scale of the window.
    func unscale(_ sum: Tensor) throws(GAError) {
        guard lossScale != 1 else { return }
        let factor = Float(1 / lossScale)
        try elementwise(sum.elementCount) { start, count in
            let elements = sum.floats + start
            Runtime.kernels.add_scaled(elements, elements, SHIMS_F32, factor, Int64(count), 0)
        }
    }

    /// Drops the window before its step. What had been found of its gradients by then counts for the loss scale, as in
    /// torch.amp.GradScaler: an overflow or, where ``unscale()`` has found none, its absence.
    func abandon() {
        let (finding, scale) = (isRetrying ? nil : self.finding, lossScale)
        drop()
        if let finding { noteEnd(finding, under: scale) }
    }

    /// What is known of the gradients of the window without looking at them: nil if nothing is.
    private var finding: LossScaler.Finding? {
        if window.overflow != nil { return .overflow }
        guard let folded = window.folded else { return nil }
        return window.weight == 0 ? .nothing : folded.isFinite ? .finite : .overflow
    }

    // MARK: Again

    /// Whether gradients of the window overflowed under its loss scale, those of a micro-batch that was dropped included.
    func isOverflown() throws(GAError) -> Bool {
        guard lossScaler != nil else { return false }
        if window.overflow != nil { return true }
        return window.microBatches > 0 && window.weight > 0 ? try !foldWindow().isFinite : false
    }

    /// Has the caller compute the window again, which is empty by then. Returns false if he declines.
    ///
    /// Errors: those of the handler, or `state` for a window that cannot be stepped.
    func recompute(
        _ report: inout WindowReport, _ handler: (WindowReport) throws(GAError) -> Bool, _ operation: StaticString
    ) throws(GAError) -> Bool {
        report.outcome = .skippedOverflow
        report.firstNonFinite = if let overflow = window.overflow { overflow } else { try whereNonFinite() }
        let retries = window.retries + 1
        // If the handler declines, the window ends with these.
        stagnations = sums.map(\.stagnation)
        norms = norms(of: try foldWindow())
        drop()
        (isBusy, isRetrying) = (false, true)
        defer { (isBusy, isRetrying) = (true, false) }
        guard try handler(report) else { return false }
        try requireBetweenMicroBatches(operation)
        guard !window.isEmpty else {
            throw GAError(
                .state,
                "\(operation): the retry handler accumulated nothing: accumulate the window again, or return false")
        }
        try requireWeights(operation)
        window.retries = retries
        report = windowReport()
        return true
    }

    /// Tells the scaler what a window that has ended has shown.
    func noteEnd(_ finding: LossScaler.Finding, under scale: Double) {
        guard let lossScaler else { return }
        lastRound = lossScaler.endWindow(finding, under: scale, lastRound: lastRound)
    }

    // MARK: The order of calls

    /// Errors: `state` if the sums of the window have been read.
    func requireOpenSums(_ operation: StaticString) throws(GAError) {
        guard window.folded == nil else {
            throw GAError(
                .state,
                "\(operation): the window was unscaled, and nothing more can be added: step, or drop it with zero")
        }
    }

    /// Errors: `state` from within the retry handler.
    func requireNoRetry(_ operation: StaticString) throws(GAError) {
        guard !isRetrying else {
            throw GAError(
                .state,
                "\(operation): the window is being computed again: accumulate it, and return from the retry handler")
        }
    }
}
