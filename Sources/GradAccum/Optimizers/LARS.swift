import CShims

/// Layer-wise adaptive rate scaling (You et al., arXiv 1708.03888): momentum, with a rate per parameter that makes its
/// update as long as a fixed share of its own length.
public struct LARS: Sendable {
    /// Times the trust coefficient it is that share.
    public var learningRate: Double
    public var momentum: Double
    /// Times the parameter is added to the gradient.
    public var weightDecay: Double
    public var trustCoefficient: Double

    public init(
        learningRate: Double = 1, momentum: Double = 0.9, weightDecay: Double = 5e-4, trustCoefficient: Double = 1e-3
    ) {
        self.learningRate = learningRate
        self.momentum = momentum
        self.weightDecay = weightDecay
        self.trustCoefficient = trustCoefficient
    }
}

extension LARS: UpdateRule {
    public static var name: StaticString { "lars" }

    public func slots(ofParameter index: Int, shape: [Int]) -> [Slot] {
        momentum == 0 ? [] : [Slot("momentum_buffer", shape: shape)]
    }

    public func validate() throws(GAError) {
        try requireLearningRate()
        try require(momentum, "momentum", in: 0...Double.infinity)
        try require(weightDecay, "weight_decay", in: 0...Double.infinity)
        try require(trustCoefficient, "trust_coefficient", in: 0...Double.infinity)
    }

    public func apply(_ update: Update) throws(GAError) { try update.forEachPart(applyPart) }

    /// In two passes: the lengths of parameter and gradient, and the update.
    private func applyPart(_ update: Update) throws(GAError) {
        let squares = try update.sums { index, range in
            let (parameter, start) = (update.parameters[index], range.lowerBound)
            return [
                Runtime.kernels.sum_of_squares(parameter.values + start, Int64(range.count)),
                Runtime.kernels.sum_of_squares(parameter.gradient + start, Int64(range.count)),
            ]
        }
        let options = squares.map { squares in
            shims_sgd(
                gradient_scale: update.gradientScale, learning_rate: 1, momentum: Float(momentum),
                weight_decay: Float(weightDecay),
                rate: rate(squares[0].squareRoot(), Double(update.gradientScale) * squares[1].squareRoot()),
                nesterov: 0, first_update: update.number == 1 ? 1 : 0)
        }
        try update.forEachPiece { index, range in
            let (parameter, start) = (update.parameters[index], range.lowerBound)
            withUnsafePointer(to: options[index]) {
                Runtime.kernels.sgd(
                    parameter.values + start, parameter.gradient + start,
                    parameter.slots.isEmpty ? nil : parameter.floats(0) + start, $0, Int64(range.count))
            }
        }
    }

    /// What the gradient with its decay is multiplied by on its way into the momentum.
    private func rate(_ length: Double, _ gradientLength: Double) -> Float {
        guard length > 0 && gradientLength > 0 else { return Float(learningRate) }
        return finite(learningRate * trustCoefficient * length / (gradientLength + weightDecay * length))
    }
}

/// The nearest finite number in float32.
func finite(_ value: Double) -> Float {
    Float(min(value, Double(Float.greatestFiniteMagnitude)))
}
