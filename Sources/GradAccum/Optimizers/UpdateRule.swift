/// How an optimizer turns a gradient into an update: hyperparameters, state per parameter, and one fused loop.
///
/// The window, the division by its weight, clipping and the loop over parameters are written once, in ``Accumulator``.
protocol UpdateRule {
    /// The name that error sentences use.
    static var name: StaticString { get }

    var learningRate: Double { get set }

    /// Arrays of the parameter's size that start as zeros and live as long as the optimizer.
    var slotCount: Int { get }

    /// Errors: `invalidArgument` for a hyperparameter outside of its range.
    func validate() throws(GAError)

    /// The loop of update number `update`, which counts from 1; the gradient is multiplied by `gradientScale` first.
    func step(update: Int, gradientScale: Float) -> Step
}

/// One pass over `count` elements of a parameter from `start`: the gradient is read, the parameter and its slots are
/// updated. Pointers are those of the first element.
typealias Step = (
    _ parameter: UnsafeMutablePointer<Float>, _ gradient: UnsafePointer<Float>, _ slots: [UnsafeMutablePointer<Float>],
    _ start: Int, _ count: Int
) -> Void

extension UpdateRule {
    /// Errors: `invalidArgument` unless the value is finite and in the range.
    func require(_ value: Double, _ option: StaticString, in range: ClosedRange<Double>) throws(GAError) {
        guard Float(value).isFinite && range.contains(value) else {
            let upper =
                range.upperBound.isInfinite
                ? "and at least \(range.lowerBound)" : "in \(range.lowerBound) ... \(range.upperBound)"
            throw GAError(
                .invalidArgument, "\(Self.name): \(option) is \(value): it must be finite in float32 \(upper)")
        }
    }

    func requireLearningRate() throws(GAError) {
        try require(learningRate, "learning_rate", in: 0...Double.infinity)
    }
}
