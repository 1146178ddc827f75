/// How an optimizer turns gradients into an update: hyperparameters, state per parameter, and what is done to both.
///
/// The window, the division by its weight, clipping, and what happens to a window that is skipped are written once, in
/// ``Accumulator``. A rule that treats every element alone is an ``ElementwiseRule``, which takes less to write.
public protocol UpdateRule {
    /// The name that error sentences use.
    static var name: StaticString { get }

    var learningRate: Double { get set }

    /// The share of a parameter that is taken from it, or added to its gradient; 0 in a rule without.
    var weightDecay: Double { get set }

    /// Sets the weight decay of all parameters; a rule that has one for some of them alone says how.
    mutating func setWeightDecay(_ value: Double)

    /// The arrays that the rule keeps for a parameter: zeros at first, they live as long as the optimizer.
    func slots(ofParameter index: Int, shape: [Int]) -> [Slot]

    /// Numbers of float32 that an update of parameters of these shapes works in; 0 unless a rule says otherwise.
    ///
    /// They are there from the start, so that a step cannot run out of memory, and are not kept between updates.
    func workspace(shapes: [[Int]]) -> Int

    /// Whether ``Update/momentSteps`` has its effect, where the half-life of beta2 is to be in samples; false unless a rule
    /// says otherwise.
    var followsMomentSteps: Bool { get }

    /// Errors: `invalidArgument` for a hyperparameter outside of its range.
    func validate() throws(GAError)

    /// Updates the parameters and their slots; each gradient is multiplied by the scale first.
    ///
    /// What it has changed when it throws, stays changed. Results must not depend on the number of threads.
    func apply(_ update: Update) throws(GAError)
}

/// A rule that treats every element alone, with slots of the parameter's shape: one fused loop.
public protocol ElementwiseRule: UpdateRule {
    /// The names of its slots.
    var slotNames: [String] { get }

    /// The loop of an update; it multiplies the gradient by ``Update/gradientScale`` first.
    func step(_ update: Update) -> Step
}

/// One pass over `count` elements of a parameter from `start`: the gradient is read, the parameter and its slots are
/// updated. Pointers are those of the first element.
///
/// It is called for pieces of the parameters, from several threads at once, and makes no array and no object: see
/// ``Update/forEachPiece(_:)``.
public typealias Step = (
    _ parameter: UnsafeMutablePointer<Float>, _ gradient: UnsafePointer<Float>, _ slots: [UnsafeMutablePointer<Float>],
    _ start: Int, _ count: Int
) -> Void

extension ElementwiseRule {
    public func slots(ofParameter index: Int, shape: [Int]) -> [Slot] { slotNames.map { Slot($0, shape: shape) } }

    public func apply(_ update: Update) throws(GAError) {
        let step = step(update)
        // Made here, as pieces make no array.
        let slots = update.parameters.map { parameter in parameter.slots.indices.map { parameter.floats($0) } }
        try update.forEachPiece { index, range in
            let parameter = update.parameters[index]
            step(parameter.values, parameter.gradient, slots[index], range.lowerBound, range.count)
        }
    }
}

extension UpdateRule {
    public mutating func setWeightDecay(_ value: Double) { weightDecay = value }

    public func workspace(shapes: [[Int]]) -> Int { 0 }

    public var followsMomentSteps: Bool { false }

    /// Errors: `invalidArgument` unless the value is finite in float32 and in the range.
    public func require(_ value: Double, _ option: StaticString, in range: ClosedRange<Double>) throws(GAError) {
        guard Float(value).isFinite && range.contains(value) else {
            let upper =
                range.upperBound.isInfinite
                ? "and at least \(range.lowerBound)" : "in \(range.lowerBound) ... \(range.upperBound)"
            throw GAError(
                .invalidArgument, "\(Self.name): \(option) is \(value): it must be finite in float32 \(upper)")
        }
    }

    /// Errors: `invalidArgument` unless the learning rate is finite and at least 0.
    public func requireLearningRate() throws(GAError) {
        try require(learningRate, "learning_rate", in: 0...Double.infinity)
    }

    /// Errors: `invalidArgument` unless both are at least 0 and below 1.
    func requireBetas(_ beta1: Double, _ beta2: Double) throws(GAError) {
        try require(beta1, "beta1", in: 0...1.0.nextDown)
        try require(beta2, "beta2", in: 0...1.0.nextDown)
    }

    /// What a parameter is multiplied by before an update where weight decay is decoupled.
    func decoupledDecay(_ weightDecay: Double) -> Double { 1 - learningRate * weightDecay }

    /// Errors: `invalidArgument` if the weight decay, or its product with the learning rate, is out of its range.
    func requireDecoupledDecay(_ weightDecay: Double) throws(GAError) {
        try require(weightDecay, "weight_decay", in: 0...Double.infinity)
        guard Float(decoupledDecay(weightDecay)).isFinite else {
            throw GAError(
                .invalidArgument,
                "\(Self.name): learning_rate \(learningRate) times weight_decay \(weightDecay) is beyond float32")
        }
    }
}
