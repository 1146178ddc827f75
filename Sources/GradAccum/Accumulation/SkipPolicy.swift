/// What to do about a window, or in isolated mode a micro-batch, that would be skipped.
public enum SkipDecision: Int32, CaseIterable, Sendable {
    /// It is dropped, and the report says so.
    case skip = 0
    /// It is dropped, and the call is an error.
    case raise = 1
    /// The update is made nonetheless: only for an outlier.
    case apply = 2
}

extension Accumulator {
    /// Counts a skip of the window and asks the policy. Returns false if the update is to be made nonetheless.
    ///
    /// Errors: `nonFinite` or `outlier`, after which the window is dropped as well.
    func skip(
        _ report: inout WindowReport, as outcome: WindowReport.Outcome, _ operation: StaticString
    ) throws(GAError) -> Bool {
        consecutiveSkips += 1
        report.outcome = outcome
        report.consecutiveSkips = consecutiveSkips
        return try decide(report, operation)
    }

    /// Asks the policy about a micro-batch that was dropped for `found`, in isolated mode.
    func dropped(_ found: WindowReport.NonFinite, _ operation: StaticString) throws(GAError) {
        consecutiveDrops += 1
        var report = windowReport()
        report.outcome = .microBatchNonFinite
        report.firstNonFinite = found
        report.consecutiveSkips = consecutiveDrops
        _ = try decide(report, operation)
    }

    private func decide(_ report: WindowReport, _ operation: StaticString) throws(GAError) -> Bool {
        let isOutlier = report.outcome == .skippedOutlier
        let isRaising = options.onNonFinite == .raise && !isOutlier
        let decision: SkipDecision =
            if let skipHandler { try skipHandler(report) } else { isRaising ? .raise : .skip }
        switch decision {
        case .apply where isOutlier:
            return false
        case .apply:
            throw GAError(
                .invalidArgument,
                "\(operation): the skip handler returned apply, but \(reason(report)): it was dropped; apply is for outliers"
            )
        case .raise:
            throw GAError(
                isOutlier ? .outlier : .nonFinite, "\(operation): \(reason(report)): it was dropped\(advice(report))")
        case .skip:
            guard let limit = options.maxConsecutiveSkips, report.consecutiveSkips > limit, !isLowering(report) else {
                return true
            }
            let what = report.outcome == .microBatchNonFinite ? "micro-batches" : "windows"
            throw GAError(
                isOutlier ? .outlier : .nonFinite,
                "\(operation): \(report.consecutiveSkips) \(what) in a row were skipped, and max_consecutive_skips is "
                    + "\(limit): \(reason(report))\(advice(report))")
        }
    }

    /// Why a window or a micro-batch is skipped.
    private func reason(_ report: WindowReport) -> String {
        if report.outcome == .skippedOutlier {
            let byLoss = report.lossZScore > options.maxLossZScore ?? .infinity
            return byLoss
                ? "the loss of the window, \(report.loss), is \(report.lossZScore) standard deviations above its mean"
                : "the norm of the window, \(report.gradientNorm), is \(report.gradientNormZScore) standard deviations "
                    + "above its mean"
        }
        let part = report.outcome == .microBatchNonFinite ? "the micro-batch" : "the window"
        let subject = lossScaler == nil ? part : "\(part), at a loss scale of \(report.lossScale),"
        guard let found = report.firstNonFinite else { return "\(subject) is not finite" }
        let place = found.microBatch.map { " in micro-batch \($0)" } ?? ""
        guard let parameter = found.parameter else {
            return found.microBatch == nil
                ? "the mean gradient of the window is beyond float32"
                : "\(subject) is not finite, first in the loss\(place)"
        }
        return "\(subject) is not finite, first in the gradient of parameters[\(parameter)], "
            + "\(optimizer.parameters[parameter].label)\(place)"
    }

    /// Whether a lower loss scale is still to be tried, so that a skip is no sign of anything worse.
    private func isLowering(_ report: WindowReport) -> Bool {
        guard let lossScaler, lossScaler.canGoBelow(report.lossScale) else { return false }
        return report.outcome == .skippedOverflow
            || report.outcome == .microBatchNonFinite && report.firstNonFinite?.parameter != nil
    }

    private func advice(_ report: WindowReport) -> String {
        if report.outcome == .skippedOutlier { return "; lower the learning rate, or raise the limit" }
        if report.outcome == .skippedOverflow, let lossScaler {
            return lossScaler.canGoBelow(report.lossScale)
                ? "; a lower loss scale is still to be tried"
                : "; the loss scale cannot go lower: allow a smaller min_scale, or lower the learning rate or look at the data"
        }
        let isUnknown =
            !options.isIsolated && report.firstNonFinite?.parameter != nil && report.firstNonFinite?.microBatch == nil
        return "; lower the learning rate or look at the data"
            + (isUnknown ? " (isolated mode names the micro-batch, and so does a second skip in a row)" : "")
    }
}
