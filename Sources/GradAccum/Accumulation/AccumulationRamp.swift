/// The number of micro-batches in a window as training goes on.
///
/// A window gets the number that holds where the clock stands when it begins, so a ramp moves by applied updates alone.
public struct AccumulationRamp: Sendable, Equatable {
    /// Readings of the optimizer's clock, ascending. Before the first its number holds, and after the last that one's.
    public var times: [Double]
    /// One for each time.
    public var accumulationSteps: [Int]
    public var clock: UpdateClock
    /// Whether the number goes along straight lines between the times, rounded down, or jumps at each.
    public var isInterpolated: Bool

    public init(
        times: [Double], accumulationSteps: [Int], clock: UpdateClock = .updates, isInterpolated: Bool = false
    ) {
        self.times = times
        self.accumulationSteps = accumulationSteps
        self.clock = clock
        self.isInterpolated = isInterpolated
    }

    /// The number of a window that begins at a reading of the clock.
    func steps(at reading: Double) -> Int {
        guard let next = times.firstIndex(where: { $0 > reading }) else {
            return accumulationSteps[accumulationSteps.count - 1]
        }
        guard next > 0 else { return accumulationSteps[0] }
        let (low, high) = (accumulationSteps[next - 1], accumulationSteps[next])
        guard isInterpolated else { return low }
        let share = (reading - times[next - 1]) / (times[next] - times[next - 1])
        return low + Int((share * Double(high - low)).rounded(.down))
    }

    /// Errors: `invalidArgument` for times that do not rise or a number outside of its range.
    func validate() throws(GAError) {
        guard !times.isEmpty && times.count == accumulationSteps.count else {
            throw GAError(
                .invalidArgument,
                "ramp: times has \(times.count) entries and accumulation_steps \(accumulationSteps.count): give as many of "
                    + "each, at least one")
        }
        for (index, (time, steps)) in zip(times, accumulationSteps).enumerated() {
            guard time.isFinite && time >= 0 && (index == 0 || time > times[index - 1]) else {
                throw GAError(
                    .invalidArgument, "ramp: times[\(index)] is \(time): times must be finite, at least 0, and rise")
            }
            guard AccumulationRamp.numbers.contains(steps) else {
                throw GAError(
                    .invalidArgument,
                    "ramp: accumulation_steps[\(index)] is \(steps): it must be in 1 ... "
                        + "\(AccumulationRamp.numbers.upperBound)")
            }
        }
    }

    /// Those whose differences a double holds exactly, so that a line between two of them stays between.
    private static let numbers = 1...(1 << 52)
}

/// Where the number of micro-batches in a window comes from.
enum StepsSetting {
    case constant(Int)
    case ramp(AccumulationRamp)
}
