/// Rectified Adam (Liu et al., arXiv 1908.03265), as torch.optim.RAdam: as long as the second moment is made of few
/// gradients, its variance is too large to divide by, and a step is one of momentum.
public struct RAdam: Sendable {
    public var learningRate: Double
    public var beta1: Double
    public var beta2: Double
    public var eps: Double
    public var weightDecay: Double
    /// Whether weight decay is that of AdamW rather than added to the gradient.
    public var decoupledWeightDecay: Bool

    public init(
        learningRate: Double = 1e-3, beta1: Double = 0.9, beta2: Double = 0.999, eps: Double = 1e-8,
        weightDecay: Double = 0, decoupledWeightDecay: Bool = false
    ) {
        self.learningRate = learningRate
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.weightDecay = weightDecay
        self.decoupledWeightDecay = decoupledWeightDecay
    }
}

extension RAdam: ElementwiseRule {
    public static var name: StaticString { "radam" }
    public var slotNames: [String] { AdamMoments.slotNames }

    public func validate() throws(GAError) {
        try requireAdam(beta1, beta2, eps: eps, weightDecay: weightDecay, isDecoupled: decoupledWeightDecay)
    }

    public func step(_ update: Update) -> Step {
        let moments = AdamMoments(beta1, beta2, update)
        let rectification = rectification(update.number, moments)
        // eps is added to the root before the correction, which therefore goes into the length of the step.
        return adamStep(
            moments.options(
                gradientScale: update.gradientScale,
                stepSize: learningRate / moments.correction1
                    * (rectification.map { $0 * moments.correction2.squareRoot() } ?? 1),
                eps: eps, correctsRoot: false,
                decoupledDecay: decoupledWeightDecay ? decoupledDecay(weightDecay) : 1,
                l2Decay: decoupledWeightDecay ? 0 : weightDecay),
            alongMean: rectification == nil)
    }

    /// What a step of Adam is multiplied by, where beta2 is the same in all updates, or nil if the moving average is not long enough for one.
    private func rectification(_ number: Int, _ moments: AdamMoments) -> Double? {
        let longest = 2 / (1 - beta2) - 1
        let length = longest - 2 * Double(number) * (1 - moments.correction2) / moments.correction2
        guard length > 5 else { return nil }
        return ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)).squareRoot()
    }
}
