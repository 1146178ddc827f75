/// The running mean and variance of a number.
///
/// Those of all values up to `reach` of them, and from then on with a share of `1 / reach` for each new one (Finch,
/// Incremental calculation of weighted mean and variance, 2009).
struct RunningMoments {
    private(set) var count = 0
    private(set) var mean = 0.0
    private(set) var variance = 0.0

    mutating func add(_ value: Double, reach: Int) {
        count += 1
        let share = 1 / Double(min(count, reach))
        let distance = value - mean
        mean += share * distance
        variance = (1 - share) * (variance + share * distance * distance)
    }

    /// How many standard deviations a value is above the mean. Rounding of values that are all the same is none.
    func zScore(_ value: Double) -> Double {
        let deviation = max(variance.squareRoot(), 1e-6 * abs(mean))
        return value == mean ? 0 : (value - mean) / deviation
    }
}

/// The loss and the norm of applied windows, and what stands out from them.
struct OutlierStatistics {
    private var loss = RunningMoments()
    private var norm = RunningMoments()

    /// Whether the loss or the norm of a window is above its limit; writes how far above the mean they are.
    func isAbove(_ options: Accumulator.Options, _ report: inout WindowReport) -> Bool {
        if options.maxLossZScore != nil && loss.count >= options.outlierWarmup {
            report.lossZScore = loss.zScore(report.loss)
        }
        if options.maxNormZScore != nil && norm.count >= options.outlierWarmup {
            report.gradientNormZScore = norm.zScore(report.gradientNorm)
        }
        return report.lossZScore > options.maxLossZScore ?? .infinity
            || report.gradientNormZScore > options.maxNormZScore ?? .infinity
    }

    /// Counts an applied window.
    mutating func add(_ report: WindowReport, _ options: Accumulator.Options) {
        loss.add(report.loss, reach: options.outlierWarmup)
        norm.add(report.gradientNorm, reach: options.outlierWarmup)
    }
}
