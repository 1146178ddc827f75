import CShims

/// Adam (Kingma and Ba, arXiv 1412.6980), as torch.optim.Adam: weight decay is added to the gradient.
public struct Adam: Sendable {
    public var learningRate: Double
    public var beta1: Double
    public var beta2: Double
    public var eps: Double
    public var weightDecay: Double

    public init(
        learningRate: Double = 1e-3, beta1: Double = 0.9, beta2: Double = 0.999, eps: Double = 1e-8,
        weightDecay: Double = 0
    ) {
        self.learningRate = learningRate
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.weightDecay = weightDecay
    }
}

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101), as torch.optim.AdamW: weight decay is decoupled.
public struct AdamW: Sendable {
    public var learningRate: Double
    public var beta1: Double
    public var beta2: Double
    public var eps: Double
    public var weightDecay: Double

    public init(
        learningRate: Double = 1e-3, beta1: Double = 0.9, beta2: Double = 0.999, eps: Double = 1e-8,
        weightDecay: Double = 1e-2
    ) {
        self.learningRate = learningRate
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.weightDecay = weightDecay
    }
}

/// What Adam and AdamW share: two moments with bias correction.
protocol AdamRule: UpdateRule {
    var beta1: Double { get }
    var beta2: Double { get }
    var eps: Double { get }
    var weightDecay: Double { get }
    /// What the parameter is multiplied by before the update.
    var decoupledDecay: Double { get }
    /// What times the parameter is added to the gradient.
    var l2Decay: Double { get }
}

extension AdamRule {
    /// The first and the second moment.
    var slotCount: Int { 2 }

    func validate() throws(GAError) {
        try requireLearningRate()
        try require(beta1, "beta1", in: 0...1.0.nextDown)
        try require(beta2, "beta2", in: 0...1.0.nextDown)
        try require(eps, "eps", in: 0...Double.infinity)
        try require(weightDecay, "weight_decay", in: 0...Double.infinity)
        guard Float(decoupledDecay).isFinite else {
            throw GAError(
                .invalidArgument,
                "\(Self.name): learning_rate \(learningRate) times weight_decay \(weightDecay) is beyond float32")
        }
    }

    func step(update: Int, gradientScale: Float) -> Step {
        let options = shims_adam(
            gradient_scale: gradientScale, beta2: Float(beta2), eps: Float(eps),
            step_size: Float(learningRate / (1 - power(beta1, update))),
            inverse_sqrt_correction2: Float(1 / (1 - power(beta2, update)).squareRoot()),
            weight1: Float(1 - beta1), weight2: Float(1 - beta2),
            decoupled_decay: Float(decoupledDecay), l2_decay: Float(l2Decay))
        return { parameter, gradient, slots, start, count in
            withUnsafePointer(to: options) {
                Runtime.kernels.adam(
                    parameter + start, gradient + start, slots[0] + start, slots[1] + start, $0, Int64(count))
            }
        }
    }
}

extension Adam: AdamRule {
    static let name: StaticString = "adam"
    var decoupledDecay: Double { 1 }
    var l2Decay: Double { weightDecay }
}

extension AdamW: AdamRule {
    static let name: StaticString = "adamw"
    var decoupledDecay: Double { 1 - learningRate * weightDecay }
    var l2Decay: Double { 0 }
}

/// base to the power of a positive count, by squaring.
private func power(_ base: Double, _ count: Int) -> Double {
    var (result, square, rest) = (1.0, base, count)
    while rest > 0 {
        if rest & 1 == 1 { result *= square }
        square *= square
        rest >>= 1
    }
    return result
}
