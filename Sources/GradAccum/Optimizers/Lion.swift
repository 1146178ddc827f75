import CShims

/// Lion (Chen et al., arXiv 2302.06675), as its authors' PyTorch version: the sign of a momentum is the direction.
public struct Lion: Sendable {
    public var learningRate: Double
    /// The share of the momentum in the direction of an update.
    public var beta1: Double
    /// The share of the momentum in the next momentum.
    public var beta2: Double
    /// Decoupled, as in AdamW.
    public var weightDecay: Double

    public init(learningRate: Double = 1e-4, beta1: Double = 0.9, beta2: Double = 0.99, weightDecay: Double = 0) {
        self.learningRate = learningRate
        self.beta1 = beta1
        self.beta2 = beta2
        self.weightDecay = weightDecay
    }
}

extension Lion: ElementwiseRule {
    public static var name: StaticString { "lion" }
    public var slotNames: [String] { ["exp_avg"] }

    public func validate() throws(GAError) {
        try requireLearningRate()
        try requireBetas(beta1, beta2)
        try requireDecoupledDecay(weightDecay)
    }

    public func step(_ update: Update) -> Step {
        let options = shims_lion(
            gradient_scale: update.gradientScale, learning_rate: Float(learningRate), weight1: Float(1 - beta1),
            weight2: Float(1 - beta2), decoupled_decay: Float(decoupledDecay(weightDecay)))
        return { parameter, gradient, slots, start, count in
            withUnsafePointer(to: options) {
                Runtime.kernels.lion(parameter + start, gradient + start, slots[0] + start, $0, Int64(count))
            }
        }
    }
}
