import CShims
import Glibc

/// Adam with Nesterov's momentum (Dozat, ICLR workshop 2016), as torch.optim.NAdam.
public struct NAdam: Sendable {
    public var learningRate: Double
    public var beta1: Double
    public var beta2: Double
    public var eps: Double
    public var weightDecay: Double
    /// How fast the momentum rises to beta1: update t has `beta1 * (1 - 0.96^(t * momentumDecay) / 2)`.
    public var momentumDecay: Double
    /// Whether weight decay is that of AdamW rather than added to the gradient.
    public var decoupledWeightDecay: Bool

    public init(
        learningRate: Double = 2e-3, beta1: Double = 0.9, beta2: Double = 0.999, eps: Double = 1e-8,
        weightDecay: Double = 0, momentumDecay: Double = 4e-3, decoupledWeightDecay: Bool = false
    ) {
        self.learningRate = learningRate
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.weightDecay = weightDecay
        self.momentumDecay = momentumDecay
        self.decoupledWeightDecay = decoupledWeightDecay
    }
}

extension NAdam: ElementwiseRule {
    public static var name: StaticString { "nadam" }
    public var slotNames: [String] { AdamMoments.slotNames }
    public var followsMomentSteps: Bool { true }

    public func validate() throws(GAError) {
        try requireAdam(beta1, beta2, eps: eps, weightDecay: weightDecay, isDecoupled: decoupledWeightDecay)
        try require(momentumDecay, "momentum_decay", in: 0...Double.infinity)
    }

    public func step(_ update: Update) -> Step {
        let number = update.number
        let product = momentumProduct(number)
        let next = momentum(number + 1)
        var options = AdamMoments(beta1, beta2, update).options(
            gradientScale: update.gradientScale, stepSize: learningRate * next / (1 - product * next), eps: eps,
            decoupledDecay: decoupledWeightDecay ? decoupledDecay(weightDecay) : 1,
            l2Decay: decoupledWeightDecay ? 0 : weightDecay)
        options.gradient_step_size = Float(learningRate * (1 - momentum(number)) / (1 - product))
        return { [options] parameter, gradient, slots, start, count in
            withUnsafePointer(to: options) {
                Runtime.kernels.nadam(
                    parameter + start, gradient + start, slots[0] + start, slots[1] + start, $0, Int64(count))
            }
        }
    }

    private func momentum(_ number: Int) -> Double { beta1 * (1 - 0.5 * pow(0.96, Double(number) * momentumDecay)) }

    /// The product of the momenta up to an update: a function of its number rather than state.
    private func momentumProduct(_ number: Int) -> Double {
        var product = 1.0
        for update in 1...number {
            let momentum = momentum(update)
            // It has risen to beta1, for good.
            if momentum == beta1 { return product * power(beta1, number - update + 1) }
            product *= momentum
            // Taken from 1, it shows no more.
            if product < 0x1p-60 { break }
        }
        return product
    }
}
