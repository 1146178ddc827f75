import CShims
import Glibc

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

extension Adam: ElementwiseRule {
    public static var name: StaticString { "adam" }
    public var slotNames: [String] { AdamMoments.slotNames }
    public var followsMomentSteps: Bool { true }

    public func validate() throws(GAError) {
        try requireAdam(beta1, beta2, eps: eps, weightDecay: weightDecay, isDecoupled: false)
    }

    public func step(_ update: Update) -> Step { adamStep(options(update)) }

    func options(_ update: Update) -> shims_adam {
        let moments = AdamMoments(beta1, beta2, update)
        return moments.options(
            gradientScale: update.gradientScale, stepSize: learningRate / moments.correction1, eps: eps,
            l2Decay: weightDecay)
    }
}

extension AdamW: ElementwiseRule {
    public static var name: StaticString { "adamw" }
    public var slotNames: [String] { AdamMoments.slotNames }
    public var followsMomentSteps: Bool { true }

    public func validate() throws(GAError) {
        try requireAdam(beta1, beta2, eps: eps, weightDecay: weightDecay, isDecoupled: true)
    }

    public func step(_ update: Update) -> Step { adamStep(options(update)) }

    func options(_ update: Update) -> shims_adam {
        let moments = AdamMoments(beta1, beta2, update)
        return moments.options(
            gradientScale: update.gradientScale, stepSize: learningRate / moments.correction1, eps: eps,
            decoupledDecay: decoupledDecay(weightDecay))
    }
}

/// What all rules with Adam's moments share: the running means of the gradient and of its square, which start at 0 and
/// are corrected for that.
struct AdamMoments {
    static let slotNames = ["exp_avg", "exp_avg_sq"]

    let beta1: Double
    /// Of this update.
    let beta2: Double
    /// 1 - beta2
    let weight2: Double
    /// What the moments are divided by: 1 minus the product of the betas of all updates.
    let correction1: Double
    let correction2: Double

    init(_ beta1: Double, _ beta2: Double, _ update: Update) {
        self.beta1 = beta1
        correction1 = 1 - power(beta1, update.number)
        if update.momentSteps == 1 {
            self.beta2 = beta2
            weight2 = 1 - beta2
        } else {
            self.beta2 = pow(beta2, update.momentSteps)
            weight2 = -expm1(update.momentSteps * log(beta2))
        }
        let isWhole = update.momentTime == Double(update.number)
        correction2 = isWhole ? 1 - power(beta2, update.number) : -expm1(update.momentTime * log(beta2))
    }

    /// A step of `stepSize * m / (sqrt(v / correction2) + eps)`, or without that correction.
    func options(
        gradientScale: Float, stepSize: Double, eps: Double, correctsRoot: Bool = true, decoupledDecay: Double = 1,
        l2Decay: Double = 0
    ) -> shims_adam {
        shims_adam(
            gradient_scale: gradientScale, beta2: Float(beta2), eps: Float(eps), step_size: Float(stepSize),
            gradient_step_size: 0, inverse_sqrt_correction2: correctsRoot ? Float(1 / correction2.squareRoot()) : 1,
            weight1: Float(1 - beta1), weight2: Float(weight2), decoupled_decay: Float(decoupledDecay),
            l2_decay: Float(l2Decay))
    }
}

/// A step of Adam, or one with its moments that is made along the mean alone.
func adamStep(_ options: shims_adam, alongMean isAlongMean: Bool = false) -> Step {
    let kernel = isAlongMean ? Runtime.kernels.adam_mean : Runtime.kernels.adam
    return { parameter, gradient, slots, start, count in
        withUnsafePointer(to: options) {
            kernel(parameter + start, gradient + start, slots[0] + start, slots[1] + start, $0, Int64(count))
        }
    }
}

extension UpdateRule {
    /// The hyperparameters of a rule with Adam's moments.
    func requireAdam(
        _ beta1: Double, _ beta2: Double, eps: Double, weightDecay: Double, isDecoupled: Bool
    ) throws(GAError) {
        try requireLearningRate()
        try requireBetas(beta1, beta2)
        try requireEps(eps, "eps")
        if isDecoupled {
            try requireDecoupledDecay(weightDecay)
        } else {
            try require(weightDecay, "weight_decay", in: 0...Double.infinity)
        }
    }

    /// What is added to the root of a second moment. Errors: `invalidArgument` also for a denormal: it would count as 0, and
    /// make NaN of a parameter whose gradients were 0.
    func requireEps(_ eps: Double, _ option: StaticString) throws(GAError) {
        try require(eps, option, in: 0...Double.infinity)
        guard eps == 0 || Float(eps).isNormal else {
            throw GAError(
                .invalidArgument,
                "\(Self.name): \(option) is \(eps), a denormal in float32, which counts as 0: it must be 0, or at least "
                    + "\(Float.leastNormalMagnitude)")
        }
    }
}

/// base to the power of a count, by squaring.
func power(_ base: Double, _ count: Int) -> Double {
    var (result, square, rest) = (1.0, base, count)
    while rest > 0 {
        if rest & 1 == 1 { result *= square }
        square *= square
        rest >>= 1
    }
    return result
}
