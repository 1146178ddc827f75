import CShims

/// Stochastic gradient descent with momentum (Polyak; Nesterov as in Sutskever et al., ICML 2013), as torch.optim.SGD.
public struct SGD: Sendable {
    public var learningRate: Double
    public var momentum: Double
    /// Times the parameter is added to the gradient.
    public var weightDecay: Double
    public var nesterov: Bool

    public init(learningRate: Double = 1e-3, momentum: Double = 0, weightDecay: Double = 0, nesterov: Bool = false) {
        self.learningRate = learningRate
        self.momentum = momentum
        self.weightDecay = weightDecay
        self.nesterov = nesterov
    }
}

extension SGD: ElementwiseRule {
    public static var name: StaticString { "sgd" }

    public var slotNames: [String] { momentum == 0 ? [] : ["momentum_buffer"] }

    public func validate() throws(GAError) {
        try requireLearningRate()
        try require(momentum, "momentum", in: 0...Double.infinity)
        try require(weightDecay, "weight_decay", in: 0...Double.infinity)
        guard !nesterov || momentum > 0 else {
            throw GAError(.invalidArgument, "sgd: nesterov needs a momentum above 0")
        }
    }

    public func step(_ update: Update) -> Step {
        let options = shims_sgd(
            gradient_scale: update.gradientScale, learning_rate: Float(learningRate), momentum: Float(momentum),
            weight_decay: Float(weightDecay), rate: 1, nesterov: nesterov ? 1 : 0,
            first_update: update.number == 1 ? 1 : 0)
        return { parameter, gradient, slots, start, count in
            withUnsafePointer(to: options) {
                Runtime.kernels.sgd(
                    parameter + start, gradient + start, slots.first.map { $0 + start }, $0, Int64(count))
            }
        }
    }
}
