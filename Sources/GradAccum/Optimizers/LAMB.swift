import CShims

/// Layer-wise adaptive moments (You et al., arXiv 1904.00962, algorithm 2): the direction of AdamW, with a step that is as
/// long as a fixed share of the parameter's own length.
public struct LAMB: Sendable {
    /// That share.
    public var learningRate: Double
    public var beta1: Double
    public var beta2: Double
    public var eps: Double
    /// Times the parameter is added to the direction.
    public var weightDecay: Double

    public init(
        learningRate: Double = 1e-3, beta1: Double = 0.9, beta2: Double = 0.999, eps: Double = 1e-6,
        weightDecay: Double = 1e-2
    ) {
        self.learningRate = learningRate
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.weightDecay = weightDecay
    }
}

extension LAMB: UpdateRule {
    public static var name: StaticString { "lamb" }
    public var followsMomentSteps: Bool { true }

    public func slots(ofParameter index: Int, shape: [Int]) -> [Slot] {
        AdamMoments.slotNames.map { Slot($0, shape: shape) }
    }

    public func validate() throws(GAError) {
        try requireAdam(beta1, beta2, eps: eps, weightDecay: weightDecay, isDecoupled: false)
    }

    public func apply(_ update: Update) throws(GAError) { try update.forEachPart(applyPart) }

    /// In two passes: the moments with the lengths of parameter and direction, and the step, which makes the direction
    /// from the moments again rather than have it stored and read.
    private func applyPart(_ update: Update) throws(GAError) {
        let moments = AdamMoments(beta1, beta2, update)
        let options = shims_lamb(
            gradient_scale: update.gradientScale, beta2: Float(moments.beta2), eps: Float(eps),
            weight1: Float(1 - beta1),
            weight2: Float(moments.weight2), inverse_correction1: Float(1 / moments.correction1),
            inverse_sqrt_correction2: Float(1 / moments.correction2.squareRoot()), weight_decay: Float(weightDecay))
        let squares = try update.sums { index, range in
            let (parameter, start) = (update.parameters[index], range.lowerBound)
            var squares = shims_squares()
            withUnsafePointer(to: options) {
                Runtime.kernels.lamb_moments(
                    parameter.values + start, parameter.gradient + start, parameter.floats(0) + start,
                    parameter.floats(1) + start, $0, Int64(range.count), &squares)
            }
            return [squares.parameter, squares.direction]
        }
        let steps = squares.map { squares in
            // As the authors have it: 1 where there is no length to compare.
            let trustRatio = squares.min() > 0 ? (squares[0] / squares[1]).squareRoot() : 1
            return finite(learningRate * trustRatio)
        }
        try update.forEachPiece { index, range in
            let (parameter, start) = (update.parameters[index], range.lowerBound)
            withUnsafePointer(to: options) {
                Runtime.kernels.lamb_step(
                    parameter.values + start, parameter.floats(0) + start, parameter.floats(1) + start, $0,
                    steps[index], Int64(range.count))
            }
        }
    }
}
